"""Where credentials come from (rows B24 to B31)."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
from pathlib import Path

import pytest

from msb_pull.ground.errors import UsageError
from msb_pull.ground.running import Cancel
from msb_pull.source.login import helpers
from msb_pull.source.login.auth_file import HUB_KEY, Credential
from msb_pull.source.login.credentials import CredentialStore
from tests.support.registries import hears_a_cancel


def encoded(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def entry(username: str, password: str = "pw") -> dict:
    return {"auth": encoded(username, password)}


class Home:
    """A home folder with the files of docker and podman."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warnings: list[str] = []
        self.environment = {"HOME": str(folder), "PATH": str(folder / "bin"), "XDG_RUNTIME_DIR": str(folder / "run")}

    def write(self, path: str, document: object) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(document if isinstance(document, str) else json.dumps(document))
        return target

    def docker(self, document: object) -> Path:
        return self.write(".docker/config.json", document)

    def helper(self, name: str, script: str) -> None:
        path = self.write(f"bin/docker-credential-{name}", f"#!/bin/sh\nPATH=/bin:/usr/bin\n{script}\n")
        path.chmod(0o755)

    def store(self, **named) -> CredentialStore:
        return CredentialStore(environment=self.environment, **named)

    def find(self, registry: str = "ghcr.io", repository: str = "acme/app", **named) -> Credential | None:
        return self.store(**named).find(registry, repository, warn=self.warnings.append)

    def user(self, registry: str = "ghcr.io", repository: str = "acme/app", **named) -> str | None:
        found = self.find(registry, repository, **named)
        return found and found.username


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


FILES = [
    ("run/containers/auth.json", "runtime"),
    (".config/containers/auth.json", "podman"),
    (".docker/config.json", "docker"),
    (".dockercfg", "old"),
]


def auths(path: str, user: str) -> dict:
    table = {"ghcr.io": entry(user)}
    return table if path == ".dockercfg" else {"auths": table}


@pytest.mark.parametrize("first", range(4))
def test_b24_order_of_the_files(home, first):
    for path, user in FILES[first:]:
        home.write(path, auths(path, user))
    assert home.user() == FILES[first][1]


def test_b24_a_file_without_an_entry_passes_the_question_on(home):
    for path, _ in FILES[:3]:
        home.write(path, {"auths": {"quay.io": entry("someone")}})
    home.write(".dockercfg", auths(".dockercfg", "old"))
    assert home.user() == "old"


def test_b24_nothing_anywhere(home):
    assert home.find() is None
    assert home.warnings == []


def test_b24_xdg_and_docker_config(home, tmp_path):
    home.environment |= {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "DOCKER_CONFIG": str(tmp_path / "dock")}
    home.write("dock/config.json", auths("x", "dock"))
    assert home.user() == "dock"
    home.write("xdg/containers/auth.json", auths("x", "xdg"))
    assert home.user() == "xdg"


def test_b24_a_named_file_stands_alone(home):
    home.docker(auths("x", "docker"))
    named = home.write("named.json", {"auths": {"quay.io": entry("other")}})
    assert home.user(authfile=named) is None
    assert home.user("quay.io", authfile=named) == "other"
    home.environment["REGISTRY_AUTH_FILE"] = str(named)
    assert home.user("quay.io") == "other"
    assert home.user() is None


