"""What the file system below the layers can do, tried rather than guessed from its name."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from msb_pull.ground.errors import LocalError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ATTRIBUTE = "user.containers.override_stat"
# How a file system answers where it lacks something; any other error is real trouble.
_CANNOT = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL))


class FileSystem(NamedTuple):
    """What was found. ``lacks`` names what no layer can do without, ``attributes`` whether user attributes work."""

    lacks: tuple[str, ...]
    attributes: bool


def probe(folder: Path) -> FileSystem:
    """Tries everything in ``folder``, which exists, is empty and will be removed; raises OSError.

    How long a name may be is not asked: few images have names near 255 bytes, and only such an entry is refused.
    """
    file = folder / "probe"
    file.touch(mode=0o600)
    lacks = []
    if not _works(lambda: (folder / "link").symlink_to("probe")):
        lacks.append("symlinks")
    if not _works(lambda: (folder / "hard").hardlink_to(file)):
        lacks.append("hard links")
    file.chmod(0o640)
    if file.stat().st_mode & 0o777 != 0o640:
        lacks.append("permissions")
    return FileSystem(
        lacks=tuple(lacks),
        attributes=_works(lambda: _set_attribute(file)) and _works(lambda: _set_attribute(folder)),
    )


def check(found: FileSystem, layers: Path, *, need_attributes: bool) -> None:
    """Raises one LocalError that names all that is missing."""
    lacks = list(found.lacks)
    if need_attributes and not found.attributes:
        lacks.append("user attributes (so owners and modes would be lost)")
    if not lacks:
        return
    hint = "choose another place with --home or --layers-dir"
    if not found.lacks:
        hint += ", or accept the loss with --allow-no-xattr"
    raise LocalError(f"{layers}: this file system has no {', no '.join(lacks)}", hint=hint)


def _set_attribute(path: Path) -> None:
    if sys.platform == "darwin":
        import xattr

        xattr.setxattr(os.fspath(path), _ATTRIBUTE, b"0:0:0100644")
    else:
        os.setxattr(path, _ATTRIBUTE, b"0:0:0100644")


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True
