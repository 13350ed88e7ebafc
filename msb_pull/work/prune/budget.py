"""Which images go so that a store stays within its budget: whole ones, least recently used first."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msb_pull.ground.errors import LocalError, local_error
from msb_pull.ground.sizes import Percent

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence, Set

    from msb_pull.store.store import Store
    from msb_pull.work.select import Selection


@dataclass(frozen=True, slots=True)
class Budget:
    """What a store may take, in bytes; ``min_free`` is what its file system must have left. None is no limit."""

    keep: int | None = None
    min_free: int | Percent | None = None

    def __bool__(self) -> bool:
        return self.keep is not None or self.min_free is not None

    def excess(self, store: Store, taken: int, freed: int = 0) -> int:
        """How many bytes have to go from a store that takes ``taken``, once ``freed``, still on the disk, are gone.

        It may be more than there are, where others fill the file system. Raises LocalError where that must have
        something free and does not say how much it has.
        """
        return max([0, *self._over(store, taken, freed)])

    def limit(self, store: Store, taken: int) -> int | None:
        """How many bytes a store may take that takes ``taken``, None for any; raises LocalError, as :meth:`excess`."""
        return max(taken - max(self._over(store, taken, 0)), 0) if self else None

    def _over(self, store: Store, taken: int, freed: int) -> list[int]:
        """By how much each limit is passed, negative where it is not reached."""
        over = [] if self.keep is None else [taken - self.keep]
        if self.min_free is not None:
            size, free = file_system(store)
            if not size:
                hint = "use a budget in bytes (--keep) instead"
                raise LocalError(f"{store.layers}: its file system does not say how much is free", hint=hint)
            wanted = self.min_free.of(size) if isinstance(self.min_free, Percent) else self.min_free
            over.append(wanted - free - freed)
        return over


@dataclass(frozen=True, slots=True)
class Fit:
    """How to make a store fit: only images that ``selection`` takes may go and, where it is given, only those named in
    ``only``; never one that is named in ``spare``."""

    budget: Budget
    selection: Selection
    only: frozenset[str] | None = None
    spare: frozenset[str] = frozenset()

    def without(self, references: Collection[str]) -> Fit:
        """The same, but these images stay as well."""
        return replace(self, spare=self.spare.union(references))

    def may_remove(self, reference: str) -> bool:
        """Whether an image may go, as far as its name tells."""
        return reference not in self.spare and (self.only is None or reference in self.only)


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """An image that may go, with the ``layers`` it reaches, or an unfinished download of ``size`` bytes.

    ``used`` is when it was last used, in seconds since 1970.
    """

    used: float
    name: str
    layers: frozenset[str] = frozenset()
    size: int = 0


def choose(candidates: Sequence[Candidate], needed: Set[str], sizes: Mapping[str, int], excess: int) -> list[Candidate]:
    """What has to go to free ``excess`` bytes, least recently used first; all of it, where that is not enough.

    ``needed`` are the layers that something else than these candidates reaches; ``sizes`` has all layers that are
    there. An image that would free nothing stays, whenever it was used: others that stay need the same layers.
    """
    reached = Counter(layer for candidate in candidates for layer in candidate.layers)
    going = []
    for candidate in sorted(candidates):
        if excess <= 0:
            break
        going.append(candidate)
        reached.subtract(candidate.layers)
        lost = (layer for layer in candidate.layers if not reached[layer] and layer not in needed)
        excess -= candidate.size + sum(sizes.get(layer, 0) for layer in lost)
    staying = {layer for layer, count in reached.items() if count} | needed
    return [x for x in going if x.size or not (x.layers & sizes.keys() <= staying)]


def file_system(store: Store) -> tuple[int, int]:
    """Bytes of the file system that the layers lie on, and how many of them are free for this user; raises LocalError.

    Some network file systems say nothing of their size: then it is 0. Of a store that is not there, it is the one where
    it would be.
    """
    folder = next((x for x in (store.layers, *store.layers.parents) if x.exists()), store.layers)
    try:
        facts = os.statvfs(folder)
    except OSError as error:
        raise local_error(error, folder) from error
    return facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize
