"""Credentials that are given for one run: read whole, and shown to one registry only."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess

import pytest

from msb_pull.ground.errors import UsageError
from msb_pull.source.login.credentials import CredentialStore, check_given
from tests.conftest import program, program_environment
from tests.support.fault_auth import basic, require_basic
from tests.support.fault_registry import FaultRegistry
from tests.support.imagebuild import archive_bytes, regular
from tests.support.program import run_program

USER = {"MSB_REGISTRY_USERNAME": "bob", "MSB_REGISTRY_PASSWORD": "sesame"}
TOKEN = {"MSB_REGISTRY_TOKEN": "sesame-token"}
LINUX = ("--platform", "linux/amd64")


@pytest.fixture
def pair():
    """Two registries with an image each."""
    with FaultRegistry() as one, FaultRegistry() as two:
        for registry in (one, two):
            registry.add_image("acme/app", "1", [])
        yield one, two


def pull(*words: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    environment = program_environment(**environment)
    return run_program(["pull", "-n", *LINUX, *words], input=stdin, env=environment, text=False)


def images(*registries: FaultRegistry) -> list[str]:
    return [f"{registry.host}/acme/app:1" for registry in registries]


def shown(registry: FaultRegistry) -> set[str]:
    """Every Authorization that a registry has seen."""
    return {x.headers["authorization"] for x in registry.requests if "authorization" in x.headers}


@pytest.mark.parametrize("given", [USER, TOKEN, {"MSB_REGISTRY_PASSWORD": "sesame"}, {}])
def test_images_of_two_registries_are_refused_before_anything_is_asked(pair, given):
    words = [] if given else ["--creds-stdin"]
    done = pull(*words, *images(*pair), stdin=b"bob:sesame\n", **given)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"for one registry" in done.stderr and b"MSB_REGISTRY_HOST" in done.stderr
    assert done.stderr.count(b"error:") == 1 and b"sesame" not in done.stderr
    assert [registry.count() for registry in pair] == [0, 0]


@pytest.mark.parametrize("words", [[], ["--creds-stdin"]])
def test_a_named_registry_sees_them_and_the_other_does_not(pair, words):
    one, two = pair
    require_basic(one, {"bob": "sesame"})
    require_basic(two, {"eve": "other"})
    given = {} if words else USER
    done = pull(*words, *images(one, two), stdin=b"bob:sesame\n", MSB_REGISTRY_HOST=one.host, **given)
    assert done.returncode == 4
    assert shown(one) == {basic("bob", "sesame")} and shown(two) == set()


def test_files_answer_for_the_registries_that_are_not_named(pair, clean_environment):
    one, two = pair
    require_basic(one, {"bob": "sesame"})
    require_basic(two, {"eve": "other"})
    auth = base64.b64encode(b"eve:other").decode()
    (clean_environment / ".docker").mkdir()
    (clean_environment / ".docker/config.json").write_text(json.dumps({"auths": {two.host: {"auth": auth}}}))
    assert pull(*images(one, two), MSB_REGISTRY_HOST=f"https://{one.host}/", **USER).returncode == 0
    assert shown(one) == {basic("bob", "sesame")} and shown(two) == {basic("eve", "other")}


def test_anonymous_pulls_ask_several_registries_whatever_is_set(pair):
    assert pull("--anonymous", *images(*pair), **USER).returncode == 0
    assert shown(pair[0]) | shown(pair[1]) == set()


def test_several_images_of_one_registry_need_no_name(pair):
    require_basic(pair[0], {"bob": "sesame"})
    assert pull(*images(pair[0], pair[0]), **USER).returncode == 0


def test_one_image_of_another_registry_than_the_named_one(pair):
    """The name decides, also where only one registry is asked."""
    require_basic(pair[0], {"bob": "sesame"})
    assert pull(*images(pair[0]), MSB_REGISTRY_HOST=pair[1].host, **USER).returncode == 4
    assert shown(pair[0]) == set()


def test_a_mirror_never_sees_them_even_where_it_is_asked_first(pair, clean_environment):
    one, mirror = pair
    require_basic(one, {"bob": "sesame"})
    require_basic(mirror, {"bob": "sesame"})
    config = clean_environment / "config.toml"
    config.write_text(f'[registries."{one.host}"]\nmirrors = ["{mirror.url}"]\n')
    assert pull("--config", str(config), *images(one), **USER).returncode == 0
    assert mirror.count() > 0 and shown(mirror) == set()


@pytest.mark.parametrize("named", ["ghcr.io/acme", "https://", " ", "a\nb"])
def test_a_name_that_is_no_host_is_refused(named):
    with pytest.raises(UsageError, match="is not a host"):
        check_given({"ghcr.io"}, {**USER, "MSB_REGISTRY_HOST": named}, stdin=False)


@pytest.mark.parametrize(
    ("named", "registry"),
    [("ghcr.io:443", "ghcr.io"), ("https://index.docker.io/v1/", "docker.io"), ("docker.io", "docker.io")],
)
def test_a_registry_may_be_named_in_any_of_its_spellings(named, registry):
    store = CredentialStore(environment={**USER, "MSB_REGISTRY_HOST": named, "HOME": "/nowhere"})
    found = store.find(registry, "acme/app")
    assert found is not None and found.username == "bob"
    assert store.find("quay.io", "acme/app") is None


def test_standard_input_for_a_registry_that_nothing_comes_from_is_told(pair):
    done = pull("--creds-stdin", *images(pair[0]), stdin=b"bob:sesame", MSB_REGISTRY_HOST="ghcr.io")
    assert done.returncode == 2 and b"MSB_REGISTRY_HOST names ghcr.io" in done.stderr


# What standard input holds


KEY = json.dumps({"type": "service_account", "private_key": "-----BEGIN\nabc\n-----END\n"}, indent=2)


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_password_of_several_lines_is_read_whole(pair, ending):
    require_basic(pair[0], {"_json_key": KEY})
    done = pull("--creds-stdin", *images(pair[0]), stdin=f"_json_key:{KEY}{ending}".encode())
    assert done.returncode == 0, done.stderr


def test_only_one_line_end_is_taken_off(pair):
    require_basic(pair[0], {"bob": "sesame\n"})
    assert pull("--creds-stdin", *images(pair[0]), stdin=b"bob:sesame\n\n").returncode == 0


def test_a_password_that_is_no_utf8_is_sent_as_it_is(pair):
    assert pull("--creds-stdin", *images(pair[0]), stdin=b"bob:s\xe9same\n").returncode == 0
    require_basic(pair[0], {"nobody": ""})
    assert pull("--creds-stdin", *images(pair[0]), stdin=b"bob:s\xe9same\n").returncode == 4
    assert shown(pair[0]) == {"Basic " + base64.b64encode(b"bob:s\xe9same").decode()}


@pytest.mark.parametrize("text", [b"", b"\n", b"bob\nx:y", b":secret", b"a" * (1 << 20) + b":b"])
def test_what_cannot_be_credentials_is_not_repeated(pair, text):
    done = pull("--creds-stdin", *images(pair[0]), stdin=text)
    assert done.returncode == 2 and b"standard input" in done.stderr
    assert b"secret" not in done.stderr and len(done.stderr) < 300 and pair[0].count() == 0


def test_a_repair_of_images_of_two_registries_shows_them_to_none(pair, clean_environment):
    layer = gzip.compress(archive_bytes([regular("file", b"1")]), mtime=0)
    for number, registry in enumerate(pair):
        other = gzip.compress(archive_bytes([regular("own", bytes([number]))]), mtime=0)
        registry.add_image("acme/app", "1", [layer, other])
    environment = program_environment()
    for image in images(*pair):
        subprocess.run(
            [*program(), "pull", *LINUX, image], env=environment, check=True, capture_output=True, timeout=60
        )
    for registry in pair:
        registry.forget()
    for path in (clean_environment / "microsandbox/layers").glob("*.extracted/own"):
        path.write_bytes(b"changed")
    verify = [*program(), "verify", "--repair"]
    refused = subprocess.run(verify, env=environment | USER, capture_output=True, timeout=60)
    assert refused.returncode == 6 and b"MSB_REGISTRY_HOST" in refused.stderr
    assert [registry.count() for registry in pair] == [0, 0]
    named = environment | USER | {"MSB_REGISTRY_HOST": pair[0].host}
    require_basic(pair[0], {"bob": "sesame"})
    assert subprocess.run(verify, env=named, capture_output=True, timeout=60).returncode == 0
    assert shown(pair[0]) == {basic("bob", "sesame")} and shown(pair[1]) == set()
