"""Where the rows of layers must stand, since Microsandbox stacks an image's layers by their ids."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


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
