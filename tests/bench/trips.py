"""Measures pulls of small images from a distant registry, where round trips are all that counts.

    python tests/bench/trips.py [--rtt 0.1] [--rounds 5] [--layers 20] [--jobs N] [--token] [--podman]

A registry on the loopback answers each request, and each new connection, one round trip late. Three images of as many
small layers are pulled by one command and by one command each, and one image of one layer alone: how many round trips
its pull takes, start included. With ``--token`` it wants a token, which it gives to anybody; with ``--podman`` that one
image is pulled by podman, too, as root. Wanted: nothing but msb-pull, and podman.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

from measure import machine, measure, program

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Distant(ThreadingHTTPServer):
    """Serves ``answers`` (path to media type and body); a round trip takes ``rtt`` seconds."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, rtt: float, *, token: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.rtt = rtt
        self.token = token
        self.answers: dict[str, tuple[str, bytes]] = {"/v2/": ("application/json", b"{}")}
        self.answers["/token"] = "application/json", b'{"token": "anybody"}'
        self.host = f"127.0.0.1:{self.server_port}"

    def add_blob(self, data: bytes, media_type: str = "application/octet-stream") -> dict:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.answers[f"/v2/app/blobs/{digest}"] = media_type, data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def add_image(self, tag: str, tars: list[bytes]) -> None:
        diff_ids = ["sha256:" + hashlib.sha256(tar).hexdigest() for tar in tars]
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        layers = [self.add_blob(gzip.compress(tar), "application/vnd.oci.image.layer.v1.tar+gzip") for tar in tars]
        described = self.add_blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers}
        self.answers[f"/v2/app/manifests/{tag}"] = MANIFEST, json.dumps(manifest).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else the second packet of an answer waits for 40 ms until the first one is acknowledged.
    disable_nagle_algorithm = True
    server: Distant

    def setup(self) -> None:
        time.sleep(self.server.rtt)
        super().setup()

    def do_GET(self) -> None:
        time.sleep(self.server.rtt)
        path = self.path.partition("?")[0]
        kind, body = self.server.answers.get(path, ("text/plain", b""))
        if self.server.token and path != "/token" and "Authorization" not in self.headers:
            self.send_response(401)
            self.send_header("WWW-Authenticate", f'Bearer realm="http://{self.server.host}/token",service="here"')
        else:
            self.send_response(200 if path in self.server.answers else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Nobody reads it."""


def small_layer(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 1000
        archive.addfile(entry, io.BytesIO(name.encode().ljust(1000)))
    return buffer.getvalue()


def pull(registry: Distant, tags: list[str], apart: bool, words: list[str]) -> float:
    """Seconds for all of them, by one command or by one each."""
    home = tempfile.mkdtemp()
    commands = [[tag] for tag in tags] if apart else [tags]
    seconds = 0.0
    for command in commands:
        images = [f"{registry.host}/app:{tag}" for tag in command]
        argv = [*program(), "pull", "-q", "--platform", "linux/amd64", "--home", home, *words, *images]
        run = measure("trips", "msb-pull", 0, argv, log=Path(home) / "log", quiet=0)
        assert run.status == 0, (Path(home) / "log").read_text()
        seconds += run.seconds
    shutil.rmtree(home)
    return seconds


def podman(registry: Distant, tag: str) -> float:
    """Seconds for one image into an empty storage."""
    home = tempfile.mkdtemp()
    places = [f"--root={home}/s", f"--runroot={home}/r", f"--tmpdir={home}/t", "--storage-driver=vfs"]
    argv = ["podman", *places, "pull", "-q", "--tls-verify=false", f"{registry.host}/app:{tag}"]
    run = measure("trips", "podman", 0, argv, log=Path(home) / "log", quiet=0)
    assert run.status == 0, (Path(home) / "log").read_text()
    shutil.rmtree(home)
    return run.seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rtt", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--jobs")
    parser.add_argument("--token", action="store_true")
    parser.add_argument("--podman", action="store_true")
    options = parser.parse_args()
    words = ["--jobs", options.jobs] if options.jobs else []
    registry = Distant(options.rtt, token=options.token)
    for tag in "abc":
        registry.add_image(tag, [small_layer(f"{tag}{number}") for number in range(options.layers)])
    registry.add_image("one", [small_layer("one")])
    threading.Thread(target=registry.serve_forever, daemon=True).start()
    print(machine())
    found = [
        (
            pull(registry, [*"abc"], True, words),
            pull(registry, [*"abc"], False, words),
            pull(registry, ["one"], False, words),
            podman(registry, "one") if options.podman else 0.0,
        )
        for _ in range(options.rounds)
    ]
    apart, together, one, other = (median(column) for column in zip(*found, strict=True))
    ratio = median(row[0] / row[1] for row in found)
    what = f"3 images of {options.layers} small layers"
    print(f"{what}: one after the other {apart:.2f} s, together {together:.2f} s, {ratio:.2f} x")
    print(f"1 image of 1 layer: {one:.2f} s, {one / options.rtt:.1f} round trips with the start")
    if options.podman:
        print(f"podman: {other:.2f} s, {other / options.rtt:.1f} round trips with the start")


if __name__ == "__main__":
    main()
