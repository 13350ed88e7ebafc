"""Extended attributes: the override_stat value, and under which names an image's own attributes may be kept.

Format, as krun and Microsandbox write it: ``<uid>:<gid>:0<octal of type bits | mode>``. At most 29 bytes, since libkrun
reads no more than 32.
"""

from __future__ import annotations

import stat

OVERRIDE_STAT = b"user.containers.override_stat"
# fuse-overlayfs and containers/storage keep what an unprivileged user cannot set under this prefix.
ESCAPE = b"user.containers.override_"
# Attributes that belong to the host the image was built on (umoci leaves out the same).
_HOST_BOUND = frozenset((b"security.selinux", b"security.evm", b"security.ima", b"system.nfs4_acl"))
_READERS_OWN = (ESCAPE, b"user.overlay.", b"user.fuseoverlayfs.", b"user.msb.")


def override_stat(kind: int, mode: int, uid: int, gid: int) -> bytes:
    """The value for an entry; ``kind`` is one of the ``stat.S_IF…`` bits, of ``mode`` the lower twelve bits count."""
    return b"%d:%d:0%o" % (uid, gid, kind | (mode & 0o7777))


def parse_override_stat(value: bytes) -> tuple[int | None, int | None, int | None]:
    """Reads what any writer of the attribute wrote: (uid, gid, mode), each None where it says nothing.

    Accepts three or more fields, modes with or without type bits, and ``x`` for unknown (krun). Raises ValueError.
    """
    fields = value.split(b":")
    if len(fields) < 3:
        raise ValueError("an override_stat has at least three fields")
    numbers = [None if field == b"x" else int(field, base) for field, base in zip(fields[:3], (10, 10, 8), strict=True)]
    return numbers[0], numbers[1], numbers[2]


def disk_mode(kind: int, mode: int) -> int:
    """The mode on disk: the owner can always read and write, set-uid, set-gid and sticky never get there."""
    return (mode & 0o777) | (0o700 if kind == stat.S_IFDIR else 0o600)


def kept_attributes(attributes: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """An image's attributes with the names they get on disk; those bound to a host, and our own, are left out.

    Names that a reader of the store would obey, and namespaces that need privileges, are escaped.
    """
    kept = []
    for name, value in sorted(attributes.items()):
        if name == OVERRIDE_STAT or name in _HOST_BOUND:
            continue
        plain = name.startswith(b"user.") and not name.startswith(_READERS_OWN)
        kept.append((name if plain else ESCAPE + name, value))
    return kept
