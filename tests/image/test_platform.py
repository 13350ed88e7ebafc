"""Platforms: names for them, and which entry of an index is taken (rows B58 to B63)."""

from __future__ import annotations

import platform as host_platform

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msb_pull.ground.errors import NotFoundError, UsageError
from msb_pull.image.digest import Digest
from msb_pull.image.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Index, choose
from msb_pull.image.platform import Platform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9", "linux/arm64/v9"),
        ("arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("arm/v6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("Linux/AMD64/V3", "linux/amd64/v3"),
        ("i686", "linux/386"),
        ("windows/amd64", "windows/amd64"),
        ("linux/riscv64", "linux/riscv64"),
        ("linux/s390x", "linux/s390x"),
        ("plan9/sparc", "plan9/sparc"),
    ],
)
def test_parse(text, expected):
    parsed = Platform.parse(text)
    assert str(parsed) == expected
    assert Platform.parse(expected) == parsed == parsed.normalized()


def test_lone_system_is_on_this_machine(monkeypatch):
    monkeypatch.setattr(host_platform, "machine", lambda: "aarch64")
    assert str(Platform.parse("linux")) == "linux/arm64"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "linux/",
        "/amd64",
        "a/b/c/d",
        "sparc",
        "unknown",
        "linux amd64",
        "linux/amd64\n",
        "linux/\u0430md64",
        "arm64/v8/x/y",
        "lin\u212ax/amd64",
        "linux/amd64/v3/x",
        "..",
        "-",
        "x" * 300,
    ],
)
def test_parse_refuses(text):
    with pytest.raises(UsageError, match="invalid platform") as caught:
        Platform.parse(text)
    assert "linux/arm64" in (caught.value.hint or "") and caught.value.message.isprintable()


@given(st.text(max_size=20))
def test_parse_anything(text):
    try:
        parsed = Platform.parse(text)
    except UsageError:
        return
    assert Platform.parse(str(parsed)) == parsed == parsed.normalized()
    assert parsed.accepts(parsed)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", "linux/amd64"),
        ("AMD64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("arm64", "linux/arm64"),
        ("armv8l", "linux/arm/v7"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("i686", "linux/386"),
        ("ppc64le", "linux/ppc64le"),
        ("s390x", "linux/s390x"),
        ("riscv64", "linux/riscv64"),
        ("loongarch64", "linux/loong64"),
    ],
)
def test_b59_host(monkeypatch, machine, expected):
    """Always Linux, on macOS (``arm64``) as well."""
    assert str(Platform.host(machine)) == expected
    monkeypatch.setattr(host_platform, "machine", lambda: machine)
    assert str(Platform.host()) == expected


# Choosing

ATTESTATION = {"vnd.docker.reference.type": "attestation-manifest"}


def entry(platform: str | None, number: int = 0, **more) -> Descriptor:
    parts = platform.split("/") if platform else None
    said = Platform(*parts) if parts else None
    digest = Digest.of(f"{platform} {number}".encode())
    return Descriptor(**{"media_type": OCI_MANIFEST, "digest": digest, "size": 1, "platform": said} | more)


@pytest.mark.parametrize(
    ("wanted", "offered", "taken"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["windows/amd64", "linux/amd64"], 1),
        ("linux/amd64", ["windows/amd64"], None),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], 2),
        ("linux/amd64", ["linux/amd64/v3"], None),
        ("linux/amd64", ["linux/amd64/v1"], 0),
        ("linux/amd64", ["linux/x86_64"], 0),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/amd64/v3", ["linux/amd64/v4", "linux/amd64"], 1),
        ("linux/amd64/v2", ["linux/amd64/v3"], None),
        ("linux/arm64", ["linux/arm64/v8"], 0),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("linux/arm64", ["linux/arm64/v9", "linux/arm64/v8"], 1),
        ("linux/arm64/v9", ["linux/arm64"], 0),
        ("linux/arm64", ["linux/arm/v7"], None),
        ("linux/arm", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], 2),
        ("linux/arm/v8", ["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/arm/v6", ["linux/arm/v7"], None),
        ("linux/arm/v7", ["linux/arm"], 0),
        ("linux/arm/v7", ["linux/arm/weird"], None),
        ("linux/386", ["linux/amd64"], None),
        ("linux/amd64", [None], 0),
        ("linux/amd64", [None, None], None),
        ("linux/amd64", [None, "linux/arm64"], None),
        ("linux/amd64", [None, "linux/amd64"], 1),
        ("linux/amd64", [], None),
    ],
)
def test_b58_b61_choice(wanted, offered, taken):
    entries = [entry(text, number) for number, text in enumerate(offered)]
    if taken is None:
        with pytest.raises(NotFoundError):
            choose(entries, Platform.parse(wanted))
    else:
        assert choose(entries, Platform.parse(wanted)) is entries[taken]


def test_b58_error_lists_what_there_is():
    offered = ["linux/arm64/v8", "windows/amd64", "linux/arm64", "linux/arm/v7", "unknown/unknown"]
    index = Index(OCI_INDEX, tuple(entry(text, number) for number, text in enumerate(offered)))
    with pytest.raises(NotFoundError) as caught:
        choose(index.images(), Platform.parse("linux/amd64"))
    assert caught.value.cause == "the index offers linux/arm/v7, linux/arm64, windows/amd64"
    assert "--platform" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "skipped",
    [
        entry("unknown/unknown"),
        entry("unknown/unknown", annotations=ATTESTATION),
        entry("linux/amd64", annotations=ATTESTATION),
        entry(None, annotations=ATTESTATION),
        entry("linux/amd64", artifact_type="application/vnd.dev.sigstore.bundle+json"),
        entry("linux/amd64", media_type="application/vnd.cncf.helm.chart.v1"),
        entry("linux/amd64", media_type=""),
    ],
)
def test_b60_b63_no_images(skipped):
    """Attestations, artifacts and unknown types are passed over, wherever they stand."""
    real = entry("linux/amd64", 1)
    assert Index(OCI_INDEX, (skipped, real)).images() == [real]
    only = Index(OCI_INDEX, (skipped, entry("linux/arm64")))
    with pytest.raises(NotFoundError):
        choose(only.images(), Platform.parse("linux/amd64"))


def test_b62_nested_indexes_may_hold_images():
    nested = entry("linux/amd64", media_type=OCI_INDEX)
    assert Index(OCI_INDEX, (nested,)).images() == [nested]


@pytest.mark.parametrize(
    ("wish", "other", "accepted"),
    [
        ("linux/amd64", Platform("linux", "amd64"), True),
        ("linux/arm64", Platform("linux", "arm64", "v8"), True),
        ("linux/amd64", Platform("linux", "arm64"), False),
        ("linux/amd64", Platform("", ""), False),
        ("linux/amd64", Platform("windows", "amd64"), False),
        ("linux/arm/v7", Platform("linux", "arm", "v6"), True),
    ],
)
def test_accepts(wish, other, accepted):
    assert Platform.parse(wish).accepts(other) is accepted
