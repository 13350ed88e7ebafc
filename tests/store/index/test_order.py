"""The order of rows as a property: any images, in any order of pulls."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as some

from msb_pull.store.index.layer_rows import rows_to_place

IMAGES = some.lists(some.lists(some.sampled_from("abcdefg"), min_size=1, max_size=5, unique=True), max_size=8)


def rises(image, ids) -> bool:
    return all(ids[lower] < ids[upper] for lower, upper in pairwise(image))


def can_be_ordered(images) -> bool:
    """Whether any order has all images rise: layers without one below them are taken away until none is left."""
    below = {layer: set() for image in images for layer in image}
    for image in images:
        for lower, upper in pairwise(image):
            below[upper].add(lower)
    while below:
        free = {layer for layer, lowers in below.items() if not lowers}
        if not free:
            return False
        below = {layer: lowers - free for layer, lowers in below.items() if layer not in free}
    return True


@given(IMAGES)
def test_every_image_rises_unless_none_could(images):
    ids: dict[str, int] = {}
    right: list[list[str]] = []
    for image in images:
        before = dict(ids)
        placed = rows_to_place(image, ids, lambda: right)
        if placed is None:
            assert not can_be_ordered([*right, image])
            placed = [layer for layer in image if layer not in ids]
        else:
            right.append(image)
        for layer in placed:
            ids[layer] = max(ids.values(), default=0) + 1
        for known in right:
            assert rises(known, ids)
        assert set(ids) == set(before) | set(image)


@given(IMAGES)
def test_nothing_moves_without_need(images):
    """Images that only add layers on top of each other leave every row where it is."""
    ids: dict[str, int] = {}
    for image in images:
        known = [layer for layer in image if layer in ids]
        if rises(known, ids) and known == image[: len(known)]:
            placed = rows_to_place(image, ids, lambda: (_ for _ in ()).throw(AssertionError("looked at other images")))
            assert placed == image[len(known) :]
        for layer in image:
            ids.setdefault(layer, len(ids) + 1)
