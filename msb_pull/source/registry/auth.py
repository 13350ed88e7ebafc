"""Answers to 401: Basic, and Bearer tokens that are shared by all threads (distribution-spec, Docker's token spec)."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from msb_pull.ground.errors import AccessError, NetworkError
from msb_pull.source.http import redact
from msb_pull.source.http.addresses import origin
from msb_pull.source.http.challenge import Challenge, choose_challenge, parse_challenges
from msb_pull.source.http.failures import Failure
from msb_pull.source.http.retry import retry_after
from msb_pull.source.registry.endpoint import forbidden
from msb_pull.source.registry.refusals import check_document, denied, read_refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from msb_pull.ground.running import Job
    from msb_pull.source.http.answer import Answer
    from msb_pull.source.http.retry import Clock
    from msb_pull.source.http.transport import Transport
    from msb_pull.source.login.auth_file import Credential
    from msb_pull.source.login.credentials import CredentialStore
    from msb_pull.source.registry.endpoint import Target

_BODY_LIMIT = 1 << 20
# The token spec's default, and containers/image's lower bound: shorter ones would be renewed all the time.
_SHORTEST_LIFE = 60.0
_RENEW_AT = 0.9
_CLIENT_ID = "msb-pull"
# A token service that does not know the POST form answers with one of these (containerd falls back on them too).
_NO_POST = frozenset({400, 401, 404, 405})


@dataclass(slots=True, repr=False)
class _Slot:
    """What is known for one repository at one host; it changes under the lock, so a token is made once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    asked: bool = False
    introduced: bool = False
    credential: Credential | None = None
    header: str | None = None
    expires: float | None = None
    challenge: Challenge | None = None
    scope: str = ""
    refresh_token: str = ""


