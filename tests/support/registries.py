"""A client with a clock that does not wait, and short words for what the tests of this room do."""

from __future__ import annotations

import gzip
import random
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from msb_pull.ground import events
from msb_pull.ground.errors import Cancelled, MsbPullError
from msb_pull.ground.running import Cancel, Job
from msb_pull.image.digest import Digest
from msb_pull.image.manifest import Descriptor
from msb_pull.image.platform import Platform
from msb_pull.image.reference import Reference
from msb_pull.source.http.retry import Clock
from msb_pull.source.interface import ResolvedImage
from msb_pull.source.login.credentials import CredentialStore
from msb_pull.source.registry.registry import RegistryClient, RegistryOptions, RegistrySource
from tests.support.fault_registry import OCI_LAYER_GZIP, FaultRegistry

AMD64 = Platform("linux", "amd64")
LAYER = gzip.compress(random.Random(7).randbytes(300_000), 1, mtime=0)


class FakeTime:
    """Time that only passes when somebody waits for it; what was waited for is kept."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.step = 0.0  # what passes between two looks at the clock
        self.waits: list[float] = []
        self.lock = threading.Lock()

    def clock(self) -> Clock:
        """The Clock to hand in."""
        return Clock(
            monotonic=self._monotonic,
            now=lambda: 1_800_000_000.0 + self.passed,
            wait=self._wait,
            random=lambda: 0.5,
        )

    def _monotonic(self) -> float:
        self.passed += self.step
        return 1000.0 + self.passed

    def _wait(self, cancel: Cancel, seconds: float) -> bool:
        with self.lock:
            self.waits.append(seconds)
            self.passed += seconds
        return cancel.is_set()


@dataclass
class Bench:
    """A RegistryClient under test."""

    client: RegistryClient
    job: Job
    time: FakeTime
    seen: list[events.Event] = field(default_factory=list)

    @property
    def cancel(self) -> Cancel:
        return self.job.cancel

    def source(self, text: str) -> RegistrySource:
        source = self.client.source(Reference.parse(text))
        assert isinstance(source, RegistrySource)
        return source

    def resolve(self, text: str, platform: Platform = AMD64, *, explicit: bool = False) -> ResolvedImage:
        return self.source(text).resolve(platform, explicit=explicit)

    def blob(self, text: str, content: bytes, offset: int = 0, **more: Any) -> bytes:
        """Reads a blob of the given (true) content."""
        return drain(self.source(text), describe(content, **more), offset)

    def of(self, kind: type[events.Event]) -> list[Any]:
        return [x for x in self.seen if isinstance(x, kind)]

    def texts(self) -> str:
        """Everything that a person could ever see of the events."""
        return "\n".join(repr(x) for x in self.seen)

    @property
    def warnings(self) -> list[str]:
        return [x.text for x in self.of(events.Warned)]


def make_bench(credentials: CredentialStore | None = None, *, real_time: bool = False, **options: Any) -> Bench:
    """A client that must be closed (see the fixture ``bench``)."""
    fake, seen = FakeTime(), []
    job = Job(seen.append)
    client = RegistryClient(
        RegistryOptions(**options),
        credentials or CredentialStore.nobody({}),
        job,
        clock=None if real_time else fake.clock(),
    )
    return Bench(client, job, fake, seen)


def describe(content: bytes, **more: Any) -> Descriptor:
    """The descriptor of a layer with this content."""
    return Descriptor(**{"media_type": OCI_LAYER_GZIP, "digest": Digest.of(content), "size": len(content)} | more)


def drain(source: RegistrySource, descriptor: Descriptor, offset: int = 0, size: int = 65536) -> bytes:
    """All that follows ``offset``."""
    with source.open_blob(descriptor, offset) as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


def hears_a_cancel(bench: Bench, action: Any, *, after: float = 0.3) -> None:
    """Runs ``action``, which must not end by itself, on a thread, and sets the flag: Cancelled must come out."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(after)
    assert thread.is_alive(), caught
    bench.cancel.set()
    thread.join(20)
    assert [type(x) for x in caught] == [Cancelled]


def too_slow(error: MsbPullError, seconds: float = 0.5) -> bool:
    """Whether an answer was waited for no longer than that.

    What ends first, the time for all of it or that without a byte, depends on how busy this machine is.
    """
    return error.cause in (
        f"the answer was not complete within {seconds} seconds",
        f"no answer for too long ({seconds} seconds)",
    )


def name(registry: FaultRegistry, repository: str = "acme/app", tag: str = "1") -> str:
    """The reference of an image at a scripted registry."""
    return f"{registry.host}/{repository}:{tag}"


def server_context(authority, *names, **how) -> ssl.SSLContext:
    """For a server with a certificate of this authority (trustme)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("127.0.0.1", "::1", "localhost")), **how).configure_cert(context)
    return context


class Tunnel:
    """A proxy that understands CONNECT; with ``to``, every name leads to that port of this machine."""

    def __init__(self, *, to: int | None = None) -> None:
        self.to = to
        self.heads: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Tunnel:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        for item in self._open:
            item.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(client)
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            self.heads.append(head.decode())
            host, _, port = head.split()[1].decode().rpartition(":")
            server = socket.create_connection(("127.0.0.1", self.to) if self.to else (host, int(port)))
            self._open.append(server)
            client.sendall(b"HTTP/1.1 200 ok\r\n\r\n")
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    @staticmethod
    def _pump(a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(65536):
                b.sendall(data)
        except OSError:
            return
