"""What the database knows of our images, once more in small files, from which a lost database is made anew.

``<layers>/.msb-pull/images/<sha256 of the reference>.json`` holds the raw bytes of manifest and config, and what does
not follow from them. It is written before the rows are, and goes after them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msb_pull.errors import MsbPullError
from msb_pull.image.digest import Digest
from msb_pull.store.keys import LayerKey
from msb_pull.store.rows import TIME, ImageRecord, stored_platform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_VERSION = 1


class Backup:
    """One file for each image, in ``folder``; with ``sync`` each is flushed to the device."""

    def __init__(self, folder: Path, *, sync: bool = False) -> None:
        self._folder = folder
        self._sync = sync

    def save(self, image: ImageRecord) -> None:
        """Keeps an image, in place of what its reference meant before; raises OSError."""
        document = {
            "version": _VERSION,
            "reference": image.reference,
            "manifest_digest": str(image.manifest_digest),
            "manifest": base64.b64encode(image.manifest_bytes).decode("ascii"),
            "config": base64.b64encode(image.config_bytes).decode("ascii"),
            "platform": str(image.platform),
            "layers": [str(key) for key in image.layer_keys],
            "source": image.source,
            "pulled_at": (image.pulled_at or datetime.now(UTC)).strftime(TIME),
        }
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(image.reference)
        draft = path.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}.new")
        try:
            with open(draft, "x", encoding="ascii") as file:
                json.dump(document, file)
                if self._sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def remove(self, reference: str) -> None:
        """Forgets an image; one that is not there is fine."""
        self._path(reference).unlink(missing_ok=True)

    def empty(self) -> bool:
        """Whether no image is kept."""
        return next(self._files(), None) is None

    def load(self) -> Iterator[ImageRecord | None]:
        """All images whose bytes still match their digests; None for each file that is damaged."""
        for path in sorted(self._files()):
            try:
                yield _read(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, MsbPullError):
                yield None

    def _files(self) -> Iterator[Path]:
        with suppress(FileNotFoundError, NotADirectoryError):
            yield from (path for path in self._folder.iterdir() if path.suffix == ".json")

    def _path(self, reference: str) -> Path:
        return self._folder / f"{hashlib.sha256(reference.encode()).hexdigest()}.json"


def _read(path: Path) -> ImageRecord:
    from msb_pull.image.manifest import Manifest, parse_config, parse_document

    document: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
    if document["version"] != _VERSION:
        raise ValueError("of another version")
    reference = document["reference"]
    manifest_bytes = base64.b64decode(document["manifest"], validate=True)
    config_bytes = base64.b64decode(document["config"], validate=True)
    digest = Digest.parse(document["manifest_digest"])
    manifest = parse_document(manifest_bytes, None, reference)
    if not isinstance(manifest, Manifest):
        raise ValueError("not the manifest of one image")
    for data, expected in ((manifest_bytes, digest), (config_bytes, manifest.config.digest)):
        if Digest.of(data, expected.algorithm) != expected:
            raise ValueError("does not match its digest")
    keys = tuple(LayerKey.parse(text) for text in document["layers"])
    if [key.digest for key in keys] != [layer.digest for layer in manifest.layers]:
        raise ValueError("names other layers than its manifest")
    return ImageRecord(
        reference=reference,
        manifest_digest=digest,
        platform=stored_platform(document["platform"]),
        manifest_bytes=manifest_bytes,
        manifest=manifest,
        config_bytes=config_bytes,
        config=parse_config(config_bytes, manifest, reference),
        source=document["source"],
        keys=keys,
        pulled_at=datetime.strptime(document["pulled_at"], TIME).replace(tzinfo=UTC),
    )
