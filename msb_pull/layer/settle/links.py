"""Where the hard links of a layer lead that have no target in it: to a lower layer, or to another one of them."""

from __future__ import annotations

from msb_pull.ground.errors import ContentError
from msb_pull.ground.text import visible_bytes
from msb_pull.layer.rules import join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.layer.settle.lowers import MergedView, Shown


def targets(
    links: Sequence[tuple[bytes, bytes]], below: MergedView, own: MergedView, place_of: Callable[[bytes], bytes]
) -> list[Shown]:
    """What each of ``links`` (path, target), in the archive's order, leads to in the layers ``below``.

    As for who unpacks one entry after the other, an earlier link at the target's path stands before what lies there
    below, and a later one after it (A22: links may come in any order). ``own`` shows the layer itself on those below,
    and ``place_of`` says where its paths go. Raises ContentError for a link that leads to nothing.
    """
    at = {place_of(path): number for number, (path, _) in enumerate(links)}
    found: list[Shown | None] = [None] * len(links)
    for first in range(len(links)):
        way: dict[int, None] = {}
        number: int | None = first
        # What is known already ends the way, so that all of it takes time linear in the links.
        while number is not None and (shown := found[number]) is None and number not in way:
            way[number] = None
            target = links[number][1]
            beside = at.get(_beside(own, target))
            if beside is None or beside >= number:
                shown = _look(below, target)
            if shown is not None:
                break
            number = beside
        if shown is None:
            raise _nowhere(*links[first])
        for number in way:
            found[number] = shown
    return [shown for shown in found if shown is not None]


def _beside(own: MergedView, target: bytes) -> bytes:
    parent, _, name = target.rpartition(b"/")
    real = own.resolve(parent) if parent else b""
    return target if real is None else join(real, name)


def _look(below: MergedView, target: bytes) -> Shown | None:
    parent, _, name = target.rpartition(b"/")
    real = below.resolve(parent) if parent else b""
    shown = None if real is None else below.look(join(real, name))
    return None if shown is None or shown.is_directory else shown


def _nowhere(path: bytes, target: bytes) -> ContentError:
    return ContentError(
        f'hard link "{visible_bytes(path)}": its target "{visible_bytes(target)}" is in no layer',
        hint="the image is broken, or was built for layers that are not in it",
    )
