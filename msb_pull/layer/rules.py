"""What a layer means: which names are whiteouts, what they hide, what implies a directory, and where a path leads.

Every rule stands here alone. The writer of a layer applies them to its directory, the proof to its record, settling and
the listing to the merged view. Only how they look at these differs, so each passes in its own way to look.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import TypeVar

    Link = TypeVar("Link")
    # What stands at a real path: a symlink's target, True for a directory, False for anything else, None for nothing.
    Look = Callable[[bytes], bytes | bool | None]

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
# AUFS kept its bookkeeping in the top directory of a layer; old images still have it. Hard links lead into one folder.
AUFS = b".wh..wh."
PLINKS = b".wh..wh.plnk"
MAX_HOPS = 40
MAX_LEVELS = 1024
MAX_NAME = 255
_NAMELESS = frozenset((WHITEOUT, WHITEOUT + b".", WHITEOUT + b".."))


class BadPath(ValueError):
    """A path of an entry that cannot be followed; the text says why."""


# Paths


def clean(name: bytes) -> bytes:
    """The path below the layer's root that ``name`` means, components joined by ``/``; ``b""`` is the root itself.

    Leading slashes fall away and inner ``..`` are resolved as text, as containerd and moby do. Raises ValueError with
    a short reason for a name that is empty, holds NUL, climbs out of the layer, or has components no file system takes.
    """
    # Nearly every name is clean already, and looking at each of its components takes ten times as long.
    if len(name) <= MAX_NAME and name[:1] not in b"/." and b"//" not in name and b"/." not in name:
        if b"\0" not in name:
            return name[:-1] if name.endswith(b"/") else name
    elif not name:
        raise ValueError("the name is empty")
    if b"\0" in name:
        raise ValueError("the name holds a NUL byte")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not parts:
                raise ValueError("the path escapes the layer")
            parts.pop()
            continue
        if len(part) > MAX_NAME:
            if is_whiteout(part):
                check_whiteout(part)
            raise ValueError(f"a component of the name is longer than {MAX_NAME} bytes")
        parts.append(part)
    if len(parts) > MAX_LEVELS:
        raise ValueError(f"the path is deeper than {MAX_LEVELS} levels")
    return b"/".join(parts)


def join(parent: bytes, name: bytes) -> bytes:
    """The path of what is called ``name`` in the directory ``parent``, ``b""`` being the top."""
    return parent + b"/" + name if parent else name


def resolve(path: bytes, look: Look) -> bytes:
    """Where ``path`` leads when symlinks are followed against the root, as in a chroot (containerd's RootPath).

    What is missing, or is not a directory, counts as a directory to be made. Raises BadPath after 40 symlinks, where
    the way goes through the name of a whiteout, and whatever ``look`` raises.
    """
    real: list[bytes] = []
    # How many of them are directories that are there: below any other there is nothing to look at.
    there = hops = 0
    ahead = path.split(b"/")[::-1]
    while ahead:
        part = ahead.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            del real[-1:]
            there = min(there, len(real))
            continue
        if part.startswith(WHITEOUT):
            raise BadPath("a directory of its path has the name of a whiteout")
        found = look(b"/".join((*real, part))) if there == len(real) else None
        if isinstance(found, bytes):
            hops += 1
            if hops > MAX_HOPS or len(ahead) > 4 * MAX_LEVELS:
                raise BadPath("too many symlinks on the way to it")
            if found.startswith(b"/"):
                real, there = [], 0
            ahead.extend(found.split(b"/")[::-1])
            continue
        real.append(part)
        there += found is True
        if len(real) > MAX_LEVELS:
            raise BadPath(f"the path is deeper than {MAX_LEVELS} levels")
    return b"/".join(real)


class Moves:
    """Where paths go when the contents of directories move elsewhere, or go for good; parents must move first."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes | None] = {b"": b""}

    def move(self, path: bytes, place: bytes | None) -> None:
        """From now on what lies below ``path`` goes to ``place``; with None it is gone."""
        self._known[path] = place

    def of(self, path: bytes) -> bytes | None:
        """Where ``path`` goes; each directory on its way is looked up once."""
        known, pending = path, []
        while known not in self._known:
            known, _, name = known.rpartition(b"/")
            pending.append(name)
        place = self._known[known]
        while pending:
            name = pending.pop()
            known = join(known, name)
            place = None if place is None else join(place, name)
            self._known[known] = place
        return place


def places_after(moves: Mapping[bytes, bytes], paths: Iterable[bytes]) -> dict[bytes, None]:
    """Where ``paths`` are once the contents of directories have moved; the moved ones themselves are gone."""
    moved = Moves()
    for old in sorted(moves):
        moved.move(old, moves[old])
    return {place: None for path in paths if path not in moves and (place := moved.of(path)) is not None}


# Hard links


def make_waiting(
    waiting: Iterable[Link],
    path: Callable[[Link], bytes],
    target: Callable[[Link], bytes],
    make: Callable[[Link], bool],
) -> list[Link]:
    """Makes the hard links whose targets came later, in whatever order; returns those without any.

    ``path`` and ``target`` say where one is and, symlinks followed, where it leads; ``make`` is False where nothing is
    there. What a new link leads to, if that is a symlink, may show others their targets: that often, up to 40 times,
    it begins again.
    """
    left = list(waiting)
    for _ in range(MAX_HOPS):
        by_target: dict[bytes, list[Link]] = {}
        for link in left:
            by_target.setdefault(target(link), []).append(link)
        left, made, ready = [], False, list(by_target)
        while ready:
            links = by_target.pop(here := ready.pop(), [])
            if links and not make(links[0]):
                # Another link may come to stand there yet.
                by_target[here] = links
                continue
            made = made or bool(links)
            left += [link for link in links[1:] if not make(link)]
            ready += [path(link) for link in links]
        left += [link for links in by_target.values() for link in links]
        if not made:
            break
    return left


# Whiteouts


def is_whiteout(name: bytes) -> bool:
    """Whether the last name of a path makes it a whiteout or an opaque marker (image-spec, layer.md)."""
    return name.startswith(WHITEOUT)


def check_whiteout(name: bytes) -> None:
    """Raises ValueError for a whiteout of no name, of ``.`` or of ``..``, and for one that no directory can hold."""
    if name in _NAMELESS:
        raise ValueError("a whiteout without a name")
    if len(name) > MAX_NAME:
        raise ValueError(
            f"a whiteout of a name of {len(name) - len(WHITEOUT)} bytes: a layer's directory can hold those of at most "
            f'{MAX_NAME - len(WHITEOUT)}, since ".wh." is put before it'
        )


def is_leftover(path: bytes) -> bool:
    """Whether a path belongs to what AUFS left at the top, and so to no image."""
    top = path.partition(b"/")[0]
    return top.startswith(AUFS) and top != OPAQUE


def is_plink(path: bytes) -> bool:
    """Whether a path lies where AUFS kept the originals of hard links, which others of its layer may lead to."""
    return path.startswith(PLINKS + b"/") and path.count(b"/") == 1


def hidden_by(path: bytes) -> bytes:
    """The path that a whiteout names."""
    parent, _, name = path.rpartition(b"/")
    return join(parent, name[len(WHITEOUT) :])


def whiteout_of(path: bytes) -> bytes:
    """The whiteout that names a path."""
    parent, _, name = path.rpartition(b"/")
    return join(parent, WHITEOUT + name)


def turned(whiteout: bytes, *, directory: bool) -> bytes:
    """Where a whiteout goes that stands beside what it names; ``b""`` for nowhere.

    It hides only what lower layers hold. A reader of an overlay cannot know that of a name that stands beside its own
    whiteout: beside a directory it becomes that directory's opaque marker, else it goes (as umoci does for overlayfs).
    """
    return join(hidden_by(whiteout), OPAQUE) if directory else b""


def hollow(
    marked: Iterable[bytes],
    implied: Collection[bytes],
    needed: Collection[bytes],
    names: Callable[[bytes], Iterable[bytes]],
    is_there: Callable[[bytes], bool],
) -> tuple[list[bytes], list[bytes]]:
    """The directories that nothing but whiteouts implies: they exist only where those below have them.

    First those that go, since a whiteout or an opaque directory of the layer itself hides them (without what is in
    them), then the others, parents first. ``marked`` are directories with whiteouts, ``implied`` those without an
    entry, ``needed`` those that something else will come into. ``names`` lists a directory, each once; ``is_there``
    says whether anything stands at a path.
    """
    gone: list[bytes] = []
    left: list[bytes] = []
    lost: set[bytes] = set()
    opaque: dict[bytes, bool] = {}
    for path in _only_whiteouts(marked, implied, needed, names):
        parent = path.rpartition(b"/")[0]
        if parent in lost:
            lost.add(path)
        elif is_there(whiteout_of(path)) or _hides(parent, opaque, is_there):
            lost.add(path)
            gone.append(path)
        else:
            left.append(path)
    return gone, left


def _only_whiteouts(
    marked: Iterable[bytes],
    implied: Collection[bytes],
    needed: Collection[bytes],
    names: Callable[[bytes], Iterable[bytes]],
) -> list[bytes]:
    found: set[bytes] = set()
    levels: dict[int, set[bytes]] = {}
    for path in marked:
        if path and path in implied:
            levels.setdefault(path.count(b"/"), set()).add(path)
    for level in range(max(levels, default=-1), -1, -1):
        for path in levels.pop(level, ()):
            if path in needed or not all(is_whiteout(name) or join(path, name) in found for name in names(path)):
                continue
            found.add(path)
            parent = path.rpartition(b"/")[0]
            if parent and parent in implied:
                levels.setdefault(level - 1, set()).add(parent)
    return sorted(found)


def _hides(path: bytes, known: dict[bytes, bool], is_there: Callable[[bytes], bool]) -> bool:
    """Whether a directory or one above it is opaque, or will be, since its whiteout stands beside it.

    Each is looked at once.
    """
    pending = []
    while path not in known:
        pending.append(path)
        if not path:
            break
        path = path.rpartition(b"/")[0]
    hides = known.get(path, False)
    while pending:
        path = pending.pop()
        known[path] = hides = hides or is_there(join(path, OPAQUE)) or (path != b"" and is_there(whiteout_of(path)))
    return hides
