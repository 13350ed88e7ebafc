"""Every error msb-pull raises on purpose, with the exit code and the advice that go with it.

MsbPullError                 exit 1
├── UsageError               exit 2   option, reference or configuration file
├── NotFoundError            exit 3   image, tag or platform
├── AccessError              exit 4   credentials missing or refused
├── NetworkError             exit 5   trying again may help
├── ContentError             exit 6   digest mismatch, hostile or broken layer, damage
├── LocalError               exit 7   disk full, no permission, store locked, a limit of the system
├── SignatureError           exit 8   not signed as required
└── Cancelled                exit 130 or 143
"""

from __future__ import annotations

import errno
import os

from msb_pull.ground.text import visible

# Spelled out, since importing typing takes longer than all else that a child process needs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


# What a thread has where nothing limits its stack, and what Python needs beside it: a frame, and room for objects.
_STACK = 8 << 20
_TO_BEGIN = 2 << 20
# What to say of a process of ours that got SIGKILL from nobody here.
WHY_KILLED = "the kernel does so when memory runs out (`dmesg`, the limit of a container)"
# How the SystemError ends of a call that failed without saying why.
_UNSAID = ("without exception set", "without setting an exception")


class ExitCode:
    """Exit statuses of the command line; documented in docs/usage.md.

    Plain numbers, since `enum` would be a tenth of what a child process takes to start.
    """

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    DENIED = 4
    NETWORK = 5
    CONTENT = 6
    LOCAL = 7
    UNSIGNED = 8
    INTERRUPTED = 130


class MsbPullError(Exception):
    """What failed and for which image or file, with an optional cause and an optional next step.

    ``message``, ``cause`` and ``hint`` are one line each and carry no secrets. Text that came from an image or a
    registry is escaped where the error is shown.
    """

    exit_code: ClassVar[int] = ExitCode.FAILURE
    kind: ClassVar[str] = "failure"

    def __init__(self, message: str, *, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        # Tracebacks and logs of other programs show this unchanged.
        return visible(self.message)


class UsageError(MsbPullError):
    """An option, a reference or the configuration file cannot be understood."""

    exit_code = ExitCode.USAGE
    kind = "usage"


class NotFoundError(MsbPullError):
    """The image, tag or platform does not exist where it was looked for."""

    exit_code = ExitCode.NOT_FOUND
    kind = "not-found"


class AccessError(MsbPullError):
    """Credentials are missing or were refused."""

    exit_code = ExitCode.DENIED
    kind = "denied"


class NetworkError(MsbPullError):
    """The network or the registry failed; trying again may help."""

    exit_code = ExitCode.NETWORK
    kind = "network"


class ContentError(MsbPullError):
    """Content does not match its digest, or a layer is hostile or broken."""

    exit_code = ExitCode.CONTENT
    kind = "content"


class LocalError(MsbPullError):
    """Something on this machine is at fault: disk full, no permission, store locked."""

    exit_code = ExitCode.LOCAL
    kind = "local"


class NoMoreTasks(LocalError):
    """No thread or process can be started; what needs one may go on once another has ended."""


class SignatureError(MsbPullError):
    """An image is not signed as a rule requires, or a rule refuses it."""

    exit_code = ExitCode.UNSIGNED
    kind = "unsigned"


class Cancelled(MsbPullError):
    """The user or the system asked to stop; partial downloads stay for the next run."""

    exit_code = ExitCode.INTERRUPTED
    kind = "cancelled"


class GivenUp(Cancelled):
    """Another part of the same work has failed, and nobody asked for an end; its error is the one that is told."""


def exhausted(error: BaseException) -> LocalError | None:
    """What to raise (the limit) when no memory, thread, process or descriptor is left; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    # Python has no error of its own for threads; a library that finds no room is one that cannot be imported.
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return no_more_tasks()
    unmapped = isinstance(error, ImportError) and "failed to map" in str(error)
    # Where there is no room for a frame or an exception, the interpreter fails without saying of what.
    unsaid = isinstance(error, SystemError) and str(error).endswith(_UNSAID)
    if isinstance(error, MemoryError) or number == errno.ENOMEM or unmapped or unsaid:
        return LocalError(
            "out of memory", hint="raise the limit (`ulimit -v`, the memory of a container); --jobs 1 needs the least"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return LocalError(
            "too many open files",
            hint="raise the limit (`ulimit -n`; fs.file-max of the system); --jobs 1 needs the fewest",
        )
    return None


def raise_if_exhausted(error: BaseException) -> None:
    """Raises the limit as a LocalError: it says nothing of the file that was looked at."""
    if spent := exhausted(error):
        raise spent from error


def no_more_tasks(cause: str | None = None) -> NoMoreTasks:
    """No thread or process can be started. The kernel's reason is of little use: it is the same for every limit."""
    return NoMoreTasks(
        "no more threads or processes can be started",
        cause=cause,
        hint="raise the limit (`ulimit -u`, `ulimit -v`, pids of a container); --jobs 1 needs the fewest",
    )


def check_room_for_thread() -> None:
    """Raises LocalError where a limit of memory leaves too little for one more thread.

    Whoever starts one waits until it has begun (CPython before 3.15), for ever where it finds no room for that.
    """
    if not memory_is_limited():
        return
    import resource
    import threading

    stack = threading.stack_size() or resource.getrlimit(resource.RLIMIT_STACK)[0]
    try:
        find_room((_STACK if stack == resource.RLIM_INFINITY else stack) + _TO_BEGIN)
    except MemoryError as error:
        raise no_more_tasks() from error


def find_room(size: int) -> None:
    """Raises MemoryError where a limit of memory leaves less than so many bytes, while what is left suffices to fail.

    Where many modules take the last of it bit by bit, CPython finds none for the error, and crashes.
    """
    if not memory_is_limited():
        return
    try:
        from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

        mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS).close()
    except (OSError, ImportError) as error:
        raise MemoryError from error