def test_b24_a_pipe_is_refused_where_it_is_named_and_else_passed_over(home, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe: not a regular file"):
        home.find(authfile=tmp_path / "pipe")
    home.write(".dockercfg", auths(".dockercfg", "old"))
    (tmp_path / ".docker").mkdir(exist_ok=True)
    os.mkfifo(tmp_path / ".docker" / "config.json")
    assert home.user() == "old"
    (warning,) = home.warnings
    assert warning.endswith(".docker/config.json cannot be read and is ignored: not a regular file")


@pytest.mark.parametrize("how", ["option", "environment"])
def test_b24_a_named_file_must_exist(home, how):
    if how == "environment":
        home.environment["REGISTRY_AUTH_FILE"] = "/nonexistent/auth.json"
    with pytest.raises(UsageError, match=r"/nonexistent/auth\.json"):
        home.find(**({"authfile": Path("/nonexistent/auth.json")} if how == "option" else {}))


def test_b24_environment_before_files(home):
    home.docker(auths("x", "docker"))
    home.environment |= {"MSB_REGISTRY_USERNAME": "env", "MSB_REGISTRY_PASSWORD": "env-secret"}
    assert home.user() == "env"
    home.environment["MSB_REGISTRY_TOKEN"] = "direct"
    assert home.find() == Credential(registry_token="direct")


@pytest.mark.parametrize("name", ["MSB_REGISTRY_USERNAME", "MSB_REGISTRY_PASSWORD"])
def test_b24_half_of_the_environment_is_an_error(home, name):
    home.environment[name] = "half-secret"
    with pytest.raises(UsageError) as caught:
        home.find()
    assert "half-secret" not in str(vars(caught.value))


def test_b24_explicit_before_everything(home):
    home.environment |= {"MSB_REGISTRY_USERNAME": "env", "MSB_REGISTRY_PASSWORD": "x"}
    assert CredentialStore.from_text("me:a:b\n", home.environment).find("ghcr.io", "a") == Credential("me", "a:b")
    assert CredentialStore.nobody(home.environment).find("ghcr.io", "a") is None


def test_what_is_meant_for_the_registry_is_not_given_to_a_mirror(home):
    home.docker({"auths": {"mirror.example": entry("mirrored")}})
    store = CredentialStore.from_text("me:pw", home.environment)
    assert store.find("mirror.example", "a", mirror=True) is None
    assert home.store().find("mirror.example", "a", mirror=True).username == "mirrored"


@pytest.mark.parametrize("text", ["", "\n", "nocolon", ":pw", "a\nb:c", "secret-word"])
def test_creds_from_text_that_are_none(text):
    with pytest.raises(UsageError) as caught:
        CredentialStore.from_text(text, {})
    assert "secret-word" not in str(vars(caught.value))


def test_b25_order_inside_a_file(home):
    home.helper("one", 'echo \'{"Username":"helped","Secret":"s"}\'')
    home.helper("two", 'echo \'{"Username":"stored","Secret":"s"}\'')
    home.docker({
        "credHelpers": {"ghcr.io": "one"},
        "credsStore": "two",
        "auths": {"ghcr.io": entry("auth"), "quay.io": entry("quay")},
    })  # fmt: skip
    assert home.user("ghcr.io") == "helped"
    assert home.user("quay.io") == "quay"
    assert home.user("other.io") == "stored"


@pytest.mark.parametrize(
    ("repository", "user"),
    [("ns/img", "image"), ("ns/img/deeper", "image"), ("ns/other", "namespace"), ("nsx/img", "host"), ("x", "host")],
)
def test_b25_longest_path_first(home, repository, user):
    home.docker({"auths": {
        "quay.io": entry("host"), "quay.io/ns": entry("namespace"), "quay.io/ns/img": entry("image"),
    }})  # fmt: skip
    assert home.user("quay.io", repository) == user


@pytest.mark.parametrize(
    "key", ["ghcr.io", "https://ghcr.io", "https://ghcr.io/v1/", "https://ghcr.io/v2/", "http://ghcr.io", "ghcr.io/"]
)
def test_b25_keys_as_docker_has_written_them(home, key):
    home.docker({"auths": {key: entry("bob")}})
    assert home.user("ghcr.io") == "bob"


def test_b26_an_empty_entry_asks_the_store(home):
    home.helper("desktop", 'echo \'{"Username":"stored","Secret":"s"}\'')
    home.docker({"auths": {"ghcr.io": {}}, "credsStore": "desktop"})
    assert home.user() == "stored"


@pytest.mark.parametrize("key", [HUB_KEY, "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_b27_keys_of_docker_hub(home, key):
    home.docker({"auths": {key: entry("hub")}})
    assert home.user("docker.io", "library/ubuntu") == "hub"


def test_b27_helpers_are_asked_for_docker_hub_by_its_address(home):
    home.helper("x", f'read -r key || true; [ "$key" = {HUB_KEY} ] && echo \'{{"Username":"hub","Secret":"s"}}\'')
    home.docker({"credsStore": "x"})
    assert home.user("docker.io", "library/ubuntu") == "hub"
    home.docker({"credHelpers": {HUB_KEY: "x"}})
    assert home.user("docker.io", "library/ubuntu") == "hub"


def test_b28_helper_gets_the_key_on_its_input_only(home):
    home.helper("x", 'echo "$@" > "$(dirname "$0")/argv"; cat > "$(dirname "$0")/in"; '
                     'echo \'{"ServerURL":"x","Username":"bob","Secret":"sesame"}\'')  # fmt: skip
    home.docker({"credsStore": "x"})
    assert home.find() == Credential("bob", "sesame")
    assert (home.folder / "bin/in").read_text() == "ghcr.io"
    assert (home.folder / "bin/argv").read_text() == "get\n"


def test_b28_identity_token(home):
    home.helper("x", 'echo \'{"Username":"<token>","Secret":"id"}\'')
    home.docker({"credsStore": "x"})
    assert home.find() == Credential(identity_token="id")


def test_b28_not_found_is_no_trouble(home):
    home.helper("x", 'echo "credentials not found in native keychain"; exit 1')
    home.docker({"credsStore": "x"})
    assert home.find() is None
    assert home.warnings == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo garbage-secret", "not JSON"),
        ("echo '[]'", "no Username"),
        ('echo \'{"Username": 5, "Secret": "garbage-secret"}\'', "no Username"),
        ("echo garbage-secret; exit 1", "status 1"),
        ("kill -9 $$", "status -9"),
    ],
)
def test_b28_a_failing_helper_is_a_warning(home, script, words):
    home.helper("x", script)
    home.docker({"credHelpers": {"ghcr.io": "x"}, "auths": {"ghcr.io": entry("fallback")}})
    assert home.user() == "fallback"
    assert words in home.warnings[0]
    assert "garbage-secret" not in str(home.warnings)


@pytest.mark.parametrize("name", ["missing", "../evil", "a/b", "a b", ""])
def test_b28_helpers_that_are_not_there(home, name):
    home.docker({"credsStore": name, "auths": {"quay.io": entry("q")}})
    assert home.find() is None
    assert len(home.warnings) == (1 if name else 0)


def test_b28_a_helper_that_hangs(home):
    home.helper("x", "exec sleep 1000")
    with pytest.raises(helpers.HelperError, match="did not answer"):
        helpers.ask("x", "k", home.environment, Cancel(), timeout=0.5)


def test_b28_a_helper_that_hangs_hears_a_cancel(home, bench):
    home.helper("x", "exec sleep 1000")
    home.docker({"credsStore": "x"})
    here = bench(home.store())
    hears_a_cancel(here, lambda: home.store().find("ghcr.io", "a", cancel=here.cancel))


@pytest.mark.parametrize(
    ("auth", "expected"),
    [
        (encoded("bob", "pw"), ("bob", "pw")),
        (encoded("bob", "pw").rstrip("="), ("bob", "pw")),
        (encoded("bob", "pw") + "\n", ("bob", "pw")),
        (encoded("bob", "a:b:c"), ("bob", "a:b:c")),
        (base64.b64encode(b"bob:pw\0\0\0").decode(), ("bob", "pw")),
        (encoded("bob", "pässword"), ("bob", "pässword")),
        (base64.b64encode(b"bob:p\xe4ss").decode(), ("bob", "p\udce4ss")),
        (encoded("bob", ""), ("bob", "")),
        (base64.b64encode(b"nocolon").decode(), None),
        (base64.b64encode(b":pw").decode(), None),
        ("!!!not-base64-secret!!!", None),
        ("", None),
        ("ä", None),
        (5, None),
    ],
)
def test_b29_auth_values(home, auth, expected):
    home.docker({"auths": {"ghcr.io": {"auth": auth}}})
    found = home.find()
    assert (found and (found.username, found.password)) == expected
    assert "secret" not in str(home.warnings)


def test_b29_username_and_password_as_fields(home):
    home.docker({"auths": {"ghcr.io": {"username": "bob", "password": "pw"}}})
    assert home.find() == Credential("bob", "pw")


def test_identity_and_registry_tokens_in_the_file(home):
    home.docker({"auths": {
        "ghcr.io": {"auth": encoded("bob", ""), "identitytoken": "id"}, "quay.io": {"registrytoken": "reg"},
    }})  # fmt: skip
    assert home.find() == Credential("bob", "", "id")
    assert home.find("quay.io") == Credential(registry_token="reg")


def test_half_surrogates_are_read_as_go_reads_them(home):
    home.docker('{"auths": {"ghcr.io": {"username": "a\\ud800", "password": "\\udc00b\\ud83d\\ude00"},'
                '"quay.io": {"identitytoken": "\\ud800"}}, "credHelpers": {"gcr.io": "x"}}')  # fmt: skip
    home.helper("x", """echo '{"Username": "a", "Secret": "b\\\\ud800"}'""")
    assert home.find() == Credential("a\ufffd", "\ufffdb\U0001f600")
    assert home.find("quay.io") == Credential(identity_token="\ufffd")
    assert home.find("gcr.io") == Credential("a", "b\ufffd")


@pytest.mark.parametrize("content", ["{", "[]", "5", "not json, has secret-word", "[" * 100_000])
def test_b30_a_file_that_cannot_be_understood_is_named(home, content):
    path = home.docker(content)
    with pytest.raises(UsageError) as caught:
        home.find()
    assert str(path) in caught.value.message
    assert "secret-word" not in str(vars(caught.value))


@pytest.mark.parametrize("content", ["", "\ufeff" + json.dumps({"auths": {"quay.io": {}}}), '{"auths": []}', "{}"])
def test_b30_odd_but_harmless_files(home, content):
    home.docker(content)
    assert home.find() is None


def test_b30_a_folder_in_place_of_the_file(home):
    (home.folder / ".docker/config.json").mkdir(parents=True)
    assert home.find() is None


def test_b30_a_file_that_may_not_be_read(home, monkeypatch):
    home.docker({})

    def closed(path, limit):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("msb_pull.source.login.auth_file.read_regular", closed)
    assert home.find() is None
    assert "Permission denied" in home.warnings[0]


def test_b30_nobody_nags_about_permissions(home):
    home.docker(auths("x", "bob")).chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
    assert home.user() == "bob"
    assert home.warnings == []


@pytest.mark.parametrize(
    ("key", "registry", "found"),
    [
        ("h.example", "h.example:443", True), ("h.example:443", "h.example", True),
        ("h.example:5000", "h.example:5000", True), ("h.example", "h.example:5000", False),
        ("h.example:5000", "h.example", False), ("[::1]:5000", "[::1]:5000", True),
        ("h.example:443", "h.example:443", True), ("sub.h.example", "h.example", False),
    ],
)  # fmt: skip
def test_b31_ports(home, key, registry, found):
    home.docker({"auths": {key: entry("bob")}})
    assert (home.user(registry) == "bob") is found


def test_nothing_shows_a_secret():
    credential = Credential("bob-secret", "pw-secret", "id-secret", "reg-secret")
    assert "secret" not in repr(credential) + str(credential) + f"{credential}"
