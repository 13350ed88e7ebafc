"""The system calls that a child that unpacks may make, as a filter in the kernel (seccomp, classic BPF); Linux.

What the table does not name ends with ENOSYS, as on a kernel that lacks it: C libraries ask for new calls first
(``statx``, ``clone3``, ``faccessat2``) and fall back to an older one on that answer alone, so the filter outlives
the library it was tested with. Killing the process would hold a hostile child no better, and turn the first new call of
an honest one into a layer that cannot be pulled. See the kernel's ``userspace-api/seccomp_filter.rst``.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    # Words of 32 bits of the arguments, lower before upper, and what each may be, or the bits that it may not have.
    Checks = tuple[tuple[int, tuple[int, ...] | int], ...]
    Call = tuple[int, int, Checks]

# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. Others would let the kernel send signals: F_SETOWN, F_SETSIG.
_DESCRIPTORS = ((2, (0, 1, 2, 3, 1030)),)
# The process itself, and no new limit.
_ASK_ONLY = ((0, (0,)), (4, (0,)), (5, (0,)))

# No set-uid, set-gid or sticky bit: a program of root's in a folder that others may enter.
_PLAIN_MODE = 0o7000

# Number on x86-64, on arm64 (asm/unistd.h), what the arguments must be. Often called ones first: kernels before 5.11
# go through all lines for each call.
_CALLS: tuple[Call, ...] = (
    (1, 64, ()),  # write: contents, messages to the parent
    (257, 56, ((6, _PLAIN_MODE),)),  # openat: Landlock says what
    (3, 57, ()),  # close
    (190, 7, ()),  # fsetxattr: owners and modes
    (280, 88, ()),  # utimensat: of open files; of symlinks, by name
    (0, 63, ()),  # read: messages of the parent
    (262, 79, ()),  # newfstatat
    (266, 36, ()),  # symlinkat
    (265, 37, ()),  # linkat: Landlock says whereto, as for all that follow with a name
    (258, 34, ()),  # mkdirat
    (263, 35, ()),  # unlinkat: what a later entry replaces
    (264, 38, ()),  # renameat: what a whiteout hides
    (316, 276, ()),  # renameat2: what some C libraries make of the one before
    (267, 78, ()),  # readlinkat: links on the way to an entry
    (5, 80, ()),  # fstat
    (91, 52, ((2, _PLAIN_MODE),)),  # fchmod
    (77, 46, ()),  # ftruncate: sparse files
    (8, 62, ()),  # lseek: the same, and reading a directory again
    (17, 67, ()),  # pread64: links that become copies
    (18, 68, ()),  # pwrite64
    (326, 285, ()),  # copy_file_range: the same
    (217, 61, ()),  # getdents64: removing a directory
    (193, 10, ()),  # fgetxattr: attributes that a directory has, and a copy gets
    (196, 13, ()),  # flistxattr
    (199, 16, ()),  # fremovexattr
    (32, 23, ()),  # dup
    (72, 25, _DESCRIPTORS),  # fcntl: what dup and reading a directory need
    (302, 261, _ASK_ONLY),  # prlimit64: how many files may be open
    (9, 222, ()),  # mmap: memory, as the next five
    (11, 215, ()),  # munmap
    (25, 216, ()),  # mremap
    (10, 226, ()),  # mprotect
    (28, 233, ()),  # madvise
    (12, 214, ()),  # brk
    (202, 98, ()),  # futex: Python's locks
    (318, 278, ()),  # getrandom: C libraries make the heap hard to guess
    (228, 113, ()),  # clock_gettime: where it is not a vDSO call
    (13, 134, ()),  # rt_sigaction: abort()
    (14, 135, ()),  # rt_sigprocmask: the same
    (15, 139, ()),  # rt_sigreturn: coming back from a signal
    (219, 128, ()),  # restart_syscall: going on after a stop
    (61, 260, ()),  # wait4: the end of the process that fills files
    (60, 93, ()),  # exit
    (231, 94, ()),  # exit_group
)

# AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 (include/uapi/linux/audit.h), the number of seccomp(2), the table's column.
_MACHINES = {"x86_64": (0xC000003E, 317, 0), "aarch64": (0xC00000B7, 277, 1)}

# struct seccomp_data: number, machine, instruction, six arguments of 64 bits.
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16
_LOAD, _IF_EQUAL, _IF_ANY, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_SET_MODE_FILTER = 1
# Before Linux 5.16 a filter makes all of the process slower, to keep secrets from code that runs beside them (Spectre
# version 4). This one has none.
_SPEC_ALLOW = 1 << 2


def available() -> bool:
    """Whether this system takes filters, and this module knows its processor."""
    try:
        # Without a program: a kernel that has the call says that it lies at a bad address.
        _seccomp(None)
    except OSError as error:
        return error.errno == errno.EFAULT
    return False


def install() -> None:
    """Leaves this process the calls of the table, for good; needs "no new privileges". Raises OSError."""
    from ctypes import addressof, create_string_buffer
    from struct import pack

    machine, _, column = _machine()
    program = _program(machine, column)
    code = create_string_buffer(b"".join(pack("=HBBI", *line) for line in program))
    # struct sock_fprog
    _seccomp(pack("@HP", len(program), addressof(code)))


def _machine() -> tuple[int, int, int]:
    # A program of 32 bits makes other calls on the same machine.
    found = _MACHINES.get(os.uname().machine)
    if found is None or not sys.platform.startswith("linux") or sys.maxsize < 1 << 32 or sys.byteorder != "little":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return found


def _seccomp(program: bytes | None) -> None:
    import ctypes

    number = _machine()[1]
    libc = ctypes.CDLL(None, use_errno=True)
    word = ctypes.c_ulong
    if libc.syscall(word(number), word(_SET_MODE_FILTER), word(_SPEC_ALLOW), program) < 0:
        refused = ctypes.get_errno()
        raise OSError(refused, os.strerror(refused))


def _program(machine: int, column: int) -> list[tuple[int, int, int, int]]:
    """Lines of (code, lines to pass over if it is so, if it is not, value).

    The machine is looked at first: the same number means another call to each. x32 has that of x86-64, and its calls
    have a bit in their numbers that none in the table has.
    """
    refuse = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    lines = [(_LOAD, 0, 0, _MACHINE_AT), (_IF_EQUAL, 1, 0, machine), refuse, (_LOAD, 0, 0, _NUMBER_AT)]
    for call in _CALLS:
        body = [*_checked(call[2]), (_RETURN, 0, 0, _ALLOW)]
        lines += [(_IF_EQUAL, 0, len(body), call[0] if column == 0 else call[1]), *body]
    return [*lines, refuse]


def _checked(checks: Checks) -> Iterator[tuple[int, int, int, int]]:
    for word, values in checks:
        yield _LOAD, 0, 0, _ARGUMENTS_AT + 4 * word
        if isinstance(values, int):
            yield _IF_ANY, 0, 1, values
            yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
            continue
        for at, value in enumerate(values):
            # Over the other values and the refusal, to whatever comes next.
            yield _IF_EQUAL, len(values) - at, 0, value
        yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
