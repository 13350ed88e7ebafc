"""The parent's end of a child that unpacks one layer."""

from __future__ import annotations

import os

from msb_pull.ground.below import open_directory
from msb_pull.ground.errors import LocalError, MsbPullError, local_error
from msb_pull.layer.child import Child
from msb_pull.layer.limits import LayerError
from msb_pull.layer.report import UnpackOptions, UnpackReport, as_bytes, as_text
from msb_pull.layer.unpack.ring import RingWriter, slots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    Start = Callable[..., Child]

_PIECE = 1 << 16
_BOOTSTRAP = "from msb_pull.layer.unpack.unpack import child_main; child_main()"


def _start(start: Start, ring: RingWriter, staging: Path, record: Path, options: UnpackOptions) -> Child:
    from contextlib import ExitStack

    with ExitStack() as opened:
        root = open_directory(staging)
        opened.callback(os.close, root)
        kept = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        opened.callback(os.close, kept)
        passed = (ring.memory, root, kept)
        words = options.as_arguments()
        return start("the unpacking process", _BOOTSTRAP, words, stdin=ring.socket, pass_fds=passed)


class LayerProcess:
    """The parent's end of one child that unpacks one layer into ``staging``, an empty directory of our own.

    ``start`` makes the child: :meth:`.Child.start`, or the same of a :class:`.ForkServer`. What the first makes dies,
    where the system knows how (Linux), with the thread that started it, so that thread must last as long as the work.
    Raises LocalError or OSError when it cannot be started.
    """

    def __init__(self, staging: Path, record: Path, options: UnpackOptions, start: Start = Child.start) -> None:
        import threading

        self._staging = staging
        self._lock = threading.RLock()
        self._answer: dict[str, Any] | MsbPullError | None = None
        self._ring = RingWriter(slots(filler=options.filler))
        try:
            self._child = _start(start, self._ring, staging, record, options)
        except BaseException:
            self._ring.close()
            raise
        finally:
            self._ring.started()

    def write(self, data: bytes) -> None:
        """Hands bytes of the tar stream to the child; raises the child's own error if it has given up."""
        with self._lock:
            if self._answer is not None:
                self.finish()
            try:
                self._ring.write(data)
            except ConnectionError:
                self.finish()
                raise LocalError("the unpacking process ended before the layer did") from None

    def finish(self) -> UnpackReport:
        """Ends the stream and returns the child's report; raises LayerError, LocalError."""
        with self._lock:
            if self._answer is None:
                self._answer = self._collect()
        answer = self._answer
        if isinstance(answer, MsbPullError):
            raise answer
        try:
            if "report" in answer:
                return UnpackReport.from_json(answer["report"])
            error = self._error(answer)
        except (ValueError, KeyError, TypeError, AttributeError) as reason:
            raise LocalError("the unpacking process gave a malformed report", cause=repr(reason)) from None
        raise error

    def kill(self) -> None:
        """Ends the child and what it may have started. Any thread may call it, any number of times."""
        if not self._child.end():
            return
        # A write that waited for the child has failed by now, and lets go.
        with self._lock:
            self._answer = self._answer or LocalError("the unpacking process was stopped")
            self._ring.close()
            self._child.close()

    def _collect(self) -> dict[str, Any] | MsbPullError:
        import contextlib
        import json

        with contextlib.suppress(ConnectionError):
            self._ring.end()
        out = self._heard()
        # Nothing may be published while one of them could still write into it.
        if not self._child.end():
            return LocalError(
                "processes that the unpacking process started do not end", hint="stop those processes, then pull again"
            )
        try:
            answer = json.loads(out)
        except ValueError:
            answer = None
        return answer if isinstance(answer, dict) else self._child.crashed()

    def _heard(self) -> bytes:
        """The child's last line, or what there is of it at its end."""
        out = bytearray()
        # Not up to the end of the pipe, which a process that the child has left behind could hold open for ever.
        while not out.endswith(b"\n") and (piece := os.read(self._child.out, _PIECE)):
            out += piece
        if not out.endswith(b"\n"):
            # Its exit status is all there is to report.
            self._child.await_end()
        return bytes(out)

    def _error(self, answer: dict[str, Any]) -> MsbPullError:
        if "layer" in answer:
            facts = answer["layer"]
            hint = None if facts["hint"] is None else as_text(facts["hint"])
            return LayerError(int(facts["index"]), as_bytes(facts["name"]), as_text(facts["what"]), hint=hint)
        number, name = int(answer["os"]["errno"]), answer["os"]["name"]
        where = os.fspath(self._staging)
        if name is not None:
            where = os.fsdecode(os.path.join(os.fsencode(where), as_bytes(name).lstrip(b"/")))
        return local_error(OSError(number, os.strerror(number), where), self._staging)
