"""Extended attributes of open files, by the same names on Linux and macOS (whose Python has none of them)."""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# What an image could have, whoever can see it; other namespaces belong to file systems.
_IMAGE = (b"user.", b"security.", b"trusted.", b"system.posix_acl_")
# Set by the host itself: labels and hashes of security modules, the books of network file systems.
_HOST = (
    *(b"security.selinux", b"security.ima", b"security.evm", b"security.SMACK64", b"security.apparmor"),
    *(b"trusted.lov", b"trusted.lma", b"trusted.link", b"trusted.gfid", b"trusted.glusterfs."),
)
# Kernel and file systems disagree on how they say that they know no such attributes.
UNSUPPORTED = frozenset((errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS))

if sys.platform == "darwin":
    # In the functions, so that only those who need attributes wait for it. PyPI has two packages of this name; these
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
    """All ``user.`` attributes by name, none where the file system knows no attributes; raises OSError."""
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
