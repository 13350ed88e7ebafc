"""Runs the command line without starting an interpreter each time: most of what the suite spends would be starts.

A start costs a hundred milliseconds of processor time, nearly all of it to load modules, and the suite makes thousands.
So each process of pytest has a server (one for each locale), itself a process with all modules of the program loaded
and with one thread, which forks for each run. The fork gets descriptors, words, environment, current folder and umask
of its own and enters the program as its script does. It ends as the program does, so nothing of a run reaches the next.

What a fork cannot show needs a real start (:func:`tests.conftest.program`): how long modules take to load and which
ones, command lines in /proc, terminals, signals that come early, other users, limits, other interpreters.
:func:`run_program` makes a real start by itself where a variable of the interpreter is another.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import pickle
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import NoReturn

# What an interpreter or its loader looks at when it starts.
_OF_LOCALE = ("LC_", "LANG")
_OF_INTERPRETERS = ("PYTHON", "LD_")
# What a pipe takes without anybody who reads it.
_PIPE = 4096
_MESSAGE = 1 << 17


def run_program(
    words: Iterable[object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    input: str | bytes | None = None,
    text: bool = True,
    timeout: float = 60,
    umask: int | None = None,
    check: bool = False,
) -> subprocess.CompletedProcess:
    """Like ``subprocess.run`` of msb-pull with these words. Both outputs are captured; a pipe brings ``input``.

    Raises TimeoutExpired, and AssertionError if it fails although ``check`` says that it must not.
    """
    from tests.conftest import program, program_environment

    words = [str(word) for word in words]
    env = program_environment() if env is None else dict(env)
    given = input.encode() if isinstance(input, str) else input or b""
    folder = os.fspath(cwd or os.getcwd())
    server = _server(env)
    if server is None or len(given) > _PIPE:
        done = subprocess.run(
            [*program(), *words], env=env, cwd=folder, input=given, timeout=timeout, capture_output=True,
            umask=-1 if umask is None else umask,
        )  # fmt: skip
    else:
        request = (program()[0], words, env, folder, _current_umask() if umask is None else umask)
        done = subprocess.CompletedProcess(words, *server.run(request, given, timeout))
    if text:
        done.stdout, done.stderr = (io.TextIOWrapper(io.BytesIO(data)).read() for data in (done.stdout, done.stderr))
    assert done.returncode == 0 or not check, done
    return done


def patient_program() -> list[str]:
    """The command line of a real start that a signal ends in order, however long that takes on a busy machine.

    A user's is ended by force after a second, and leaves then what it was writing to the next one.
    """
    code = "from msb_pull.cli import signals; signals._GRACE = 25; from msb_pull.__main__ import main; main()"
    return [sys.executable, "-c", code]


def _current_umask() -> int:
    """The umask of this process, which other threads may need just now."""
    with open("/proc/self/status", "rb") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith(b"Umask:"))


class _Server:
    """The other end of a process that forks; that ends when this end is closed, at the latest with this process."""

    def __init__(self, env: dict[str, str]) -> None:
        from tests.conftest import REPOSITORY

        self._door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            line = [sys.executable, "-m", "tests.support.program", str(theirs.fileno())]
            subprocess.run(
                line, env=env, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], check=True,
            )  # fmt: skip

    def run(self, request: tuple, given: bytes, timeout: float) -> tuple[int, bytes, bytes]:
        """Exit code and both outputs of one run."""
        answer, theirs = socket.socketpair()
        (out, out_end), (error, error_end), (in_end, pipe) = os.pipe(), os.pipe(), os.pipe()
        os.write(pipe, given)
        os.close(pipe)
        with answer, open(out, "rb", buffering=0) as out_file, open(error, "rb", buffering=0) as error_file:
            try:
                socket.send_fds(self._door, [pickle.dumps(request)], [in_end, out_end, error_end, theirs.fileno()])
            finally:
                theirs.close()
                for end in (in_end, out_end, error_end):
                    os.close(end)
            pid = _number(answer)
            found: dict[io.FileIO, bytes] = {out_file: b"", error_file: b""}
            try:
                _collect(found, timeout)
                answer.settimeout(timeout)
                code = _number(answer)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(request[1], timeout, found[out_file], found[error_file]) from None
        return code, found[out_file], found[error_file]


def _number(answer: socket.socket) -> int:
    data = answer.recv(4)
    assert data, "the process that forks has ended"
    return int.from_bytes(data, "little", signed=True)


def _collect(found: dict[io.FileIO, bytes], timeout: float) -> None:
    """Reads all to the end; raises TimeoutError."""
    until = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for file in found:
            selector.register(file, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(until - time.monotonic(), 0))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                if data := os.read(key.fd, 1 << 16):
                    found[key.fileobj] += data  # type: ignore[index]
                else:
                    selector.unregister(key.fileobj)


_servers: dict[frozenset[tuple[str, str]], _Server] = {}
_guard = threading.Lock()


def _server(env: dict[str, str]) -> _Server | None:
    """The one for the locale of ``env``; None where only a real start will do."""
    from tests.conftest import program_environment

    usual = program_environment().items()
    differs = dict(env.items() ^ usual)
    if not sys.platform.startswith("linux") or any(name.startswith(_OF_INTERPRETERS) for name in differs):
        return None
    locale = frozenset((name, value) for name, value in env.items() if name.startswith(_OF_LOCALE))
    with _guard:
        if locale not in _servers:
            _servers[locale] = _Server(env)
        return _servers[locale]


def serve(door: socket.socket) -> None:
    """Forks for each request, until nobody is left to ask."""
    import msb_pull

    for module in pkgutil.walk_packages(msb_pull.__path__, "msb_pull."):
        importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # else collecting in a fork would copy every page
    ended, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    answers: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(door, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == ended:
                    os.read(ended, 1000)
                    _tell_ends(answers)
                    continue
                data, descriptors, _, _ = socket.recv_fds(door, _MESSAGE, 4)
                if not data:
                    return
                pid = os.fork()
                if pid == 0:
                    _become(pickle.loads(data), descriptors)
                for descriptor in descriptors[:3]:
                    os.close(descriptor)
                answers[pid] = descriptors[3]
                _answer(answers[pid], pid)


def _tell_ends(answers: dict[int, int]) -> None:
    for pid in list(answers):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            descriptor = answers.pop(pid)
            _answer(descriptor, os.waitstatus_to_exitcode(status))
            os.close(descriptor)


def _answer(descriptor: int, number: int) -> None:
    try:
        os.write(descriptor, number.to_bytes(4, "little", signed=True))
    except BrokenPipeError:
        return


def _become(request: tuple[str, list[str], dict[str, str], str, int], descriptors: list[int]) -> NoReturn:
    """Makes of this fork what a new interpreter would be, and enters the program."""
    try:
        script, words, env, folder, mask = request
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in range(3):
            os.dup2(descriptors[number], number)
        os.closerange(3, 1024)
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        os.chdir(folder)
        os.umask(mask)
        sys.argv = [script, *words]
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            old = getattr(sys, name)
            new = open(number, "rw"[number > 0], encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
            new.reconfigure(line_buffering=name == "stderr")
            setattr(sys, name, new)
            setattr(sys, f"__{name}__", new)
        from msb_pull.__main__ import main

        main()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


if __name__ == "__main__":
    # No child of whoever asks, as tests count their children.
    if os.fork():
        os._exit(0)
    with socket.socket(fileno=int(sys.argv[1])) as _door, contextlib.suppress(KeyboardInterrupt):
        serve(_door)
