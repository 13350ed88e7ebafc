"""Extended attributes of open files: the override_stat value, and under which names an image's own may be kept.

Format, as krun and Microsandbox write it: ``<uid>:<gid>:0<octal of type bits | mode>``. At most 29 bytes, since libkrun
reads no more than 32.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

OVERRIDE_STAT = b"user.containers.override_stat"
MAX_ID = (1 << 32) - 1
MAX_TIME_NS = ((1 << 63) - 1) * 1_000_000_000
# fuse-overlayfs and containers/storage keep what an unprivileged user cannot set under this prefix.
ESCAPE = b"user.containers.override_"
# Attributes that belong to the host the image was built on (umoci leaves out the same).
_HOST_BOUND = frozenset((b"security.selinux", b"security.evm", b"security.ima", b"system.nfs4_acl"))
# The bits of an image's modes that get onto the disk; the attribute has all of them.
DISK_MODES = 0o755
_READERS_OWN = (ESCAPE, b"user.overlay.", b"user.fuseoverlayfs.", b"user.msb.")
# Linux knows no other (xattr(7)). A name without one of them must never be escaped: "stat" would become our own.
_NAMESPACES = (b"user.", b"security.", b"trusted.", b"system.")

# What an image could have; other namespaces belong to file systems.
_IMAGE = (b"user.", b"security.", b"trusted.", b"system.posix_acl_")
# Set by the host itself: labels and hashes of security modules, bookkeeping of network file systems.
_HOST = (
    *(b"security.selinux", b"security.ima", b"security.evm", b"security.SMACK64", b"security.apparmor"),
    *(b"trusted.lov", b"trusted.lma", b"trusted.link", b"trusted.gfid", b"trusted.glusterfs."),
)
# Kernel and file systems disagree on the error for unsupported attributes.
UNSUPPORTED = frozenset((errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS))


def override_stat(kind: int, mode: int, uid: int, gid: int) -> bytes:
    """The value for an entry; ``kind`` is one of the ``stat.S_IF…`` bits, of ``mode`` the lower twelve bits count.

    Raises ValueError for ids that no reader takes.
    """
    if not (0 <= uid <= MAX_ID and 0 <= gid <= MAX_ID):
        raise ValueError("its owner or group is out of range")
    return b"%d:%d:0%o" % (uid, gid, kind | (mode & 0o7777))


# How a directory looks that no entry describes.
IMPLIED_MODE = 0o755
IMPLIED = override_stat(stat.S_IFDIR, IMPLIED_MODE, 0, 0)


# libkrun reads no more.
MAX_OVERRIDE = 32
_TYPES = {stat.S_IFCHR: b"char-%d-%d", stat.S_IFBLK: b"block-%d-%d", stat.S_IFIFO: b"pipe"}


def typed_override(value: bytes, device: tuple[int, int] | None) -> bytes | None:
    """The value of a device or FIFO with its type as a fourth field, as containers-storage writes it (pkg/idtools).

    ``device`` is (major, minor). None for any other type, for a device of which that is not known, and where libkrun
    could not read it whole.
    """
    kind = stat.S_IFMT(parse_override_stat(value)[2] or 0)
    text = _TYPES.get(kind)
    if text is None or (device is None and kind != stat.S_IFIFO):
        return None
    typed = value + b":" + (text if device is None or kind == stat.S_IFIFO else text % device)
    return typed if len(typed) <= MAX_OVERRIDE else None


def plain_override(value: bytes) -> bytes:
    """The value without such a field, where its mode says the type as well."""
    fields = value.split(b":")
    mode = parse_override_stat(value)[2]
    return b":".join(fields[:3]) if mode is not None and stat.S_IFMT(mode) else value


def parse_override_stat(value: bytes) -> tuple[int | None, int | None, int | None]:
    """Reads what any writer of the attribute wrote: (uid, gid, mode), each None where it says nothing.

    Accepts three or more fields, modes with or without type bits, and ``x`` for unknown (krun). Raises ValueError.
    """
    fields = value.split(b":")
    if len(fields) < 3:
        raise ValueError("an override_stat has at least three fields")
    uid, gid, mode = (
        _number(field, base, limit)
        for field, base, limit in zip(fields, (10, 10, 8), (MAX_ID, MAX_ID, 0o177777), strict=False)
    )
    return uid, gid, mode


def _number(field: bytes, base: int, limit: int) -> int | None:
    if field == b"x":
        return None
    # int() alone would take signs, spaces and underscores, which other readers do not.
    if not field.isdigit() or len(field) > 16:
        raise ValueError("an override_stat holds no number where one belongs")
    number = int(field, base)
    if number > limit:
        raise ValueError("a number of an override_stat is out of range")
    return number


def disk_mode(kind: int, mode: int) -> int:
    """The mode on disk: the owner can always read and write, nobody else can write, and no set-uid, set-gid or sticky.

    What everyone may write in an image (``/tmp``, ``/dev/null``) must not be writable by every user of the host.
    """
    return (mode & DISK_MODES) | (0o700 if kind == stat.S_IFDIR else 0o600)


def clamp_time(nanoseconds: int) -> int:
    """Times before 1970, or beyond what the system can be told, become the nearest it takes (moby's boundTime)."""
    return min(max(nanoseconds, 0), MAX_TIME_NS)


def disk_name(name: bytes) -> bytes | None:
    """Under which name an image's attribute is kept, None if it is not.

    Attributes bound to a host, and our own, are left out. Names that a reader of the store would obey, and namespaces
    that need privileges, are escaped.
    """
    if name == OVERRIDE_STAT or name in _HOST_BOUND or not name.startswith(_NAMESPACES):
        return None
    if name.startswith(b"user.") and not name.startswith(_READERS_OWN):
        return name
    return ESCAPE + name


def image_name(kept: bytes) -> bytes:
    """The name that an image gave an attribute; the inverse of :func:`disk_name`."""
    return kept.removeprefix(ESCAPE)


# On the disk

if sys.platform == "darwin":
    # Imported in the functions, so that only users of attributes wait for it. PyPI has two packages of this name; these
    # four calls mean the same in both.

    def set_attribute(descriptor: int, name: bytes, value: bytes) -> None:
        """Sets or replaces an attribute; raises OSError."""
        import xattr

        xattr.setxattr(descriptor, name, value)

    def get_attribute(descriptor: int, name: bytes) -> bytes:
        """The value of an attribute; raises OSError."""
        import xattr

        value: bytes = xattr.getxattr(descriptor, name)
        return value

    def list_attributes(descriptor: int) -> list[bytes]:
        """The names of all attributes; raises OSError."""
        import xattr

        return [os.fsencode(name) for name in xattr.listxattr(descriptor)]

    def remove_attribute(descriptor: int, name: bytes) -> None:
        """Removes an attribute; raises OSError."""
        import xattr

        xattr.removexattr(descriptor, name)

else:
    set_attribute = os.setxattr
    get_attribute = os.getxattr
    remove_attribute = os.removexattr

    def list_attributes(descriptor: int) -> list[bytes]:
        """The names of all attributes; raises OSError."""
        return [os.fsencode(name) for name in os.listxattr(descriptor)]


def user_attributes(descriptor: int) -> list[tuple[bytes, bytes]]:
    """All ``user.`` attributes by name, none where the file system supports none; raises OSError."""
    try:
        names = list_attributes(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return []
    return [(name, get_attribute(descriptor, name)) for name in sorted(names) if name.startswith(b"user.")]


def image_attributes(descriptor: int) -> list[tuple[bytes, bytes]]:
    """All attributes by name that an image could have and this user can see; raises OSError."""
    return [(name, get_attribute(descriptor, name)) for name in sorted(_of_image(list_attributes(descriptor)))]


def link_attributes(directory: int, name: bytes) -> list[bytes]:
    """The names of such attributes of a symlink in an open directory, none where that cannot be seen."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        # There is no listxattrat before Linux 6.13.
        names = os.listxattr(b"/proc/self/fd/%d/%s" % (directory, name), follow_symlinks=False)
    except OSError:
        return []
    return _of_image(map(os.fsencode, names))


def _of_image(names: Iterable[bytes]) -> list[bytes]:
    return [name for name in names if name.startswith(_IMAGE) and not name.startswith(_HOST)]
