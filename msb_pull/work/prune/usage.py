"""What a store takes on its disk, found in one walk: layers, what is kept beside them, and what is unfinished.

Bytes are those of the disk (blocks), as ``du`` counts them. Layers that several images share are one folder, and so are
counted once. The database, locks and short links are not counted: together they are less than one layer.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msb_pull.ground.below import opener
from msb_pull.ground.errors import local_error
from msb_pull.ground.remove import disk_usage
from msb_pull.image.digest import InvalidDigest
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.paths import LayerState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from msb_pull.store.store import Store

_SIZES = "sizes.json"
_DRAFT = "sizes"
# A store of 20,000 layers has as many bytes in that file.
_MOST_BYTES = 4 << 20
# What tells that a folder is still the one that was measured: its inode, and when its facts last changed.
_Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Partial:
    """What has arrived of a blob: its name below the store's own folder, bytes, and when it last grew."""

    name: str
    size: int
    changed: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes on the disk. ``layers`` are the folders of layers and ``records`` what is kept beside them, by the names of
    the layers ("" for what is of none); ``staging`` is what is being unpacked, or was when its maker ended."""

    layers: Mapping[str, int]
    records: Mapping[str, int]
    partials: tuple[Partial, ...]
    staging: int
    stamps: Mapping[str, _Stamp] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All that counts for a budget."""
        partial = sum(x.size for x in self.partials)
        return sum(self.layers.values()) + sum(self.records.values()) + partial + self.staging

    def of(self, layer: str) -> int:
        """What a layer and its record take."""
        return self.layers.get(layer, 0) + self.records.get(layer, 0)


def measure(store: Store, known: Mapping[str, tuple[_Stamp, int]] | None = None) -> Usage:
    """Looks at every file of the store; what goes meanwhile counts nothing. Raises LocalError.

    A layer never changes once it is complete, so ``known``, which :func:`remembered` gives, spares walking through
    those that were measured before. A layer that somebody has damaged since then counts what it took before.
    """
    layers, stamps = {}, {}
    try:
        for key in store.layers_there():
            name, complete = str(key), store.layer_state(key) is LayerState.COMPLETE
            stamp = _stamp(store.layer_dir(key)) if complete else None
            before = known.get(name) if known else None
            layers[name] = before[1] if before and before[0] == stamp else size_of(store.layer_dir(key))
            if stamp is not None:
                stamps[name] = stamp
        records: defaultdict[str, int] = defaultdict(int)
        for entry in scan(store.own / "records"):
            records[_layer_of(entry.name)] += size_of(entry.path)
        return Usage(
            layers=layers,
            records=records,
            partials=tuple(partials(store)),
            # But for the draft of what is remembered, which anybody may be writing now.
            staging=sum(size_of(x.path) for x in scan(store.own / "staging") if not x.name.startswith(_DRAFT)),
            stamps=stamps,
        )
    except OSError as error:
        raise local_error(error, store.layers) from error


def partials(store: Store) -> Iterator[Partial]:
    """All unfinished downloads; raises OSError."""
    for entry in scan(store.own / "partial"):
        with contextlib.suppress(FileNotFoundError):
            facts = entry.stat(follow_symlinks=False)
            yield Partial(f"partial/{entry.name}", size_of(entry.path), facts.st_mtime)


def remembered(store: Store) -> dict[str, tuple[_Stamp, int]]:
    """What :func:`remember` wrote: the stamps and sizes of layers. Nothing where that cannot be read or makes no sense.

    Only whoever can write to the layers could make it lie, and it says no more than when a budget is reached.
    """
    try:
        with open(store.own / _SIZES, "rb", opener=opener) as file:
            document = json.loads(file.read(_MOST_BYTES))
        return {
            str(name): ((int(inode), int(changed)), max(int(size), 0))
            for name, (inode, changed, size) in document.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def remember(store: Store, usage: Usage) -> None:
    """Keeps the sizes of complete layers for the next time; where nothing can be written there is none."""
    document = {name: [*stamp, usage.layers[name]] for name, stamp in usage.stamps.items()}
    with contextlib.suppress(OSError), store.places.private(_DRAFT) as draft:
        draft.write_text(json.dumps(document), encoding="ascii")
        os.replace(draft, store.own / _SIZES)


def _stamp(folder: Path) -> _Stamp | None:
    try:
        facts = os.stat(folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return facts.st_ino, facts.st_ctime_ns


def _layer_of(name: str) -> str:
    """The layer that a file of the records is of, "" for one that is of none."""
    try:
        return str(LayerKey.parse(name.rpartition(".")[0]))
    except InvalidDigest:
        return ""


def size_of(path: str | Path) -> int:
    """The bytes that a file or a tree takes on its disk; 0 for what is not there."""
    try:
        return disk_usage(path)
    except FileNotFoundError:
        return 0


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name; none where it is missing."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
