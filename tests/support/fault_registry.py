"""A registry that speaks real HTTP on a thread, remembers every request, and fails exactly as a test says.

    with FaultRegistry() as registry:
        image = registry.add_image("acme/app", "1", [layer_bytes])
        registry.script("/blobs/", Fault(cut_after=1000), Fault(status=503))
        ...                                  # client under test talks to registry.host ("127.0.0.1:PORT")
        assert registry.count("/blobs/") == 3

A scripted fault is used up by the first request it matches, in the order given; ``times`` repeats it. Everything that
is not scripted is answered as a good registry answers. :mod:`tests.support.fault_auth` adds Basic and Bearer flows.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    import ssl

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCTETS = "application/octet-stream"


def digest_of(data: bytes) -> str:
    """``sha256:…`` of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer. Fields may be combined; what is left out stays as a good server does it."""

    status: int | None = None  # answer with this status instead of serving the object
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = ()  # added, or put in place of those of the same name
    body: bytes | None = None  # body for `status`, or in place of the object's
    drop: bool = False  # close the connection without an answer
    delay: float = 0.0  # seconds before the answer
    cut_after: int | None = None  # reset the connection after so many body bytes
    end_after: int | None = None  # close it orderly after so many body bytes, Content-Length notwithstanding
    stall_after: int | None = None  # send no more after so many body bytes, but keep the connection (until stop)
    rate: float | None = None  # bytes a second for this answer
    ignore_range: bool = False  # answer 200 with the whole body
    content_range: str | None = None  # "" leaves the header out
    content_length: int | None = None  # lie about the length
    chunked: bool = False  # no length, Transfer-Encoding: chunked
    extra: bytes = b""  # appended to the body, and honestly counted in Content-Length
    endless: bool = False  # never stop sending, chunked
    flip: int | None = None  # invert the byte at this position of the body as sent, or its last one
    gzip: bool = False  # Content-Encoding: gzip
    redirect: str | None = None  # Location; "{path}" is replaced by the path and query of the request
    redirect_status: int = 307
    before: Callable[[], None] | None = None  # called before answering


@dataclass(frozen=True)
class Recorded:
    """One request as it came. ``headers`` have lower-case names; of repeated ones the last stays."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    connection: int  # number of the connection, to count them
    time: float
    server: str  # host:port that was asked


@dataclass
class AddedImage:
    """What :meth:`FaultRegistry.add_image` has stored."""

    manifest_digest: str
    manifest_bytes: bytes
    config_digest: str
    config_bytes: bytes
    layer_digests: list[str]


@dataclass
class _Rule:
    match: str
    method: str | None
    faults: list[Fault] = field(default_factory=list)


class Bucket:
    """Bytes a second, shared by all who take from it."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Sleeps until so many bytes may go."""
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now) + count / self._rate
            wait = self._next - now
        if wait > 0:
            time.sleep(wait)


