"""The installed program against real registries, with every place where people keep a login.

docker-registry runs four times for all tests of this file: with passwords, with a token service, with TLS from an own
authority, and as a pull-through mirror. The right login pulls; a wrong one and none end with exit code 4 and the hint.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import trustme

from tests.conftest import need, program_environment
from tests.support.fault_auth import errors
from tests.support.fault_registry import AddedImage, Fault, FaultRegistry, Recorded
from tests.support.make_sample import TOP, file, layer_tar
from tests.support.program import run_program
from tests.support.servers import PASSWORD, PROGRAM, USER, RealRegistry, TokenServer
from tests.support.treecompare import describe, differences

LINUX = ("--platform", "linux/amd64")
IMAGE = "acme/private/app"
WRONG = "not-sesame"
IDENTITY = "identity-of-bob"


class IdentityServer(TokenServer):
    """Also takes an identity token, as the token services of large registries do (POST, refresh_token)."""

    def _answer(self, request: Recorded) -> Fault:
        if request.method != "POST":
            return super()._answer(request)
        form = parse_qs(request.body.decode())
        if form.get("grant_type") != ["refresh_token"] or form.get("refresh_token") != [IDENTITY]:
            return Fault(status=401, body=errors("UNAUTHORIZED", "unknown token"))
        return Fault(status=200, body=json.dumps({"access_token": self.for_image(), "expires_in": 300}).encode())

    def for_image(self) -> str:
        """A token as somebody could have been given it."""
        return self._sign([{"type": "repository", "name": IMAGE, "actions": ["pull"]}])


@dataclass
class Site:
    """A guarded registry. ``config`` is what msb-pull must be told about it; ``hosts`` all that want the login."""

    host: str
    config: str = ""
    hosts: tuple[str, ...] = ()
    mirror: RealRegistry | None = None


@dataclass
class Sites:
    """All of them, and the image that they serve."""

    image: AddedImage
    tokens: IdentityServer
    by_name: Mapping[str, Site]


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    need(PROGRAM)
    place = tmp_path_factory.mktemp("sites")
    storage = place / "storage"
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(place / "crt")
    leaf.private_key_pem.write_to_path(place / "key")
    authority.cert_pem.write_to_path(place / "ca.pem")
    with FaultRegistry() as server, RealRegistry(storage) as plain:
        layers = [layer_tar([*TOP, file("app/noise", os.urandom(20_000))])]
        image = plain.push(IMAGE, "1", [gzip.compress(x, 6, mtime=0) for x in layers])
        tokens = IdentityServer(server, users={USER: PASSWORD})
        with (
            RealRegistry(storage, htpasswd=True) as passwords,
            RealRegistry(storage, tokens=tokens) as with_tokens,
            RealRegistry(storage, htpasswd=True, tls=(place / "crt", place / "key")) as tls,
            RealRegistry(place / "cache", htpasswd=True, upstream=plain.url) as mirror,
            RealRegistry(storage, htpasswd=True) as origin,
        ):
            trust = f'[registries."{tls.host}"]\nca_cert = "{place / "ca.pem"}"\n'
            mirrors = f'[registries."{origin.host}"]\nmirrors = ["{mirror.url}"]\n'
            yield Sites(
                image,
                tokens,
                {
                    "passwords": Site(passwords.host, hosts=(passwords.host,)),
                    "tokens": Site(with_tokens.host, hosts=(with_tokens.host,)),
                    "tls": Site(tls.host, trust, (tls.host,)),
                    "mirror": Site(origin.host, mirrors, (origin.host, mirror.host), mirror),
                },
            )


@dataclass
class Login:
    """What a user has: files below the home folder, variables, options, standard input."""

    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    stdin: str = ""
    # What is given for one pull is for the registry that the image names, and never for a mirror.
    one_host: bool = False


KINDS: dict[str, Callable[[Site, str], Login]] = {}


def kind(make: Callable[[Site, str], Login]) -> Callable[[Site, str], Login]:
    KINDS[make.__name__] = make
    return make


def entry(password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}


def auths(keys: Sequence[str], password: str) -> str:
    return json.dumps({"auths": {key: entry(password) for key in keys}})


def helper(password: str) -> str:
    answer = json.dumps({"ServerURL": "x", "Username": USER, "Secret": password})
    return f"#!/bin/sh\n[ \"$1\" = get ] || exit 2\ncat >/dev/null\necho '{answer}'\n"


@kind
def docker_login(site, password):
    return Login({".docker/config.json": auths(site.hosts, password)})


@kind
def docker_login_with_old_keys(site, password):
    return Login({".docker/config.json": auths([f"https://{x}/v1/" for x in site.hosts], password)})


@kind
def docker_config_with_name_and_password(site, password):
    plain = {"username": USER, "password": password}
    return Login({".docker/config.json": json.dumps({"auths": dict.fromkeys(site.hosts, plain)})})


@kind
def docker_config_elsewhere(site, password):
    return Login({"other/config.json": auths(site.hosts, password)}, {"DOCKER_CONFIG": "{home}/other"})


@kind
def docker_credential_helper(site, password):
    config = {"credHelpers": dict.fromkeys(site.hosts, "test")}
    return Login({".docker/config.json": json.dumps(config), "bin/docker-credential-test": helper(password)})


@kind
def docker_credential_store(site, password):
    """With the empty entries that docker login leaves beside a store."""
    config = {"auths": {x: {} for x in site.hosts}, "credsStore": "test"}
    return Login({".docker/config.json": json.dumps(config), "bin/docker-credential-test": helper(password)})


@kind
def oldest_docker_file(site, password):
    return Login({".dockercfg": json.dumps({x: entry(password) for x in site.hosts})})


@kind
def podman_login(site, password):
    return Login({"run/containers/auth.json": auths(site.hosts, password)}, {"XDG_RUNTIME_DIR": "{home}/run"})


@kind
def podman_login_that_lasts(site, password):
    return Login({".config/containers/auth.json": auths(site.hosts, password)})


@kind
def podman_login_for_a_part_of_the_registry(site, password):
    right = {f"{x}/acme/private": entry(password) for x in site.hosts}
    other = {x: entry("of somebody else") for x in site.hosts} | {f"{x}/acme/other": entry("x") for x in site.hosts}
    return Login({".config/containers/auth.json": json.dumps({"auths": right | other})})


@kind
def podman_first_then_docker(site, password):
    """A file without an entry for the registry passes the question on."""
    files = {
        ".config/containers/auth.json": auths(["quay.io"], "x"),
        ".docker/config.json": auths(site.hosts, password),
    }
    return Login(files)


@kind
def file_from_the_environment(site, password):
    return Login({"my.json": auths(site.hosts, password)}, {"REGISTRY_AUTH_FILE": "{home}/my.json"})


@kind
def file_from_an_option(site, password):
    return Login({"my.json": auths(site.hosts, password)}, arguments=("--authfile", "{home}/my.json"))


@kind
def variables(site, password):
    environment = {"MSB_REGISTRY_USERNAME": USER, "MSB_REGISTRY_PASSWORD": password}
    return Login(environment=environment, one_host=True)


@kind
def standard_input(site, password):
    return Login(arguments=("--creds-stdin",), stdin=f"{USER}:{password}\n", one_host=True)


def pull(place: Path, site: Site, login: Login, *arguments: str) -> subprocess.CompletedProcess:
    home = place / "user"
    for name, text in {**login.files, "msb.toml": f"[pull]\nretries = 1\n{site.config}"}.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o700 if "docker-credential-" in name else 0o600)
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "no"), "PATH": f"{home}/bin:{os.environ['PATH']}"}
    environment |= {name: value.format(home=home) for name, value in login.environment.items()}
    given = [x.format(home=home) for x in login.arguments]
    words = ["pull", *LINUX, "--config", home / "msb.toml", "--home", place / "store", *given, *arguments]
    environment = program_environment(**environment)
    return run_program([*words, f"{site.host}/{IMAGE}:1"], env=environment, input=login.stdin)


NAMES = ("passwords", "tokens", "tls", "mirror")
each_site = pytest.mark.parametrize("where", NAMES)
each_kind = pytest.mark.parametrize("how", KINDS)


def from_mirror(site: Site, image: AddedImage) -> int:
    """How many layers the mirror has delivered so far."""
    lines = site.mirror.log().splitlines() if site.mirror else []
    return sum(image.layer_digests[0] in x and "http.response.status=200" in x for x in lines)


@each_site
@each_kind
def test_the_right_login_pulls(sites, tmp_path, where, how):
    site = sites.by_name[where]
    login = KINDS[how](site, PASSWORD)
    before = from_mirror(site, sites.image)
    run = pull(tmp_path, site, login)
    assert (run.returncode, run.stdout) == (0, f"{site.host}/{IMAGE}:1@{sites.image.manifest_digest}\n"), run.stderr
    assert (tmp_path / "store/layers" / f"{sites.image.layer_digests[0]}.extracted" / "app" / "main.py").is_file()
    if site.mirror:
        assert (from_mirror(site, sites.image) > before) is not login.one_host, site.mirror.log()[-1000:]
        assert ("continuing without it" in run.stderr) is login.one_host
    else:
        assert "warning" not in run.stderr


@each_site
@each_kind
def test_a_wrong_login_is_refused_with_the_hint(sites, tmp_path, where, how):
    site = sites.by_name[where]
    refused(pull(tmp_path, site, KINDS[how](site, WRONG)), site, "log in again with")
    assert not list(tmp_path.glob("store/layers/*.extracted"))


@each_site
def test_no_login_is_refused_with_the_hint(sites, tmp_path, where):
    site = sites.by_name[where]
    refused(pull(tmp_path, site, Login()), site, "log in with")
    # One for another registry is none, and --anonymous leaves the right one alone.
    other = Site("other.example", hosts=("other.example",))
    refused(pull(tmp_path, site, KINDS["docker_login"](other, PASSWORD)), site, "log in with")
    refused(pull(tmp_path, site, KINDS["docker_login"](site, PASSWORD), "--anonymous"), site, "log in with")


def refused(run: subprocess.CompletedProcess, site: Site, hint: str) -> None:
    assert (run.returncode, run.stdout) == (4, ""), run.stderr
    (told,) = [x.strip() for x in run.stderr.splitlines() if x.strip().startswith("hint: ")]
    assert f"{hint} `docker login {site.host}`" in told, told
    assert f"error: {site.host}/{IMAGE}:1: access denied\n" in run.stderr
    assert "401 UNAUTHORIZED" in run.stderr or f"authentication required for {site.host}" in run.stderr
    assert PASSWORD not in run.stderr and WRONG not in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize("given", [IDENTITY, "another"])
def test_identity_tokens(sites, tmp_path, given):
    """What docker login stores for registries that hand out an identity token instead of keeping a password."""
    site = sites.by_name["tokens"]
    config = {"auths": {site.host: {"identitytoken": given}}}
    run = pull(tmp_path, site, Login({".docker/config.json": json.dumps(config)}))
    if given == IDENTITY:
        assert run.returncode == 0, run.stderr
    else:
        refused(run, site, "log in again with")


@pytest.mark.parametrize("given", ["good", "signed by nobody"])
@pytest.mark.parametrize("place", ["variable", "file"])
def test_tokens_for_the_registry_itself(sites, tmp_path, given, place):
    site = sites.by_name["tokens"]
    token = sites.tokens.for_image() if given == "good" else "e30.e30.e30"
    config = json.dumps({"auths": {site.host: {"registrytoken": token}}})
    variable = Login(environment={"MSB_REGISTRY_TOKEN": token})
    run = pull(tmp_path, site, variable if place == "variable" else Login({".docker/config.json": config}))
    if given == "good":
        assert run.returncode == 0, run.stderr
    else:
        refused(run, site, "log in again with")


def test_the_tree_is_the_same_wherever_it_came_from(sites, tmp_path):
    trees = []
    for where in NAMES:
        site = sites.by_name[where]
        assert pull(tmp_path / where, site, KINDS["docker_login"](site, PASSWORD)).returncode == 0
        trees.append(describe(next((tmp_path / where / "store/layers").glob("*.extracted"))))
    assert [differences(trees[0], tree) for tree in trees[1:]] == [[], [], []]


def test_an_unknown_authority_is_no_question_of_logins(sites, tmp_path):
    site = sites.by_name["tls"]
    run = pull(tmp_path, Site(site.host, hosts=site.hosts), KINDS["docker_login"](site, PASSWORD))
    assert (run.returncode, run.stdout) == (5, ""), run.stderr
    assert "certificate" in run.stderr and "--ca-cert" in run.stderr
