"""The files that ``docker login`` and ``podman login`` write: auths, credHelpers, credsStore."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import UsageError
from msb_pull.ground.places import read_regular
from msb_pull.ground.text import clipped
from msb_pull.source.http.addresses import spellings
from msb_pull.source.http.redact import MESSAGE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")
# The key under which Docker has always kept its own registry, and the one that its helpers know.
HUB_KEY = "https://index.docker.io/v1/"
_LIMIT = 16 << 20


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """What to show a registry: a name and password, a token to exchange, or a token to send as it is."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return "Credential(hidden)"


@dataclass(frozen=True, slots=True, repr=False)
class AuthFile:
    """The values of one file, unchanged."""

    path: Path
    auths: Mapping[str, Any]
    cred_helpers: Mapping[str, Any]
    creds_store: str

    def helper_for(self, registry: str) -> str:
        """The program that keeps the credentials of this registry, "" for none."""
        names = (self.cred_helpers.get(key) for key in (*helper_keys(registry), *_names(registry)))
        return next((name for name in names if isinstance(name, str) and name), "")

    def find(self, registry: str, repository: str, warn: Callable[[str], None]) -> Credential | None:
        """The entry for the longest part of the repository's path, finally the registry; empty ones do not count."""
        normal = {normalised(key): self.auths[key] for key in reversed(list(self.auths))}
        for name in _names(registry):
            parts = f"{name}/{repository}".split("/")
            for length in range(len(parts), 0, -1):
                key = "/".join(parts[:length])
                entry = self.auths.get(key, normal.get(key) if length == 1 else None)
                found = self._credential(key, entry, warn)
                if found is not None:
                    return found
        return None

    def _credential(self, key: str, entry: object, warn: Callable[[str], None]) -> Credential | None:
        if not isinstance(entry, dict):
            return None
        token, identity = entry.get("registrytoken"), entry.get("identitytoken")
        if isinstance(token, str) and token:
            return Credential(registry_token=token)
        pair = self._pair(key, entry, warn)
        if isinstance(identity, str) and identity:
            return Credential(username=pair[0] if pair else "", identity_token=whole(identity))
        return Credential(username=pair[0], password=pair[1]) if pair else None

    def _pair(self, key: str, entry: Mapping[str, Any], warn: Callable[[str], None]) -> tuple[str, str] | None:
        username, password, auth = entry.get("username"), entry.get("password"), entry.get("auth")
        if isinstance(auth, str) and auth.strip():
            pair = _decode(auth)
            if pair is None:
                warn(f"{self.path}: the entry for {clipped(key, MESSAGE_LIMIT)} cannot be read and is ignored")
            return pair
        if isinstance(username, str) and isinstance(password, str) and username and password:
            return whole(username), whole(password)
        return None


def load(path: Path, *, legacy: bool, required: bool, warn: Callable[[str], None]) -> AuthFile | None:
    """Reads a file; None when it is not there. ``legacy`` is ``~/.dockercfg``, which is nothing but auths.

    Raises UsageError when it is not JSON, or is ``required`` and cannot be read; never with its content.
    """
    try:
        data = read_regular(path, _LIMIT)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if required:
            raise UsageError(f"{path}: {error.strerror}", hint="name a file that `docker login` wrote") from error
        if not absent:
            warn(f"{path} cannot be read and is ignored: {error.strerror}")
        return None
    try:
        document = json.loads(data.decode("utf-8-sig")) if len(data) <= _LIMIT and data.strip() else {}
    except (ValueError, RecursionError):
        raise UsageError(f"{path}: not valid JSON", hint="log in again, or correct the file") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path}: not a JSON object", hint="log in again, or correct the file")
    if legacy:
        return AuthFile(path, document, {}, "")
    store = document.get("credsStore")
    return AuthFile(
        path, _table(document, "auths"), _table(document, "credHelpers"), store if isinstance(store, str) else ""
    )


def helper_keys(registry: str) -> tuple[str, ...]:
    """What to ask a helper for: Docker's own registry by its old address, others by their name."""
    return (HUB_KEY,) if registry in HUB_NAMES else spellings(registry)


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _names(registry: str) -> tuple[str, ...]:
    """The names under which a registry may stand: all of Docker's, and with or without the default port."""
    return HUB_NAMES if registry in HUB_NAMES else spellings(registry)


def same_registry(one: str, other: str) -> bool:
    """Whether two hosts are spellings of one registry."""
    return other in _names(one)


def normalised(key: str) -> str:
    """A key as docker login writes it, ``https://host/v1/``, as the host alone."""
    bare = key.removeprefix("https://").removeprefix("http://")
    return bare.partition("/")[0] if bare != key or bare.endswith("/") else bare


def _decode(auth: str) -> tuple[str, str] | None:
    """Name and password of an ``auth`` value: base64 with or without padding, split at the first colon."""
    text = "".join(auth.split()).rstrip("=")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
    username, colon, password = raw.partition(b":")
    if not colon or not username:
        return None
    # Whatever the encoding was, these characters become the same bytes again in a Basic header.
    return username.decode("utf-8", "surrogateescape"), password.rstrip(b"\0").decode("utf-8", "surrogateescape")


def whole(text: str) -> str:
    """A text from JSON as it can be sent: half surrogates become U+FFFD, as Go reads them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
