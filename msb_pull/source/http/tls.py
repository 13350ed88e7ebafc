"""Which certificates to trust: one TLS context for each host that is asked."""

from __future__ import annotations

import os
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from msb_pull.ground import places
from msb_pull.ground.errors import LocalError, UsageError
from msb_pull.source.http.addresses import spellings
from msb_pull.source.http.sockets import Patience, tls_socket_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Where docker, podman and containerd keep certificates by registry: <folder>/<host[:port]>/*.crt, *.cert with *.key.
CERTS_D = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
# Bundles that stand in place of the system's certificates; the first that is set wins.
BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")

# The key of the context for hosts without settings of their own.
SHARED = "*"


class TrustStore:
    """Makes and keeps the contexts. Safe to use from several threads."""

    def __init__(
        self,
        *,
        ca_certs: Mapping[str, str],
        no_verify: frozenset[str],
        environment: Mapping[str, str],
        patience: Patience,
        aliases: Mapping[str, str],
        certs_d: tuple[Path, ...] = CERTS_D,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``aliases`` give the other name under which a host's settings may be found.

        ``log`` hears once of each file that is skipped because this user may not read it."""
        self._ca_certs = ca_certs
        self._no_verify = no_verify
        self._environment = environment
        self._aliases = aliases
        self._socket_class = tls_socket_class(patience)
        self._log = log
        home, config = places.home(environment), places.config_home(environment)
        user = [home / ".config/containers/certs.d", home / ".docker/certs.d"] if home else []
        # Docker without root keeps them here.
        user += [config / "docker/certs.d"] if config else []
        self._folders = (*user, *certs_d)
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._passed_over: set[Path] = set()
        self._lock = threading.Lock()

    def choose(self, host: str, behalf: str) -> str:
        """The key of the context for ``host[:port]``, asked on behalf of a registry.

        Token services and the hosts a registry redirects to are trusted as the registry is, unless settings name
        them (docker and containers/image use one transport for all of these as well).
        """
        return next((x for x in (host, behalf) if x and self._is_special(x)), SHARED)

    def context(self, key: str) -> ssl.SSLContext:
        """The context of a key. Raises UsageError or LocalError when a named certificate cannot be used."""
        # Loading the system's certificates takes longer than a request: hosts without any of their own share it.
        with self._lock:
            if key not in self._contexts:
                self._contexts[key] = self._make(key)
            return self._contexts[key]

    def _names(self, host: str) -> tuple[str, ...]:
        """What a host may be called in settings and folders."""
        return (self._aliases[host], host) if host in self._aliases else spellings(host)

    def _verifies(self, host: str) -> bool:
        return not any(name in self._no_verify for name in self._names(host))

    def _is_special(self, host: str) -> bool:
        named = any(name in self._ca_certs for name in self._names(host))
        return named or not self._verifies(host) or any(self._folders_of(host))

    def _make(self, host: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.sslsocket_class = self._socket_class
        if not self._verifies(host):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            self._load_roots(context)
            for name in self._names(host):
                if name in self._ca_certs:
                    _load(context, Path(self._ca_certs[name]).expanduser(), f"certificate file for {host}")
        for folder in self._folders_of(host):
            self._load_folder(context, folder)
        return context

    def _load_roots(self, context: ssl.SSLContext) -> None:
        for variable in BUNDLE_VARIABLES:
            if named := self._environment.get(variable):
                _load(context, Path(named), variable)
                return
        if folder := self._environment.get("SSL_CERT_DIR"):
            context.load_verify_locations(capath=folder)
            return
        # Companies put their own root into the system's store; certifi stands in where there is none.
        context.set_default_verify_paths()
        if not context.cert_store_stats()["x509_ca"]:
            context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)

    def _folders_of(self, host: str) -> Iterator[Path]:
        for folder in self._folders:
            for name in self._names(host):
                path = folder / name
                try:
                    if path.is_dir():
                        yield path
                except PermissionError:
                    self._pass_over(folder)
                except OSError:
                    continue

    def _load_folder(self, context: ssl.SSLContext, folder: Path) -> None:
        try:
            files = sorted(folder.iterdir())
        except PermissionError:
            self._pass_over(folder)
            return
        except OSError as error:
            raise LocalError(f"{folder}: {error.strerror}", hint="make the folder readable, or remove it") from error
        for path in files:
            key = path.with_suffix(".key")
            if path.suffix == ".crt" and context.verify_mode != ssl.CERT_NONE:
                if self._may_read(path):
                    _load(context, path, "certificate file")
            elif path.suffix == ".cert" and self._may_read(path) and self._may_read(key):
                _load_client(context, path, key)

    def _may_read(self, path: Path) -> bool:
        if path.exists() and not os.access(path, os.R_OK):
            self._pass_over(path)
            return False
        return True

    def _pass_over(self, path: Path) -> None:
        """An administrator may keep some files closed to this user; a registry that needs them will say so."""
        if path not in self._passed_over:
            self._passed_over.add(path)
            self._log(f"{path} is ignored, since this user may not read it")


def _load_client(context: ssl.SSLContext, path: Path, key: Path) -> None:
    def ask() -> str:
        # OpenSSL would ask at the terminal, and wait.
        hint = "store the key without one: `openssl pkey -in OLD.key -out NEW.key`"
        raise LocalError(f"{key}: this client key has a passphrase, and msb-pull cannot ask for it", hint=hint)

    try:
        for file in (path, key):
            # OpenSSL would wait for what a pipe brings.
            os.close(places.open_regular(file))
        context.load_cert_chain(path, key, ask)
    except (OSError, ssl.SSLError) as error:
        raise LocalError(f"{path}: client certificate cannot be used", cause=str(error)) from error


def _load(context: ssl.SSLContext, path: Path, what: str) -> None:
    try:
        if path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            os.close(places.open_regular(path))
            context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        hint = "it must be a file of PEM certificates"
        raise UsageError(f"{path}: {what} cannot be used", cause=error.strerror or str(error), hint=hint) from error
