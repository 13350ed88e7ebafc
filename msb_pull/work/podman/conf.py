"""What podman has to be told of a view: the lines of containers-storage.conf(5)."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PROGRAM = "fuse-overlayfs"


def storage_conf(folder: Path) -> str:
    """The lines that make podman read ``folder``.

    Only fuse-overlayfs reads whiteouts and owners as layers of the store keep them; the kernel's overlayfs knows
    neither. It finds the attribute by itself, so ``force_mask`` is not needed.
    """
    program = shutil.which(_PROGRAM) or f"/usr/bin/{_PROGRAM}"
    return (
        f'[storage]\ndriver = "overlay"\n\n[storage.options]\nadditionalimagestores = ["{folder}"]\n\n'
        f'[storage.options.overlay]\nmount_program = "{program}"\n'
    )
