"""What podman has to be told of a view: the lines of containers-storage.conf(5)."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PROGRAM = "fuse-overlayfs"
# Root's own file takes the place of the distribution's as a whole, and podman has no defaults for these.
_PLACES = 'runroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n'


def conf_path() -> str:
    """The file in which podman looks, as this user runs it."""
    return "/etc/containers/storage.conf" if _is_root() else "~/.config/containers/storage.conf"


def storage_conf(folder: Path) -> str:
    """The lines in it that make podman read ``folder``.

    Only fuse-overlayfs reads whiteouts and owners as layers of the store keep them; the kernel's overlayfs knows
    neither. It finds the attribute by itself, so ``force_mask`` is not needed.
    """
    program = shutil.which(_PROGRAM) or f"/usr/bin/{_PROGRAM}"
    return (
        f'[storage]\ndriver = "overlay"\n{_PLACES if _is_root() else ""}\n'
        f'[storage.options]\nadditionalimagestores = ["{folder}"]\n\n'
        f'[storage.options.overlay]\nmount_program = "{program}"\n'
    )


def _is_root() -> bool:
    return os.geteuid() == 0
