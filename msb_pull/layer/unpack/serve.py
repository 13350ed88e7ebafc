"""The server of :mod:`.forkserver`: loads what a child needs, then forks one for each message.

It never sees a byte of an image. Each child leads a session of its own, and all that the children have in common is
what was loaded before the first of them.

A message with descriptors asks for a child: the first three become its standard streams, the text is its code and its
arguments. A message without any asks for the exit status of a child that has ended. An answer is a process id or that
status, and the number of an error, 0 for none.
"""

from __future__ import annotations

import errno
import os
import sys
from struct import Struct

from msb_pull.layer.child import die_with_parent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Sequence
    from typing import NoReturn

ANSWER = Struct("=ii")
SEPARATOR = "\0"
_MOST_BYTES = 1 << 16
_MOST_DESCRIPTORS = 16
_STREAMS = 3


def serve(parent: int) -> NoReturn:
    """The whole life of the server, on the socket that is its standard input; ``parent`` is who started it."""
    import gc
    import signal
    from _socket import socket

    # Where it is ignored, as it may be from whoever started the program, the kernel keeps no exit status.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _load()
    gc.disable()
    # The collector would write to every object, and so copy the memory that is shared with the children.
    gc.freeze()
    watched = os.pidfd_open(parent)
    asked = socket(fileno=0)
    while os.getppid() == parent and _is_asked(watched):
        message, descriptors = _receive(asked)
        if descriptors:
            answer = _fork(message, descriptors, watched)
            for descriptor in descriptors:
                os.close(descriptor)
        elif message:
            answer = os.waitstatus_to_exitcode(os.waitpid(int(message), 0)[1]), 0
        else:
            break
        asked.send(ANSWER.pack(*answer))
    # Nothing needs flushing.
    os._exit(0)


def _load() -> None:
    """Loads what :func:`.child_main` is made of, and what it would load on its way."""
    for name in ("ctypes", "resource", *(f"msb_pull.layer.unpack.{part}" for part in ("filler", "jail", "unpack"))):
        __import__(name)


def _is_asked(watched: int) -> bool:
    """Waits for a message, or the end of the other side; False where the parent, a pidfd, has ended."""
    import select

    poll = select.poll()
    poll.register(0, select.POLLIN)
    # A program that forked meanwhile may hold the socket open.
    poll.register(watched, select.POLLIN)
    return all(descriptor != watched for descriptor, _ in poll.poll())


def _receive(asked: socket) -> tuple[str, list[int]]:
    """A message and its descriptors; empty at the end. Raises OSError where there is no room for all of them."""
    import _socket
    from array import array

    data, extra, flags, _ = asked.recvmsg(_MOST_BYTES, _socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS))
    if flags & _socket.MSG_CTRUNC:
        raise OSError("descriptors were lost")
    descriptors = array("i")
    for _, _, packed in extra:
        descriptors.frombytes(packed)
    return data.decode(), list(descriptors)


def _fork(message: str, descriptors: Sequence[int], watched: int) -> tuple[int, int]:
    """The process id of a new child that leads its session by now, and 0; or 0 and an error."""
    server, child, error = os.getpid(), 0, 0
    ready, tell = os.pipe()
    try:
        child = os.fork()
    except OSError as reason:
        error = reason.errno or errno.EAGAIN
    if not child and not error:
        os.setsid()
        for descriptor in (tell, ready, watched):
            os.close(descriptor)
        _live(message, descriptors, server)
    os.close(tell)
    # Returns when the child has closed its end, or has ended.
    os.read(ready, 1)
    os.close(ready)
    return child, error


def _live(message: str, descriptors: Sequence[int], server: int) -> NoReturn:
    status = 1
    try:
        # The first takes the place of the socket.
        for number, descriptor in enumerate(descriptors[:_STREAMS]):
            os.dup2(descriptor, number)
            os.close(descriptor)
        die_with_parent(server)
        code, *words = message.split(SEPARATOR)
        sys.argv = ["-c", *map(str, descriptors[_STREAMS:]), *words]
        exec(code, {"sys": sys})
        status = 0
    except BaseException:  # noqa: BLE001 - as at the end of an interpreter; it must not go on as a second server
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
