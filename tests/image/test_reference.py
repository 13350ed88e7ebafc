"""References: the table of section C, row by row, and what must hold for every reference there is."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msb_pull.ground.errors import UsageError
from msb_pull.image.digest import Digest
from msb_pull.image.reference import Reference, parse_argument

D64, D128 = "f" * 64, "f" * 128
SHA256, SHA512 = f"sha256:{D64}", f"sha512:{D128}"
HUB = "docker.io"
A255 = "a" * 255


def printable(message: str) -> bool:
    """Whether a message is one line that shows every character for what it is."""
    return message.isprintable() and message.replace("…", "").isascii()


# row, text, registry, repository, tag, digest
GOOD = [
    ("C1", "ubuntu", HUB, "library/ubuntu", "latest", None),
    ("C2", "ubuntu:22.04", HUB, "library/ubuntu", "22.04", None),
    ("C3", "library/ubuntu", HUB, "library/ubuntu", "latest", None),
    ("C4", "docker.io/ubuntu", HUB, "library/ubuntu", "latest", None),
    ("C5", "docker.io/library/ubuntu:22.04", HUB, "library/ubuntu", "22.04", None),
    ("C6", "index.docker.io/library/ubuntu", HUB, "library/ubuntu", "latest", None),
    ("C7", "index.docker.io/ubuntu", HUB, "library/ubuntu", "latest", None),
    ("C8", "registry-1.docker.io/library/ubuntu", "registry-1.docker.io", "library/ubuntu", "latest", None),
    ("C9", "opensuse/leap:15.3", HUB, "opensuse/leap", "15.3", None),
    ("C10", "test.com:5000", HUB, "library/test.com", "5000", None),
    ("C11", "test.com:tag", HUB, "library/test.com", "tag", None),
    ("C12", "test.com/repo:tag", "test.com", "repo", "tag", None),
    ("C13", "test:5000/repo", "test:5000", "repo", "latest", None),
    ("C14", f"test:5000/repo:tag@{SHA256}", "test:5000", "repo", "tag", SHA256),
    ("C15", f"test:5000/repo@{SHA256}", "test:5000", "repo", None, SHA256),
    ("C16", "localhost/foo", "localhost", "foo", "latest", None),
    ("C17", "localhost:5000/foo/bar:1", "localhost:5000", "foo/bar", "1", None),
    ("C18", "localhost", HUB, "library/localhost", "latest", None),
    ("C19", "localhost:5000", HUB, "library/localhost", "5000", None),
    ("C20", "127.0.0.1:8000/private/moonbase", "127.0.0.1:8000", "private/moonbase", "latest", None),
    ("C21", "192.168.1.1", HUB, "library/192.168.1.1", "latest", None),
    ("C22", "192.168.1.1/repo", "192.168.1.1", "repo", "latest", None),
    ("C23", "[2001:db8::1]:5000/repo:tag", "[2001:db8::1]:5000", "repo", "tag", None),
    ("C24", "[::1]/repo", "[::1]", "repo", "latest", None),
    ("C28", "foo/foo_bar.com:8080", HUB, "foo/foo_bar.com", "8080", None),
    ("C29", "foo_bar.com:8080", HUB, "library/foo_bar.com", "8080", None),
    (
        "C31",
        "b.gcr.io/test.example.com/my-app:test.example.com",
        "b.gcr.io",
        "test.example.com/my-app",
        "test.example.com",
        None,
    ),
    ("C32", f"xn--7o8h.com/myimage:xn--7o8h.com@{SHA512}", "xn--7o8h.com", "myimage", "xn--7o8h.com", SHA512),
    ("C33", "lowercase:Uppercase", HUB, "library/lowercase", "Uppercase", None),
    ("C35", "Foo/bar", "Foo", "bar", "latest", None),
    ("C50", f"docker.io/{D64}", HUB, f"library/{D64}", "latest", None),
    ("C52-docker", "docker://alpine", HUB, "library/alpine", "latest", None),
    ("C52-docker-host", "docker://ghcr.io/a/b:1", "ghcr.io", "a/b", "1", None),
    ("C55-1", "dock__er/docker", HUB, "dock__er/docker", "latest", None),
    ("C55-2", "docker---rules/docker", HUB, "docker---rules/docker", "latest", None),
    ("C55-3", "d/docker", HUB, "d/docker", "latest", None),
    ("C55-4", "a", HUB, "library/a", "latest", None),
    ("C57", f"x:{'t' * 128}", HUB, "library/x", "t" * 128, None),
    ("C59", f"example.com/{A255}", "example.com", A255, "latest", None),
    ("C60", "a.b:65535/x", "a.b:65535", "x", "latest", None),
    ("C62-1", "mcr.microsoft.com/dotnet/sdk:8.0", "mcr.microsoft.com", "dotnet/sdk", "8.0", None),
    (
        "C62-2",
        "public.ecr.aws/docker/library/alpine",
        "public.ecr.aws",
        "docker/library/alpine",
        "latest",
        None,
    ),
    ("C62-3", "ghcr.io/a/b/c/d/e:x", "ghcr.io", "a/b/c/d/e", "x", None),
    ("IPv4 inside IPv6", "[::ffff:10.0.0.1]:80/x", "[::ffff:10.0.0.1]:80", "x", "latest", None),
]


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"), [row[1:] for row in GOOD], ids=[row[0] for row in GOOD]
)
def test_good(text, registry, repository, tag, digest):
    reference = Reference.parse(text)
    expected = Reference(registry, repository, tag, Digest.parse(digest) if digest else None)
    assert reference == expected
    canonical = f"{registry}/{repository}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    assert str(reference) == canonical
    assert Reference.parse(canonical) == reference
    assert reference.target == (digest or tag)
    assert quote(f"/v2/{repository}/manifests/{reference.target}", safe="/:") == (
        f"/v2/{repository}/manifests/{reference.target}"
    )


# row, text, what the message must say
BAD = [
    ("C25", "[2001:db8::1]:5000", "repository is missing"),
    ("C26", "[fe80::1%eth0]:5000/repo", "zone"),
    ("C27", "fc00::1:5000/debian", "brackets"),
    ("C30", "foo_bar.com/x", '"foo_bar.com" is not a valid host'),
    ("C34", "Uppercase:tag", '"Uppercase" must be lower-case'),
    ("C36", "test:5000/Uppercase/lowercase:tag", '"Uppercase" must be lower-case'),
    ("C37", "docker/Docker", '"Docker" must be lower-case'),
    ("C38-1", "", "empty"),
    ("C38-2", "   ", "empty"),
    ("C39-1", " ubuntu", "white space"),
    ("C39-2", "ubuntu\n", "white space"),
    ("C39-3", "ubuntu:22.04\n", "white space"),
    ("C39-4", f"ubuntu@{SHA256}\n", "white space"),
    ("C39-5", "ubu ntu", '"ubu ntu" is not a valid part'),
    ("C40", ":justtag", "repository is missing"),
    ("C41", f"@{SHA256}", "repository is missing"),
    ("C42", f"repo@sha256:{'f' * 34}", "34 hex digits"),
    ("C43", f"repo@sha256:{'F' * 64}", "lower-case hex"),
    ("C44", f"validname@invaliddigest:{D64}", 'algorithm "invaliddigest"'),
    ("C45", f"repo@md5:{'f' * 32}", 'algorithm "md5"'),
    ("C46", f"repo@{SHA256}@{SHA256}", "more than one @"),
    ("C47", f"repo@{SHA256}:tag", "tag goes before the digest"),
    ("C48-1", f"library/nginx:@{SHA256}", "tag is empty"),
    ("C48-2", "library/ubuntu:", "tag is empty"),
    ("C49", D64, "image id"),
    ("C51-1", "https://ghcr.io/a/b", '"https://"'),
    ("C51-2", "http://localhost:5000/a", '"http://"'),
    ("C52-1", "oci:dir:tag", '"oci:" is not a registry'),
    ("C52-2", "oci:/dir/x", '"oci:" is not a registry'),
    ("C52-3", "docker-daemon:alpine:3", '"docker-daemon:" is not a registry'),
    ("C53-1", "docker///docker", "empty"),
    ("C53-2", "docker/", "empty"),
    ("C53-3", "/docker", "empty"),
    ("C53-4", "a//b", "empty"),
    ("C53-5", "ghcr.io/", "repository is missing"),
    ("C54-1", "-docker/docker", '"-docker"'),
    ("C54-2", "docker-/docker", '"docker-"'),
    ("C54-3", "dock..er/docker", '"dock..er"'),
    ("C54-4", "_docker/_docker", '"_docker"'),
    ("C56-1", "a-.b/c", '"a-.b"'),
    ("C56-2", "a_.b/c", '"a_.b"'),
    ("C57", f"x:{'t' * 129}", "not a valid tag"),
    ("C58-1", "x:.hidden", '".hidden" is not a valid tag'),
    ("C58-2", "x:-1", '"-1" is not a valid tag'),
    ("C59-1", f"example.com/{A255}a", "256 characters"),
    ("C59-2", A255, "263 characters"),
    ("C60-1", "a.b:70000/x", "port 70000"),
    ("C60-2", "a.b:0/x", "port 0"),
    ("C60-3", "a.b:/x", '"a.b:" is not a valid host'),
    ("C60-4", f"a.b:{'9' * 5000}/x", "port 9999"),
    ("C64-1", "\u0443buntu", "CYRILLIC SMALL LETTER U"),
    ("C64-2", "ubuntu:\uff12\uff12", "FULLWIDTH DIGIT TWO"),
    ("C64-3", "\u0130.com/x", "LATIN CAPITAL LETTER I WITH DOT ABOVE"),
    ("too many colons", "ubuntu:22:04", "too many colons"),
    ("no IPv6", "[1.2.3.4]/x", "not hold an IPv6 address"),
    ("no IPv6 either", "[:::]/x", "not hold an IPv6 address"),
    ("undecodable", "ubuntu\udcff", "U+DCFF"),
    ("docker twice", "docker://docker://x", "not a valid host"),
    ("docker alone", "docker://", "repository is missing"),
]


@pytest.mark.parametrize(("text", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad(text, says):
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert says in caught.value.message
    assert printable(caught.value.message) and len(caught.value.message) < 600


# What to type instead stands in the hint, ready to be copied.
@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("https://ghcr.io/a/b", "ghcr.io/a/b"),
        (" ubuntu", "ubuntu"),
        (f"repo@{SHA256}:tag", f"repo:tag@{SHA256}"),
        ("docker/Docker", "docker"),
        ("ghcr.io/", "ghcr.io/REPOSITORY"),
    ],
)
def test_hint_can_be_typed(text, typed):
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert caught.value.hint == f'write "{typed}"'


PASSWORDS = [
    "user:pw-secret@ghcr.io/a/b",
    "user:pw-secret@ghcr.io",
    "user:pw-secret@localhost:5000",
    "user:pw-secret@ghcr.io/a/b@" + SHA256[:20],
    "user:pw-secret@@ghcr.io/a/b",
    "user:a/pw-secret@ghcr.io/b",
    "user:a@pw-secret@ghcr.io/b",
    "docker://user:pw-secret@ghcr.io/a/b",
    "https://user:pw-secret@ghcr.io/a/b",
    " user:pw-secret@ghcr.io/a/b ",
]


@pytest.mark.parametrize("text", PASSWORDS)
def test_c61_password_is_never_shown(text):
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    error = caught.value
    assert "pw-secret" not in f"{error.message} {error.cause} {error.hint} {error.args}"
    assert "password" in error.message and "docker login" in (error.hint or "")


@given(st.from_regex(r"[!-~]{6,30}", fullmatch=True), st.sampled_from(["ghcr.io/a/b", "h:5000/x:1", "localhost:5000"]))
def test_c61_any_password(password, rest):
    secret = f"5ecret{password}5ecret"
    with pytest.raises(UsageError) as caught:
        Reference.parse(f"user:{secret}@{rest}")
    assert "5ecret" not in f"{caught.value.message} {caught.value.cause} {caught.value.hint}"


@pytest.mark.parametrize(
    ("default", "text", "expected"),
    [
        ("ghcr.io", "ubuntu:22.04", "ghcr.io/ubuntu:22.04"),
        ("ghcr.io/mirror", "ubuntu:22.04", "ghcr.io/mirror/ubuntu:22.04"),
        ("ghcr.io/mirror/", "a/b", "ghcr.io/mirror/a/b:latest"),
        ("localhost:5000", "ubuntu", "localhost:5000/ubuntu:latest"),
        ("localhost", "ubuntu", "localhost/ubuntu:latest"),
        ("docker.io", "ubuntu", "docker.io/library/ubuntu:latest"),
        ("index.docker.io", "ubuntu", "docker.io/library/ubuntu:latest"),
        ("ghcr.io", "docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
        ("ghcr.io", "quay.io/ubuntu", "quay.io/ubuntu:latest"),
    ],
)
def test_c63_default_registry(default, text, expected):
    reference = Reference.parse(text, default)
    assert str(reference) == expected
    assert Reference.parse(expected) == Reference.parse(expected, default) == reference


@pytest.mark.parametrize("default", ["myhost", "", "https://ghcr.io", "/x", "a b.c", "ghcr.io:x"])
def test_c63_default_registry_that_would_not_be_read_as_a_host(default):
    with pytest.raises(UsageError, match="default registry"):
        Reference.parse("ubuntu", default)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("localhost:5000", "localhost:5000/NAME"),
        ("localhost", "localhost/NAME"),
        ("test.com:5000", "test.com:5000/NAME"),
        ("192.168.1.1", "192.168.1.1/NAME"),
        ("test.com:tag", "test.com/NAME"),
        ("Foo/bar", "host"),
    ],
)
def test_doubtful(text, says):
    """C18, C19, C21, C35: specified, but seldom meant."""
    assert says in (Reference.parse(text).doubt or "")


@pytest.mark.parametrize("text", ["ubuntu", "a/b.c", "ghcr.io/a/b", "localhost:5000/x", "node:20.1", "quay.io/x.y"])
def test_nothing_to_doubt(text):
    assert Reference.parse(text).doubt is None


def test_pinned():
    digest, other = Digest.parse(SHA256), Digest.of(b"")
    assert Reference.parse("ubuntu:1").pinned(digest) == f"docker.io/library/ubuntu:1@{SHA256}"
    assert Reference.parse(f"ubuntu@{SHA256}").pinned(other) == f"docker.io/library/ubuntu@{SHA256}"
    assert Reference.parse(f"ubuntu:1@{SHA256}").pinned(other) == f"docker.io/library/ubuntu:1@{SHA256}"


# The grammar of distribution/reference

LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,6}[a-zA-Z0-9])?"
COMPONENT = r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}"
hosts = st.one_of(
    st.from_regex(rf"{LABEL}\.{LABEL}(\.{LABEL})?", fullmatch=True),
    st.just("localhost"),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
paths = st.lists(st.from_regex(COMPONENT, fullmatch=True), min_size=1, max_size=4).map("/".join)
tags = st.one_of(st.just(""), st.from_regex(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True))
digests = st.one_of(
    st.just(""),
    st.binary(max_size=4).map(lambda data: f"@{Digest.of(data)}"),
    st.binary(max_size=4).map(lambda data: f"@{Digest.of(data, 'sha512')}"),
)
prefixes = st.one_of(st.just(""), st.tuples(hosts, ports).map(lambda pair: f"{pair[0]}{pair[1]}/"))
references = st.tuples(prefixes, paths, tags, digests).map("".join)


@given(references, st.sampled_from(["docker.io", "ghcr.io", "localhost:5000", "quay.io/mirror"]))
def test_everything_the_grammar_allows(text, default):
    try:
        reference = Reference.parse(text, default)
    except UsageError as error:
        # A dot makes the first part a host, where no underscore may stand (C30).
        assert "is not a valid host" in error.message and re.match(r"[^/]*_[^/]*/", text)
        return
    assert Reference.parse(str(reference)) == Reference.parse(str(reference), default) == reference
    for part in (reference.repository, reference.target):
        assert quote(part, safe="/:") == part and ".." not in part.split("/")
    assert (reference.tag or reference.digest) is not None
    assert Reference.parse(f"docker://{text}", default) == reference


@given(st.one_of(st.text(max_size=40), st.from_regex(r"[a-zA-Z0-9:/@.\[\]_-]{1,30}", fullmatch=True)))
def test_anything_else_is_a_usage_error(text):
    try:
        reference = Reference.parse(text)
    except UsageError as error:
        assert printable(error.message)
        return
    assert Reference.parse(str(reference)) == reference
    assert str(reference).isascii() and not set(str(reference)) & set(" \t\n\\%?#\"'")


# Arguments of the command line


@pytest.mark.parametrize(
    ("text", "transport", "path", "name"),
    [
        ("oci:dir", "oci", "dir", None),
        ("oci:dir:3.11", "oci", "dir", "3.11"),
        ("oci:/a/b:docker.io/library/alpine:3", "oci", "/a/b", "docker.io/library/alpine:3"),
        ("oci:dir:", "oci", "dir", None),
        (f"oci:dir:{SHA256}", "oci", "dir", SHA256),
        ("oci-archive:x.tar", "oci-archive", "x.tar", None),
        ("oci-archive:-:1", "oci-archive", "-", "1"),
        ("docker-archive:-", "docker-archive", "-", None),
        ("docker-archive:x.tar:localhost:5000/a/b:1", "docker-archive", "x.tar", "localhost:5000/a/b:1"),
        ("docker-archive:./caf\u00e9 x.tar:a", "docker-archive", "./caf\u00e9 x.tar", "a"),
    ],
)
def test_local_arguments(text, transport, path, name):
    argument = parse_argument(text)
    assert (argument.transport, argument.path, argument.name) == (transport, path, name)
    assert argument.text == text and argument.reference is None


@pytest.mark.parametrize("text", ["ubuntu", "docker://alpine", "localhost:5000/a", "docker:24", "oci/x", "dir/oci:1"])
def test_registry_arguments(text):
    argument = parse_argument(text)
    assert argument.transport == "registry" and argument.path is None and argument.name is None
    assert argument.reference == Reference.parse(text)


def test_default_registry_of_arguments():
    assert str(parse_argument("x", "ghcr.io").reference) == "ghcr.io/x:latest"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("oci:", "path is missing"),
        ("oci::tag", "path is missing"),
        ("oci-archive:", "path is missing"),
        ("oci:-", "standard input"),
        ("oci:a\0b", "NUL"),
        ("containers-storage:x:1", "not a registry"),
    ],
)
def test_bad_arguments(text, says):
    with pytest.raises(UsageError, match=says):
        parse_argument(text)


@given(st.text(max_size=30), st.sampled_from(["", "oci:", "oci-archive:", "docker-archive:"]))
def test_arguments_raise_usage_errors_only(text, transport):
    try:
        argument = parse_argument(transport + text)
    except UsageError as error:
        assert printable(error.message)
        return
    assert (argument.reference is None) == (argument.path is not None)
