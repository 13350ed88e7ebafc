"""One answer to a request: its status, its headers and as much of its body as is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msb_pull.ground.text import clipped
from msb_pull.source.http import redact
from msb_pull.source.http.failures import BROKEN, failure_of
from msb_pull.source.http.sockets import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import requests

    from msb_pull.source.http.sockets import Patience

_STEP = 64 * 1024


class Answer:
    """A response and the session it came by. Close it, or the connection cannot be used again.

    ``hide`` takes what was sent as a secret out of a text.
    """

    def __init__(
        self,
        response: requests.Response,
        url: str,
        release: Callable[[], None],
        hide: Callable[[str], str],
        patience: Patience,
        deadline: Deadline,
    ) -> None:
        self.response = response
        self.url = url
        self.status = response.status_code
        self.headers = response.headers
        self.hide = hide
        self._patience = patience
        self._deadline = deadline
        self._release = release
        self._closed = False

    @property
    def host(self) -> str:
        """Who has answered, for messages."""
        return redact.host_of(self.hide(self.url))

    def quote(self, text: str, *, limit: int = redact.MESSAGE_LIMIT) -> str:
        """A text of this answer as it may be shown."""
        return clipped(self.hide(text), limit)

    def header_values(self, name: str) -> list[str]:
        """The values of a header that may come several times."""
        return list(self.response.raw.headers.getlist(name))

    def read(self, limit: int) -> bytes:
        """The body, decoded as Content-Encoding says, and not much more than ``limit`` bytes of it.

        It must arrive by the deadline of the request, however slowly it trickles. Raises Failure, Cancelled.
        """
        pieces: list[bytes] = []
        size = 0
        try:
            # In small steps: some versions of urllib3 decode a step whole, however much comes of it.
            with self.until():
                while size <= limit and (piece := self.response.raw.read(_STEP, decode_content=True)):
                    pieces.append(piece)
                    size += len(piece)
        except BROKEN as error:
            # requests' own errors quote addresses, signatures included; a traceback must not show them.
            raise failure_of(error, self.hide) from None
        return b"".join(pieces)

    def until(self, *, fresh: bool = False) -> AbstractContextManager[None]:
        """Makes reading end at the deadline of the request; ``fresh``: as many seconds from now as that one had."""
        return self._patience.until(Deadline(self._deadline.seconds) if fresh else self._deadline)

    @property
    def length(self) -> str | None:
        """Content-Length, None where it says nothing: chunks say themselves where they end (RFC 9112 6.3).

        One that is repeated counts once; where they differ, the layer below has refused the answer.
        """
        lengths = self.header_values("Content-Length")
        return lengths[0].partition(",")[0].strip() if lengths and not self.response.raw.chunked else None

    @property
    def open_ended(self) -> bool:
        """Whether nothing but the end of the connection says where the body ends, so that a cut looks like an end."""
        return self.length is None and not self.response.raw.chunked

    def close(self) -> None:
        """Gives the connection back when the body was read to its end, else ends it; idempotent."""
        if self._closed:
            return
        self._closed = True
        self.response.close()
        self._release()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
