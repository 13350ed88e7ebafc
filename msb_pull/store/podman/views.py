"""Which views a store has, and what goes from them when its images and layers go."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError, LocalError, local_error
from msb_pull.ground.text import visible
from msb_pull.store.podman.view import locked, read_view, rewrite

if TYPE_CHECKING:
    from collections.abc import Collection

    from msb_pull.ground.running import Job
    from msb_pull.store.podman.shown import ShownImage
    from msb_pull.store.podman.view import View
    from msb_pull.store.store import Store

_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Leaving:
    """Images that go, by reference, and layers, by name."""

    references: Collection[str]
    layers: Collection[str]

    def takes(self, image: ShownImage, *, own: bool) -> bool:
        """Whether an image can be shown no longer. References count in a view of the same home (``own``)."""
        return (own and image.reference in self.references) or any(
            str(layer.key) in self.layers for layer in image.layers
        )


def register(store: Store, path: Path) -> None:
    """Writes down in the store where a view is; raises OSError."""
    folder = store.own / "podman"
    text = os.fsencode(path)
    place = folder / hashlib.sha256(text).hexdigest()[:16]
    with contextlib.suppress(FileNotFoundError):
        if place.read_bytes() == text:
            return
    folder.mkdir(mode=0o700, exist_ok=True)
    with store.places.private("podman") as draft:
        draft.write_bytes(text)
        os.replace(draft, place)


def folders(store: Store) -> list[Path]:
    """The folders of all views that were made of these layers, gone or not; raises LocalError."""
    try:
        entries = sorted((store.own / "podman").iterdir())
        texts = [entry.read_bytes()[:_LIMIT] for entry in entries if entry.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise local_error(error, store.own) from error
    return [Path(os.fsdecode(text)) for text in texts if text.startswith(b"/") and b"\0" not in text]


def remarks(store: Store, leaving: Leaving) -> list[str]:
    """A sentence for people of each view from which images are to go. Changes nothing."""
    found = []
    for path in folders(store):
        try:
            view = read_view(path)
        except ContentError as error:
            found.append(f"{error.message}; podman may go on showing what is removed; {error.hint}")
            continue
        except OSError as error:
            found.append(f"podman's view {visible(str(path))} cannot be read: {error.strerror}")
            continue
        going = [image.reference for image in _going(view, leaving, store)] if view else []
        if going:
            what = "it will no longer, and what podman has made from that stops working"
            found.append(f"podman's view {visible(str(path))} shows {', '.join(going)}: {what}")
    return found


def references(store: Store) -> set[str]:
    """The images of this home that its views show, as far as these can be read; raises LocalError."""
    found: set[str] = set()
    for path in folders(store):
        with contextlib.suppress(ContentError, OSError):
            if (view := read_view(path)) and view.is_of(store):
                found.update(image.reference for image in view.images)
    return found


def hide(store: Store, leaving: Leaving, job: Job) -> None:
    """Takes what is to go from all views, before it goes; raises LocalError where podman would go on showing it."""
    for path in folders(store):
        with contextlib.suppress(ContentError, OSError):
            view = read_view(path)
            if view is None or not _going(view, leaving, store):
                continue
            try:
                with locked(path, job):
                    _hide(path, leaving, store, job)
            except LocalError as error:
                hint = f"make it writable, or remove {visible(str(path))} and its line in storage.conf"
                raise LocalError(f"podman's view: {error.message}", cause=error.cause, hint=hint) from error


def _hide(path: Path, leaving: Leaving, store: Store, job: Job) -> None:
    if view := read_view(path):
        going = _going(view, leaving, store)
        rewrite(view, [image for image in view.images if image not in going], job)


def _going(view: View, leaving: Leaving, store: Store) -> list[ShownImage]:
    with contextlib.suppress(OSError, ValueError):
        # The store was copied, with what it knows of views: these show the layers of the one that was copied.
        if not store.layers.samefile(view.layers):
            return []
    own = view.is_of(store)
    return [image for image in view.images if leaving.takes(image, own=own)]
