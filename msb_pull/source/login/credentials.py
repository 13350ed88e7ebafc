"""Which login to use at a registry: explicit, environment, then the files and helpers that podman and docker write.

The order is that of containers/image: a file that has no entry for the registry passes the question on to the next.
Nothing here ever appears in a message, a log line or an argument of a program.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msb_pull.ground import places
from msb_pull.ground.errors import UsageError
from msb_pull.ground.running import Cancel
from msb_pull.source.login import auth_file, helpers
from msb_pull.source.login.auth_file import Credential

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

_GIVEN = ("MSB_REGISTRY_TOKEN", "MSB_REGISTRY_USERNAME", "MSB_REGISTRY_PASSWORD")
_HOST = "MSB_REGISTRY_HOST"


def check_given(registries: Collection[str], environment: Mapping[str, str] | None = None, *, stdin: bool) -> None:
    """Raises UsageError where it is not clear for which of ``registries`` the credentials of this run are meant.

    ``stdin`` says that they come from standard input, else they may be in ``environment``.
    """
    environment = os.environ if environment is None else environment
    where = "--creds-stdin" if stdin else next((name for name in _GIVEN if environment.get(name)), None)
    named = _named_host(environment)
    if where is None:
        return
    if not named and len(set(registries)) > 1:
        raise UsageError(
            f"{where}: these credentials are for one registry, but the images are from several",
            cause=", ".join(sorted(set(registries))),
            hint=f"set {_HOST} to the registry they are for, or pull from one registry at a time",
        )
    if stdin and named and not any(auth_file.same_registry(named, registry) for registry in registries):
        raise UsageError(f"--creds-stdin: {_HOST} names {named}, but no image is from there", hint=f"unset {_HOST}")


def _named_host(environment: Mapping[str, str]) -> str:
    """The registry that the credentials of the environment are for, "" where it does not say."""
    named = environment.get(_HOST, "")
    host = auth_file.normalised(named)
    if named and (not host or "/" in host or not host.isprintable() or " " in host):
        raise UsageError(f"{_HOST}: {named!r} is not a host", hint="write it like registry.example.com:5000")
    return host


class _Question(NamedTuple):
    """What files and helpers are asked, how they warn, and what ends them."""

    registry: str
    repository: str
    warn: Callable[[str], None]
    cancel: Cancel


class CredentialStore:
    """Finds credentials. Safe to use from several threads; answers are not kept, since helpers may rotate them."""

    def __init__(
        self,
        *,
        environment: Mapping[str, str] | None = None,
        home: Path | None = None,
        authfile: Path | None = None,
        explicit: Credential | None = None,
        host: str | None = None,
        anonymous: bool = False,
    ) -> None:
        """``host`` is the one registry that may see ``explicit`` or the credentials of the environment.

        ``MSB_REGISTRY_HOST`` takes precedence; None means any registry.
        """
        self.environment: Mapping[str, str] = os.environ if environment is None else environment
        self._home = home
        self._authfile = authfile
        self._explicit = explicit
        self._host = host
        self._anonymous = anonymous

    @classmethod
    def nobody(cls, environment: Mapping[str, str] | None = None) -> CredentialStore:
        """For ``--anonymous``: nothing is read and nothing is sent."""
        return cls(environment=environment, anonymous=True)

    @classmethod
    def from_text(
        cls, text: str, environment: Mapping[str, str] | None = None, *, host: str | None = None
    ) -> CredentialStore:
        """For ``--creds-stdin``: ``user:password``, whose password may have several lines (``_json_key`` has a file of
        JSON). One newline at its end is not part of it. Raises UsageError, which does not repeat the text."""
        username, colon, password = text.removesuffix("\n").removesuffix("\r").partition(":")
        if not colon or not username or "\n" in username:
            raise UsageError("--creds-stdin: standard input must be user:password")
        return cls(environment=environment, explicit=Credential(username=username, password=password), host=host)

    def find(
        self,
        registry: str,
        repository: str,
        *,
        mirror: bool = False,
        warn: Callable[[str], None] = lambda text: None,
        cancel: Cancel | None = None,
    ) -> Credential | None:
        """The credential for a repository, None when it has none.

        What was given for this one pull (``--creds-stdin``, ``MSB_REGISTRY_…``) is meant for one registry that images
        name, never for a ``mirror``; files and helpers answer for the others. Raises UsageError for a file that cannot
        be understood, or a named one that does not exist; other trouble (an unreadable file, a helper that fails) is
        reported to ``warn``.
        """
        if self._anonymous:
            return None
        given = self._explicit or self._from_environment()
        bound = _named_host(self.environment) or self._host
        if given is not None and (mirror or bound is None or auth_file.same_registry(bound, registry)):
            return None if mirror else given
        question = _Question(registry, repository, warn, cancel or Cancel())
        for path, legacy, required in self._files():
            found = self._ask(path, legacy, required, question)
            if found is not None:
                return found
        return None

    def _from_environment(self) -> Credential | None:
        environment = self.environment
        if token := environment.get("MSB_REGISTRY_TOKEN"):
            return Credential(registry_token=token)
        username, password = environment.get("MSB_REGISTRY_USERNAME"), environment.get("MSB_REGISTRY_PASSWORD")
        if not username and not password:
            return None
        if not username or not password:
            missing = "MSB_REGISTRY_PASSWORD" if username else "MSB_REGISTRY_USERNAME"
            raise UsageError(f"{missing} is not set", hint="set both MSB_REGISTRY_USERNAME and MSB_REGISTRY_PASSWORD")
        return Credential(username=username, password=password)

    def _files(self) -> Iterator[tuple[Path, bool, bool]]:
        """Path, whether it is of the oldest format, whether it must exist."""
        environment = self.environment
        named = self._authfile or environment.get("REGISTRY_AUTH_FILE")
        if named:
            yield Path(named), False, True
            return
        home = self._home or places.home(environment)
        if sys.platform.startswith("linux"):
            runtime = environment.get("XDG_RUNTIME_DIR")
            folder = f"{runtime}/containers" if runtime else f"/run/containers/{os.getuid()}"
            yield Path(folder, "auth.json"), False, False
        config = places.config_home(environment) if self._home is None else self._home / ".config"
        if config:
            yield config / "containers/auth.json", False, False
        if docker := environment.get("DOCKER_CONFIG") or (home and home / ".docker"):
            yield Path(docker) / "config.json", False, False
        if home:
            yield home / ".dockercfg", True, False

    def _ask(self, path: Path, legacy: bool, required: bool, question: _Question) -> Credential | None:
        content = auth_file.load(path, legacy=legacy, required=required, warn=question.warn)
        if content is None:
            return None
        helper = content.helper_for(question.registry)
        if helper and (found := self._ask_helper(helper, path, question)):
            return found
        if found := content.find(question.registry, question.repository, question.warn):
            return found
        return self._ask_helper(content.creds_store, path, question) if content.creds_store else None

    def _ask_helper(self, name: str, path: Path, question: _Question) -> Credential | None:
        for key in auth_file.helper_keys(question.registry):
            try:
                answer = helpers.ask(name, key, self.environment, question.cancel)
            except helpers.HelperError as error:
                question.warn(f"credential helper {name!r} of {path}: {error}")
                return None
            if answer is not None:
                username, secret = (auth_file.whole(text) for text in answer)
                if username == "<token>":
                    return Credential(identity_token=secret)
                return Credential(username=username, password=secret)
        return None
