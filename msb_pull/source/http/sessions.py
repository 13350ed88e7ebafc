"""requests' sessions as this program wants them: nothing of the environment, no cookies, no redirects of their own."""

from __future__ import annotations

from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests

from msb_pull.ground.version import __version__
from msb_pull.source.http.adapter import PatientAdapter

if TYPE_CHECKING:
    from msb_pull.source.http.sockets import Patience
    from msb_pull.source.http.tls import TrustStore


def new_session(trust: TrustStore, patience: Patience) -> requests.Session:
    """A session for one thread at a time."""
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
