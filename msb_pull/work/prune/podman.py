"""What podman shows of images and layers that go. Its code is loaded only where a store has such views."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msb_pull.ground.running import Job
    from msb_pull.store.store import Store


def shown_by_podman(store: Store, images: Iterable[str], layers: Iterable[str]) -> list[str]:
    """What to say of images that podman shows, and will no longer: one sentence a view; raises LocalError."""
    if not _has_views(store):
        return []
    from msb_pull.store.podman.views import Leaving, remarks

    return remarks(store, Leaving(frozenset(images), frozenset(layers)))


def shown_now(store: Store) -> set[str]:
    """The references of this home's images that podman is shown; raises LocalError."""
    if not _has_views(store):
        return set()
    from msb_pull.store.podman.views import references

    return references(store)


def hide_from_podman(store: Store, images: Iterable[str], layers: Iterable[str], job: Job) -> None:
    """Before anything goes podman must not see it any more; raises LocalError."""
    if _has_views(store):
        from msb_pull.store.podman.views import Leaving, hide

        hide(store, Leaving(frozenset(images), frozenset(layers)), job)


def _has_views(store: Store) -> bool:
    return (store.own / "podman").is_dir()
