"""Words for a shell that completes a line: no network, no heavy import, no complaint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def complete(words: Sequence[str]) -> int:
    """``images PREFIX [HOME]``: names in the store that begin with PREFIX, one per line. Silent about any trouble."""
    kind, prefix, home = (*words, "", "", "")[:3]
    if kind != "images":
        return 0
    try:
        names = matching(_references(home), prefix)
        os.write(1, "".join(f"{name}\n" for name in names).encode())
    except Exception:  # noqa: BLE001 - half a line of input is no place for an error message
        return 0
    return 0


def matching(references: Iterable[str], prefix: str) -> list[str]:
    """The references that begin with ``prefix`` in the short form people type, or else in the full one."""
    found = {
        name
        for reference in references
        for name in _spellings(reference)
        if name.startswith(prefix) and name.isprintable()
    }
    # Without a beginning both forms of each would be offered; the short one is enough.
    full = {name for name in found if name.startswith("docker.io/")}
    return sorted(found if prefix.startswith("docker.io/") else found - full)


def _spellings(reference: str) -> tuple[str, ...]:
    short = reference.removeprefix("docker.io/").removeprefix("library/")
    return (short, reference) if reference.startswith("docker.io/") else (reference,)


def _references(home: str) -> list[str]:
    from msb_pull.config import settings as config
    from msb_pull.store.index.database import Database

    path = config.load({"home": home or None}).home / "oci.db"
    with Database.open(path, create=False) as database:
        return database.references()
