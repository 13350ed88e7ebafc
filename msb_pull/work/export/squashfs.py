"""SquashFS images, made by tar2sqfs from a tar stream.

Not by sqfstar: up to 4.5.1 it gives the top of the tree to root and the time of the day, whatever it is told.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, BinaryIO

from msb_pull.work.export.tools import Packages, feed, find_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PACKAGES = Packages("squashfs-tools-ng", "squashfs-tools-ng", "squashfs-tools-ng")


_NAMESPACES = (b"user.", b"trusted.", b"security.")


def foreign(xattrs: Mapping[bytes, bytes]) -> list[bytes]:
    """The names of attributes that SquashFS cannot hold; the program takes no archive with one."""
    return sorted(name for name in xattrs if not name.startswith(_NAMESPACES))


def write_squashfs(out: BinaryIO, write_tar: Callable[[IO[bytes]], object]) -> int:
    """Makes an image in the open file ``out`` of the archive that ``write_tar`` writes, and returns its size.

    The format has times of 32 bits without a sign, in seconds, and attributes in ``user``, ``trusted`` and
    ``security`` alone (see :func:`foreign`). Raises UsageError without the program, LocalError when that fails, and
    what ``write_tar`` raises.
    """
    tool = find_tool("tar2sqfs", _PACKAGES)
    # Every kernel reads gzip.
    options = ("--quiet", "--force", "--no-skip", "--compressor", "gzip")
    feed([tool, *options, f"/dev/fd/{out.fileno()}"], out, write_tar)
    return os.fstat(out.fileno()).st_size
