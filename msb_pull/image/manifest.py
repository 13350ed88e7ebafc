"""Manifests, indexes and configs: parsed strictly, because a registry may send anything."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msb_pull.errors import ContentError
from msb_pull.image.digest import Digest, InvalidDigest
from msb_pull.image.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

MANIFEST_LIMIT = 4 << 20
_MAX_DEPTH = 64
_MAX_SIZE = (1 << 63) - 1
# Inline content larger than this is not what the field is for, and is fetched like any blob.
_MAX_DATA = 1 << 20

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"
ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))

_INDEXES = {OCI_INDEX, DOCKER_LIST}
_MANIFESTS = {OCI_MANIFEST, DOCKER_MANIFEST}
_LAYER_TYPES = {
    *(
        f"application/vnd.oci.image.layer.{kind}v1.tar{compression}"
        for kind in ("", "nondistributable.")
        for compression in ("", "+gzip", "+zstd")
    ),
    *(
        f"application/vnd.docker.image.rootfs.{kind}diff.tar{compression}"
        for kind in ("", "foreign.")
        for compression in ("", ".gzip", ".zstd")
    ),
}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a document says of a blob: media type, digest, size in bytes (image-spec, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    data: bytes | None = None
    platform: Platform | None = None
    artifact_type: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform: its config and its layers, bottom first."""

    schema_version: int
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """Manifests for several platforms."""

    media_type: str
    manifests: tuple[Descriptor, ...]

    def images(self) -> list[Descriptor]:
        """The entries that may be images: no attestations, artifacts or types unknown here (image-spec allows them)."""
        return [entry for entry in self.manifests if _may_be_image(entry)]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of an image's config that msb-pull needs; ``raw`` holds all of it."""

    raw: Mapping[str, Any]
    architecture: str
    os: str
    variant: str | None
    created: str | None
    diff_ids: tuple[Digest, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """The inner ``config`` object (env, cmd, …), empty where there is none."""
        inner = self.raw.get("config")
        return inner if isinstance(inner, dict) else {}

    @property
    def platform(self) -> Platform:
        """What the image says it runs on."""
        return Platform(self.os, self.architecture, self.variant).normalized()


def parse_document(data: bytes, content_type: str | None, what: str) -> Manifest | Index:
    """Parses a manifest or an index; ``what`` names the image in errors.

    The kind comes from the Content-Type if that is one of ours, else from the body's ``mediaType``, else from its
    shape. Raises ContentError on anything ambiguous or malformed (CVE-2021-41190 was such an ambiguity).
    """
    document = load_json(data, what, "manifest")
    header = (content_type or "").partition(";")[0].strip().lower()
    body = document.get("mediaType")
    if not (body is None or isinstance(body, str)):
        raise _invalid(what, "its mediaType is no text")
    if header.startswith(_SCHEMA1) or "fsLayers" in document or document.get("schemaVersion") == 1:
        raise ContentError(
            f"{what}: schema 1 images are not supported", hint="ask for a rebuilt image, or copy it with skopeo first"
        )
    if "layers" in document and "manifests" in document:
        raise _invalid(what, "it has both layers and manifests")
    kinds = {kind for kind in (_kind(header), _kind(body or "")) if kind}
    if len(kinds) > 1:
        raise _invalid(what, f"the registry calls it {header}, its body {body}")
    kind = kinds.pop() if kinds else ("index" if "manifests" in document else "manifest")
    media_type = next((x for x in (body, header) if x and _kind(x)), OCI_INDEX if kind == "index" else OCI_MANIFEST)
    if kind == "index":
        return Index(media_type, _descriptors(document.get("manifests"), what, "manifests"))
    if "layers" not in document or "config" not in document:
        raise _invalid(what, "it has neither manifests nor config and layers")
    artifact = document.get("artifactType")
    return Manifest(
        schema_version=2,
        media_type=media_type,
        config=_descriptor(document["config"], what, "config"),
        layers=_descriptors(document["layers"], what, "layers"),
        annotations=_annotations(document.get("annotations"), what),
        artifact_type=artifact if isinstance(artifact, str) and artifact else None,
    )


def parse_config(data: bytes, manifest: Manifest, what: str) -> ImageConfig:
    """Parses the config that belongs to ``manifest``; raises ContentError when layers and diff_ids do not pair up."""
    raw = load_json(data, what, "config")
    rootfs = raw.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if diff_ids is None and not manifest.layers:
        diff_ids = []
    if not isinstance(diff_ids, list) or len(diff_ids) != len(manifest.layers):
        count = len(diff_ids) if isinstance(diff_ids, list) else "no"
        raise ContentError(f"{what}: the manifest has {len(manifest.layers)} layers, the config {count} diff_ids")
    parsed = tuple(_digest(text, what, "a diff_id") for text in diff_ids)
    _check_repeats(manifest, parsed, what)
    return ImageConfig(
        raw=raw,
        architecture=_text(raw, "architecture"),
        os=_text(raw, "os"),
        variant=_text(raw, "variant") or None,
        created=_text(raw, "created") or None,
        diff_ids=parsed,
    )


def check_image(manifest: Manifest, what: str) -> None:
    """Refuses what is no container image, and layers that cannot be read; raises ContentError."""
    kind = manifest.config.media_type
    if kind not in (OCI_CONFIG, DOCKER_CONFIG) or manifest.artifact_type:
        raise ContentError(f"{what}: this is an artifact of type {manifest.artifact_type or kind}, no container image")
    sizes: dict[Digest, int] = {}
    for layer in manifest.layers:
        if layer.media_type.endswith("+encrypted"):
            raise ContentError(f"{what}: layer {layer.digest.short} is encrypted ({layer.media_type})")
        if layer.media_type not in _LAYER_TYPES:
            raise ContentError(f"{what}: layer {layer.digest.short} is no tar archive but {layer.media_type}")
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise ContentError(f"{what}: layer {layer.digest.short} is listed with two sizes")


def load_json(data: bytes, what: str, part: str) -> dict[str, Any]:
    """Parses one JSON object: no duplicate keys, no NaN, bounded depth; raises ContentError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        loaded = dict(pairs)
        if len(loaded) != len(pairs):
            raise ValueError("a key stands twice")
        return loaded

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    if len(data) > MANIFEST_LIMIT:
        raise ContentError(f"{what}: its {part} is larger than {MANIFEST_LIMIT} bytes")
    try:
        if _depth(data) > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        loaded = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ContentError(f"{what}: its {part} is no valid JSON", cause=str(error)) from None
    if not isinstance(loaded, dict):
        raise ContentError(f"{what}: its {part} is no JSON object")
    return loaded


def _depth(data: bytes) -> int:
    """An upper bound of the nesting; brackets in texts count too, and no real document has that many."""
    depth = deepest = 0
    for byte in data:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _kind(media_type: str) -> str | None:
    if media_type in _INDEXES:
        return "index"
    return "manifest" if media_type in _MANIFESTS else None


def _may_be_image(entry: Descriptor) -> bool:
    if entry.artifact_type or entry.annotations.get("vnd.docker.reference.type") == "attestation-manifest":
        return False
    if entry.platform and "unknown" in (entry.platform.os, entry.platform.architecture):
        return False
    return _kind(entry.media_type) is not None


def _check_repeats(manifest: Manifest, diff_ids: tuple[Digest, ...], what: str) -> None:
    seen: dict[Digest, Digest] = {}
    for layer, diff_id in zip(manifest.layers, diff_ids, strict=True):
        if seen.setdefault(layer.digest, diff_id) != diff_id:
            raise ContentError(f"{what}: layer {layer.digest.short} is listed with two diff_ids")


def _descriptors(value: Any, what: str, where: str) -> tuple[Descriptor, ...]:
    if not isinstance(value, list):
        raise _invalid(what, f"{where} is no list")
    return tuple(_descriptor(item, what, where) for item in value)


def _descriptor(value: Any, what: str, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise _invalid(what, f"an entry of {where} is no object")
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
        raise _invalid(what, f"a size in {where} is {str(size)[:40]!r}")
    urls = value.get("urls") or []
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise _invalid(what, f"urls in {where} is no list of texts")
    return Descriptor(
        media_type=_text(value, "mediaType"),
        digest=_digest(value.get("digest"), what, f"a digest in {where}"),
        size=size,
        urls=tuple(urls),
        annotations=_annotations(value.get("annotations"), what),
        data=_data(value.get("data"), what),
        platform=_platform(value.get("platform")),
        artifact_type=_text(value, "artifactType") or None,
    )


def _digest(value: Any, what: str, which: str) -> Digest:
    try:
        return Digest.parse(value if isinstance(value, str) else "")
    except InvalidDigest as error:
        raise _invalid(what, f"{which} is malformed: {error}") from None


def _data(value: Any, what: str) -> bytes | None:
    if not isinstance(value, str) or len(value) > 2 * _MAX_DATA:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(what, "inline data is no base64") from None


def _platform(value: Any) -> Platform | None:
    if not isinstance(value, dict) or not _text(value, "architecture") or not _text(value, "os"):
        return None
    return Platform(_text(value, "os"), _text(value, "architecture"), _text(value, "variant") or None)


def _annotations(value: Any, what: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid(what, "annotations is no object")
    return {key: text for key, text in value.items() if isinstance(text, str)}


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    return value if isinstance(value, str) else ""


def _invalid(what: str, why: str) -> ContentError:
    return ContentError(f"{what}: invalid manifest: {why}")
