"""docker-credential-NAME programs, as docker-credential-helpers' client calls them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msb_pull.ground.running import Cancel

TIMEOUT = 30.0
_SLICE = 0.25
_NAME = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
# Helpers say this on standard output, with a status other than 0.
_NOT_FOUND = ("credentials not found", "no credentials server url", "no credentials username")


class HelperError(Exception):
    """The program does not behave like a helper; the text is one line and repeats nothing that it printed."""


def ask(
    name: str, key: str, environment: Mapping[str, str], cancel: Cancel, *, timeout: float = TIMEOUT
) -> tuple[str, str] | None:
    """User name and secret that the helper ``name`` keeps for ``key``, None when it has none.

    The key goes to its standard input, never onto a command line. Raises HelperError, Cancelled.
    """
    if not _NAME.fullmatch(name):
        raise HelperError("not a valid name of a program")
    program = shutil.which(f"docker-credential-{name}", path=environment.get("PATH"))
    if program is None:
        raise HelperError(f"docker-credential-{name} is not in PATH")
    status, output = _run(program, key, environment, cancel, timeout)
    if status != 0:
        text = output[:200].decode("utf-8", "replace").lower()
        if any(words in text for words in _NOT_FOUND):
            return None
        raise HelperError(f"it ended with status {status}")
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        raise HelperError("its answer is not JSON") from None
    username, secret = (answer.get("Username"), answer.get("Secret")) if isinstance(answer, dict) else (None, None)
    if not isinstance(username, str) or not isinstance(secret, str):
        raise HelperError("its answer has no Username and Secret")
    return (username, secret) if secret else None


def _run(program: str, key: str, environment: Mapping[str, str], cancel: Cancel, timeout: float) -> tuple[int, bytes]:
    try:
        process = subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
        )
    except OSError as error:
        raise HelperError(f"it cannot be started: {error.strerror}") from error
    deadline = time.monotonic() + timeout
    with process:
        try:
            given: bytes | None = key.encode()
            while True:
                try:
                    output, _ = process.communicate(given, timeout=_SLICE)
                    return process.returncode, output
                except subprocess.TimeoutExpired:
                    given = None
                cancel.check()
                if time.monotonic() >= deadline:
                    raise HelperError(f"it did not answer within {timeout:g} seconds")
        finally:
            if process.poll() is None:
                process.kill()
