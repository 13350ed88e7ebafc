"""What may go: what no image reaches, images that are not wanted, and what interruptions left. Nothing changes here."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from msb_pull.image.digest import InvalidDigest
from msb_pull.store.homes import Elsewhere
from msb_pull.store.index.keys import LayerKey
from msb_pull.store.paths import LayerState
from msb_pull.work.prune.budget import Candidate, choose
from msb_pull.work.prune.podman import shown_by_podman, shown_now
from msb_pull.work.prune.usage import measure, partials, scan, size_of
from msb_pull.work.select import Selection, lost_database

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from msb_pull.ground.errors import ContentError
    from msb_pull.store.index.stored import StoredImage
    from msb_pull.store.store import Store
    from msb_pull.work.prune.budget import Fit
    from msb_pull.work.prune.usage import Usage

_PARTIAL_AGE = 7 * 86400


@dataclass(frozen=True, slots=True)
class Removal:
    """A layer or a file to remove; ``size`` is the bytes on the disk that it gives back."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What would be removed: images by reference, layers by name, files of ours that belong to nothing.

    ``leftovers`` counts what interrupted runs left in staging, and dangling short links; ``leftover_size`` in bytes.
    ``versions`` says which version of each image was meant: one that was pulled again meanwhile stays. ``remarks`` say
    what stays: for the sake of a home that cannot be looked into, or since it is no directory. ``everything`` says that
    all images are to go, so also those that nothing tells of any more. Where a budget was to be kept, ``left`` is what
    the store then takes, and ``over`` by how many bytes that is still too much.
    """

    images: tuple[str, ...]
    layers: tuple[Removal, ...]
    partials: tuple[Removal, ...]
    records: tuple[Removal, ...]
    leftovers: int
    leftover_size: int = 0
    versions: frozenset[tuple[str, str, str]] = frozenset()
    remarks: tuple[str, ...] = ()
    everything: bool = False
    left: int | None = None
    over: int = 0

    @property
    def size(self) -> int:
        """Bytes given back."""
        listed = sum(item.size for items in (self.layers, self.partials, self.records) for item in items)
        return listed + self.leftover_size

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.images or self.layers or self.partials or self.records or self.leftovers)


def plan_prune(
    store: Store, selection: Selection | None, *, usage: Usage | None = None, now: float | None = None
) -> PrunePlan:
    """Looks, and changes nothing. With ``selection`` the images it takes are to go too.

    Left alone: images that another program has recorded too, every layer that a remaining row or an image of another
    home reaches, and every directory that neither a record of ours nor an image that goes knows. ``now`` is seconds
    since 1970; sizes come from ``usage``, if that is at hand. Raises LocalError where layers would go and it cannot be
    known what another home needs, ContentError where the database is lost and nothing tells of their images.
    """
    everything = selection == Selection()

    def takes(image: StoredImage) -> bool:
        return selection is not None and selection.takes(image, store)

    return replace(_plan(store, takes, usage, now, everything=everything), everything=everything)


def plan_to_fit(store: Store, fit: Fit, *, usage: Usage | None = None, now: float | None = None) -> PrunePlan:
    """Looks, and changes nothing: what no image needs is to go, and then as many images as have to.

    They go least recently used first, and unfinished downloads in their turn; never an image that is in use or
    shown to podman. Raises what :func:`plan_prune` does.
    """
    usage = usage or measure(store)
    idle = plan_prune(store, None, usage=usage, now=now)
    plan = idle
    if excess := fit.budget.excess(store, usage.total - idle.size, freed=idle.size):
        chosen = {x.name for x in _chosen(store, fit, usage, excess, {x.name for x in idle.partials})}
        plan = _plan(store, lambda image: image.reference in chosen, usage, now, more=chosen)
    over = fit.budget.excess(store, usage.total - plan.size, freed=plan.size)
    return replace(plan, left=usage.total - plan.size, over=over)


def _chosen(store: Store, fit: Fit, usage: Usage, excess: int, going: Collection[str]) -> list[Candidate]:
    """The images and unfinished downloads that make the store fit; ``going`` go in any case."""
    with store.database(create=False) as database:
        stored = database.images()
        needed = database.layer_digests() - _reached(stored)
    needed |= elsewhere(store).layers
    # Of podman's containers nothing is known here: each may be made from any image that podman is shown.
    fit = fit.without(shown_now(store))
    candidates = [Candidate(x.changed, x.name, size=x.size) for x in usage.partials if x.name not in going]
    for image in stored:
        names = frozenset(_reached([image]))
        if (
            _is_only_ours(image)
            and fit.may_remove(image.reference)
            and fit.selection.takes(image, store)
            and not store.uses.is_used(image.reference)
        ):
            candidates.append(Candidate(store.uses.last(image), image.reference, names))
        else:
            needed |= names
    known = _layer_names(stored)
    sizes = {x: usage.of(x) for x in usage.layers if x in known or _is_ours(store, LayerKey.parse(x))}
    return choose(candidates, needed, sizes, excess)


def _plan(
    store: Store,
    takes: Callable[[StoredImage], bool],
    usage: Usage | None,
    now: float | None,
    *,
    everything: bool = False,
    more: Collection[str] = (),
) -> PrunePlan:
    """The plan without the images that ``takes`` chooses; ``more`` names downloads that go whatever their age."""
    with store.database(create=False) as database:
        stored = database.images()
        reached = database.layer_digests() - _reached(stored)
    doomed = [image for image in stored if _is_only_ours(image) and takes(image)]
    names = {image.reference for image in doomed}
    kept = reached | _reached(image for image in stored if image.reference not in names)
    known = _layer_names(doomed) - kept
    there = [(key, str(key)) for key in store.layers_there()]
    going = [key for key, name in there if name in known or (name not in kept and _is_ours(store, key))]
    remarks: tuple[str, ...] = ()
    if going and not everything:
        refuse_lost(lost_database(store))
    # Without a layer to remove, other homes need not be readable.
    if going or doomed:
        others = elsewhere(store)
        kept |= others.layers
        remarks = others.remarks(set(map(str, going)))
    size = store.disk_usage if usage is None else lambda key: usage.of(str(key))
    layers = tuple(Removal(str(key), size(key)) for key in going if str(key) not in kept)
    leftovers = store.places.leftovers()
    return PrunePlan(
        images=tuple(sorted(names)),
        layers=layers,
        partials=tuple(old_partials(store, now, more)),
        records=tuple(stray_records(store, kept)),
        leftovers=len(leftovers) + len(dead_links(store)),
        leftover_size=sum(size_of(path) for path in leftovers),
        versions=frozenset(version(image) for image in doomed),
        remarks=(*remarks, *shown_by_podman(store, names, (layer.name for layer in layers))),
    )


def elsewhere(store: Store) -> Elsewhere:
    """What other homes need; raises LocalError where that, or all that this one needs, cannot be known."""
    with store.database(create=False) as database:
        for error in database.unread_copies():
            raise error
    return Elsewhere(store.homes)


def refuse_lost(lost: ContentError | None) -> None:
    """Raises ``lost``, if there is something to say: every layer would pass for one that no image needs."""
    if lost is not None:
        lost.hint = f"{lost.hint}; `msb-pull prune --all` removes them"
        raise lost


def version(image: StoredImage) -> tuple[str, str, str]:
    """What tells an image from the next one of its name."""
    return image.reference, str(image.digest), image.pulled_at.isoformat()


def old_partials(store: Store, now: float | None, more: Collection[str] = ()) -> list[Removal]:
    """Downloads that have not continued for a week, and those named in ``more``."""
    now = time.time() if now is None else now
    return [Removal(x.name, x.size) for x in partials(store) if now - x.changed > _PARTIAL_AGE or x.name in more]


def stray_records(store: Store, kept: Collection[str]) -> list[Removal]:
    """Records and notes of layers whose directories are gone, and what is left of files that were being written."""
    found = []
    for entry in scan(store.own / "records"):
        try:
            key = LayerKey.parse(entry.name.rpartition(".")[0])
        except InvalidDigest:
            continue
        if str(key) not in kept and store.layer_state(key) is LayerState.ABSENT:
            found.append(Removal(f"records/{entry.name}", size_of(entry.path)))
    return found


def dead_links(store: Store) -> list[Path]:
    """Short links that lead to nothing."""
    links = (entry for entry in scan(store.own / "l") if entry.is_symlink())
    return [Path(link.path) for link in links if not os.path.exists(link.path)]  # noqa: PTH110


def _is_only_ours(image: StoredImage) -> bool:
    """Whether no other program has recorded an image too."""
    return image.digest is not None and not image.shared


def _layer_names(images: Iterable[StoredImage]) -> set[str]:
    return {str(layer.key) for image in images for layer in image.layers}


def _reached(images: Iterable[StoredImage]) -> set[str]:
    """The names of all layers that images reach: of one with a form of its own, Microsandbox takes the plain one."""
    return {name for image in images for layer in image.layers for name in (str(layer.key), str(layer.digest))}


def _is_ours(store: Store, key: LayerKey) -> bool:
    """Whether msb-pull made a directory, even if an interruption left it without notes."""
    return store.notes_path(key).is_file() or store.record_path(key).is_file()