class Authenticator:
    """Knows what to send as Authorization, and learns it from the challenges of registries."""

    def __init__(self, transport: Transport, credentials: CredentialStore, clock: Clock, job: Job) -> None:
        self._transport = transport
        self._credentials = credentials
        self._clock = clock
        self._job = job
        # By repository: a token is good for one, and another one's would be refused and cost a request each time.
        self._slots: dict[tuple[str, str], _Slot] = {}
        self._lock = threading.Lock()

    def named(self, target: Target) -> bool:
        """Whether credentials are used for this target, as far as is known."""
        slot = self._slot(target)
        # A login that was looked up for a registry that then asked for none was never sent.
        return slot.credential is not None and not (slot.introduced and slot.header is None)

    def header(self, target: Target, url: str) -> str | None:
        """What to send at once, None before the first challenge. An old token is renewed first."""
        slot = self._slot(target)
        # Not under the lock, which is held while another thread waits for a token service: what is valid can be sent.
        if not self._is_old(slot):
            return slot.header
        with slot.lock:
            # Whoever had the lock before may have renewed it.
            if slot.challenge is not None and self._is_old(slot):
                self._obey(slot, slot.challenge, target, url)
            return slot.header

    def respond(self, target: Target, answer: Answer, used: str | None, *, fresh: bool) -> str | None:
        """What to send after a 401 on a request that carried ``used``; None when nothing else is left to try.

        ``fresh`` says that this very request has renewed it already; then only another scope is worth a try.
        Raises AccessError when credentials are missing or refused, Failure for trouble with the token service.
        """
        challenge = _challenge(answer)
        if challenge is None:
            return None if used else self.introduce(target, urlsplit(answer.url).scheme, anybody=True)
        slot = self._slot(target)
        with slot.lock:
            if slot.header is not None and slot.header != used:
                # Another thread has learned it while this one waited.
                return slot.header
            if fresh and challenge.scheme == "bearer" and challenge.parameters.get("scope") in (None, "", slot.scope):
                return None
            header = self._obey(slot, challenge, target, answer.url, again=used is not None)
            return header if header != used else None

    def introduce(self, target: Target, scheme: str, *, anybody: bool = False) -> str | None:
        """What to send to a registry that has refused a nameless request without a challenge; None without a login.

        Such registries challenge at ``/v2/`` alone, where they are asked once (as Docker does before anything else).
        ``anybody``: they have asked for a name, or for a token that may be had without one, so no login is needed.
        Raises AccessError when credentials are refused, Failure for trouble with the token service.
        """
        slot = self._slot(target)
        with slot.lock:
            # Once, also if that leads nowhere: a registry that hides what it refuses does so for each layer.
            if slot.introduced or slot.header is not None or not (self._credential(slot, target) or anybody):
                return slot.header
            slot.introduced = True
            address = target.endpoint.api(scheme)
            try:
                answer = self._transport.follow("GET", address, {}, behalf=target.endpoint.host)
            except Failure as failure:
                self._job.log(target.what, f"no challenge from {target.endpoint.host}: {failure}")
                return None
            with answer:
                challenge = _challenge(answer)
            # A challenge from where it was redirected to is not the registry's own: no login goes there.
            if answer.status != 401 or challenge is None or origin(answer.url) != origin(address):
                return None
            return self._obey(slot, challenge, target, answer.url)

    def anonymous(self, target: Target, answer: Answer) -> str | None:
        """What to send to a host that a registry has redirected to and that wants a token of its own."""
        challenge = _challenge(answer)
        if challenge is None or challenge.scheme != "bearer":
            return None
        # A slot that has no login and never looks for one.
        return self._obey(_Slot(asked=True), challenge, target, answer.url, again=True)

    def _is_old(self, slot: _Slot) -> bool:
        return slot.header is not None and slot.expires is not None and self._clock.monotonic() >= slot.expires

    def _slot(self, target: Target) -> _Slot:
        with self._lock:
            return self._slots.setdefault(target.key, _Slot())

    def _credential(self, slot: _Slot, target: Target) -> Credential | None:
        if not slot.asked:
            endpoint = target.endpoint
            slot.credential = self._credentials.find(
                endpoint.host if endpoint.namespace else target.registry,
                target.repository,
                mirror=bool(endpoint.namespace),
                warn=lambda text: self._job.warn(target.what, text),
                cancel=self._transport.heard,
            )
            slot.asked = True
        return slot.credential

    def _obey(self, slot: _Slot, challenge: Challenge, target: Target, url: str, *, again: bool = False) -> str | None:
        """Puts what a challenge of ``url`` asks for into the slot, whose lock is held, and returns it.

        ``again``: something was sent and refused, so the scope is now the one that the challenge names.
        """
        credential = self._credential(slot, target)
        if credential is not None and credential.registry_token:
            # It is what a token service would hand out, so none is asked; how long it is good for nobody says.
            slot.header = _bearer(
                credential.registry_token, target, "the given token has characters that cannot be sent"
            )
            slot.expires = None
        elif challenge.scheme == "bearer":
            self._fetch_token(slot, credential, challenge, target, url, again=again)
        elif credential is not None:
            slot.header = _basic(credential.username, credential.password or credential.identity_token)
        else:
            cause = f"authentication required for {target.endpoint.host}"
            raise denied(target.what, target.registry, cause, named=False)
        return slot.header

    def _fetch_token(
        self, slot: _Slot, credential: Credential | None, challenge: Challenge, target: Target, url: str, *, again: bool
    ) -> None:
        """Gets a token from the service that the challenge names, and notes until when it is good."""
        realm = challenge.parameters.get("realm", "")
        if reason := forbidden(realm, url):
            cause = f"the registry names {reason} as its token service"
            hint = "the registry is misconfigured, or a proxy changes its answers"
            raise AccessError(f"{redact.host_of(url)}: refusing to ask its token service", cause=cause, hint=hint)
        # What is needed and no more, whatever the challenge asks for; its own words count once that was refused.
        scope = f"repository:{target.repository}:pull"
        if again:
            scope = challenge.parameters.get("scope") or scope
        query = {"service": challenge.parameters.get("service", ""), "scope": scope}
        given = {name: value for name, value in query.items() if value}
        with self._ask(slot, credential, realm, given, target.endpoint.host) as answer:
            if answer.status != 200:
                self._refused(answer, target, credential)
            document = _document(answer, target)
        token = next((x for x in (document.get("token"), document.get("access_token")) if isinstance(x, str) and x), "")
        header = _bearer(token, target, f"the token service {answer.host} sent no token")
        life = document.get("expires_in")
        seconds = life if isinstance(life, int | float) and not isinstance(life, bool) else 0
        slot.expires = self._clock.monotonic() + max(_SHORTEST_LIFE, min(seconds, 1e9)) * _RENEW_AT
        slot.header, slot.challenge, slot.scope = header, challenge, scope
        # Some services send another one with every token, and the old one is void then.
        renewed = document.get("refresh_token")
        if slot.refresh_token and isinstance(renewed, str) and renewed:
            slot.refresh_token = renewed
        self._job.log(target.what, f"token from {answer.host} for {answer.quote(scope)}")

    def _ask(
        self, slot: _Slot, credential: Credential | None, realm: str, query: dict[str, str], behalf: str
    ) -> Answer:
        headers: dict[str, str] = {}
        if credential is not None and credential.identity_token:
            slot.refresh_token = slot.refresh_token or credential.identity_token
            form = {"grant_type": "refresh_token", "client_id": _CLIENT_ID, "refresh_token": slot.refresh_token}
            answer = self._transport.send("POST", realm, {}, behalf=behalf, data=form | query)
            if answer.status not in _NO_POST:
                return answer
            answer.close()
            # As it was done before there was the POST form: the token in place of the password.
            headers["Authorization"] = _basic(credential.username, slot.refresh_token)
        elif credential is not None:
            headers["Authorization"] = _basic(credential.username, credential.password)

        def check(target: str) -> None:
            if reason := forbidden(target, realm):
                raise Failure(f"the token service redirects to {reason}", retry=False)

        return self._transport.follow("GET", _with_query(realm, query), headers, behalf=behalf, check=check)

    def _refused(self, answer: Answer, target: Target, credential: Credential | None) -> None:
        refusal = read_refusal(answer)
        cause = refusal.told_by(f"token service {answer.host}")
        if refusal.retry:
            wait = retry_after(answer.headers.get("Retry-After"), self._clock.now())
            raise Failure(cause, retry_after=wait, limited=refusal.status == 429, answered=True)
        if refusal.status in (400, 401, 403, 404):
            raise denied(target.what, target.registry, cause, named=credential is not None)
        raise NetworkError(f"{target.what}: no token", cause=cause)


def _challenge(answer: Answer) -> Challenge | None:
    return choose_challenge(parse_challenges(answer.header_values("WWW-Authenticate")))


def _document(answer: Answer, target: Target) -> Mapping[str, object]:
    body = answer.read(_BODY_LIMIT)
    check_document(answer, body, "token")
    try:
        document = json.loads(body) if len(body) <= _BODY_LIMIT else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise AccessError(f"{target.what}: no token", cause=f"the token service {answer.host} did not answer with JSON")
    return document


def _with_query(address: str, query: Mapping[str, str]) -> str:
    parts = urlsplit(address)
    pairs = [*parse_qsl(parts.query, keep_blank_values=True), *query.items()]
    return urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(pairs), ""))


def _bearer(token: str, target: Target, otherwise: str) -> str:
    if not token or not token.isascii() or not token.isprintable():
        raise AccessError(f"{target.what}: no token", cause=otherwise)
    return f"Bearer {token}"


def _basic(username: str, password: str) -> str:
    pair = f"{username}:{password}".encode("utf-8", "surrogateescape")
    return "Basic " + base64.b64encode(pair).decode("ascii")
