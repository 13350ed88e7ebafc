"""What the database knows about our images, copied to small files from which a lost database is rebuilt.

``<sha256 of the reference>.json`` in the home's folder beside the layers (:mod:`msb_pull.store.homes`) holds the raw
bytes of manifest and config, and what does not follow from them. It is written and removed inside the transaction that
writes and removes the rows: a crash just before the commit leaves a copy without rows, or rows without a copy.
"""

from __future__ import annotations

import base64
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import MsbPullError, raise_if_exhausted
from msb_pull.image.digest import Digest, chain_id
from msb_pull.store.index.keys import LayerKey, copies_in, copy_name, signature_name
from msb_pull.store.index.rows import TIME, ImageRecord, stored_platform

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_VERSION = 1
# What reading fields that anybody may have written raises.
UNSOUND = (ValueError, KeyError, TypeError, AttributeError, RecursionError, MsbPullError)


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
        self._write(self._path(image.reference), json.dumps(document).encode("ascii"))

    def save_signature(self, reference: str, data: bytes) -> None:
        """Keeps what was checked of the signatures of an image, in place of what was kept before; raises OSError."""
        self._write(self._folder / signature_name(reference), data)

    def remove(self, reference: str) -> None:
        """Forgets an image; one that is not there is fine."""
        self._path(reference).unlink(missing_ok=True)
        (self._folder / signature_name(reference)).unlink(missing_ok=True)

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
        """The references of copies that prove themselves, but belong to none of these images."""
        known = {self._path(reference) for reference in references}
        found = []
        for path in copies_in(self._folder):
            if path not in known:
                with suppress(*UNSOUND, OSError):
                    found.append(_read(path).reference)
        return sorted(found)

    def unreadable(self, references: Iterable[str]) -> list[Path]:
        """The copies that cannot be read, and belong to none of these images."""
        known = {self._path(reference) for reference in references}
        found = []
        for path in sorted(set(copies_in(self._folder)) - known):
            try:
                _read(path)
            except FileNotFoundError:
                continue
            except (OSError, *UNSOUND) as error:
                raise_if_exhausted(error)
                found.append(path)
        return found

    def empty(self) -> bool:
        """Whether no image is kept."""
        return next(copies_in(self._folder), None) is None

    def load(self) -> Iterator[ImageRecord | None]:
        """All images whose bytes still match their digests; None for each file that is damaged."""
        for path in sorted(copies_in(self._folder)):
            try:
                yield _read(path)
            except (OSError, *UNSOUND) as error:
                raise_if_exhausted(error)
                yield None

    def _path(self, reference: str) -> Path:
        return self._folder / copy_name(reference)

    def _write(self, path: Path, data: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}.new")
        try:
            with open(draft, "xb") as file:
                file.write(data)
                if self._sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def layers_in(folder: Path, *, damaged: bool) -> set[str]:
    """The names of all layers that the copies in ``folder`` list, which need not prove themselves for that.

    A copy that cannot be read raises ValueError, or is passed over if ``damaged`` ones may be.
    """
    found: set[str] = set()
    for path in copies_in(folder):
        try:
            found.update(map(str, json.loads(path.read_bytes())["layers"]))
        except FileNotFoundError:
            # Removed this moment, as is what it reached.
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not damaged:
                raise ValueError(f"{path}: {error}") from None
    return found


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


def proven_record(
    reference: str,
    *,
    digest: str,
    manifest: bytes,
    config: bytes,
    platform: str,
    keys: list[str],
    source: str,
    pulled_at: str,
) -> ImageRecord:
    """An image from what is kept of it; raises one of ``UNSOUND`` where the digest does not prove it."""
    from msb_pull.image.manifest import Manifest, parse_config, parse_document

    right = Digest.parse(digest)
    _match(manifest, right, "manifest")
    parsed = parse_document(manifest, None, reference)
    if not isinstance(parsed, Manifest):
        raise ValueError("its manifest is not the manifest of one image")
    _match(config, parsed.config.digest, "config")
    found = [LayerKey.parse(key) for key in keys]
    if [key.digest for key in found] != [layer.digest for layer in parsed.layers]:
        raise ValueError("layers other than its manifest's")
    if str(stored_platform(platform)) != platform or not isinstance(source, str):
        raise ValueError("its platform or source makes no sense")
    settings = parse_config(config, parsed, reference)
    chain = ""
    for key, diff_id in zip(found, settings.diff_ids, strict=True):
        if key.variant and key != LayerKey.on(key.digest, chain):
            raise ValueError(f"layer {key} is not named for what lies below it")
        chain = chain_id(chain, str(diff_id))
    return ImageRecord(
        reference=reference,
        manifest_digest=right,
        platform=stored_platform(platform),
        manifest_bytes=manifest,
        manifest=parsed,
        config_bytes=config,
        config=settings,
        source=source,
        keys=tuple(found),
        pulled_at=_time(pulled_at),
    )


def _time(text: str) -> datetime:
    """strptime would load the calendar of the locale, which takes longer than the rest of an image's rows."""
    found = datetime.fromisoformat(text).replace(tzinfo=UTC)
    if found.strftime(TIME) != text:
        raise ValueError(f"{text!r} is not a recorded time")
    return found


def _match(data: bytes, digest: Digest, part: str) -> None:
    if not isinstance(data, bytes):
        raise TypeError(f"its {part} is missing")
    found = Digest.of(data, digest.algorithm)
    if found != digest:
        raise ValueError(f"its {part} has the digest {found}, not {digest}")
