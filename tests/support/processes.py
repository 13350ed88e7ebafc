"""What a killed program leaves: its children, its files, its rows."""

from __future__ import annotations

import gzip
import json
import os
from typing import TYPE_CHECKING

from msb_pull import Store
from tests.support.home import Home
from tests.support.treecompare import describe, differences

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMES = ("created_at", "modified_at", "last_used_at", "pulled_at", "installed_on", "execution_time")


def rows(home: Home) -> dict[str, list[tuple]]:
    """All rows of all tables without what tells the time."""
    assert home.sql("PRAGMA integrity_check") == [("ok",)]
    assert home.sql("PRAGMA foreign_key_check") == []
    found = {}
    for (table,) in home.sql("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"):
        columns = [x[1] for x in home.sql(f"PRAGMA table_info({table})") if x[1] not in TIMES]
        found[table] = sorted(home.sql(f"SELECT {', '.join(columns)} FROM {table}"), key=repr)
    return found


def names_of(home: Home) -> set[str]:
    """Everything that lies in the store beside the layers' own trees. Locks stay for ever and say nothing."""
    found = set()
    for place, folders, files in os.walk(home.store):
        folders[:] = [x for x in folders if not x.endswith(".extracted") and x != "locks"]
        found |= {os.path.relpath(os.path.join(place, x), home.store) for x in [*folders, *files]}
    # SQLite keeps or removes these as it likes.
    return found - {"oci.db-wal", "oci.db-shm"}


class State:
    """All that must be equal."""

    def __init__(self, home: Home) -> None:
        self.trees = {x.name: describe(x) for x in sorted(home.layers.glob("*.extracted"))}
        records = home.layers / ".msb-pull" / "records"
        self.notes = {x.name: json.loads(x.read_text()) for x in records.glob("*.json")}
        self.records = {x.name: gzip.decompress(x.read_bytes()) for x in records.glob("*.tar")}
        self.links = {x.name: os.readlink(x) for x in (home.layers / ".msb-pull" / "l").iterdir()}
        self.rows = rows(home)
        self.names = names_of(home)

    def compare(self, other: State) -> None:
        assert self.trees.keys() == other.trees.keys()
        for name, tree in self.trees.items():
            assert differences(tree, other.trees[name]) == [], name
        assert self.rows == other.rows
        assert self.names == other.names
        assert self.links == other.links
        assert self.notes == other.notes
        assert self.records == other.records


class ImageState:
    """What each image is made of, whichever of them was recorded first.

    That decides which form of a layer has the plain name, on which base one was made that looks the same on all, and
    whether a form that was made for one base is right on the other, too.
    """

    def __init__(self, home: Home, images: Sequence[str]) -> None:
        whole = State(home)
        self.images = {}
        used = set()
        store = Store.open(home.store)
        for image in images:
            names = [path.name for path in store.layers(image)]
            used.update(names)
            stems = [name.removesuffix(".extracted") for name in names]
            notes = [{**whole.notes[f"{stem}.json"], "chain": None} for stem in stems]
            records = [whole.records[f"{stem}.tar"] for stem in stems]
            self.images[image] = [whole.trees[name] for name in names], notes, records
        assert used == whole.trees.keys()

    def compare(self, other: ImageState) -> None:
        for image, (trees, notes, records) in self.images.items():
            expected = other.images[image]
            assert [differences(*pair) for pair in zip(trees, expected[0], strict=True)] == [[]] * len(trees), image
            assert (notes, records) == expected[1:], image


def children(process: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    try:
        for task in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{task}/children") as listed:
                found += [int(x) for x in listed.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found


def gone(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as facts:
            return facts.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
