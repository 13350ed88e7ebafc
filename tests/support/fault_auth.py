"""Basic and Bearer flows for the scripted registry.

tokens = TokenService(registry, users={"bob": "secret"}, lifetime=300)   # a token endpoint at /token
require_basic(registry, {"bob": "secret"})
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping
from urllib.parse import parse_qs

from tests.support.fault_registry import Fault, FaultRegistry, Recorded


def basic(username: str, password: str) -> str:
    """The value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def errors(code: str, message: str = "no", detail: object = None) -> bytes:
    """The body of a registry's error answer (distribution-spec)."""
    return json.dumps({"errors": [{"code": code, "message": message, "detail": detail}]}).encode()


def require_basic(registry: FaultRegistry, users: Mapping[str, str], *, match: str = "/v2/") -> None:
    """From now on every request below ``match`` needs one of these users."""
    good = {basic(name, password) for name, password in users.items()}

    def authorize(request: Recorded) -> Fault | None:
        if match not in request.path or request.headers.get("authorization") in good:
            return None
        return Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="test"'}, body=errors("UNAUTHORIZED"))

    registry.authorize = authorize


class TokenService:
    """A token endpoint on ``server`` (the registry itself by default) that guards ``registry``.

    Without ``users`` everybody gets a token, else those and nobody else (``anonymous`` True lets the nameless in too).
    Tokens are opaque; :meth:`revoke` makes all of them worthless, ``uses`` makes each worthless after so many requests.
    """

    def __init__(
        self,
        registry: FaultRegistry,
        *,
        server: FaultRegistry | None = None,
        users: Mapping[str, str] | None = None,
        anonymous: bool = False,
        refresh_tokens: Mapping[str, str] | None = None,
        lifetime: object = None,
        uses: int | None = None,
        key: str = "token",
        post_status: int | None = None,
        realm: str | None = None,
        delay: float = 0.0,
    ) -> None:
        self.registry = registry
        self.server = server or registry
        self.users = users
        self.anonymous = anonymous or users is None
        self.refresh_tokens = refresh_tokens or {}
        self.lifetime = lifetime
        self.uses = uses
        self.key = key
        self.post_status = post_status
        self.realm = realm or f"{self.server.url}/token"
        self.delay = delay
        self.valid: dict[str, int] = {}
        self.made = 0
        self.challenge_error: str | None = None
        self._lock = threading.Lock()
        self.server.endpoints["/token"] = self._token
        registry.authorize = self._authorize

    def revoke(self) -> None:
        """Makes every token handed out so far worthless."""
        with self._lock:
            self.valid.clear()

    def _authorize(self, request: Recorded) -> Fault | None:
        if not request.path.startswith("/v2/"):
            return None
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        with self._lock:
            if token in self.valid and (self.uses is None or self.valid[token] < self.uses):
                self.valid[token] += 1
                return None
        repository = request.path.removeprefix("/v2/").partition("/manifests/")[0].partition("/blobs/")[0]
        challenge = f'Bearer realm="{self.realm}",service="test.registry",scope="repository:{repository}:pull"'
        if token and self.challenge_error:
            challenge += f',error="{self.challenge_error}"'
        return Fault(status=401, headers={"WWW-Authenticate": challenge}, body=errors("UNAUTHORIZED"))

    def _token(self, request: Recorded) -> Fault:
        if request.method == "POST":
            if self.post_status is not None:
                return Fault(status=self.post_status, body=b"{}")
            form = parse_qs(request.body.decode())
            allowed = form.get("refresh_token", [""])[0] in self.refresh_tokens
        else:
            given = request.headers.get("authorization")
            good = {basic(name, password) for name, password in (self.users or {}).items()}
            allowed = given in good or (given is None and self.anonymous) or self.users is None
        if not allowed:
            return Fault(status=401, body=errors("UNAUTHORIZED", "incorrect username or password"), delay=self.delay)
        with self._lock:
            self.made += 1
            token = f"token-{self.made}-{request.query.get('scope', [''])[0]}"
            self.valid[token] = 0
        answer: dict[str, object] = {self.key: token}
        if self.lifetime is not None:
            answer["expires_in"] = self.lifetime
        return Fault(status=200, body=json.dumps(answer).encode())
