"""No secret in what the program says, leaves behind or shows other users of the machine.

Each case pulls with the installed program at its most talkative (-vv --debug; as text, then as JSON with progress as
JSON) and looks for every secret in standard output, standard error, the command lines of the program and all its
children, and every file of the store, records and database included. A secret is found in any form that keeps its
core: as it is, percent-encoded around it, or within base64 at any of the three alignments.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, quote_plus, unquote

import pytest

from tests.conftest import program, program_environment
from tests.support.fault_auth import basic, errors, require_basic
from tests.support.fault_registry import Fault, FaultRegistry, Recorded
from tests.support.make_sample import file, folder, layer_tar
from tests.support.ports import free_port
from tests.support.processes import children

LINUX = ("--platform", "linux/amd64")
# Letters and digits only, so that no encoding tears one apart; around each stands what encodings change.
CORES = {
    "password": "Pw7xKq2VhNzR4tYbLm9c",
    "wrong password": "Wr5gHs8BnXcJ2kQvTz6d",
    "identity token": "Id3fRt9MwPlG6yUeAo1s",
    "bearer token": "Be8rNk4ZjDvC7hSxIu5p",
    "refresh token": "Rf2mVb6QaYtE9wLgOi3k",
    "signature": "Sg4dJz1XuWnF8cHrPe7q",
    "proxy password": "Px9sTl5KbGyM3vZoCa6j",
}
SECRET = {name: f'{core}+/= "%&\u00e4' for name, core in CORES.items()}
TOKEN = {name: f"{core}.x-_~+/==" for name, core in CORES.items()}
USER = "bob"


def needles(core: str) -> set[bytes]:
    """A core as it is, and what of its base64 does not depend on what stands around it."""
    plain = core.encode()
    found = {plain, plain.hex().encode()}
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + plain)
        whole = (shift + len(plain)) // 3 * 4
        found.add(coded[(0, 2, 3)[shift] : whole])
    return found


NEEDLES = {name: needles(core) for name, core in CORES.items()}


def secrets_in(data: bytes) -> set[str]:
    """The names of the secrets that some bytes hold."""
    return {name for name, forms in NEEDLES.items() if any(form in data for form in forms)}


# What is on this machine is never asked for through a proxy.
ELSEWHERE = "registry.example/acme/app:1"


@dataclass
class Case:
    """One way to pull. ``sent`` are the secrets that the servers must have been shown, or the case shows nothing."""

    code: int
    image: str = "{host}/acme/app:1"
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: str = ""
    docker: object = None
    helper: str | None = None
    config: str = ""
    sent: set[str] = field(default_factory=set)
    kept_from_other: set[str] = field(default_factory=set)  # what the second server must not see
    typed: bool = False  # the user has put the secret on the command line: that of the program shows it


class World:
    """A registry with one image, a second server, and the folder of a user."""

    def __init__(self, registry: FaultRegistry, other: FaultRegistry, place: Path) -> None:
        self.registry, self.other, self.place = registry, other, place
        self.host = registry.host
        self.layer = gzip.compress(layer_tar([folder("etc"), file("etc/motd", os.urandom(50_000))]), 6, mtime=0)
        self.image = registry.add_image("acme/app", "1", [self.layer])
        self.other.blobs = registry.blobs
        self.other.manifests = registry.manifests
        self.seen = b""

    # What servers want

    def basic(self) -> None:
        require_basic(self.registry, {USER: SECRET["password"]})

    def tokens(self, *, answer: Fault | None = None, realm: str | None = None) -> None:
        """Only who shows the bearer token, which the password, the identity token or the refresh token brings."""
        realm = realm or f"{self.registry.url}/token"
        challenge = f'Bearer realm="{realm}",service="s",scope="repository:acme/app:pull"'

        def authorize(request: Recorded) -> Fault | None:
            good = request.headers.get("authorization") == f"Bearer {TOKEN['bearer token']}"
            if good or not request.path.startswith("/v2/"):
                return None
            return Fault(status=401, headers={"WWW-Authenticate": challenge}, body=errors("UNAUTHORIZED"))

        def token(request: Recorded) -> Fault:
            if answer is not None:
                return answer
            shown = parse_qs(request.body.decode()).get("refresh_token", [""])[0]
            good = request.headers.get("authorization") == basic(USER, SECRET["password"])
            if not good and shown != TOKEN["identity token"]:
                return Fault(status=401, body=errors("UNAUTHORIZED", "incorrect username or password"))
            document = {"token": TOKEN["bearer token"], "refresh_token": TOKEN["refresh token"], "expires_in": 300}
            return Fault(status=200, body=json.dumps(document).encode())

        self.registry.authorize = authorize
        self.registry.endpoints["/token"] = token

    def signed(self, base: str | None = None) -> str:
        """A redirect to a signed address, with what S3, Azure, Google and CloudFront call their signatures."""
        value = SECRET["signature"].replace(" ", "%20").replace('"', "%22").replace("&", "%26").replace("\u00e4", "e")
        names = ("X-Amz-Signature", "X-Amz-Security-Token", "sig", "X-Goog-Signature", "Signature", "token", "odd")
        return f"{base or self.other.url}{{path}}?" + "&".join(f"{name}={value}" for name in names)

    def redirect(self, base: str | None = None) -> None:
        self.registry.always("/blobs/", Fault(redirect=self.signed(base)))

    # What a user has

    def auths(self, host: str | None = None, what: str = "password", **more: str) -> dict:
        pair = base64.b64encode(f"{USER}:{SECRET[what]}".encode()).decode()
        return {"auths": {host or self.host: {"auth": pair, **more}}}

    def run(self, case: Case, *, json_form: bool) -> Ended:
        docker, store = self.place / "docker", self.place / "store"
        docker.mkdir()
        if case.docker is not None:
            text = case.docker if isinstance(case.docker, str) else json.dumps(case.docker)
            (docker / "config.json").write_text(text)
        environment = {"DOCKER_CONFIG": str(docker), "TMPDIR": str(self.place / "tmp"), **case.environment}
        (self.place / "tmp").mkdir()
        if case.helper is not None:
            path = docker / "docker-credential-test"
            path.write_text(f"#!/bin/sh\ncat >/dev/null\nsleep 0.3\n{case.helper}\n")
            path.chmod(0o755)
            environment["PATH"] = f"{docker}:{os.environ['PATH']}"
        config = self.place / "config.toml"
        config.write_text(f"[pull]\nretries = 1\ntimeout = 2\n{case.config}")
        form = ["--format", "json", "--progress", "json"] if json_form else []
        said = ["-vv", "--debug", *form, "--home", str(store), "--config", str(config)]
        line = [*program(), "pull", *LINUX, *said, *case.arguments, case.image.format(host=self.host)]
        process = subprocess.Popen(
            line, env=program_environment(**environment), cwd=self.place,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        with watching(process.pid) as lines:
            out, error = process.communicate(case.stdin.encode(), timeout=60)
        for path in (docker, config):
            subprocess.run(["rm", "-rf", path], check=True)
        return Ended(process.returncode, out, error, lines, b"".join(contents(self.place)))


@dataclass
class Ended:
    """All that a run has shown or left."""

    code: int
    out: bytes
    error: bytes
    lines: set[bytes]
    files: bytes


@contextlib.contextmanager
def watching(process: int) -> Iterator[set[bytes]]:
    """Collects the command lines of a process and everything that it starts, as other users could read them."""
    lines: set[bytes] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            queue = [process]
            while queue:
                one = queue.pop()
                queue += children(one)
                with contextlib.suppress(OSError):
                    lines.add(Path(f"/proc/{one}/cmdline").read_bytes())
            time.sleep(0.004)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()


def contents(root: Path) -> Iterator[bytes]:
    """Names and contents of all files below a folder, compressed ones also as what they hold."""
    for place, folders, files in os.walk(root):
        for name in [*folders, *files]:
            yield os.fsencode(name) + b"\n"
        for name in files:
            path = Path(place, name)
            if path.is_symlink():
                yield os.fsencode(os.readlink(path))
                continue
            data = path.read_bytes()
            yield data
            if data[:2] == b"\x1f\x8b":
                with contextlib.suppress(OSError, EOFError):
                    yield gzip.decompress(data)


def servers_saw(*servers: FaultRegistry) -> set[str]:
    """The secrets that arrived at servers, which shows that the search finds what is there."""
    parts = []
    for server in servers:
        for request in server.asked():
            parts += [
                *request.headers.values(),
                request.body.decode("latin-1"),
                *itertools.chain(*request.query.values()),
            ]
    return secrets_in("\n".join(parts).encode("utf-8", "surrogateescape"))


CASES: dict[str, Callable[[World], Case]] = {}


def case(make: Callable[[World], Case]) -> Callable[[World], Case]:
    CASES[make.__name__] = make
    return make


@case
def password_in_docker_config(world):
    world.basic()
    return Case(0, docker=world.auths(), sent={"password"})


@case
def password_as_two_keys(world):
    world.basic()
    entry = {"username": USER, "password": SECRET["password"]}
    return Case(0, docker={"auths": {world.host: entry}}, sent={"password"})


@case
def wrong_password(world):
    world.basic()
    return Case(4, docker=world.auths(what="wrong password"), sent={"wrong password"})


@case
def password_for_a_token(world):
    world.tokens()
    return Case(0, docker=world.auths(), sent={"password", "bearer token"})


@case
def wrong_password_for_a_token(world):
    world.tokens()
    return Case(4, docker=world.auths(what="wrong password"), sent={"wrong password"})


@case
def token_service_in_trouble(world):
    world.tokens(answer=Fault(status=500, body=b"<html>"))
    return Case(5, docker=world.auths(), sent={"password"})


@case
def token_service_hangs_up(world):
    world.tokens(answer=Fault(drop=True))
    world.registry.always("/token", Fault(drop=True))
    return Case(5, docker=world.auths(), sent={"password"})


@case
def token_service_answers_nonsense(world):
    body = json.dumps({"tokken": TOKEN["bearer token"]}).encode()
    world.tokens(answer=Fault(status=200, body=body))
    return Case(4, docker=world.auths(), sent={"password"})


@case
def token_service_answers_no_json(world):
    world.tokens(answer=Fault(status=200, body=TOKEN["bearer token"].encode()))
    return Case(4, docker=world.auths(), sent={"password"})


@case
def token_that_cannot_be_sent(world):
    body = json.dumps({"token": TOKEN["bearer token"] + "\r\nX-Injected: 1"}).encode()
    world.tokens(answer=Fault(status=200, body=body))
    return Case(4, docker=world.auths(), sent={"password"})


@case
def token_refused_for_ever(world):
    body = json.dumps({"token": TOKEN["refresh token"]}).encode()
    world.tokens(answer=Fault(status=200, body=body))
    return Case(4, docker=world.auths(), sent={"password", "refresh token"})


@case
def realm_with_secrets_in_it(world):
    world.tokens(realm=f"{world.registry.url}/token?key={TOKEN['signature']}")
    return Case(0, docker=world.auths(), sent={"signature", "bearer token"})


@case
def realm_that_is_not_asked(world):
    world.tokens(realm=f"http://{USER}:{CORES['signature']}@10.0.0.1/token?key={TOKEN['signature']}")
    return Case(4, docker=world.auths())


@case
def identity_token(world):
    world.tokens()
    docker = {"auths": {world.host: {"identitytoken": TOKEN["identity token"]}}}
    return Case(0, docker=docker, sent={"identity token", "bearer token"})


@case
def identity_token_refused(world):
    world.tokens(answer=Fault(status=401, body=errors("UNAUTHORIZED")))
    docker = {"auths": {world.host: {"identitytoken": TOKEN["identity token"]}}}
    return Case(4, docker=docker, sent={"identity token"})


@case
def registry_token_in_docker_config(world):
    world.tokens()
    return Case(0, docker={"auths": {world.host: {"registrytoken": TOKEN["bearer token"]}}}, sent={"bearer token"})


@case
def helper(world):
    world.basic()
    answer = json.dumps({"ServerURL": world.host, "Username": USER, "Secret": SECRET["password"]}, ensure_ascii=False)
    return Case(
        0, docker={"credHelpers": {world.host: "test"}}, helper=f"cat <<'END'\n{answer}\nEND", sent={"password"}
    )


@case
def helper_with_an_identity_token(world):
    world.tokens()
    answer = json.dumps({"ServerURL": world.host, "Username": "<token>", "Secret": TOKEN["identity token"]})
    return Case(0, docker={"credsStore": "test"}, helper=f"cat <<'END'\n{answer}\nEND", sent={"identity token"})


@case
def helper_that_fails_and_talks(world):
    world.basic()
    talk = f"echo '{CORES['password']}'; echo '{CORES['password']}' >&2; exit 1"
    return Case(4, docker={"credHelpers": {world.host: "test"}}, helper=talk)


@case
def helper_that_answers_nonsense(world):
    world.basic()
    return Case(4, docker={"credsStore": "test"}, helper=f'echo \'{{"Secret": "{CORES["password"]}\'')


@case
def name_and_password_in_the_environment(world):
    world.basic()
    environment = {"MSB_REGISTRY_USERNAME": USER, "MSB_REGISTRY_PASSWORD": SECRET["password"]}
    return Case(0, environment=environment, sent={"password"})


@case
def wrong_password_in_the_environment(world):
    world.tokens()
    environment = {"MSB_REGISTRY_USERNAME": USER, "MSB_REGISTRY_PASSWORD": SECRET["wrong password"]}
    return Case(4, environment=environment, sent={"wrong password"})


@case
def password_without_a_name_in_the_environment(world):
    world.basic()
    return Case(2, environment={"MSB_REGISTRY_PASSWORD": SECRET["password"]})


@case
def token_in_the_environment(world):
    world.tokens()
    return Case(0, environment={"MSB_REGISTRY_TOKEN": TOKEN["bearer token"]}, sent={"bearer token"})


@case
def wrong_token_in_the_environment(world):
    world.tokens()
    return Case(4, environment={"MSB_REGISTRY_TOKEN": TOKEN["refresh token"]}, sent={"refresh token"})


@case
def unusable_token_in_the_environment(world):
    world.tokens()
    return Case(4, environment={"MSB_REGISTRY_TOKEN": TOKEN["bearer token"] + "\n\u00e4"})


@case
def standard_input(world):
    world.basic()
    return Case(0, arguments=("--creds-stdin",), stdin=f"{USER}:{SECRET['password']}\n", sent={"password"})


@case
def standard_input_with_a_wrong_password(world):
    world.tokens()
    text = f"{USER}:{SECRET['wrong password']}"
    return Case(4, arguments=("--creds-stdin",), stdin=text, sent={"wrong password"})


@case
def standard_input_without_a_colon(world):
    return Case(2, arguments=("--creds-stdin",), stdin=SECRET["password"])


@case
def docker_config_that_is_no_json(world):
    world.basic()
    return Case(2, docker='{"auths": {"x": {"auth": "' + CORES["password"])


@case
def docker_config_with_an_entry_that_cannot_be_read(world):
    world.basic()
    return Case(4, docker={"auths": {world.host: {"auth": CORES["password"] + "*"}}})


@case
def signed_address(world):
    world.redirect()
    return Case(0, sent={"signature"})


@case
def signed_address_and_password(world):
    world.basic()
    world.redirect()
    return Case(0, docker=world.auths(), sent={"signature", "password"}, kept_from_other={"password"})


@case
def signed_address_that_breaks(world):
    world.redirect()
    world.other.script("/blobs/", Fault(cut_after=10_000))
    return Case(0, sent={"signature"})


@case
def signed_address_that_has_expired(world):
    world.redirect()
    body = f"<Error><SignatureProvided>{CORES['signature']}</SignatureProvided></Error>".encode()
    world.other.always("/blobs/", Fault(status=403, body=body))
    return Case(5, sent={"signature"})


@case
def signed_address_that_sends_something_else(world):
    world.redirect()
    world.other.always(world.image.layer_digests[0], Fault(flip=1000))
    return Case(6, sent={"signature"})


@case
def signed_address_that_hangs_up(world):
    world.redirect()
    world.other.always("/blobs/", Fault(drop=True))
    return Case(5, sent={"signature"})


@case
def signed_address_that_is_silent(world):
    world.redirect()
    world.other.always("/blobs/", Fault(delay=4))
    return Case(5, sent={"signature"})


@case
def signed_address_where_nobody_listens(world):
    world.redirect(f"http://127.0.0.1:{free_port()}")
    return Case(5)


@case
def signed_address_of_an_unknown_host(world):
    world.redirect("http://nowhere.invalid")
    return Case(5)


@case
def signed_address_in_a_circle(world):
    world.redirect()
    world.other.always("/blobs/", Fault(redirect=world.signed(world.other.url)))
    return Case(5, sent={"signature"})


@case
def signed_address_that_is_none(world):
    world.redirect(f"ftp://{USER}:{CORES['signature']}@[bad")
    return Case(5)


@case
def signed_address_with_a_password(world):
    world.redirect(f"http://{USER}:{CORES['signature']}@{world.other.host}")
    return Case(0, sent={"signature"})


@case
def mirror_with_its_own_password(world):
    require_basic(world.other, {USER: SECRET["password"]})
    config = f'[registries."{world.host}"]\nmirrors = ["{world.other.url}"]\n'
    return Case(0, docker=world.auths(world.other.host), config=config, sent={"password"})


@case
def mirror_that_refuses_and_then_the_registry(world):
    require_basic(world.other, {USER: "another"})
    world.basic()
    docker = world.auths(world.other.host, "wrong password")
    docker["auths"] |= world.auths()["auths"]
    config = f'[registries."{world.host}"]\nmirrors = ["{world.other.url}"]\n'
    return Case(0, docker=docker, config=config, sent={"password", "wrong password"})


@case
def mirror_with_a_password_in_its_address(world):
    config = f'[registries."{world.host}"]\nmirrors = ["http://{USER}:{CORES["password"]}@{world.other.host}"]\n'
    return Case(2, config=config)


@case
def mirror_with_a_password_and_no_scheme(world):
    config = f'[registries."{world.host}"]\nmirrors = ["{USER}:{CORES["password"]}@{world.other.host}"]\n'
    return Case(2, config=config)


@case
def mirror_with_a_key_in_its_address(world):
    config = f'[registries."{world.host}"]\nmirrors = ["{world.other.url}/?key={CORES["password"]}"]\n'
    return Case(2, config=config)


@case
def proxy_with_a_password(world):
    proxy = f"http://{USER}:{CORES['proxy password']}@{world.other.host}"
    world.other.always("/v2/", Fault(status=407, body=b"no"))
    return Case(
        5, image=ELSEWHERE, environment={"http_proxy": proxy}, arguments=("--plain-http",), sent={"proxy password"}
    )


@case
def dead_proxy_with_a_password(world):
    proxy = f"http://{USER}:{CORES['proxy password']}@127.0.0.1:{free_port()}"
    return Case(5, image=ELSEWHERE, environment={"http_proxy": proxy}, arguments=("--plain-http",))


@case
def socks_proxy_with_a_password(world):
    proxy = f"socks5://{USER}:{CORES['proxy password']}@127.0.0.1:{free_port()}"
    return Case(5, image=ELSEWHERE, environment={"http_proxy": proxy}, arguments=("--plain-http",))


@case
def unusable_proxy_with_a_password(world):
    proxy = f"http://{USER}:{CORES['proxy password']}@[bad:1"
    return Case(5, image=ELSEWHERE, environment={"http_proxy": proxy}, arguments=("--plain-http",))


@case
def image_with_a_password_in_its_name(world):
    return Case(2, image=f"{USER}:{CORES['password']}@{{host}}/acme/app:1", typed=True)


@case
def address_with_a_password_as_image(world):
    return Case(2, image=f"https://{USER}:{CORES['password']}@{{host}}/acme/app:1", typed=True)


@case
def docker_address_with_a_password_as_image(world):
    return Case(2, image=f"docker://{USER}:{CORES['password']}@{{host}}/acme/app:1", typed=True)


@case
def registry_that_repeats_what_it_was_sent(world):
    def authorize(request: Recorded) -> Fault | None:
        sent = request.headers.get("authorization")
        headers = {"WWW-Authenticate": 'Basic realm="test"'}
        if sent is None:
            return Fault(status=401, headers=headers, body=errors("UNAUTHORIZED"))
        plain = base64.b64decode(sent.removeprefix("Basic ")).decode()
        return Fault(status=401, headers=headers, body=errors("UNAUTHORIZED", f"bad login {plain} ({sent})"))

    world.registry.authorize = authorize
    return Case(4, docker=world.auths(), sent={"password"})


def repeating(world: World, answer: Callable[[str, str], Fault]) -> None:
    """A registry that puts what it was sent, as it is and percent-encoded, where ``answer`` says."""

    def authorize(request: Recorded) -> Fault | None:
        sent = request.headers.get("authorization")
        if sent is None:
            return Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="test"'})
        plain = base64.b64decode(sent.removeprefix("Basic ")).decode()
        return answer(f"{sent.removeprefix('Basic ')} x", quote(plain.partition(":")[2]))

    world.registry.authorize = authorize


@case
def registry_that_repeats_it_at_the_edge_of_what_is_quoted(world):
    repeating(world, lambda sent, _: Fault(status=403, body=errors("DENIED", "x" * 180 + sent)))
    return Case(4, docker=world.auths(), sent={"password"})


@case
def registry_that_repeats_it_as_its_code(world):
    repeating(world, lambda sent, plain: Fault(status=400, body=errors(sent, plain)))
    return Case(5, docker=world.auths(), sent={"password"})


@case
def registry_that_repeats_it_in_a_warning(world):
    world.basic()
    value = base64.b64encode(f"{USER}:{SECRET['password']}".encode()).decode()
    world.registry.always("/v2/", Fault(headers=[("Warning", f'299 - "unsafe login {value}"')]))
    return Case(0, docker=world.auths(), sent={"password"})


@case
def registry_that_repeats_it_as_a_length(world):
    repeating(world, lambda sent, _: Fault(headers=[("Content-Length", sent)]))
    return Case(5, docker=world.auths(), sent={"password"})


@case
def registry_that_repeats_it_in_a_redirect(world):
    address = f"{world.other.url}/{{0}}?ns={{0}}"
    repeating(world, lambda _, plain: Fault(status=307, headers={"Location": address.format(plain)}))
    return Case(3, docker=world.auths(), sent={"password"})


@case
def registry_that_repeats_it_in_an_address_that_is_none(world):
    repeating(world, lambda sent, plain: Fault(status=307, headers={"Location": f"ftp://{plain}/{sent}"}))
    return Case(5, docker=world.auths(), sent={"password"})


@case
def registry_that_repeats_it_in_the_length_of_a_chunk(world):
    repeating(world, lambda sent, _: Fault(status=200, headers=[("Transfer-Encoding", "chunked")], body=sent.encode()))
    return Case(5, docker=world.auths(), sent={"password"})


@case
def token_service_that_repeats_what_it_was_sent(world):
    token = TOKEN["identity token"]
    body = errors("UNAUTHORIZED", f"unknown token {token} {quote(token)} {quote_plus(token)}")
    world.tokens(answer=Fault(status=403, body=body))
    docker = {"auths": {world.host: {"identitytoken": token}}}
    return Case(4, docker=docker, sent={"identity token"})


@case
def registry_that_repeats_a_token(world):
    world.tokens(answer=Fault(status=200, body=json.dumps({"token": TOKEN["refresh token"]}).encode()))
    asked = world.registry.authorize

    def authorize(request: Recorded) -> Fault | None:
        refused = asked(request)
        if refused is None or "authorization" not in request.headers:
            return refused
        sent = request.headers["authorization"]
        challenge = f'Bearer realm="{world.registry.url}/token",service="{sent}",scope="{sent}"'
        return Fault(status=401, headers={"WWW-Authenticate": challenge}, body=errors("UNAUTHORIZED", f"bad {sent}"))

    world.registry.authorize = authorize
    return Case(4, docker=world.auths(), sent={"password", "refresh token"})


@case
def content_network_that_repeats_its_signature(world):
    world.redirect()
    sent = world.signed().partition("&sig=")[2].partition("&")[0]
    world.other.always("/blobs/", Fault(status=403, body=errors("DENIED", f"wrong {sent} {unquote(sent)}")))
    return Case(5, sent={"signature"})


@case
def proxy_that_repeats_what_it_was_sent(world):
    pair = base64.b64encode(f"{USER}:{CORES['proxy password']}".encode()).decode()
    world.other.always("/v2/", Fault(status=407, body=errors("DENIED", f"{pair} {CORES['proxy password']}")))
    proxy = f"http://{USER}:{CORES['proxy password']}@{world.other.host}"
    return Case(
        5, image=ELSEWHERE, environment={"http_proxy": proxy}, arguments=("--plain-http",), sent={"proxy password"}
    )


@pytest.fixture
def world(tmp_path):
    with FaultRegistry() as registry, FaultRegistry() as other:
        yield World(registry, other, tmp_path)


@pytest.mark.parametrize("json_form", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("name", CASES)
def test_no_secret_anywhere(name, json_form, world):
    wanted = CASES[name](world)
    ended = world.run(wanted, json_form=json_form)
    said = (ended.out + b"\n" + ended.error).decode("utf-8", "replace")
    assert ended.code == wanted.code, said
    assert servers_saw(world.registry, world.other) >= wanted.sent
    assert servers_saw(world.other).isdisjoint(wanted.kept_from_other)
    assert secrets_in(ended.out) == set(), said
    assert secrets_in(ended.error) == set(), said
    assert secrets_in(ended.files) == set()
    lines = {x for x in ended.lines if not (wanted.typed and b"msb-pull" in x)}
    assert secrets_in(b"\n".join(lines)) == set()
    if wanted.code == 0:
        assert b"GET " in ended.error, "the talkative form says nothing"
    if wanted.helper:
        assert any(b"docker-credential-test\0get" in x for x in lines), lines
    if wanted.code and json_form:
        assert json.loads(ended.out)["status"] == "failed"


def test_the_search_finds_every_form():
    """What is looked for is found: plain, quoted, in base64 with anything before it, and in a URL."""
    for name, core in CORES.items():
        for before in ("", "b", "bo", "bob", f"{USER}:"):
            text = f"{before}{SECRET[name]}"
            assert secrets_in(base64.b64encode(text.encode())) == {name}
            assert secrets_in(json.dumps(text).encode()) == {name}
        assert secrets_in(f"https://x/?sig={core}%2B".encode()) == {name}
    assert secrets_in(b"nothing " * 100) == set()
