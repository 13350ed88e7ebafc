"""requests' sessions: nothing from the environment, no cookies, no redirects of their own."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests

from msb_pull.ground.version import __version__
from msb_pull.source.http.adapter import PatientAdapter

if TYPE_CHECKING:
    from msb_pull.source.http.sockets import Patience
    from msb_pull.source.http.tls import TrustStore


class Sessions:
    """Lends sessions, each to one thread at a time, and keeps them since they keep connections."""

    def __init__(self, trust: TrustStore, patience: Patience) -> None:
        self._trust = trust
        self._patience = patience
        self._idle: deque[requests.Session] = deque()
        self._all: list[requests.Session] = []
        self._lock = threading.Lock()

    def borrow(self) -> requests.Session:
        """A session that no other thread has; give it back."""
        # The last one first: its connections are the least likely to have been closed meanwhile.
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        session = _new_session(self._trust, self._patience)
        with self._lock:
            self._all.append(session)
        return session

    def give_back(self, session: requests.Session) -> None:
        """Makes a session available again."""
        self._idle.append(session)

    def close(self) -> None:
        """Ends all of them, those that are lent as well."""
        with self._lock:
            sessions, self._all = self._all, []
            self._idle.clear()
        for session in sessions:
            session.close()


def _new_session(trust: TrustStore, patience: Patience) -> requests.Session:
    session = _Session()
    # ~/.netrc would replace our Authorization, and an environment bundle our certificates.
    session.trust_env = False
    session.headers.clear()
    session.headers.update({"User-Agent": f"msb-pull/{__version__}", "Accept-Encoding": "identity"})
    session.cookies.set_policy(_NoCookies())
    adapter = PatientAdapter(trust, patience)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


class _Session(requests.Session):
    def get_redirect_target(self, resp: Any) -> None:
        """None: requests would read the whole body of every redirect to prepare a request that is not wanted."""


class _NoCookies(DefaultCookiePolicy):
    def set_ok(self, cookie: Any, request: Any) -> bool:
        return False
