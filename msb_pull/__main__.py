"""The program's door: fast answers are given here, before anything heavy is loaded."""

from __future__ import annotations

import gc
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself would take longer to load than `--version` takes
    from typing import NoReturn

# select(2) knows no descriptor beyond.
_OPEN_FILES = 1024
# Bytes of the address space that the least of commands takes beyond what is here by then.
_TO_LOAD = 24 << 20


def main() -> NoReturn:
    """Runs the program with the words of the command line and ends the process with its exit code."""
    # Nearly everything that a start makes lives to the end: looking for garbage in it is time lost (15 ms of a pull).
    gc.set_threshold(1_000_000)
    # No file that this makes is for others to write, however open the user's other files are to be.
    os.umask(os.umask(0o077) | 0o022)
    if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
        # Python (before 3.14) leaves the half of a module's bytecode that fits, and cannot load it from then on.
        sys.dont_write_bytecode = True
    _open_more_files()
    try:
        code = _run(sys.argv[1:])
    except KeyboardInterrupt:
        # It came while modules were loaded; nothing has been done yet that needs a message.
        code = 130
    except (MemoryError, SystemError):
        # The modules that show errors may not fit either. A call that finds no room for its frame is a SystemError.
        os.write(2, b"error: out of memory\n  hint: raise the limit (`ulimit -v`, the memory of a container)\n")
        code = 7
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue
    # Taking the interpreter apart module by module would cost 12 ms, a tenth of a pull that has nothing to do.
    os._exit(code)


def _open_more_files() -> None:
    """Takes the number of open files that this may have up to what an image of 127 layers needs (macOS gives 256)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _run(argv: list[str]) -> int:
    if argv[:1] == ["__complete"]:
        from msb_pull.cli.complete import complete

        return complete(argv[1:])
    if argv and set(argv) <= {"-V", "--version", "-v", "-vv", "--verbose"} and {"-V", "--version"} & set(argv):
        from msb_pull.cli.version import show_version

        return show_version(detailed=len(argv) > 1)
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until the command line listens, Ctrl-C ends the process at once: there is nothing to undo, and Python loses a
        # KeyboardInterrupt that comes while it lets go of the lock of an import.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from msb_pull.ground.errors import find_room

    find_room(_TO_LOAD)
    from msb_pull.cli.app import main as run

    return run(argv)


if __name__ == "__main__":
    main()
