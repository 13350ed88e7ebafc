"""The parent's end of a process that has loaded what unpacking needs, and forks one child after another.

Of the thirteen milliseconds that a small layer takes an interpreter needs ten, to start and to load modules. The server
does that once. It ends with this process, and its children with it, whichever thread asked for them.
"""

from __future__ import annotations

import os

from msb_pull.ground.errors import exhausted, no_more_tasks
from msb_pull.layer.child import Child, interpreter, watch
from msb_pull.layer.unpack.serve import ANSWER, SEPARATOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    import subprocess
    from collections.abc import Sequence
    from typing import IO

_BOOTSTRAP = "from msb_pull.layer.unpack.serve import serve; serve(int(sys.argv[1]))"
# They die with it.
_LOST = -9


class ForkServer:
    """Starts children, from any thread; :meth:`close` ends the server, and what is left of them.

    Where the system cannot watch processes (Linux 5.3 and later can), or the server has died, each child gets an
    interpreter of its own.
    """

    def __init__(self) -> None:
        import threading

        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ours: socket.socket | None = None
        self._over = False
        self._living: set[int] = set()

    def child(
        self, who: str, code: str, words: Sequence[str] = (), *, stdin: int, pass_fds: Sequence[int] = ()
    ) -> Child:
        """As :meth:`msb_pull.layer.child.Child.start`, except that it dies with the process and not with a thread."""
        with self._guard:
            forked = self._fork(code, words, stdin, pass_fds) if self._is_there() else None
        if forked is None:
            return Child.start(who, code, words, stdin=stdin, pass_fds=pass_fds)
        return Child(who, forked)

    def collect(self, pid: int) -> int:
        """The exit status of a child that has ended, as of a :class:`subprocess.Popen`."""
        with self._guard:
            answer = self._ask(b"%d" % pid, [])
            self._living.discard(pid)
        return _LOST if answer is None else answer[0]

    def close(self) -> None:
        """Ends the server and all its children; may be called again."""
        with self._guard:
            self._end()

    def _is_there(self) -> bool:
        """Starts the server if it is the first time; whether there is one. Raises LocalError, OSError."""
        import socket

        if self._ours is None and not self._over:
            watched = watch(os.getpid())
            if watched is None:
                self._over = True
                return False
            os.close(watched)
            self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    self._process = interpreter(_BOOTSTRAP, [str(os.getpid())], stdin=theirs.fileno())
                except BaseException:
                    self._end()
                    raise
        return self._ours is not None

    def _fork(self, code: str, words: Sequence[str], stdin: int, pass_fds: Sequence[int]) -> _Forked | None:
        """A new child; None where the server is gone. Raises LocalError, OSError."""
        from contextlib import ExitStack

        with ExitStack() as ours, ExitStack() as theirs:
            ends = []
            for _ in range(2):
                end, other = os.pipe()
                theirs.callback(os.close, other)
                ends.append((ours.enter_context(os.fdopen(end, "rb", 0)), other))
            (out, their_out), (err, their_err) = ends
            message = SEPARATOR.join((code, *words)).encode()
            answer = self._ask(message, [stdin, their_out, their_err, *pass_fds])
            if answer is None:
                return None
            pid, error = answer
            if error and self._living:
                reason = OSError(error, os.strerror(error))
                raise exhausted(reason) or no_more_tasks(reason.strerror)
            if error:
                # The one process that it takes itself may be the one too many.
                self._end()
                return None
            self._living.add(pid)
            ours.pop_all()
        return _Forked(self, pid, out, err)

    def _ask(self, message: bytes, descriptors: list[int]) -> tuple[int, int] | None:
        """The server's answer; None where it is gone."""
        import socket

        if self._ours is None:
            return None
        try:
            socket.send_fds(self._ours, [message], descriptors)
            answer = self._ours.recv(ANSWER.size)
        except ConnectionError:
            answer = b""
        except BaseException:
            # The answer to this would be taken for that to the next.
            self._end()
            raise
        if len(answer) == ANSWER.size:
            pid, error = ANSWER.unpack(answer)
            return pid, error
        self._end()
        return None

    def _end(self) -> None:
        self._over = True
        if self._ours is not None:
            self._ours.close()
            self._ours = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdout, self._process.stderr):
                if stream is not None:
                    stream.close()
            self._process = None


class _Forked:
    """A child of the server, as :class:`subprocess.Popen` shows one of ours."""

    stdin: IO[bytes] | None = None

    def __init__(self, server: ForkServer, pid: int, out: IO[bytes], err: IO[bytes]) -> None:
        self._server = server
        self.pid = pid
        self.returncode: int | None = None
        self.stdout: IO[bytes] | None = out
        self.stderr: IO[bytes] | None = err

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended: whoever asks has seen that (:meth:`.Child.has_ended`)."""
        if self.returncode is None:
            self.returncode = self._server.collect(self.pid)
        return self.returncode