def memory_is_limited() -> bool:
    """Whether this process may take only so much of its address space."""
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def local_error(error: OSError, path: str | os.PathLike[str]) -> LocalError:
    """Says what an OSError below ``path`` means for a person: how much space is left, or which path is closed."""
    if spent := exhausted(error):
        return spent
    # Of two names (symlink, link, rename) the second is the one that was to be made.
    named = error.filename2 or error.filename
    where = os.fsdecode(named) if named else os.fspath(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, free = _what_is_full(where if where.startswith("/") else os.fspath(path))
        if error.errno == errno.EDQUOT:
            what = "your quota is used up"
        return LocalError(f"{where}: {what}", cause=free, hint=_SPACE_HINT)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return LocalError(f"{where}: {error.strerror}", hint="check who owns the store, or choose another with --home")
    if error.errno == errno.EFBIG:
        return too_large(where)
    hint = None
    if error.errno == errno.EXDEV:
        hint = "overlay file systems cannot move a folder of a lower layer: keep the store on a separate volume"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        hint = "a folder was expected there; use --home for another store"
    return LocalError(f"{where}: {error.strerror or error}", hint=hint)


def file_size_limit() -> int | None:
    """How many bytes a file may have that this process writes (`ulimit -f`), None for any number."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def too_large(where: str) -> LocalError:
    """A file would have more bytes than this process may write, or than its file system takes."""
    most = file_size_limit()
    if most is None:
        return LocalError(f"{where}: the file system does not allow a file of this size", hint="choose another one")
    return LocalError(
        f"{where}: a file may have {most} bytes at most", hint="raise the limit of file sizes, `ulimit -f`"
    )


_FEW_INODES = 8
_SPACE_HINT = (
    "free some space (`msb-pull prune` removes what no image needs) and pull again; the pull continues where it stopped"
)


def _what_is_full(path: str) -> tuple[str, str | None]:
    """The same error number says that blocks or that inodes have run out; what helps differs."""
    # What could not be made is not there to be asked, nor what is cleared away meanwhile; what it lay in is.
    while (facts := _facts_of(path)) is None:
        path, below = os.path.split(path)[0], path
        if path in ("", below):
            return "no space left", None
    free = f"{facts.f_bavail * facts.f_frsize} bytes and {facts.f_favail} inodes are free on its file system"
    # Not exactly none: what failed may have given one back by now.
    few = facts.f_files and facts.f_favail < _FEW_INODES
    return "no inodes left for more files" if few else "no space left", free


def _facts_of(path: str) -> os.statvfs_result | None:
    try:
        return os.statvfs(path)
    except OSError:
        return None
