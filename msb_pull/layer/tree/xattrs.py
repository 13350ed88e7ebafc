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
    import ctypes

    _libc = ctypes.CDLL(None, use_errno=True)
    _libc.fgetxattr.restype = _libc.flistxattr.restype = ctypes.c_ssize_t

    def _checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def set_attribute(descriptor: int, name: bytes, value: bytes) -> None:
        """Sets or replaces an attribute; raises OSError."""
        size = ctypes.c_size_t(len(value))
        _checked(_libc.fsetxattr(descriptor, name, value, size, ctypes.c_uint32(0), 0))

    def get_attribute(descriptor: int, name: bytes) -> bytes:
        """The value of an attribute; raises OSError."""
        zero, none = ctypes.c_uint32(0), ctypes.c_size_t(0)
        size = _checked(_libc.fgetxattr(descriptor, name, None, none, zero, 0))
        buffer = ctypes.create_string_buffer(size)
        return buffer.raw[: _checked(_libc.fgetxattr(descriptor, name, buffer, ctypes.c_size_t(size), zero, 0))]

    def list_attributes(descriptor: int) -> list[bytes]:
        """The names of all attributes; raises OSError."""
        size = _checked(_libc.flistxattr(descriptor, None, ctypes.c_size_t(0), 0))
        buffer = ctypes.create_string_buffer(size)
        names = buffer.raw[: _checked(_libc.flistxattr(descriptor, buffer, ctypes.c_size_t(size), 0))]
        return [name for name in names.split(b"\0") if name]

    def remove_attribute(descriptor: int, name: bytes) -> None:
        """Removes an attribute; raises OSError."""
        _checked(_libc.fremovexattr(descriptor, name, 0))

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
