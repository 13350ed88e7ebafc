"""Images in an OCI image layout (image-spec, image-layout.md): a folder, or the same files inside an archive."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError, NotFoundError
from msb_pull.image.digest import Digest
from msb_pull.image.documents import load_json
from msb_pull.image.manifest import OCI_INDEX, Descriptor, Index, parse_document
from msb_pull.image.readers import COPY_AGAIN
from msb_pull.source.local.files import FolderFiles, LocalSource, open_checked
from msb_pull.source.local.naming import Named, ambiguous, matching, not_found, read_name, recorded_name
from msb_pull.source.resolve import referrers_in, referrers_tag, verified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.ground.running import Job
    from msb_pull.image.reference import ImageArgument
    from msb_pull.source.local.files import Extent, Files

REF_NAME = "org.opencontainers.image.ref.name"
# containerd and Docker keep the full name here, and only the tag in the other one.
CONTAINERD_NAME = "io.containerd.image.name"
# What cosign calls the manifests that it saves beside an image, signatures first.
COSIGN_KINDS = ("dev.cosignproject.cosign/sigs", "dev.cosignproject.cosign/atts")
ATTACHED_TAG = re.compile(r"sha256-[a-f0-9]{64}(\.(sig|att|sbom))?", re.ASCII)


class LayoutImage:
    """One image of a layout. ``wanted`` is the tag, name or digest to take, ``name`` what to record it under.

    ``folder`` completes bare tags (see :func:`.naming.read_name`). Raises NotFoundError, UsageError,
    ContentError, LocalError.
    """

    def __init__(self, files: Files, wanted: str | None, name: str | None, *, folder: str | None) -> None:
        self._files = files
        _check_version(files)
        data = files.open("index.json").read_all(f"{files.label}: index.json")
        index = parse_document(data, None, f"{files.label}: index.json")
        if not isinstance(index, Index):
            raise ContentError(f"{files.label}: index.json is not an index")
        # A descriptor of an index and the JSON it was read from stand at the same position.
        self._raw = load_json(data, files.label, "index.json")["manifests"] or []
        self._every = index.manifests
        self._chosen = self._choose(index, wanted, folder)
        self.reference = recorded_name(files.label, name, self._chosen)

    def has(self, descriptor: Descriptor) -> bool:
        """See :class:`msb_pull.source.local.files.LocalImage`."""
        return self._files.has(blob_name(descriptor.digest))

    def open(self, descriptor: Descriptor) -> Extent:
        """See :class:`msb_pull.source.local.files.LocalImage`."""
        return open_checked(self._files, blob_name(descriptor.digest), descriptor)

    def attached(self) -> LayoutImage:
        """See :class:`msb_pull.source.local.files.LocalImage`."""
        return self

    def tagged(self, tag: str) -> tuple[bytes, str | None] | None:
        """See :class:`msb_pull.source.interface.Attached`; `cosign save` gives signatures no tag but a kind."""
        kind = COSIGN_KINDS[0] if tag.endswith(".sig") else None
        for entry in self._every:
            if _ref_name(entry) == tag or (kind and entry.annotations.get("kind") == kind):
                return self.manifest(entry)
        return None

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """See :class:`msb_pull.source.interface.Attached`: all that has a type, and the list that stands in for it."""
        typed = tuple(entry for entry in self._every if entry.artifact_type)
        return typed or referrers_in(self.tagged(referrers_tag(digest)), self._files.label)

    def close(self) -> None:
        """Closes the files."""
        self._files.close()

    # What resolve_image asks for

    def top(self) -> tuple[bytes, str | None, Digest]:
        """The document that the chosen entry of ``index.json`` names, or those entries themselves as an index."""
        descriptors = [image.item[1] for image in self._chosen]
        if len({descriptor.digest for descriptor in descriptors}) == 1:
            data, media_type = self.manifest(descriptors[0])
            return data, media_type, descriptors[0].digest
        entries = [self._raw[image.item[0]] for image in self._chosen]
        data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
        return data, OCI_INDEX, Digest.of(data)

    def manifest(self, descriptor: Descriptor) -> tuple[bytes, str | None]:
        """A manifest or an index among the blobs, verified."""
        return self.blob(descriptor), descriptor.media_type

    def blob(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified."""
        return read_blob(self._files, descriptor)

    def _choose(self, index: Index, wanted: str | None, folder: str | None) -> Sequence[Named[tuple[int, Descriptor]]]:
        """The entries that are meant: one image, or the same one for several platforms."""
        label = self._files.label
        possible = {id(entry) for entry in index.images() if not _is_attached(entry)}
        every = [_named(number, entry, folder) for number, entry in enumerate(index.manifests)]
        images = [entry for entry in every if id(entry.item[1]) in possible]
        # Where nothing but artifacts is left they are taken, for the error that says what they are.
        candidates = images or every
        if wanted is not None:
            found = [image for image in candidates if str(image.item[1].digest) == wanted]
            found = found or matching(candidates, wanted) or matching(every, wanted)
            if not found:
                raise not_found(label, wanted, candidates)
            candidates = found
        if not candidates:
            raise NotFoundError(f"{label}: it contains no image")
        if len({image.item[1].digest for image in candidates}) > 1 and not _for_platforms(candidates):
            raise ambiguous(label, candidates)
        return candidates


