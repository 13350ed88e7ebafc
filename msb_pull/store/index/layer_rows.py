"""The rows of an image's layers: found or made, and in the order in which Microsandbox stacks them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from msb_pull.store.index.keys import LayerKey

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import Descriptor


class Run(Protocol):
    """Executes one statement."""

    def __call__(self, statement: str, values: Sequence[Any] = (), /) -> sqlite3.Cursor: ...


def place_layers(run: Run, layers: Sequence[Descriptor], diff_ids: Sequence[Digest]) -> tuple[list[int], bool]:
    """The ids of the image's layers, each layer once, bottom first, and whether these ids rise.

    Microsandbox stacks by id, and all images share the rows, so one image's order can contradict another's.

    New rows are inserted bottom first. Where shared layers have rows that stand the other way round, rows are moved to
    the end of the table, and so are those above them in other images; links follow. If two images contradict each
    other, the older one keeps its order.
    """
    facts = {str(layer.digest): (layer, str(diff_id)) for layer, diff_id in zip(layers, diff_ids, strict=True)}
    wanted = each_once(str(layer.digest) for layer in layers)
    ids: dict[str, int] = {}
    for digest in wanted:
        row = run("SELECT id, diff_id, size_bytes FROM layers WHERE digest = ?", (digest,)).fetchone()
        if row is not None:
            ids[digest] = int(row[0])
            _correct(run, row, *facts[digest])
    placed = rows_to_place(wanted, ids, lambda: _stacks(run))
    ordered = placed is not None
    if placed is None:
        placed = [digest for digest in wanted if digest not in ids]
    for digest in placed:
        ids[digest] = _place(run, digest, *facts.get(digest, (None, "")))
    return [ids[digest] for digest in wanted], ordered


def keeps_another_order(run: Run, wanted: Sequence[str]) -> bool:
    """Whether another image makes Microsandbox stack these layers (digests, bottom first) in another order."""
    found = run(f"SELECT digest, id FROM layers WHERE digest IN ({', '.join('?' * len(wanted))})", list(wanted))
    return rows_to_place(wanted, dict(found.fetchall()), lambda: _stacks(run)) is None


def _correct(run: Run, row: tuple[int, str, int], layer: Descriptor, diff_id: str) -> None:
    """Corrects a row: Microsandbox never checks a diff_id, so its own may be another layer's; ours were verified."""
    layer_id, old_diff_id, old_size = row
    if (old_diff_id, old_size) != (diff_id, layer.size):
        run(
            "UPDATE layers SET diff_id = ?, size_bytes = ?, modified_at = CURRENT_TIMESTAMP WHERE id = ?",
            (diff_id, layer.size, layer_id),
        )


def _place(run: Run, digest: str, layer: Descriptor | None, diff_id: str) -> int:
    """Gives a layer the largest id, whether it has a row or not; without one, ``layer`` is what to write."""
    (new,) = run("SELECT coalesce(max(id), 0) + 1 FROM layers").fetchone()
    row = run("SELECT id FROM layers WHERE digest = ?", (digest,)).fetchone()
    if row is not None:
        # The links must follow within the transaction, not within the statement.
        run("PRAGMA defer_foreign_keys = ON")
        run("UPDATE layers SET id = ? WHERE id = ?", (new, row[0]))
        run("UPDATE manifest_layers SET layer_id = ? WHERE layer_id = ?", (new, row[0]))
    elif layer is not None:
        run(
            "INSERT INTO layers (id, media_type, digest, diff_id, size_bytes) VALUES (?, ?, ?, ?, ?)",
            (new, layer.media_type, digest, diff_id, layer.size),
        )
    return int(new)


def _stacks(run: Run) -> list[list[str]]:
    """The layers of each image as Microsandbox stacks them today, without images that it stacks wrongly already."""
    stacks: dict[int, list[str]] = {}
    for image_id, digest in run(
        "SELECT DISTINCT m.image_id, l.digest FROM layers l JOIN manifest_layers ml ON ml.layer_id = l.id "
        "JOIN manifests m ON m.id = ml.manifest_id ORDER BY l.id"
    ):
        stacks.setdefault(image_id, []).append(digest)
    for image_id, listed in run("SELECT image_id, layers_json FROM msb_pull_images"):
        true = each_once(str(LayerKey.parse(layer["key"]).digest) for layer in json.loads(listed))
        # Microsandbox may have added layers of its own to the image; then its order is all there is.
        if image_id in stacks and set(stacks[image_id]) == set(true) and stacks[image_id] != true:
            del stacks[image_id]
    return list(stacks.values())


def each_once(layers: Iterable[str]) -> list[str]:
    """The layers of an image without repeats: each counts where it lies last, since there it hides its copy below."""
    return list(dict.fromkeys(reversed(list(layers))))[::-1]


def rows_to_place(
    wanted: Sequence[str], ids: Mapping[str, int], others: Callable[[], Iterable[Sequence[str]]]
) -> list[str] | None:
    """The layers that must get fresh ids, larger than all others and in this order, so that ``wanted`` rises.

    ``wanted`` is an image bottom first, each layer once; ``ids`` are the rows there are. Rows that stand too low are
    moved up, and with them whatever lies above them in one of the ``others`` (images whose order is right today), so
    that no image's order breaks. None when no order serves all of them: one image has the layers the other way round.
    """
    start = _rising(wanted, ids)
    # The usual case: only new layers on top. They get the largest ids anyway, so nobody else's order can break.
    if not any(layer in ids for layer in wanted[start:]):
        return list(wanted[start:])
    stacks = [wanted, *others()]
    moving = _with_all_above(set(wanted[start:]), stacks)
    return _sorted(moving, stacks, ids)


def _rising(wanted: Sequence[str], ids: Mapping[str, int]) -> int:
    """How many of the lowest layers have rows that rise already."""
    last = None
    for position, layer in enumerate(wanted):
        here = ids.get(layer)
        if here is None or (last is not None and here < last):
            return position
        last = here
    return len(wanted)


def _with_all_above(moving: set[str], stacks: Sequence[Sequence[str]]) -> set[str]:
    """What must move too: a layer that moves to the end may not pass one that lies above it in any stack."""
    grown = True
    while grown:
        grown = False
        for stack in stacks:
            lowest = next((i for i, layer in enumerate(stack) if layer in moving), len(stack))
            above = set(stack[lowest:]) - moving
            if above:
                moving |= above
                grown = True
    return moving


def _sorted(moving: set[str], stacks: Sequence[Sequence[str]], ids: Mapping[str, int]) -> list[str] | None:
    """``moving`` so that each stack rises (a topological sort), old rows in their old order wherever that is free.

    None when the stacks contradict each other: then some layers are left, and each has another one below it.
    """
    below: dict[str, set[str]] = {layer: set() for layer in moving}
    for stack in stacks:
        for lower, upper in pairwise([layer for layer in stack if layer in moving]):
            below[upper].add(lower)
    ordered: list[str] = []
    while below:
        free = [layer for layer, lowers in below.items() if not lowers]
        if not free:
            return None
        # A new layer has no old place: it goes after the old ones that may go first.
        first = min(free, key=lambda layer: (layer not in ids, ids.get(layer, 0)))
        ordered.append(first)
        del below[first]
        for lowers in below.values():
            lowers.discard(first)
    return ordered
