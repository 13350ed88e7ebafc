"""Documents, references and challenges: text from registries and people, of which anything may come."""

from __future__ import annotations

import hashlib
import json

from msb_pull.ground.errors import ContentError, MsbPullError, UsageError
from msb_pull.ground.text import visible
from msb_pull.image.digest import Digest
from msb_pull.image.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    check_image,
    choose,
    parse_config,
    parse_document,
)
from msb_pull.image.platform import Platform
from msb_pull.image.reference import Reference, parse_argument
from msb_pull.source.http.challenge import choose_challenge, parse_challenges

_TYPES = (
    None,
    OCI_INDEX,
    OCI_MANIFEST,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    "text/html; charset=utf-8",
    "",
    "application/json",
)
CONFIG = 8


def documents(data: bytes) -> None:
    """Byte 0: the content type of the rest, or that it is a config."""
    how, text = (data[0], data[1:]) if data else (0, b"")
    try:
        if how & CONFIG:
            found = parse_config(text, _manifest(how >> 4), "image")
        else:
            found = parse_document(text, _TYPES[how & 7], "image", lambda warning: _shown(warning))
    except ContentError as error:
        _shown(str(error))
        return
    plain = json.loads(text)
    if how & CONFIG:
        assert found.raw == plain
        assert [str(x) for x in found.diff_ids] == ((plain.get("rootfs") or {}).get("diff_ids") or [])
        str(found.platform)
    elif isinstance(found, Index):
        _index(found, plain)
    else:
        _image(found, plain)


def _index(found: Index, plain) -> None:
    assert [str(x.digest) for x in found.manifests] == [x["digest"] for x in plain["manifests"] or []]
    for entry in found.manifests:
        _descriptor(entry)
    for wanted in ("linux/amd64", "linux/arm/v7"):
        try:
            assert choose(found.images(), Platform.parse(wanted)) in found.manifests
        except MsbPullError as error:
            _shown(str(error))


def _image(found: Manifest, plain) -> None:
    assert str(found.config.digest) == plain["config"]["digest"]
    assert [str(x.digest) for x in found.layers] == [x["digest"] for x in plain["layers"] or []]
    for entry in (found.config, *found.layers):
        _descriptor(entry)
    try:
        check_image(found, "image")
    except ContentError as error:
        _shown(str(error))


def _descriptor(entry: Descriptor) -> None:
    assert 0 <= entry.size < 1 << 63
    assert Digest.parse(str(entry.digest)) == entry.digest
    json.dumps([entry.media_type, *entry.urls, dict(entry.annotations)], ensure_ascii=False).encode("utf-8")


def _manifest(count: int) -> Manifest:
    """As many layers as a config shall have."""
    layers = tuple(
        Descriptor("application/vnd.oci.image.layer.v1.tar", Digest("sha256", hashlib.sha256(b"%d" % x).hexdigest()), x)
        for x in range(count % 4)
    )
    return Manifest(2, OCI_MANIFEST, Descriptor("", Digest("sha256", "0" * 64), 2), layers)


def references(data: bytes) -> None:
    """What is accepted has one canonical form, which is accepted again and means the same."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        argument = parse_argument(text)
    except UsageError as error:
        _shown(str(error))
        return
    if argument.reference is None:
        assert argument.path
        return
    found = argument.reference
    assert Reference.parse(str(found)) == found
    assert str(found).isascii() and str(found).isprintable()
    assert not {"", ".", ".."} & set(found.repository.split("/"))
    assert found.doubt is None or found.doubt.isprintable()
    digest = Digest("sha256", "0" * 64)
    pinned = Reference.parse(found.pinned(digest))
    assert pinned.digest == (found.digest or digest) and pinned.repository == found.repository


def challenges(data: bytes) -> None:
    """Headers are what HTTP brings: Latin-1."""
    found = parse_challenges(data.decode("latin-1").split("\n"))
    for challenge in found:
        assert challenge.scheme == challenge.scheme.lower() != ""
        assert all(name == name.lower() != "" for name in challenge.parameters)
    chosen = choose_challenge(found)
    assert chosen is None or chosen.scheme in ("bearer", "basic")


def _shown(text: str) -> None:
    """One line at the prompt, whatever it quotes."""
    assert visible(text).isprintable(), repr(text)
    assert len(text) < 1000
    text.encode("utf-8", "surrogateescape")
