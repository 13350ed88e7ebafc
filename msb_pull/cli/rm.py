"""The ``rm`` command behind its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msb_pull.cli.prune import show_removed
from msb_pull.work.prune import remove_images

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.cli.run import Run


def remove_from_store(run: Run, images: Sequence[str]) -> None:
    """Removes images and what only they need; prints one line for everything that went."""
    names = run.names(images)
    show_removed(run, remove_images(run.store_with(names), names, run.job))
