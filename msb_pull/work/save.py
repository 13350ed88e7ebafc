"""Save: an archive of images, its layers recreated from the store and checked on the way out."""

from __future__ import annotations

import enum
import io
import tarfile
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from msb_pull.ground import events
from msb_pull.ground.errors import ContentError, NotFoundError, UsageError
from msb_pull.ground.running import Throttle, processors
from msb_pull.image.digest import Digest
from msb_pull.image.manifest import OCI_CONFIG, OCI_MANIFEST
from msb_pull.image.reference import Reference
from msb_pull.layer.hashing import Hashing
from msb_pull.layer.notes import Notes
from msb_pull.work.archive import (
    INDEX_NAME,
    LAYOUT,
    LAYOUT_NAME,
    blob_name,
    descriptor,
    index,
    index_entry,
    member,
    to_json,
)
from msb_pull.work.memory import keep_freed
from msb_pull.work.recorded import layer_stream, recorded_layer
from msb_pull.work.select import stored_images

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from msb_pull.ground.running import Job
    from msb_pull.layer.proof.node import Node
    from msb_pull.layer.tar.record import Record
    from msb_pull.store.index.stored import StoredImage, StoredLayer
    from msb_pull.store.store import Store

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_PIECE = 1 << 20


class Format(enum.StrEnum):
    """What to write: an OCI layout in a tar, or what ``docker load`` takes."""

    OCI = "oci"
    DOCKER = "docker"


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image in an archive. Configs and diff_ids are those of the registry; layers are not compressed, so that their
    digests are their diff_ids, and the manifest's ``digest`` is a new one, the same whatever is ``left_out``."""

    reference: str
    digest: str
    layers: int
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class SaveResult:
    """What was saved; ``bytes`` is the size of the archive."""

    images: tuple[SavedImage, ...]
    bytes: int
    seconds: float


def save_images(
    store: Store,
    references: Sequence[str],
    out: BinaryIO,
    form: Format,
    job: Job,
    without: Collection[Digest] = frozenset(),
) -> SaveResult:
    """Writes the images (canonical references) as one archive into ``out``, layer by layer without a copy on disk.

    Layers whose ``diff_id`` is among ``without`` are named and left out, which only an OCI archive can. The stream of
    each other one is compared with its diff_id while it is written. Raises ContentError when one does not match or
    cannot be recreated, NotFoundError, UsageError, Cancelled, OSError; what has been written is then worthless.
    """
    if without and form is not Format.OCI:
        raise UsageError("--without only works with --format oci: `docker load` needs all layers")
    started = time.monotonic()
    if job.own_process:
        keep_freed()
    images = stored_images(store, references)
    for image in images:
        store.uses.touch(image.reference)
    with store.lock_shared(job.tell_waiting, job.cancel), _Archive(store, out, job, without) as archive:
        saved = _save_oci(archive, images) if form is Format.OCI else _save_docker(archive, images)
    return SaveResult(tuple(saved), archive.out.count, time.monotonic() - started)


def _save_oci(archive: _Archive, images: Sequence[StoredImage]) -> list[SavedImage]:
    entries: list[dict[str, Any]] = []
    saved = []
    for image in images:
        config = _config(image)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": archive.blob(config, OCI_CONFIG),
            "layers": [descriptor(_LAYER, x.diff_id, archive.layer(x, blob_name(x.diff_id))) for x in image.layers],
        }
        entry = index_entry(archive.blob(to_json(manifest), OCI_MANIFEST), image.reference, image.platform)
        entries.append(entry)
        left_out = sum(archive.leaves_out(layer) for layer in image.layers)
        saved.append(SavedImage(str(Reference.parse(image.reference)), entry["digest"], len(image.layers), left_out))
    archive.file(INDEX_NAME, index(entries))
    archive.file(LAYOUT_NAME, LAYOUT)
    return saved


