"""The notes of a layer: what the stream of its record does not say, as JSON beside it.

Where entries were placed that did not go where they said, what was derived from lower layers, and what the file system
refused.
"""

from __future__ import annotations

import os

from msb_pull.ground.below import opener
from msb_pull.ground.errors import ContentError
from msb_pull.layer.settle.facts import check_facts, prefixes_moved

# Importing typing takes longer than verifying a small layer.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from msb_pull.layer.unpack.report import UnpackReport

_VERSION = 1
_KEYS = {"version", "diff_id", "tar_bytes", "entries", "content_bytes", "chain", "placed", "moved", "derived"}
_KEYS |= {"copied", "unkept", "warnings"}
_MAX_WARNINGS = 100


class Notes:
    """What is known of a published layer beside its record. Paths are bytes; the file holds them as escaped text."""

    def __init__(
        self,
        *,
        diff_id: str,
        tar_bytes: int,
        entries: int,
        content_bytes: int,
        chain: str,
        placed: dict[int, bytes] | None = None,
        moved: list[tuple[bytes, bytes]] | None = None,
        derived: list[dict[str, Any]] | None = None,
        copied: list[int] | None = None,
        unkept: list[int] | None = None,
        warnings: list[str] | None = None,
    ) -> None:
        self.diff_id = diff_id
        self.tar_bytes = tar_bytes
        self.entries = entries
        self.content_bytes = content_bytes
        self.chain = chain
        self.placed = placed or {}
        self.moved = moved or []
        self.derived = derived or []
        self.copied = copied or []
        self.unkept = unkept or []
        self.warnings = warnings or []

    @classmethod
    def of(
        cls, report: UnpackReport, derived: list[dict[str, Any]], *, diff_id: str, tar_bytes: int, chain: str
    ) -> Notes:
        """The notes of a layer that has just been unpacked, and for which ``derived`` came from the layers below."""
        return cls(
            diff_id=diff_id,
            tar_bytes=tar_bytes,
            entries=report.entries,
            content_bytes=report.content_bytes,
            chain=chain,
            placed=report.placed,
            moved=prefixes_moved(derived),
            derived=derived,
            copied=report.copied,
            unkept=report.unkept,
            warnings=report.warnings[:_MAX_WARNINGS],
        )

    def save(self, path: Path) -> None:
        """Writes the notes as JSON; raises OSError."""
        import json

        document = {
            "version": _VERSION,
            "diff_id": self.diff_id,
            "tar_bytes": self.tar_bytes,
            "entries": self.entries,
            "content_bytes": self.content_bytes,
            "chain": self.chain,
            "placed": {str(index): os.fsdecode(place) for index, place in self.placed.items()},
            "moved": [[os.fsdecode(old), os.fsdecode(new)] for old, new in self.moved],
            "derived": self.derived,
            "copied": self.copied,
            "unkept": self.unkept,
            "warnings": self.warnings,
        }
        try:
            path.write_text(json.dumps(document) + "\n", encoding="ascii")
        except OSError as error:
            # What fails to be written into an open file does not say which.
            error.filename = os.fspath(path)
            raise

    @classmethod
    def load(cls, path: Path | str) -> Notes:
        """Reads notes back; raises ContentError when the file is not what :meth:`save` writes."""
        import json

        try:
            with open(path, "rb", opener=opener) as file:
                text = file.read()
            document = json.loads(text)
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']}")
            if json.dumps(document).encode("ascii") + b"\n" != text or not document.keys() <= _KEYS:
                raise ValueError("they were altered since they were written")
            return cls(
                diff_id=_typed(document["diff_id"], str),
                tar_bytes=_typed(document["tar_bytes"], int),
                entries=_typed(document["entries"], int),
                content_bytes=_typed(document["content_bytes"], int),
                chain=_typed(document["chain"], str),
                placed={int(index): os.fsencode(place) for index, place in document["placed"].items()},
                moved=[(os.fsencode(old), os.fsencode(new)) for old, new in document["moved"]],
                derived=check_facts(document["derived"]),
                copied=[_typed(index, int) for index in document.get("copied", [])],
                unkept=[_typed(index, int) for index in document.get("unkept", [])],
                warnings=_typed(document["warnings"], list),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ContentError(
                f"{path}: the notes of a layer are damaged",
                cause=repr(error),
                hint="`msb-pull verify --repair` repairs it",
            ) from None


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}")
    return value