def _ref_name(entry: Descriptor) -> str:
    """The tag of an entry, which some programs write behind the repository."""
    return entry.annotations.get(REF_NAME, "").rpartition(":")[2]


def _is_attached(entry: Descriptor) -> bool:
    """Whether an entry holds signatures or the like of another, in the manner of cosign, which calls them images."""
    return entry.annotations.get("kind") in COSIGN_KINDS or ATTACHED_TAG.fullmatch(_ref_name(entry)) is not None


def open_layout(argument: ImageArgument, name: str | None, job: Job) -> LocalSource:
    """An image of the layout folder that ``argument`` names; nothing is opened before the source is asked."""
    path = argument.path or ""

    def find() -> LayoutImage:
        files = FolderFiles(path, f"oci:{path}")
        try:
            if not files.has("index.json"):
                message = f"{files.label}: this is not an OCI image layout"
                hint = "a folder that skopeo wrote as dir: must be copied to oci: first"
                raise NotFoundError(message, cause="it has no index.json", hint=hint if files.has("version") else None)
            return LayoutImage(files, argument.name, name, folder=_absolute(path).rpartition("/")[2])
        except BaseException:
            files.close()
            raise

    return LocalSource(source_label("oci", path), find, partial(job.warn, argument.text))


def source_label(transport: str, path: str) -> str:
    """How the database and messages call a local source: with the whole path, and as text whatever its bytes are."""
    where = path if path == "-" else _absolute(path)
    return f"{transport}:{os.fsencode(where).decode('utf-8', 'backslashreplace')}"


def _absolute(path: str) -> str:
    # Not pathlib's resolve: a symlink is called what the user called it.
    return os.path.abspath(path)  # noqa: PTH100


def _check_version(files: Files) -> None:
    """Refuses layouts of another major version. A missing file says nothing: programs have forgotten it before."""
    if not files.has("oci-layout"):
        return
    what = f"{files.label}: oci-layout"
    version = load_json(files.open("oci-layout").read_all(what), files.label, "oci-layout").get("imageLayoutVersion")
    if not isinstance(version, str) or version.partition(".")[0] != "1":
        raise ContentError(f"{files.label}: unknown layout version {str(version)[:40]!r}")


def _named(number: int, entry: Descriptor, folder: str | None) -> Named[tuple[int, Descriptor]]:
    words = tuple(entry.annotations[key] for key in (CONTAINERD_NAME, REF_NAME) if entry.annotations.get(key))
    readable = (reference for word in words if (reference := read_name(word, folder)) is not None)
    return Named((number, entry), words, next(readable, None))


def _for_platforms(images: Sequence[Named[tuple[int, Descriptor]]]) -> bool:
    """Whether these entries are one image for several platforms: called the same, each saying what it is for."""
    return len({image.words for image in images}) == 1 and all(image.item[1].platform for image in images)


def read_blob(files: Files, descriptor: Descriptor) -> bytes:
    """A small blob of a layout, verified; its descriptor may contain it (image-spec, ``data``).

    Raises ContentError, LocalError.
    """
    name = blob_name(descriptor.digest)
    what = f"{files.label}: {name}"
    if descriptor.data is not None and not files.has(name):
        return verified(descriptor.data, descriptor, what, "inline data", COPY_AGAIN)
    return verified(open_checked(files, name, descriptor).read_all(what), descriptor, what, "content", COPY_AGAIN)


def blob_name(digest: Digest) -> str:
    """Where a layout has a blob."""
    return f"blobs/{digest.algorithm}/{digest.hex}"