def _save_docker(archive: _Archive, images: Sequence[StoredImage]) -> list[SavedImage]:
    listed = []
    saved = []
    for image in images:
        config = _config(image)
        digest = Digest.of(config)
        archive.file(f"{digest.hex}.json", config)
        names = [f"{layer.diff_id.hex}.tar" for layer in image.layers]
        for layer, name in zip(image.layers, names, strict=True):
            archive.layer(layer, name)
        reference = Reference.parse(image.reference)
        # `docker load` knows tags only.
        tags = [f"{reference.registry}/{reference.repository}:{reference.tag}"] if reference.tag else []
        listed.append({"Config": f"{digest.hex}.json", "RepoTags": tags or None, "Layers": names})
        saved.append(SavedImage(image.reference, str(digest), len(image.layers)))
    archive.file("manifest.json", to_json(listed))
    return saved


class _Archive:
    """A tar stream with the blobs of images; each digest once."""

    def __init__(self, store: Store, out: BinaryIO, job: Job, without: Collection[Digest]) -> None:
        self._store = store
        self._without = without
        self.out = _Counting(out)
        self._job = job
        # tarfile wants a whole file object and writes to it only.
        stream = cast("IO[bytes]", self.out)
        self._tar = tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_PIECE)  # noqa: SIM115
        self._tar.copybufsize = _PIECE  # type: ignore[attr-defined]
        # The size of each member by its name.
        self._there: dict[str, int] = {}

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._tar.close()
        finally:
            # tarfile would still write its end when it is collected, long after ``out`` has been closed.
            self.out.over = True

    def file(self, name: str, data: bytes) -> None:
        """Adds a small file."""
        if name not in self._there:
            self._there[name] = len(data)
            self._tar.addfile(member(name, len(data)), io.BytesIO(data))

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Adds a small blob; returns its descriptor."""
        digest = Digest.of(data)
        self.file(blob_name(digest), data)
        return descriptor(media_type, digest, len(data))

    def leaves_out(self, layer: StoredLayer) -> bool:
        """Whether the other side has a layer."""
        return layer.diff_id in self._without

    def layer(self, layer: StoredLayer, name: str) -> int:
        """Adds the stream of a layer as the file ``name``, unless it is left out; returns its size."""
        if self.leaves_out(layer) and self._store.has_layer(layer.key):
            return Notes.load(self._store.notes_path(layer.key)).tar_bytes
        if name not in self._there:
            record, nodes = recorded_layer(self._store, layer, self._job)
            self._there[name] = record.length
            pieces = self._pieces(layer, record, nodes)
            self._tar.addfile(member(name, record.length), _Stream(pieces))
            # A reader that has got as much as it wanted does not ask for the end, where the digest is compared.
            for _ in pieces:
                pass
        return self._there[name]

    def _pieces(self, layer: StoredLayer, record: Record, nodes: dict[bytes, Node]) -> Iterator[bytes]:
        """The layer's stream; raises ContentError at its end where it is not what the registry signed."""
        progress = self._progress(layer, record.length)
        progress(0)
        with Hashing(layer.diff_id.hasher(), beside=processors() > 1) as hashing:
            for piece in layer_stream(self._store, layer.key, record, nodes):
                data = bytes(piece)
                hashing.update(data)
                progress(len(data))
                yield data
            if hashing.hexdigest() == layer.diff_id.hex:
                return
        raise ContentError(
            f"layer {layer.digest.short}: its stream no longer matches its diff_id",
            hint="`msb-pull verify --repair` repairs it",
        )

    def _progress(self, layer: StoredLayer, total: int) -> Callable[[int], None]:
        done, throttle = 0, Throttle()

        def count(size: int) -> None:
            nonlocal done
            self._job.cancel.check()
            done += size
            if throttle.passes(last=done == total):
                self._job.tell(events.CheckProgress("", str(layer.digest), done, total))

        return count


class _Counting:
    """Counts what is written to a stream that may be a pipe."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.count = 0
        self.over = False

    def write(self, data: bytes) -> int:
        if self.over:
            return len(data)
        self._out.write(data)
        self.count += len(data)
        return len(data)


class _Stream(io.RawIOBase):
    """What a generator yields, as the file that tarfile wants to read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        parts = []
        while size and (data := self._rest or next(self._pieces, b"")):
            parts.append(data[:size])
            self._rest = data[size:]
            size -= len(parts[-1])
        return b"".join(parts)


def _config(image: StoredImage) -> bytes:
    if image.config_bytes is None:
        raise NotFoundError(
            f"{image.reference}: pulled by another program, which kept neither config nor records",
            hint="`msb-pull pull --policy always` makes it complete",
        )
    return image.config_bytes
