"""A request to a registry until it is answered: authorization, shared pauses, retries, http for loopback."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from msb_pull.ground import events
from msb_pull.ground.errors import MsbPullError, NetworkError, NotFoundError
from msb_pull.image.digest import Digest
from msb_pull.source.http.addresses import host_name, is_loopback, origin
from msb_pull.source.http.failures import Failure, RangeIgnored
from msb_pull.source.http.retry import RETRY_AFTER_CAP, Backoff, Clock, retry_after, when_text
from msb_pull.source.registry.endpoint import forbidden
from msb_pull.source.registry.refusals import limit_hint, read_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from msb_pull.ground.running import Job
    from msb_pull.source.http.answer import Answer
    from msb_pull.source.http.transport import Transport
    from msb_pull.source.registry.auth import Authenticator
    from msb_pull.source.registry.endpoint import Target

Result = TypeVar("Result")
_SMALL_BODY = 64 * 1024
# A signed address of a content network that has expired; the registry makes a new one.
_EXPIRED = frozenset({400, 401, 403, 410})
# What some registries say of a private repository to those who have not said who they are.
_HIDING = frozenset({403, 404})


class Requester:
    """Asks endpoints. Shared by all threads of a run."""

    def __init__(self, transport: Transport, auth: Authenticator, clock: Clock, *, retries: int, job: Job) -> None:
        self.retries = retries
        self.clock = clock
        self.job = job
        self.backoff = Backoff(clock)
        self._transport = transport
        self._auth = auth
        self._lock = threading.Lock()
        self._schemes: dict[str, str] = {}
        # Hosts that have answered at least once.
        self._reached: set[str] = set()
        # Mirrors that cannot be reached, and are not asked again in this run.
        self.down: set[str] = set()

    def get(
        self,
        target: Target,
        kind: str,
        name: str,
        headers: Mapping[str, str],
        *,
        accept: frozenset[int],
        take: Callable[[Answer], Result],
        retries: int | None = None,
        address: str | None = None,
        troubled: Callable[[], None] | None = None,
    ) -> Result:
        """Asks for a manifest or blob and returns what ``take`` makes of the answer, which it must close.

        ``take`` may raise Failure, which counts like a failed request. ``address`` is asked instead, without any
        authorization, where the content lies outside of registries. ``troubled`` is called before each pause. Raises
        NotFoundError, AccessError, NetworkError, Cancelled, RangeIgnored for a Range that was refused in any way, and
        whatever ``take`` raises.
        """
        host = target.endpoint.host
        allowed = self.retries if retries is None else retries
        blob = Digest.parse(name).short if kind == "blobs" else None
        attempt = 0
        dropped = False
        while True:
            self.backoff.wait(host, self._transport.heard)
            try:
                answer = self._visit(target, address, headers) if address else self._reach(target, kind, name, headers)
                if answer.status in accept:
                    return _taken(answer, take)
                failure = self._refused(answer, target)
            except Failure as error:
                failure = error
            # A connection that was kept open may have been closed from the other side meanwhile: ask again at once.
            if failure.dropped and not dropped:
                dropped = True
                continue
            attempt += 1
            if not failure.retry or attempt > allowed:
                if "Range" in headers and not failure.unreached and not failure.limited:
                    # A server that has the whole blob may still refuse a part of it, with any status or with none.
                    raise RangeIgnored(failure.reason)
                raise self._give_up(target, failure, blob)
            if troubled is not None:
                troubled()
            self._pause(target, failure, (attempt, allowed), f"blob {blob}" if blob else f"manifest of {target.what}")

    def prepare(self, target: Target) -> None:
        """Opens a connection for the next request that needs one; what keeps it from that is told by that request."""
        with contextlib.suppress(MsbPullError, Failure):
            self._transport.prepare(target.endpoint.api(target.endpoint.scheme or self._scheme(target)))

    def reserve(self) -> None:
        """Keeps the best connections that wait for the calling thread's next request."""
        self._transport.reserve()

    def _pause(self, target: Target, failure: Failure, turn: tuple[int, int], what: str) -> None:
        """Waits before the next try, ``turn`` (number, at most), together with all threads that ask this host.

        Raises NetworkError when the server wants a longer pause than makes sense, Cancelled.
        """
        attempt, retries = turn
        delay = self.backoff.pause(attempt)
        if failure.retry_after is not None:
            if failure.retry_after > RETRY_AFTER_CAP:
                raise self._give_up(target, failure)
            delay = max(failure.retry_after, delay if failure.retry_after == 0 else 0.0)
        self.job.eased.set()
        self.job.tell(events.Retrying(target.what, what, failure.reason, attempt, delay, retries))
        self.backoff.hold(target.endpoint.host, delay)
        self.backoff.wait(target.endpoint.host, self._transport.heard)

    def _give_up(self, target: Target, failure: Failure, blob: str | None = None) -> MsbPullError:
        """The error for a failure that is not waited for or tried again."""
        if blob and isinstance(failure.final, NotFoundError):
            # The name was right, since there is a manifest; what it names is missing.
            message = f"{target.what}: blob {blob} is not at {target.endpoint.host}"
            incomplete = "the image is not complete there; it has to be pushed again"
            return NotFoundError(message, cause=failure.final.cause, hint=incomplete)
        if failure.final is not None:
            return failure.final
        host = target.endpoint.host
        if failure.limited or failure.retry_after is not None:
            cause = failure.reason
            hint = limit_hint(target.registry, self._auth.named(target)) if failure.limited else None
            if failure.retry_after is not None and failure.retry_after > RETRY_AFTER_CAP:
                cause = f"{cause}; {host} asks to come back at {when_text(self.clock.now(), failure.retry_after)}"
            return NetworkError(f"{target.what}: {host} is rate limiting requests", cause=cause, hint=hint)
        what = f"{host} reports a server error" if failure.answered else f"no answer from {host}"
        hint = failure.hint or ("try again later" if failure.answered else "check the address and the network")
        return NetworkError(f"{target.what}: {what}", cause=failure.reason, hint=hint)

    def _reach(self, target: Target, kind: str, name: str, headers: Mapping[str, str]) -> Answer:
        scheme = target.endpoint.scheme or self._scheme(target)
        return self._ask(target, target.endpoint.url(scheme, target.repository, kind, name), headers)

    def _scheme(self, target: Target) -> str:
        """https, or http where a loopback host turns out not to speak TLS; that is remembered for the run."""
        host = target.endpoint.host
        with self._lock:
            if host not in self._schemes:
                found = self._transport.speaks_tls(host)
                if found is None:
                    # Nothing listens there; perhaps at the port for http.
                    return "http"
                self._schemes[host] = "https" if found else "http"
                if not found:
                    self.job.log(target.what, f"{host} does not speak TLS; using plain http, since it is this machine")
            return self._schemes[host]

    def _visit(self, target: Target, address: str, headers: Mapping[str, str]) -> Answer:
        def check(place: str) -> None:
            if reason := forbidden(place, address):
                raise Failure(f"redirected to {reason}", retry=False)

        return self._transport.follow("GET", address, headers, behalf=target.endpoint.host, check=check)

    def _ask(self, target: Target, url: str, headers: Mapping[str, str]) -> Answer:
        """One try with authorization: a refused token is renewed once, and once more if another scope is wanted."""
        used = self._auth.header(target, url)
        fresh = False
        while True:
            answer = self._send(target, url, headers, used)
            hidden = answer.status in _HIDING and used is None
            if answer.status != 401 and not hidden:
                return answer
            if origin(answer.url) != origin(url):
                return answer if hidden else self._ask_elsewhere(target, answer, headers)
            try:
                header = (
                    self._auth.introduce(target, urlsplit(url).scheme)
                    if hidden
                    else self._auth.respond(target, answer, used, fresh=fresh)
                )
                if header is None:
                    return answer
                # What is left of the body is read so that the connection can be used again.
                answer.read(_SMALL_BODY)
            except BaseException:
                answer.close()
                raise
            answer.close()
            used, fresh = header, True

    def _ask_elsewhere(self, target: Target, answer: Answer, headers: Mapping[str, str]) -> Answer:
        """A host that the registry has redirected to wants a token of its own: an anonymous one, once."""
        try:
            header = self._auth.anonymous(target, answer)
        except MsbPullError as error:
            answer.close()
            raise Failure(f"{answer.host} issues no token: {error.cause or error.message}") from error
        except BaseException:
            answer.close()
            raise
        if header is None:
            return answer
        answer.close()
        return self._send(target, answer.url, headers, header)

    def _send(self, target: Target, url: str, headers: Mapping[str, str], authorization: str | None) -> Answer:
        host = target.endpoint.host
        try:
            answer = self._transport.follow(
                "GET", url, {**headers, "Authorization": authorization} if authorization else headers, behalf=host
            )
        except Failure as failure:
            if failure.unreached and host not in self._reached and is_loopback(host_name(host)):
                # Nothing listens at this port of this machine, and waiting a few seconds will not change that.
                failure.retry = False
            raise
        self._reached.add(host)
        return answer

    def _refused(self, answer: Answer, target: Target) -> Failure:
        """The failure for a refusal: one that may pass, or one with the error to raise."""
        with answer:
            refusal = read_refusal(answer)
        wait = retry_after(answer.headers.get("Retry-After"), self.clock.now())
        if refusal.retry:
            return Failure(str(refusal), retry_after=wait, limited=refusal.limited, answered=True)
        elsewhere = urlsplit(answer.url).netloc != target.endpoint.host
        if elsewhere and refusal.status in _EXPIRED:
            return Failure(refusal.told_by(answer.host), answered=True)
        if refusal.status in (200, 206, 416):
            return Failure(f"{refusal} to a request that allows no such answer", answered=True)
        final = refusal.error(target.what, target.registry, named=self._auth.named(target))
        return Failure(str(refusal), retry=False, answered=True, limited=refusal.limited, final=final)


def _taken(answer: Answer, take: Callable[[Answer], Result]) -> Result:
    try:
        return take(answer)
    except BaseException:
        answer.close()
        raise
