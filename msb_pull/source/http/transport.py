"""One request, one answer: sessions, proxies, TLS and redirects; no registry, no credentials, no retries."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from msb_pull.source.http import connecting, redact
from msb_pull.source.http.addresses import DEFAULT_PORTS, origin
from msb_pull.source.http.answer import Answer
from msb_pull.source.http.failures import BROKEN, Failure, failure_of
from msb_pull.source.http.proxies import proxies_for
from msb_pull.source.http.sessions import CONNECT_TIMEOUT, Sessions
from msb_pull.source.http.sockets import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import requests

    from msb_pull.ground.running import Cancel, Job
    from msb_pull.source.http.sockets import Patience
    from msb_pull.source.http.tls import TrustStore

MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Transport:
    """Sends requests. A session is never used by two threads at once: it is lent for one request and its answer."""

    def __init__(
        self, trust: TrustStore, patience: Patience, *, timeout: float, job: Job, environment: Mapping[str, str]
    ) -> None:
        self._trust = trust
        self._patience = patience
        self._timeout = timeout
        self._job = job
        self._environment = environment
        self._sessions = Sessions(trust, patience)
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self._secrets = redact.Secrets()

    @property
    def heard(self) -> Cancel:
        """The cancel that the calling thread obeys."""
        return self._patience.heard

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

        ``behalf`` is the registry host that is served; its certificates count. Status and headers must arrive by the
        deadline, by default as many seconds from now as the other side may be silent. Raises Failure, Cancelled.
        """
        self._patience.check()
        deadline = deadline or Deadline(self._timeout)
        session = self._sessions.borrow()
        started = time.monotonic()
        try:
            with self._patience.until(deadline):
                response = self._request(session, method, url, headers, behalf, data)
        except BaseException:
            self._sessions.give_back(session)
            raise
        release = partial(self._sessions.give_back, session)
        answer = Answer(response, url, release, self._secrets.hide, self._patience, deadline)
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

        Authorization is dropped on any change of scheme, host or port; https never leads to http; ``check`` sees
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

    def prepare(self, url: str) -> None:
        """Opens a connection that waits for the next request to this host; none where that goes by a proxy.

        Raises Failure, Cancelled.
        """
        if proxies_for(url, self._environment):
            return
        host = urlsplit(url).netloc
        try:
            with self._patience.until(Deadline(self._timeout)):
                self._sessions.prepare(url, self._trust.choose(host, host), self._limit)
        except BROKEN as error:
            raise failure_of(error, self._secrets.hide) from None

    def reserve(self) -> None:
        """Keeps the best connections that wait for the calling thread's next request."""
        self._sessions.reserve()

    def speaks_tls(self, host: str) -> bool | None:
        """Whether ``host[:port]`` answers a TLS hello; None when it cannot be reached. Raises Cancelled."""
        parts = urlsplit(f"//{host}")
        try:
            return connecting.speaks_tls(parts.hostname or "", parts.port or 443, self._limit, self._patience)
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Ends all sessions."""
        self._sessions.close()

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
        """Points out a server that speaks plain HTTP; nobody should give up encryption because of a bad line."""
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
        """Where a redirect leads; raises Failure for what is not a web address, and for http after https."""
        try:
            target = urljoin(url, _as_sent(location))
            parts = urlsplit(target)
            usable = parts.scheme in DEFAULT_PORTS and bool(parts.hostname) and parts.port != 0
        except ValueError:
            target, usable = location, False
        if not usable:
            raise Failure(f"redirected to {self._shown(target)}, which is not a web address", retry=False)
        if urlsplit(url).scheme == "https" and parts.scheme == "http":
            raise Failure(f"redirected from https to {self._shown(target)}, which is not encrypted", retry=False)
        return target

    def _shown(self, url: str) -> str:
        return redact.url(self._secrets.hide(url))

    def _log(self, text: str) -> None:
        self._job.log("", text, level=2)

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
                self._job.warn("", f"{answer.host} says: {text}")


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
