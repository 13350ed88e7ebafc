"""The jail of a child that unpacks: Landlock, no new privileges, resource limits.

Landlock (kernel documentation ``userspace-api/landlock.rst``) leaves it nothing but its staging directory; the best
version that the kernel offers is used. Version 1 (Linux 5.13 to 5.18) refuses every hard link and rename from one
directory to another, so it cannot be used. Where there is none, or where the policy of a container refuses it, the
limits alone hold.
"""

from __future__ import annotations

import errno
import os
import sys

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9
_FIRST_USABLE = 2
# What kernels say that lack a call, and the seccomp policies of containers that forbid it.
_NOT_OFFERED = frozenset((errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP))
# Any layer of plain files fits into 50 MiB; only hostile numbers of links or implied directories take more.
_MEMORY = 1 << 30
_OPEN_FILES = 1024

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
    if version >= _FIRST_USABLE:
        return f"Landlock version {version}, no new privileges, resource limits"
    return f"resource limits only ({_reason(version)})"


def die_with(parent: int) -> None:
    """Lets the kernel end this process with its parent, whose process id is ``parent``; on Linux."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # It went before the kernel was told.
        os._exit(1)


def enter(root: int, *, max_file_size: int) -> str:
    """Restricts this process to the open directory ``root`` for good; returns what is active, and why not all.

    Must run before the first byte of a layer is read, and after everything is imported. A system that refuses a
    restriction as if it had none is no error; what else goes wrong raises OSError.
    """
    _limit_resources(max_file_size)
    if not sys.platform.startswith("linux"):
        return f"resource limits only ({_reason(0)})"
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    try:
        _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        version = landlock_version()
        if version >= _FIRST_USABLE:
            _restrict(root, version)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
        return f"resource limits only (this system refuses more: {error.strerror})"
    return describe()


def _reason(version: int) -> str:
    if version:
        return f"Landlock version {version} would forbid hard links; Linux 5.19 has one that does not"
    return "no Landlock in this system"


def _restrict(root: int, version: int) -> None:
    import ctypes
    from struct import pack

    libc = ctypes.CDLL(None, use_errno=True)
    handled = _RIGHTS_1 | _REFER
    if version >= 3:
        handled |= _TRUNCATE
    if version >= 5:
        handled |= _IOCTL_DEV
    allowed = handled & ~(_EXECUTE | _MAKE_CHAR | _MAKE_SOCK | _MAKE_FIFO | _MAKE_BLOCK | _IOCTL_DEV)
    attributes = pack("=Q", handled)
    if version >= 4:
        attributes += pack("=Q", _NETWORK)
    if version >= 6:
        attributes += pack("=Q", _SCOPES)
    ruleset = _checked(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    try:
        rule = pack("=Qi", allowed, root)
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

    _limit(resource.RLIMIT_AS, _MEMORY)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, max_file_size)
    # Over the file size limit the write shall fail with EFBIG instead of killing the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _limit(which: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(which, (value, value))
    except (ValueError, OSError):
        # macOS knows no limit of the address space.
        if sys.platform != "darwin":
            raise
