"""A program on a real pseudo-terminal, for tests that must see what a person sees."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time


class Terminal:
    """Runs ``argv`` with a terminal of the given size as its three streams, or as all but standard output."""

    def __init__(self, argv, *, env, columns=80, lines=24, stdout=None, cwd=None):
        self.text = ""
        ready, go = os.pipe()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.close(go)
                os.read(ready, 1)  # its end: the size is set
                if stdout is not None:
                    os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
                if cwd is not None:
                    os.chdir(cwd)
                os.execvpe(argv[0], argv, {"TERM": "xterm-256color", "LANG": "C.UTF-8", **env})
            finally:
                os._exit(127)
        self.code = None
        self.resize(columns, lines)
        os.close(ready)
        os.close(go)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

    def resize(self, columns, lines=24):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def send(self, text):
        os.write(self.fd, text.encode())

    def read(self, seconds):
        """Reads whatever comes within ``seconds``."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and self._read_some(left):
            pass
        return self.text

    def expect(self, pattern, seconds=60.0):
        """Reads until ``pattern`` (a regular expression) has come; returns the match and drops what lies before."""
        deadline = time.monotonic() + seconds
        while True:
            match = re.search(pattern, self.text, re.DOTALL)
            if match:
                self.text = self.text[match.end() :]
                return match
            left = deadline - time.monotonic()
            if left <= 0 or not self._read_some(left):
                raise AssertionError(f"{pattern!r} never came; the terminal shows:\n{self.text}")

    def wait(self, seconds=60.0):
        """Reads to the end of the program; returns its exit code."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._read_some(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                while self._read_some(0.05):
                    pass
                self.code = os.waitstatus_to_exitcode(status)
                return self.code
        raise AssertionError(f"still running; the terminal shows:\n{self.text}")

    def _read_some(self, seconds):
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return False
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # the other end is closed
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)


def plain(text):
    """Text without colours and cursor movements."""
    return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[78])", "", text)
