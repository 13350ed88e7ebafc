"""What a killed program leaves: its children, its files, its rows."""

from __future__ import annotations

import gzip
import json
import os

from tests.support.home import Home
from tests.support.treecompare import describe, differences

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