class FaultRegistry:
    """The server; see the module. ``total_rate`` and ``connection_rate`` are bytes a second for blob bodies."""

    def __init__(self, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, keep_alive: bool = True) -> None:
        self.requests: list[Recorded] = []
        self.sent: Counter[str] = Counter()  # path -> body bytes that went out, whatever became of them
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[bytes, str | None]] = {}
        self.files: dict[str, tuple[bytes, str]] = {}  # any other path -> body and Content-Type
        self.authorize: Callable[[Recorded], Fault | None] | None = None  # a Fault answers in place of the object
        self.endpoints: dict[str, Callable[[Recorded], Fault]] = {}  # path -> answer, for token servers
        self.total_bucket: Bucket | None = None
        self.connection_rate: float | None = None
        self.digest_header = True
        self.accept_ranges = True
        self.stopping = threading.Event()
        self.connections: list[socket.socket] = []
        self.keep_alive = keep_alive
        self._rules: list[_Rule] = []
        self.lock = threading.Lock()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = _Server((host, 0), _Handler, family, self, tls)
        self.port: int = self._server.server_address[1]
        self.host = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.scheme = "https" if tls else "http"
        self.url = f"{self.scheme}://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __enter__(self) -> FaultRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends every connection and the server; idempotent."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        with self.lock:
            connections = list(self.connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._thread.join(5)

    # What is served

    def add_blob(self, data: bytes) -> str:
        """Stores a blob for every repository; returns its digest."""
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest

    def add_manifest(
        self,
        repository: str,
        tag: str | None,
        document: bytes | Mapping[str, Any],
        media_type: str | None = OCI_MANIFEST,
    ) -> str:
        """Stores a manifest or index by its digest and, if given, its tag; returns the digest."""
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = digest_of(data)
        for key in (digest, tag):
            if key is not None:
                self.manifests[repository, key] = (data, media_type)
        return digest

    def add_image(
        self,
        repository: str,
        tag: str | None,
        layers: Sequence[bytes],
        *,
        diff_ids: Sequence[str] | None = None,
        layer_type: str = OCI_LAYER_GZIP,
        platform: tuple[str, str, str | None] = ("linux", "amd64", None),
        config: Mapping[str, Any] | None = None,
    ) -> AddedImage:
        """Stores layers (as they travel), a config and a manifest; diff_ids default to the gunzipped layers'."""
        if diff_ids is None:
            diff_ids = [digest_of(gzip.decompress(x) if x[:2] == b"\x1f\x8b" else x) for x in layers]
        os_name, architecture, variant = platform
        document: dict[str, Any] = {
            "os": os_name,
            "architecture": architecture,
            **({"variant": variant} if variant else {}),
        }
        document |= {"config": {}, "rootfs": {"type": "layers", "diff_ids": list(diff_ids)}, **(config or {})}
        config_bytes = json.dumps(document).encode()
        digests = [self.add_blob(x) for x in layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": self.add_blob(config_bytes), "size": len(config_bytes)},
            "layers": [
                {"mediaType": layer_type, "digest": d, "size": len(x)} for d, x in zip(digests, layers, strict=True)
            ],
        }
        manifest_bytes = json.dumps(manifest).encode()
        digest = self.add_manifest(repository, tag, manifest_bytes)
        return AddedImage(digest, manifest_bytes, digest_of(config_bytes), config_bytes, digests)

    def add_index(self, repository: str, tag: str | None, entries: Sequence[Mapping[str, Any]]) -> str:
        """Stores an OCI index over the given descriptors; returns its digest."""
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
        return self.add_manifest(repository, tag, document, OCI_INDEX)

    # What goes wrong

    def script(self, match: str, *faults: Fault, times: int = 1, method: str | None = None) -> None:
        """The next requests whose path contains ``match`` meet these faults, one each; ``times`` repeats the list."""
        with self.lock:
            self._rules.append(_Rule(match, method, list(faults) * times))

    def always(self, match: str, fault: Fault) -> None:
        """Every request whose path contains ``match`` meets this fault, once the scripted ones are used up."""
        self.script(match, fault, times=100_000)

    def set_total_rate(self, rate: float | None) -> None:
        """Bytes a second for all blob bodies together."""
        self.total_bucket = Bucket(rate) if rate else None

    def next_fault(self, request: Recorded) -> Fault | None:
        """Takes the fault for this request, if one is scripted."""
        with self.lock:
            for rule in self._rules:
                if rule.faults and rule.match in request.path and rule.method in (None, request.method):
                    return rule.faults.pop(0)
        return None

    def forget(self) -> None:
        """What was scripted and what was recorded; what is served stays."""
        with self.lock:
            self._rules.clear()
            self.requests.clear()
            self.sent.clear()

    # What was asked

    def bytes_sent(self, match: str = "/blobs/") -> int:
        """How many body bytes went out for the paths that contain ``match``."""
        with self.lock:
            return sum(count for path, count in self.sent.items() if match in path)

    def asked(self, match: str = "", method: str | None = None) -> list[Recorded]:
        """The requests so far whose path contains ``match``."""
        with self.lock:
            return [x for x in self.requests if match in x.path and method in (None, x.method)]

    def count(self, match: str = "", method: str | None = None) -> int:
        """How many there were."""
        return len(self.asked(match, method))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        family: socket.AddressFamily,
        registry: FaultRegistry,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.address_family = family
        self.registry = registry
        self.tls = tls
        self.numbers = 0
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        # On the connection's own thread, so that a slow or failing TLS hello holds up nobody else.
        connection = request
        if self.tls is not None:
            request.settimeout(10)
            connection = self.tls.wrap_socket(request, server_side=True)
            connection.settimeout(None)
        with self.registry.lock:
            self.registry.connections.append(connection)
            self.numbers += 1
        try:
            self.RequestHandlerClass(connection, client_address, self)
        finally:
            connection.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.registry = self.server.registry
        self.number = self.server.numbers
        rate = self.registry.connection_rate
        self.bucket = Bucket(rate) if rate else None

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at the recorded requests instead."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self.asked_path = unquote(parts.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Recorded(
            self.command, self.asked_path, parse_qs(parts.query, keep_blank_values=True), headers, body,
            self.number, time.monotonic(), headers.get("host", ""),
        )  # fmt: skip
        registry = self.registry
        with registry.lock:
            registry.requests.append(request)
        fault = registry.next_fault(request) or Fault()
        if fault.before:
            fault.before()
        if fault.delay:
            registry.stopping.wait(fault.delay)
        if fault.drop:
            self._reset()
            return
        if fault.redirect is not None:
            location = fault.redirect.replace("{path}", self.path)
            self._send(fault.redirect_status, [("Location", location)], b"", fault)
            return
        if fault.status is not None and fault.status not in (200, 206):
            self._send(fault.status, [("Content-Type", "application/json")], fault.body or b"", fault)
            return
        endpoint = registry.endpoints.get(parts.path)
        denied = endpoint(request) if endpoint else registry.authorize(request) if registry.authorize else None
        if denied is not None:
            content_type = [("Content-Type", "application/json")]
            self._send(denied.status or 200, content_type, denied.body or b"", denied)
            return
        self._serve(request, fault)

    def _serve(self, request: Recorded, fault: Fault) -> None:
        found = self._find(request.path)
        if found is None:
            code = "MANIFEST_UNKNOWN" if "/manifests/" in request.path else "BLOB_UNKNOWN"
            error = {"errors": [{"code": code, "message": "not here", "detail": {}}]}
            self._send(404, [("Content-Type", "application/json")], json.dumps(error).encode(), Fault())
            return
        data, headers, ranged = found
        if fault.body is not None:
            data = fault.body
        wanted = request.headers.get("range")
        status, start = fault.status or 200, 0
        if wanted and ranged and self.registry.accept_ranges and not fault.ignore_range:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) if last else len(data) - 1, len(data) - 1)
            if start >= len(data):
                self._send(416, [("Content-Range", f"bytes */{len(data)}")], b"", fault)
                return
            status = fault.status or 206
            headers.append(("Content-Range", f"bytes {start}-{end}/{len(data)}"))
            data = memoryview(data)[start : end + 1]  # type: ignore[assignment]
        self._send(status, headers, data, fault, limited=ranged)

    def _find(self, path: str) -> tuple[bytes, list[tuple[str, str]], bool] | None:
        registry = self.registry
        if path == "/v2/":
            return b"{}", [("Content-Type", "application/json")], False
        if path in registry.files:
            data, kind = registry.files[path]
            return data, [("Content-Type", kind)], True
        repository, _, digest = path.removeprefix("/v2/").rpartition("/blobs/")
        if repository and digest in registry.blobs:
            return registry.blobs[digest], [("Content-Type", OCTETS), ("Accept-Ranges", "bytes")], True
        repository, _, name = path.removeprefix("/v2/").rpartition("/manifests/")
        if (repository, name) in registry.manifests:
            data, media_type = registry.manifests[repository, name]
            headers = [("Content-Type", media_type)] if media_type else []
            if registry.digest_header:
                headers.append(("Docker-Content-Digest", digest_of(data)))
            return data, headers, False
        return None

    def _send(
        self, status: int, headers: list[tuple[str, str]], data: bytes, fault: Fault, *, limited: bool = False
    ) -> None:
        if fault.flip is not None:
            spoiled = bytearray(data)
            if spoiled:
                spoiled[min(fault.flip, len(spoiled) - 1)] ^= 0xFF
            data = bytes(spoiled)
        if fault.gzip:
            data = gzip.compress(bytes(data), 1)
            headers.append(("Content-Encoding", "gzip"))
        data = bytes(data) + fault.extra if fault.extra else data
        chunked = fault.chunked or fault.endless
        if chunked:
            headers.append(("Transfer-Encoding", "chunked"))
        else:
            length = len(data) if fault.content_length is None else fault.content_length
            headers.append(("Content-Length", str(length)))
        if fault.content_range is not None:
            headers = [x for x in headers if x[0] != "Content-Range"]
            if fault.content_range:
                headers.append(("Content-Range", fault.content_range))
        added = list(fault.headers.items() if isinstance(fault.headers, Mapping) else fault.headers)
        names = {name.lower() for name, _ in added}
        self.send_response(status)
        for name, value in [x for x in headers if x[0].lower() not in names] + added:
            self.send_header(name, value)
        if not self.registry.keep_alive:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(data, fault, chunked=chunked, limited=limited)

    def _send_body(self, data: bytes, fault: Fault, *, chunked: bool, limited: bool) -> None:
        buckets = [Bucket(fault.rate)] if fault.rate else []
        if limited:
            buckets += [x for x in (self.registry.total_bucket, self.bucket) if x]
        limit = min([x for x in (fault.cut_after, fault.end_after, fault.stall_after) if x is not None] or [len(data)])
        view, sent = memoryview(data), 0
        step = max(1, int(min(x._rate for x in buckets) / 20)) if buckets else 1 << 20
        while sent < min(limit, len(data)):
            piece = view[sent : min(sent + step, limit)]
            for bucket in buckets:
                bucket.take(len(piece))
            self._write(piece, chunked)
            sent += len(piece)
            with self.registry.lock:
                self.registry.sent[self.asked_path] += len(piece)
        while fault.endless and not self.registry.stopping.is_set():
            self._write(memoryview(bytes(1 << 16)), chunked)
        if fault.cut_after is not None:
            self._reset()
        elif fault.end_after is not None or (fault.content_length or 0) > len(data):
            self.close_connection = True
        elif fault.stall_after is not None:
            self.registry.stopping.wait(600)
            self.close_connection = True
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _write(self, piece: memoryview, chunked: bool) -> None:
        if chunked:
            self.wfile.write(b"%x\r\n" % len(piece))
        self.wfile.write(piece)
        if chunked:
            self.wfile.write(b"\r\n")

    def _reset(self) -> None:
        """Ends the connection the hard way: what was sent arrives, then "connection reset"."""
        self.close_connection = True
        time.sleep(0.02)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
