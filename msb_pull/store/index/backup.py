"""What the database knows of our images, once more in small files, from which a lost database is made anew.

``<sha256 of the reference>.json`` in the home's folder beside the layers (:mod:`msb_pull.store.homes`) holds the raw
bytes of manifest and config, and what does not follow from them. It is written before the rows, and goes after them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import raise_if_exhausted
from msb_pull.store.index.proven import UNSOUND, proven_record
from msb_pull.store.index.rows import TIME, ImageRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
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

    def find(self, reference: str) -> ImageRecord | None:
        """The copy of one image, None where there is none; raises OSError, one of ``UNSOUND`` when it is damaged."""
        try:
            image = _read(self._path(reference))
        except FileNotFoundError:
            return None
        if image.reference != reference:
            raise ValueError("the copy of another image")
        return image

    def strays(self, references: Iterable[str]) -> list[str]:
        """The references of copies that prove themselves, but are of none of these images."""
        known = {self._path(reference) for reference in references}
        found = []
        for path in self._files():
            if path not in known:
                with suppress(*UNSOUND, OSError):
                    found.append(_read(path).reference)
        return sorted(found)

    def empty(self) -> bool:
        """Whether no image is kept."""
        return next(self._files(), None) is None

    def load(self) -> Iterator[ImageRecord | None]:
        """All images whose bytes still match their digests; None for each file that is damaged."""
        for path in sorted(self._files()):
            try:
                yield _read(path)
            except (OSError, *UNSOUND) as error:
                raise_if_exhausted(error)
                yield None

    def _files(self) -> Iterator[Path]:
        return copies_in(self._folder)

    def _path(self, reference: str) -> Path:
        return self._folder / copy_name(reference)


def copy_name(reference: str) -> str:
    """The name of the file with the copy of an image."""
    return f"{hashlib.sha256(reference.encode()).hexdigest()}.json"


def copies_in(folder: Path) -> Iterator[Path]:
    """All such files in a folder that may be missing."""
    with suppress(FileNotFoundError, NotADirectoryError):
        yield from (path for path in folder.iterdir() if path.suffix == ".json")


def _read(path: Path) -> ImageRecord:
    # A FIFO in its place would be waited for.
    with open(path, encoding="ascii", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        text = file.read()
    document: dict[str, Any] = json.loads(text)
    if document["version"] != _VERSION:
        raise ValueError("of another version")
    if json.dumps(document) != text:
        raise ValueError("altered since it was written")
    return proven_record(
        document["reference"],
        digest=document["manifest_digest"],
        manifest=base64.b64decode(document["manifest"], validate=True),
        config=base64.b64decode(document["config"], validate=True),
        platform=document["platform"],
        keys=document["layers"],
        source=document["source"],
        pulled_at=document["pulled_at"],
    )
