"""Compares two directory trees name by name, in all that an image says about a file.

    python tests/support/treecompare.py LEFT RIGHT      prints the differences, exit 1 when there are any

Compared are the set of names, types, owners, all twelve mode bits, sizes, contents, link targets, groups of hard
links, the modification times of files in nanoseconds, and extended attributes. The store keeps attributes that only
root may set under an escaped name; they are compared under their own. Not compared are owners and modes of symlinks
(a layer in the store has nowhere to keep them), times of symlinks and directories (a reader changes them while it
builds its tree), and sizes of directories.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Facts:
    """What is compared of one name; None where a type has no such fact."""

    type: str
    mode: int | None = None
    owner: tuple[int, int] | None = None
    size: int | None = None
    content: str | None = None
    target: bytes | None = None
    device: int | None = None
    mtime_ns: int | None = None
    links: frozenset[bytes] = frozenset()
    attributes: tuple[tuple[str, bytes], ...] = ()


ESCAPE = "user.containers.override_"
HOST_ATTRIBUTES = frozenset({"security.selinux", f"{ESCAPE}stat"})

TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def walk(root: bytes):
    """Yields every path below ``root``, relative to it and without following links, ``b"."`` first."""
    yield b"."
    for folder, folders, files in os.walk(root):
        for name in sorted(folders + files):
            yield os.path.relpath(os.path.join(folder, name), root)


def attributes_of(path: bytes) -> tuple[tuple[str, bytes], ...]:
    """The attributes an image gave to a file; Linux only."""
    if not hasattr(os, "listxattr"):
        return ()
    try:
        names = [name for name in os.listxattr(path) if name not in HOST_ATTRIBUTES]
    except OSError as error:
        # A SquashFS image without any has no room for them.
        if error.errno != errno.EOPNOTSUPP:
            raise
        return ()
    return tuple(sorted((name.removeprefix(ESCAPE), os.getxattr(path, name)) for name in names))


def facts_of(path: bytes, links: frozenset[bytes]) -> Facts:
    found = os.lstat(path)
    kind = TYPES.get(stat.S_IFMT(found.st_mode), f"type {stat.S_IFMT(found.st_mode):o}")
    owner, mode = (found.st_uid, found.st_gid), stat.S_IMODE(found.st_mode)
    if kind == "symlink":
        return Facts(kind, target=os.readlink(path))
    if kind == "directory":
        return Facts(kind, mode, owner, attributes=attributes_of(path))
    if kind != "file":
        return Facts(kind, mode, owner, device=found.st_rdev)
    with open(path, "rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    attributes = attributes_of(path)
    return Facts(
        kind, mode, owner, found.st_size, content, mtime_ns=found.st_mtime_ns, links=links, attributes=attributes
    )


def describe(root: os.PathLike[str] | str) -> dict[bytes, Facts]:
    """All facts of a tree by relative name. Run it as a user who may read everything in it."""
    base = os.fsencode(root)
    groups: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    names = list(walk(base))
    for name in names:
        found = os.lstat(os.path.join(base, name))
        if stat.S_ISREG(found.st_mode):
            groups[found.st_dev, found.st_ino].append(name)
    shared = {name: frozenset(group) for group in groups.values() if len(group) > 1 for name in group}
    return {name: facts_of(os.path.join(base, name), shared.get(name, frozenset())) for name in names}


def differences(left: dict[bytes, Facts], right: dict[bytes, Facts], *, ignore: frozenset[bytes] = frozenset()):
    """One line for each fact in which the trees differ, in the order of names."""
    lines = []
    for name in sorted((left.keys() | right.keys()) - ignore):
        if name not in left or name not in right:
            lines.append(f"{name!r}: only on the {'right' if name not in left else 'left'}")
            continue
        for field in fields(Facts):
            one, other = getattr(left[name], field.name), getattr(right[name], field.name)
            if one != other:
                shown = (
                    (f"{one:o}", f"{other:o}") if field.name == "mode" and None not in (one, other) else (one, other)
                )
                lines.append(f"{name!r}: {field.name} {shown[0]!r} on the left, {shown[1]!r} on the right")
    return lines


def main(left: str, right: str) -> int:
    found = differences(describe(Path(left)), describe(Path(right)))
    print("\n".join(found) or "no differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
