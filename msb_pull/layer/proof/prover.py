"""A process that verifies layers, one after the other: comparing entries keeps Python's lock, so threads gain nothing.

Parent and child speak JSON, one document a line: tasks go in, progress and findings come out. The child ends with its
standard input.
"""

from __future__ import annotations

import json
import os
import select
import time

from msb_pull.ground.errors import LocalError
from msb_pull.layer.child import Child, say
from msb_pull.layer.proof.task import Findings, ProofTask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from msb_pull.layer.proof.task import Progress

_INTERVAL = 0.1
# How often the parent checks whether it should stop, in seconds.
_PATIENCE = 0.1
_ENDING = 2.0


def child_main() -> NoReturn:
    """The whole life of the child."""
    # The parent does without it.
    from msb_pull.layer.proof.prove import prove

    with os.fdopen(0, "rb") as tasks:
        for line in tasks:
            _tell(_answer(ProofTask(**json.loads(line)), prove))
    os._exit(0)


def _answer(task: ProofTask, prove: Callable[[ProofTask, Progress], Findings]) -> dict[str, Any]:
    last = 0.0

    def progress(done: int, total: int, entries: bool) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _INTERVAL or done == total:
            last = now
            _tell({"progress": [done, total, entries]})

    try:
        return {"found": prove(task, progress).as_plain()}
    except LocalError as error:
        return {"failed": [error.message, error.cause, error.hint]}
    except PermissionError as error:
        return {"denied": [error.errno, error.strerror, os.fsdecode(error.filename or task.directory)]}


def _tell(answer: dict[str, Any]) -> None:
    say((json.dumps(answer).encode("ascii"),))


_BOOTSTRAP = "from msb_pull.layer.proof.prover import child_main; child_main()"


class Prover:
    """The parent's end of one such process; for one thread, which must last as long as the process is to live."""

    def __init__(self) -> None:
        import subprocess

        self._child = Child.start("the verifying process", _BOOTSTRAP, stdin=subprocess.PIPE)
        self._said = b""

    def prove(self, task: ProofTask, progress: Progress) -> Findings:
        """As :func:`msb_pull.layer.proof.prove.prove`; ``progress`` is called every tenth of a second at least.

        Raises LocalError when the process dies; after any error it is of no more use.
        """
        tasks = self._child.process.stdin
        assert tasks is not None
        state = (0, 0, task.quick)
        try:
            tasks.write(json.dumps(vars(task)).encode("ascii") + b"\n")
            while True:
                line = self._line()
                answer = {} if line is None else json.loads(line)
                if "found" in answer:
                    return Findings.from_plain(answer["found"])
                if "denied" in answer:
                    number, what, name = answer["denied"]
                    raise PermissionError(number, what, name)
                if "failed" in answer:
                    message, cause, hint = answer["failed"]
                    raise LocalError(message, cause=cause, hint=hint)
                if "progress" in answer:
                    done, total, entries = answer["progress"]
                    state = (int(done), int(total), bool(entries))
                progress(*state)
        except (BrokenPipeError, EOFError, ValueError, KeyError, TypeError) as error:
            raise self._crashed(error) from None

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._child.end()
        self._child.close()

    def _line(self) -> bytes | None:
        """The next line that the child has said; None when it has said nothing for a while."""
        out = self._child.out
        if b"\n" not in self._said:
            if not select.select([out], [], [], _PATIENCE)[0]:
                return None
            data = os.read(out, 1 << 20)
            if not data:
                raise EOFError
            self._said += data
        line, end, rest = self._said.partition(b"\n")
        if not end:
            return None
        self._said = rest
        return line

    def _crashed(self, error: Exception) -> LocalError:
        # A child that has closed its pipe is about to end.
        if self._child.has_ended(_ENDING if isinstance(error, (EOFError, BrokenPipeError)) else 0):
            return self._child.crashed()
        return LocalError("the verifying process gave a malformed answer", cause=repr(error))
