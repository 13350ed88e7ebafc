"""The installed program with eight layers under way when the token ends: one new token for each expiry, for all."""

from __future__ import annotations

import gzip
import random
import subprocess
import threading

from tests.conftest import program, program_environment
from tests.support.fault_auth import TokenService
from tests.support.fault_registry import Fault, FaultRegistry
from tests.support.home import LINUX
from tests.support.make_sample import file, layer_tar

LAYERS = 8
EXPIRIES = 3


def test_eight_threads_and_an_expiring_token_make_one_refresh_for_each_expiry(tmp_path):
    """All eight requests stand at the registry when the token ends, again and again, each time further on in a blob."""
    contents = [random.Random(n).randbytes(60_000) for n in range(LAYERS)]
    layers = [gzip.compress(layer_tar([file(f"layer{n}", data)]), 6, mtime=0) for n, data in enumerate(contents)]
    with FaultRegistry() as registry:
        image = registry.add_image("acme/app", "1", layers)
        tokens = TokenService(registry)
        # A slow token service, so that whoever wants a token of its own has the time to ask for it.
        registry.always("/token", Fault(delay=0.2))
        gates = [threading.Barrier(LAYERS, action=tokens.revoke, timeout=30) for _ in range(EXPIRIES)]
        for digest in image.layer_digests:
            for gate in gates:
                # Held until all eight are here and the token has ended; then refused, asked again, and ended early.
                registry.script(digest, Fault(before=gate.wait), Fault(end_after=15_000))
        name = f"{registry.host}/acme/app:1"
        run = subprocess.run(
            [*program(), "pull", "-q", "-j", str(LAYERS), *LINUX, "--home", str(tmp_path / "store"), name],
            env=program_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert (run.returncode, run.stdout) == (0, f"{name}@{image.manifest_digest}\n"), run.stderr
        assert not any(gate.broken for gate in gates)
        assert tokens.made == 1 + EXPIRIES
        assert registry.count("/token") == 1 + EXPIRIES
        for digest in image.layer_digests:
            asked = registry.asked(digest)
            # Each time one request with the old token, the same again with the new one, and at last the rest.
            assert len(asked) == 2 * EXPIRIES + 1
            assert len({x.headers["authorization"] for x in asked}) == 1 + EXPIRIES
            ranges = [x.headers.get("range") for x in asked]
            assert ranges == [None, None, *(f"bytes={15_000 * (n // 2 + 1)}-" for n in range(2 * EXPIRIES - 1))]
        for digest, data, number in zip(image.layer_digests, contents, range(LAYERS), strict=True):
            tree = tmp_path / "store/layers" / f"{digest}.extracted"
            assert (tree / f"layer{number}").read_bytes() == data
