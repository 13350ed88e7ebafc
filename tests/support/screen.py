"""A terminal by tmux, to read what a person sees."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY, need, program_environment

FAKE = [sys.executable, "-m", "tests.support.fake_pull"]


class Screen:
    """A tmux window that runs the made-up pull, or another program; "END" and its exit code follow."""

    def __init__(self, columns, lines, *arguments, argv=FAKE, **env):
        need("tmux")
        self.tmux = ["tmux", "-L", f"msb-pull-{time.monotonic_ns()}", "-f", "/dev/null"]
        variables = {"PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8", **env}
        words = ["env", *(f"{key}={value}" for key, value in variables.items()), *argv, *map(str, arguments)]
        command = f"{shlex.join(words)}; echo END $?; sleep 20"
        size = ["-x", str(columns), "-y", str(lines)]
        self._call("new-session", "-d", *size, command, env=program_environment(LC_ALL="C.UTF-8"))
        self._call("set", "-g", "status", "off")

    def _call(self, *words, **kwargs):
        done = subprocess.run([*self.tmux, *words], capture_output=True, text=True, timeout=20, check=True, **kwargs)
        return done.stdout

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._call("kill-server")

    def rows(self, history=False):
        text = self._call("capture-pane", "-p", *(["-S", "-"] if history else []))
        return [line.rstrip() for line in text.rstrip().splitlines()]

    def wait(self, condition, seconds=60.0):
        end = time.monotonic() + seconds
        while not condition(rows := self.rows()):
            if time.monotonic() > end:
                pytest.fail("\n".join(rows))
            time.sleep(0.05)
        return rows

    def press(self, key):
        self._call("send-keys", key)

    def resize(self, columns, lines):
        self._call("resize-window", "-x", str(columns), "-y", str(lines))


def ended(rows):
    return any(re.fullmatch(r"END \d+", row) for row in rows)
