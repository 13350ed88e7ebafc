"""How calls from Python reach registries."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from msb_pull.config.settings import Settings
    from msb_pull.ground.running import Job
    from msb_pull.source.login.credentials import CredentialStore
    from msb_pull.source.registry.registry import RegistryClient, RegistryOptions


@contextlib.contextmanager
def open_client(
    settings: Settings,
    hosts: Collection[str],
    job: Job,
    registries: RegistryOptions | None,
    credentials: CredentialStore | None,
) -> Iterator[Callable[[], RegistryClient]]:
    """Makes a client when the first registry must be asked: a pull that finds everything loads no requests."""
    with contextlib.ExitStack() as stack:
        clients: list[RegistryClient] = []

        def client() -> RegistryClient:
            if not clients:
                from msb_pull.source.login.credentials import CredentialStore
                from msb_pull.source.registry.registry import RegistryClient

                how = registries or registry_options(settings)
                host = next(iter(hosts)) if len(hosts) == 1 else None
                who = credentials or CredentialStore(authfile=settings.authfile, host=host)
                clients.append(RegistryClient(how, who, job))
                stack.callback(clients[0].close)
            return clients[0]

        yield client


def registry_options(settings: Settings) -> RegistryOptions:
    """How registries are reached, as the settings say."""
    from msb_pull.source.registry.registry import RegistryOptions

    listed = settings.registries
    return RegistryOptions(
        plain_http=frozenset(host for host, x in listed.items() if x.plain_http),
        tls_no_verify=frozenset(host for host, x in listed.items() if x.tls_no_verify),
        ca_certs={host: str(x.ca_cert) for host, x in listed.items() if x.ca_cert},
        mirrors={host: x.mirrors for host, x in listed.items() if x.mirrors},
        retries=settings.retries,
        timeout=settings.timeout,
        limit_rate=settings.limit_rate,
    )
