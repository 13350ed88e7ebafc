"""The folders of the user; in a container the user may have none, or those of another user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def home(environ: Mapping[str, str]) -> Path | None:
    """The home folder, None where neither HOME nor the system's list of users names one. It need not exist."""
    try:
        return Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        return None


def config_home(environ: Mapping[str, str]) -> Path | None:
    """The folder for configuration (XDG Base Directory Specification, which has relative paths ignored)."""
    base = environ.get("XDG_CONFIG_HOME", "").strip()
    if base.startswith("/"):
        return Path(base)
    return folder / ".config" if (folder := home(environ)) else None
