"""Manifests, indexes and configs: parsed strictly, because a registry may send anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from msb_pull.ground.errors import ContentError
from msb_pull.image.documents import Fields, load_json, shown, text
from msb_pull.image.platform import Platform, no_image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from msb_pull.image.digest import Digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"
# Schema 1 is not asked for: some registries would rather send it than what they have.
ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))

_INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
_MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
# What some registries and builders have put in place of Docker's type, "" being none at all; Docker takes them for
# images too (moby, distribution/config.go). Only the OCI's own manifests are used for anything but images.
_DOCKER_CONFIGS = _CONFIGS | {"application/octet-stream", "application/json", "text/html", ""}
# Media types of entries that leave it to the document; the spec wants better ones, podman takes these.
_UNSAID = frozenset({"", "application/json"})
# Docker writes a dot, the OCI a plus, and some builders the one in place of the other.
_LAYER_TYPES = frozenset(
    f"application/vnd.{kind}.tar{compression}"
    for kind in (
        *("oci.image.layer.v1", "oci.image.layer.nondistributable.v1"),
        *("docker.image.rootfs.diff", "docker.image.rootfs.foreign.diff"),
    )
    for compression in ("", "+gzip", "+zstd", ".gzip", ".zstd")
)


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


class Manifest(NamedTuple):
    """One image for one platform: its config and its layers, bottom first."""

    schema_version: int
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str | None = None


class Index(NamedTuple):
    """Manifests for several platforms."""

    media_type: str
    manifests: tuple[Descriptor, ...]

    def images(self) -> list[Descriptor]:
        """The entries that may be images: no attestations, artifacts or types unknown here (image-spec allows them).

        Where none says that it is one, those that do not say what they are: their documents will.
        """
        possible = [entry for entry in self.manifests if _may_be_image(entry)]
        said = [entry for entry in possible if _kind(entry.media_type)]
        return said or [entry for entry in possible if entry.media_type in _UNSAID]


class ImageConfig(NamedTuple):
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


def parse_document(
    data: bytes, content_type: str | None, what: str, warn: Callable[[str], None] | None = None
) -> Manifest | Index:
    """Parses a manifest or an index; ``what`` names the image in errors.

    The kind comes from the Content-Type if that is one of ours, else from the body's ``mediaType``, else from its
    shape. Raises ContentError on anything ambiguous or malformed (CVE-2021-41190 was such an ambiguity). ``warn`` hears
    what is odd but harmless.
    """
    fields = Fields(load_json(data, what, "manifest"), what, "its manifest")
    header = (content_type or "").partition(";")[0].strip().lower()
    body = fields.get("mediaType")
    if not (body is None or isinstance(body, str)):
        fields.refuse("has a mediaType that is not a string")
    if header.startswith(_SCHEMA1) or fields.has("fsLayers") or fields.get("schemaVersion") == 1:
        hint = "ask for a rebuilt image; the format was retired in 2017"
        raise ContentError(f"{what}: schema 1 images are not supported", hint=hint)
    if fields.has("schemaVersion") and fields.get("schemaVersion") != 2:
        fields.refuse(f"has schemaVersion {str(fields.get('schemaVersion'))[:40]}, 2 is known")
    said = [media_type for media_type in (header, body or "") if _kind(media_type)]
    if len({_kind(media_type) for media_type in said}) > 1:
        fields.refuse(f"is a {header} according to the registry and a {body} according to itself")
    if len(set(said)) > 1 and warn is not None:
        warn(f"{what}: the registry calls its manifest {header}, the manifest itself {body}")
    kind = _kind(said[0]) if said else "index" if fields.has("manifests") else "manifest"
    if kind == "index":
        return _parse_index(fields, said[-1] if said else OCI_INDEX)
    return _parse_manifest(fields, said[-1] if said else OCI_MANIFEST)


def _parse_index(fields: Fields, media_type: str) -> Index:
    if fields.has("layers") or fields.has("config"):
        fields.refuse("is an index with the layers or the config of an image")
    return Index(media_type, tuple(_descriptor(item) for item in fields.objects("manifests")))


def _parse_manifest(fields: Fields, media_type: str) -> Manifest:
    if fields.has("manifests"):
        fields.refuse("has both the layers of an image and the manifests of an index")
    if not fields.has("config"):
        fields.refuse("is neither that of an image nor an index (it has no config and no manifests)")
    return Manifest(
        schema_version=2,
        media_type=media_type,
        config=_descriptor(fields.object("config")),
        layers=tuple(_descriptor(item) for item in fields.objects("layers")),
        annotations=fields.annotations(),
        artifact_type=fields.text("artifactType") or None,
    )


def parse_config(data: bytes, manifest: Manifest, what: str) -> ImageConfig:
    """Parses the config that belongs to ``manifest``; raises ContentError when layers and diff_ids do not pair up."""
    raw = load_json(data, what, "config")
    fields = Fields(raw, what, "its config")
    rootfs = raw.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if diff_ids is None and not manifest.layers:
        diff_ids = []
    if not isinstance(diff_ids, list):
        fields.refuse("has no list rootfs.diff_ids")
    if len(diff_ids) != len(manifest.layers):
        fields.refuse(f"has {len(diff_ids)} diff_ids, its manifest {len(manifest.layers)} layers")
    parsed = tuple(fields.as_digest(value, f"diff_ids[{number}]") for number, value in enumerate(diff_ids))
    seen: dict[Digest, Digest] = {}
    for layer, diff_id in zip(manifest.layers, parsed, strict=True):
        if seen.setdefault(layer.digest, diff_id) != diff_id:
            raise ContentError(f"{what}: layer {layer.digest.short} is listed with two diff_ids")
    return ImageConfig(
        raw=raw,
        architecture=text(raw, "architecture"),
        os=text(raw, "os"),
        variant=text(raw, "variant") or None,
        created=text(raw, "created") or None,
        diff_ids=parsed,
    )


def is_image(manifest: Manifest) -> bool:
    """Whether this is the manifest of a container image and not of another kind of artifact."""
    kinds = (manifest.config.media_type, manifest.artifact_type or manifest.config.media_type)
    return all(_names_image(kind, manifest.media_type) for kind in kinds)


def check_image(manifest: Manifest, what: str) -> None:
    """Refuses anything but a container image, and layers that cannot be read; raises ContentError."""
    if not is_image(manifest):
        kind = manifest.artifact_type or manifest.config.media_type
        hint = "get it with the program it is made for, or with `oras pull`"
        raise ContentError(f"{what}: this is an artifact of type {shown(kind)}, not a container image", hint=hint)
    sizes: dict[Digest, int] = {}
    for layer in manifest.layers:
        if layer.media_type.endswith("+encrypted"):
            raise ContentError(
                f"{what}: layer {layer.digest.short} is encrypted ({shown(layer.media_type)})",
                hint="decrypt the image with `skopeo copy --decryption-key` first",
            )
        if layer.media_type not in _LAYER_TYPES:
            kind = shown(layer.media_type)
            raise ContentError(f"{what}: layer {layer.digest.short} is of type {kind}, not a tar archive")
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise ContentError(f"{what}: layer {layer.digest.short} is listed with two sizes")


def choose(candidates: Sequence[Descriptor], wanted: Platform) -> Descriptor:
    """The entry of an index to pull: the best match, the first of equals (containerd's order of variants).

    Attestations, artifacts and unknown media types must have been removed by the caller. A lone entry without a
    platform is taken, to be checked against its config. Raises NotFoundError that lists what there is.
    """
    known = [(entry.platform, entry) for entry in candidates if entry.platform]
    ranked = [(rank, entry) for platform, entry in known if (rank := wanted.rank(platform)) is not None]
    if ranked:
        return min(ranked, key=lambda pair: pair[0])[1]
    if len(candidates) == 1 and candidates[0].platform is None:
        return candidates[0]
    raise no_image(wanted, [platform for platform, _ in known])


def _kind(media_type: str) -> str | None:
    if media_type in _INDEXES:
        return "index"
    return "manifest" if media_type in _MANIFESTS else None


def _names_image(config_type: str, manifest_type: str) -> bool:
    """Whether a config of this type, in a manifest of that one, makes an image."""
    return config_type in (_DOCKER_CONFIGS if manifest_type == DOCKER_MANIFEST else _CONFIGS)


def _may_be_image(entry: Descriptor) -> bool:
    # An entry repeats the artifactType of its manifest, or else (image-spec) the media type of its config.
    if entry.artifact_type and not _names_image(entry.artifact_type, entry.media_type):
        return False
    if entry.annotations.get("vnd.docker.reference.type") == "attestation-manifest":
        return False
    return not (entry.platform and "unknown" in (entry.platform.os, entry.platform.architecture))


def _descriptor(fields: Fields) -> Descriptor:
    return Descriptor(
        media_type=fields.text("mediaType"),
        digest=fields.digest("digest"),
        size=fields.size("size"),
        urls=fields.texts("urls"),
        annotations=fields.annotations(),
        data=fields.data(),
        platform=fields.platform(),
        artifact_type=fields.text("artifactType") or None,
    )
