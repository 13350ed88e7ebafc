"""The jail of a child that unpacks: Landlock, no new privileges, resource limits.

Landlock (Linux 5.13 and later, kernel documentation ``userspace-api/landlock.rst``) leaves it nothing but its staging
directory; the best version that the kernel offers is used. Where there is none, the limits alone hold.
"""

from __future__ import annotations

import os
import sys

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9
_MEMORY = 1 << 30
_OPEN_FILES = 4096

# Access rights of the file system by the version that brought them (include/uapi/linux/landlock.h).
_RIGHTS_1 = (1 << 13) - 1
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_EXECUTE = 1 << 0
_MAKE_CHAR, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11
_NETWORK = 0b11
_SCOPES = 0b11


def landlock_version() -> int:
    """The kernel's Landlock version, 0 where it has none."""
    if not sys.platform.startswith("linux"):
        return 0
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)))


def describe() -> str:
    """One line on what protects the host from a hostile layer here."""
    version = landlock_version()
    if version:
        return f"Landlock version {version}, no new privileges, resource limits"
    return "resource limits only (this kernel offers no Landlock)"


def enter(root: int, *, max_file_size: int) -> str:
    """Restricts this process to the open directory ``root`` for good; returns what is active.

    Must run before the first byte of a layer is read, and after everything is imported. Raises OSError when the
    kernel offers a restriction but refuses to apply it.
    """
    _limit_resources(max_file_size)
    if not sys.platform.startswith("linux"):
        return "resource limits"
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no-new-privileges refused")
    version = max(0, libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG))
    if not version:
        return "resource limits"
    _restrict(root, version)
    return f"Landlock version {version}"


def _restrict(root: int, version: int) -> None:
    import ctypes
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    handled = _RIGHTS_1
    if version >= 2:
        handled |= _REFER
    if version >= 3:
        handled |= _TRUNCATE
    if version >= 5:
        handled |= _IOCTL_DEV
    allowed = handled & ~(_EXECUTE | _MAKE_CHAR | _MAKE_SOCK | _MAKE_FIFO | _MAKE_BLOCK | _IOCTL_DEV)
    attributes = struct.pack("=Q", handled)
    if version >= 4:
        attributes += struct.pack("=Q", _NETWORK)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        rule = struct.pack("=Qi", allowed, root)
        _checked(libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0))
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _checked(result: int) -> int:
    if result < 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _limit_resources(max_file_size: int) -> None:
    import resource
    import signal

    _lower(resource.RLIMIT_AS, _MEMORY)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, max_file_size)
    # Over the file size limit the write shall fail with EFBIG instead of killing the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _lower(which: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))
