"""One HTTP exchange at a time: sessions, proxies, TLS and redirects; no registry, no credentials, no retries."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from msb_pull.ground import events
from msb_pull.source.http import connecting, redact
from msb_pull.source.http.adapter import CONNECT_TIMEOUT
from msb_pull.source.http.failures import BROKEN, Failure, failure_of
from msb_pull.source.http.proxies import proxies_for
from msb_pull.source.http.sessions import new_session
from msb_pull.source.http.sockets import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    import requests

    from msb_pull.ground.events import Observer
    from msb_pull.source.http.sockets import Patience
    from msb_pull.source.http.tls import TrustStore

MAX_REDIRECTS = 10
_STEP = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Answer:
    """A response and the session it came by. Close it, or nobody else can use the connection again.

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
        return redact.printable(self.hide(text), limit=limit)

    def header_values(self, name: str) -> list[str]:
        """The values of a header that may come several times."""
        return list(self.response.raw.headers.getlist(name))

    def read(self, limit: int) -> bytes:
        """The body, decoded as Content-Encoding says, and not much more than ``limit`` bytes of it.

        It must be here by the deadline of the request, however it trickles. Raises Failure, Cancelled.
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


class Transport:
    """Sends requests. A session is never used by two threads at once: it is lent for one exchange and its body."""

    def __init__(
        self,
        trust: TrustStore,
        patience: Patience,
        *,
        timeout: float,
        observer: Observer,
        environment: Mapping[str, str],
    ) -> None:
        self._trust = trust
        self._patience = patience
        self._timeout = timeout
        self._observer = observer
        self._environment = environment
        self._idle: deque[requests.Session] = deque()
        self._all: list[requests.Session] = []
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._secrets = redact.Secrets()

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        behalf: str,
        data: Mapping[str, str] | None = None,
        deadline: Deadline | None = None,
    ) -> Answer:
        """One request, one answer, whatever its status; redirects are not followed.

        ``behalf`` is the host of the registry that is served, whose certificates count. Status and headers must be here
        by the deadline, by default as many seconds from now as the other side may be silent. Raises Failure, Cancelled.
        """
        self._patience.check()
        deadline = deadline or Deadline(self._timeout)
        session = self._borrow()
        started = time.monotonic()
        try:
            with self._patience.until(deadline):
                response = self._request(session, method, url, headers, behalf, data)
        except BaseException:
            self._give_back(session)
            raise
        answer = Answer(
            response,
            url,
            lambda: self._give_back(session),
            self._secrets.hide,
            self._patience,
            deadline,
        )
        self._log(f"{method} {self._shown(url)}: {answer.status} in {(time.monotonic() - started) * 1000:.0f} ms")
        self._show_warnings(answer)
        return answer

    def follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        behalf: str,
        check: Callable[[str], None] | None = None,
    ) -> Answer:
        """As :meth:`send`, following up to ten redirects.

        Authorization stays behind on any change of scheme, host or port; https never leads to http; ``check`` sees
        every new address and may raise. Raises Failure, Cancelled.
        """
        deadline = Deadline(self._timeout)
        for _ in range(MAX_REDIRECTS + 1):
            answer = self.send(method, url, headers, behalf=behalf, deadline=deadline)
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or not location:
                return answer
            answer.close()
            target = self._redirected(url, location)
            if check is not None:
                check(target)
            if origin(target) != origin(url):
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            url = target
        raise Failure(f"more than {MAX_REDIRECTS} redirects", retry=False)

    def speaks_tls(self, host: str) -> bool | None:
        """Whether ``host[:port]`` answers a TLS hello; None when it cannot be reached. Raises Cancelled."""
        parts = urlsplit(f"//{host}")
        try:
            return connecting.speaks_tls(parts.hostname or "", parts.port or 443, self._limit, self._patience)
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Ends all sessions."""
        with self._lock:
            sessions, self._all = self._all, []
            self._idle.clear()
        for session in sessions:
            session.close()

    def _request(
        self,
        session: requests.Session,
        method: str,
        url: str,
        headers: Mapping[str, str],
        behalf: str,
        data: Mapping[str, str] | None,
    ) -> requests.Response:
        proxies = proxies_for(url, self._environment)
        self._secrets.note(url, headers, data)
        for proxy in proxies.values():
            self._secrets.note_proxy(proxy)
        try:
            return session.request(
                method,
                url,
                headers={**headers},
                data=data,
                stream=True,
                allow_redirects=False,
                timeout=(self._limit, self._timeout),
                proxies=proxies,
                verify=self._trust.choose(urlsplit(url).netloc, behalf),
            )
        except BROKEN as error:
            failure = failure_of(error, self._secrets.hide)
            if isinstance(failure, Failure) and failure.not_tls and not proxies:
                self._advise(failure, url, behalf)
            self._log(f"{method} {self._shown(url)}: {failure}")
            # requests' own errors quote addresses, signatures included; a traceback must not show them.
            raise failure from None

    def _advise(self, failure: Failure, url: str, behalf: str) -> None:
        """Names what speaks no TLS for what it is, so that nobody gives up encryption for a line that is disturbed."""
        parts = urlsplit(url)
        try:
            with self._patience.until(None):
                http = connecting.speaks_http(parts.hostname or "", parts.port or 443, self._limit, self._patience)
        except OSError:
            return
        if http:
            failure.reason = f"{redact.host_of(url)} speaks plain HTTP, not TLS"
            failure.hint = "use --plain-http if that is intended" if parts.netloc == behalf else None

    @property
    def _limit(self) -> float:
        """Seconds for a connection to be made."""
        return min(CONNECT_TIMEOUT, self._timeout)

    def _redirected(self, url: str, location: str) -> str:
        """Where a redirect leads; raises Failure for what is no web address, or one that gives up encryption."""
        try:
            target = urljoin(url, _as_sent(location))
            parts = urlsplit(target)
            usable = parts.scheme in _DEFAULT_PORTS and bool(parts.hostname) and parts.port != 0
        except ValueError:
            target, usable = location, False
        if not usable:
            raise Failure(f"redirected to {self._shown(target)}, which is not a web address", retry=False)
        if urlsplit(url).scheme == "https" and parts.scheme == "http":
            raise Failure(f"redirected from https to {self._shown(target)}, which is not encrypted", retry=False)
        return target

    def _borrow(self) -> requests.Session:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        session = new_session(self._trust, self._patience)
        with self._lock:
            self._all.append(session)
        return session

    def _give_back(self, session: requests.Session) -> None:
        self._idle.append(session)

    def _shown(self, url: str) -> str:
        return redact.url(self._secrets.hide(url))

    def _log(self, text: str) -> None:
        self._observer(events.Logged("", 2, text))

    def _show_warnings(self, answer: Answer) -> None:
        """``Warning: 299 - "text"``: shown once, never acted on (distribution-spec)."""
        for value in answer.header_values("Warning"):
            code, _, rest = value.partition(" ")
            text = rest.partition(" ")[2].strip()
            if code != "299" or len(text) < 2 or text[0] != '"':
                continue
            text = answer.quote(_unquoted(text))
            with self._lock:
                known = text in self._told
                self._told.add(text)
            if text and not known:
                self._observer(events.Warned("", f"{answer.host} says: {text}"))


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


def _as_sent(header: str) -> str:
    """A header as the text that servers mean: http.client takes every byte for a letter, they send UTF-8."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header


def _unquoted(text: str) -> str:
    kept: list[str] = []
    characters = iter(text[1:])
    for character in characters:
        if character == '"':
            break
        kept.append(next(characters, "") if character == "\\" else character)
    return "".join(kept)
