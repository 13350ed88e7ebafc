"""docker-registry (CNCF distribution) as a real counterpart: plain, with passwords, tokens, TLS, or as a mirror.

    with RealRegistry(tmp_path / "storage") as registry:
        image = registry.push("acme/app", "1", [layer_bytes])

Several can serve the same storage one after the other: push to a plain one, pull from a guarded one. Needs the program
``docker-registry`` (Debian package of that name).
"""

from __future__ import annotations

import base64
import datetime
import json
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from tests.support.fault_auth import basic, errors
from tests.support.fault_registry import OCI_MANIFEST, AddedImage, Fault, FaultRegistry, Recorded
from tests.support.ports import free_port

PROGRAM = "docker-registry"
# bob's password is sesame (bcrypt, cost 5).
HTPASSWD = "bob:$2y$05$abcdefghijklmnopqrstuuKcS.CYWVYVaLiiCKrrc0A5s3mGesJ9O\n"
USER, PASSWORD = "bob", "sesame"


def installed() -> bool:
    """Whether the program is there."""
    return shutil.which(PROGRAM) is not None


class RealRegistry:
    """One running docker-registry; ``storage`` is made if need be.

    ``htpasswd``: only bob may. ``tokens``: only who shows a token of that service. ``tls``: (certificate, key) files.
    ``upstream``: address of a registry for which this one is a pull-through cache (read-only then).
    """

    def __init__(
        self,
        storage: Path,
        *,
        htpasswd: bool = False,
        tokens: TokenServer | None = None,
        tls: tuple[Path, Path] | None = None,
        upstream: str | None = None,
    ) -> None:
        storage.mkdir(parents=True, exist_ok=True)
        self.storage = storage
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self._folder = storage.parent / f"registry-{self.port}"
        self._folder.mkdir()
        config = self._config(htpasswd, tokens, tls, upstream)
        (self._folder / "config.yml").write_text(json.dumps(config))
        self.start()

    def __enter__(self) -> RealRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the program, again after :meth:`stop` if wanted: same port, same storage."""
        self._log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            [PROGRAM, "serve", str(self._folder / "config.yml")],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._wait()

    def stop(self) -> None:
        """Ends the program and every connection, at once."""
        self._process.kill()
        self._process.wait(10)
        self._log.close()

    def log(self) -> str:
        """What it has written so far, one line a request."""
        return (self._folder / "log").read_text(errors="replace")

    def push(self, repository: str, tag: str, layers: Sequence[bytes]) -> AddedImage:
        """Stores an image the way a client does."""
        with FaultRegistry() as maker:
            image = maker.add_image(repository, tag, layers)
            blobs = dict(maker.blobs)
        base = f"{self.url}/v2/{repository}"
        with requests.Session() as session:
            for digest, data in blobs.items():
                place = session.post(f"{base}/blobs/uploads/").headers["Location"]
                joint = "&" if "?" in place else "?"
                sent = session.put(f"{place}{joint}digest={quote(digest)}", data=data)
                assert sent.status_code == 201, sent.text
            kind = {"Content-Type": OCI_MANIFEST}
            sent = session.put(f"{base}/manifests/{tag}", data=image.manifest_bytes, headers=kind)
            assert sent.status_code == 201, sent.text
        return image

    def _config(
        self, htpasswd: bool, tokens: TokenServer | None, tls: tuple[Path, Path] | None, upstream: str | None
    ) -> dict[str, object]:
        http: dict[str, object] = {"addr": self.host}
        if tls:
            http["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        config: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}},
            "http": http,
        }
        if htpasswd:
            path = self._folder / "htpasswd"
            path.write_text(HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(path)}}
        if tokens:
            path = self._folder / "tokens.pem"
            path.write_bytes(tokens.certificate_pem)
            config["auth"] = {
                "token": {
                    "realm": f"{tokens.server.url}/token",
                    "service": tokens.service,
                    "issuer": tokens.issuer,
                    "rootcertbundle": str(path),
                }
            }
        if upstream:
            config["proxy"] = {"remoteurl": upstream}
        return config

    def _wait(self) -> None:
        for _ in range(200):
            if self._process.poll() is not None:
                raise RuntimeError(f"{PROGRAM} ended:\n{self.log()[-2000:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"{PROGRAM} does not listen:\n{self.log()[-2000:]}")


class TokenServer:
    """A token service whose signed tokens (RS256) docker-registry believes.

    Without ``users`` everybody gets a token. ``lifetime`` is real: the registry refuses the token afterwards.
    """

    service = "test.registry"
    issuer = "test.issuer"

    def __init__(self, server: FaultRegistry, *, users: dict[str, str] | None = None, lifetime: int = 300) -> None:
        self.server = server
        self.users = users
        self.lifetime = lifetime
        self.made = 0
        self._lock = threading.Lock()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._certificate = self._self_signed()
        self.certificate_pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        server.endpoints["/token"] = self._answer

    def _answer(self, request: Recorded) -> Fault:
        given = request.headers.get("authorization")
        if self.users is not None and given not in {basic(*pair) for pair in self.users.items()}:
            return Fault(status=401, body=errors("UNAUTHORIZED", "incorrect username or password"))
        with self._lock:
            self.made += 1
        scopes = [x.split(":") for x in request.query.get("scope", [])]
        access = [{"type": kind, "name": name, "actions": actions.split(",")} for kind, name, actions in scopes]
        return Fault(status=200, body=json.dumps({"token": self._sign(access), "expires_in": self.lifetime}).encode())

    def _sign(self, access: list[dict[str, object]]) -> str:
        now = int(time.time())
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": self.issuer, "sub": USER, "aud": self.service, "iat": now, "nbf": now - 5,
            "exp": now + self.lifetime, "jti": uuid.uuid4().hex, "access": access,
        }  # fmt: skip
        text = b".".join(_encoded(json.dumps(x).encode()) for x in (header, claims))
        return (text + b"." + _encoded(self._key.sign(text, padding.PKCS1v15(), hashes.SHA256()))).decode()

    def _self_signed(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens of a test")])
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
