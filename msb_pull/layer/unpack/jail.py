"""The jail of a child that unpacks: its folder as its root, Landlock, a filter of system calls, resource limits.

Landlock (kernel documentation ``userspace-api/landlock.rst``) leaves it nothing but its staging directory; the best
version that the kernel offers is used. Version 1 (Linux 5.13 to 5.18) refuses every hard link and rename from one
directory to another, so it cannot be used. It does not cover times, modes, attributes and ``stat``. Of these calls the
filter (:mod:`.seccomp`) allows those on open files, and those by name that unpacking needs: ``stat``, and the times of
symlinks. Where the directory is the root of the process, these find no other file.

Each holds without the others. What the system lacks, or a container's policy refuses, is skipped.
"""

from __future__ import annotations

import errno
import os
import sys

from msb_pull.layer.unpack import seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_FIRST_USABLE = 2
# Errors of kernels that lack a call, and of policies of containers and security modules that forbid it; the last two
# for user namespaces that are used up or switched off.
_NOT_OFFERED = frozenset(
    (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSPC, errno.EUSERS)
)
# Any layer of plain files fits into 50 MiB; only hostile numbers of links or implied directories take more.
_MEMORY = 1 << 30
_OPEN_FILES = 1024
_LIMITS = "resource limits"

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
    """One line on what protects the host from a hostile layer here, as far as is known without trying."""
    version = landlock_version()
    held = []
    if version >= _FIRST_USABLE:
        held.append(f"Landlock version {version}")
    if seccomp.available():
        held.append("a filter of system calls")
    if sys.platform.startswith("linux"):
        held.append("no new privileges")
    return ", ".join([*held, _LIMITS]) + ("" if version >= _FIRST_USABLE else f"; {_why_not(version)}")


def enter(root: int, *, max_file_size: int, before_filter: Callable[[], None] = lambda: None) -> str:
    """Restricts this process to the open directory ``root`` for good; returns what is active, and why not all.

    Must run before the first byte of a layer is read, and after everything is imported. A restriction
    that the system lacks or refuses is not an error; anything else that goes wrong raises OSError. ``before_filter``
    is called last before the filter of system calls, which allows no process to start another.
    """
    _limit_resources(max_file_size)
    held, refused = [], []
    for name, step in steps(root).items():
        if step is seccomp.install:
            before_filter()
        try:
            step()
            held.append(name)
        except OSError as error:
            if error.errno not in _NOT_OFFERED:
                raise
            refused.append(f"not {name} ({error.strerror})")
    return "; ".join([", ".join([*held, _LIMITS]), *refused])


def steps(root: int) -> dict[str, Callable[[], None]]:
    """What :func:`enter` does to the process beside limits, by what it is called, in the order that it must have."""
    if not sys.platform.startswith("linux"):
        return {}
    version = landlock_version()
    return {
        # The kernel requires this of processes that restrict themselves without being root.
        "no new privileges": _no_new_privileges,
        "its folder as root": lambda: _change_root(root),
        f"Landlock version {version}" if version >= _FIRST_USABLE else "Landlock": lambda: _restrict(root, version),
        # The last, since it allows none of the others.
        "a filter of system calls": seccomp.install,
    }


def filter_calls() -> None:
    """Restricts a process that inherited the rest of the jail; nothing where that cannot be. Raises OSError."""
    try:
        seccomp.install()
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise


def _why_not(version: int) -> str:
    if version:
        return f"Landlock version {version} would forbid hard links; Linux 5.19 has one that does not"
    return "no Landlock in this system"


def _no_new_privileges() -> None:
    import ctypes

    _checked(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _change_root(root: int) -> None:
    """Makes ``root`` what ``/`` means; without the privilege, in a user namespace where the system allows one.

    The filter must forbid what else such a namespace allows, so there is none without the filter.
    """
    os.fchdir(root)
    try:
        os.chroot(".")
    except PermissionError:
        if not seccomp.available():
            raise
        import ctypes

        _checked(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER))
        os.chroot(".")


def _restrict(root: int, version: int) -> None:
    import ctypes
    from struct import pack

    if version < _FIRST_USABLE:
        raise OSError(errno.ENOSYS, _why_not(version))
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


def limits_memory() -> bool:
    """Whether this process's memory is limited to what a layer may take, neither less nor (no jail) unlimited."""
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] == _MEMORY


def _limit_resources(max_file_size: int) -> None:
    import resource

    _limit(resource.RLIMIT_AS, _MEMORY)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    # Past this limit writes fail with EFBIG: Python ignores the signal that would end the process.
    _limit(resource.RLIMIT_FSIZE, max_file_size)


def _limit(which: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    try:
        resource.setrlimit(which, (value, value))
    except (ValueError, OSError):
        # macOS has no limit on address space.
        if sys.platform != "darwin":
            raise
