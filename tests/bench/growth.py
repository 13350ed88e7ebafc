"""Measures how time and memory of a pull grow with entries, layers, file sizes and holes.

    python tests/bench/growth.py [entries] [layers] [sizes] [segments] [--most 1000000] [--rounds 1] [--out DIR]

Images are made on the way (OCI layouts in $RIG/store/growth, deleted afterwards) and pulled cold from there, so that no
network takes part. "To the step before" compares the CPU time per unit: 1.0 is linear. Elapsed time also holds the
disk's writing, which sets in when a few gigabytes wait to be written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shlex
import shutil
import sys
import tarfile
from pathlib import Path
from statistics import median

from isal import igzip_threaded
from measure import RIG, Run, measure, program, table, write

WORK = RIG / "store" / "growth"
ENTRIES = (1_000, 10_000, 100_000, 300_000, 1_000_000)
LAYERS = (1, 8, 32, 127)
SIZES = (1_000, 1_000_000, 100_000_000, 1_000_000_000, 5_000_000_000)
SEGMENTS = (1_000, 8_000, 64_000)
OCI = "application/vnd.oci.image"


class Hashed:
    """A file for writing that hashes what passes."""

    def __init__(self, out) -> None:
        self.out, self.digest, self.size = out, hashlib.sha256(), 0

    def write(self, data) -> int:
        self.digest.update(data)
        self.size += len(data)
        self.out.write(data)
        return len(data)

    def flush(self) -> None:
        self.out.flush()


class Zeroes:
    """A readable of 1 MiB blocks, of which the first 64 kB are noise: compresses to about a sixteenth."""

    block = random.Random(1).randbytes(64 << 10) + bytes((1 << 20) - (64 << 10))

    def read(self, size: int) -> bytes:
        return (self.block * (size // len(self.block) + 1))[:size]


def header(name: str, size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 1_700_000_000, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def small_files(out, count: int, start: int = 0) -> None:
    """``count`` files of 100 bytes, a thousand to a folder."""
    body = b"x" * 100 + bytes(412)
    for number in range(start, start + count):
        out.write(header(f"files/{number // 1000:04}/{number:07}", 100))
        out.write(body)


def one_file(out, size: int) -> None:
    out.write(header("file", size))
    source, left = Zeroes(), size
    while left:
        left -= out.write(source.read(min(left, 1 << 20)))
    out.write(bytes(-size % 512))


def sparse_files(out, segments: int, count: int = 20) -> None:
    """``count`` files of as many holes, with their maps before their bytes (GNU tar's manual, format 1.0)."""
    lines = b"%d\n" % segments + b"".join(b"%d\n1\n" % (2 * number + 1) for number in range(segments))
    body = lines + bytes(-len(lines) % 512) + b"x" * segments
    for number in range(count):
        info = tarfile.TarInfo(f"sparse{number}")
        info.size, info.mtime, info.mode = len(body), 1_700_000_000, 0o644
        info.pax_headers = {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": info.name,
            "GNU.sparse.realsize": str(2 * segments + 1),
        }  # fmt: skip
        out.write(info.tobuf(tarfile.PAX_FORMAT) + body + bytes(-len(body) % 512))


class Layout:
    """An OCI layout that grows layer by layer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.layers, self.diff_ids = folder, [], []
        (folder / "blobs" / "sha256").mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def layer(self, fill) -> None:
        """Adds a gzip layer whose tar stream ``fill`` writes."""
        path = self.folder / "layer.new"
        with open(path, "wb") as raw:
            blob = Hashed(raw)
            with igzip_threaded.open(blob, "wb", compresslevel=1, threads=1) as squeezed:
                plain = Hashed(squeezed)
                fill(plain)
                plain.write(bytes(1024))
        path.rename(self.folder / "blobs" / "sha256" / blob.digest.hexdigest())
        self.layers.append(descriptor(f"{OCI}.layer.v1.tar+gzip", blob.digest.hexdigest(), blob.size))
        self.diff_ids.append(f"sha256:{plain.digest.hexdigest()}")

    def document(self, value: dict, media_type: str) -> dict:
        data = json.dumps(value).encode()
        name = hashlib.sha256(data).hexdigest()
        (self.folder / "blobs" / "sha256" / name).write_bytes(data)
        return descriptor(media_type, name, len(data))

    def close(self) -> None:
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": self.diff_ids}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.document(config, f"{OCI}.config.v1+json"),
            "layers": self.layers,
        }
        found = self.document(manifest, f"{OCI}.manifest.v1+json")
        found["annotations"] = {"org.opencontainers.image.ref.name": "1"}
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [found]}))


def descriptor(media_type: str, name: str, size: int) -> dict:
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": size}


def make(axis: str, amount: int, folder: Path) -> None:
    layout = Layout(folder)
    if axis == "entries":
        layout.layer(lambda out: small_files(out, amount))
    elif axis == "layers":
        for number in range(amount):
            layout.layer(lambda out, number=number: small_files(out, 100, number * 1000))
    elif axis == "segments":
        layout.layer(lambda out: sparse_files(out, amount))
    else:
        layout.layer(lambda out: one_file(out, amount))
    layout.close()


def pull(axis: str, amount: int, number: int) -> Run:
    shutil.rmtree(WORK / "home", ignore_errors=True)
    command = [*program(), "pull", "-q", f"oci:{WORK}/layout:1", "--as", "growth:1", "--platform", "linux/amd64"]
    command += ["--home", str(WORK / "home")]
    run = measure(f"{amount:,} {axis}", "msb-pull", number, command, log=RIG / "logs" / "bench.log")
    print(f"{run.what:24} {run.seconds:8.2f} s, status {run.status}", file=sys.stderr, flush=True)
    return run


def grow(axis: str, steps: list[int], rounds: int) -> tuple[list[Run], str]:
    runs, rows, before = [], [], 0.0
    for amount in steps:
        shutil.rmtree(WORK, ignore_errors=True)
        make(axis, amount, WORK / "layout")
        own = [pull(axis, amount, number + 1) for number in range(rounds)]
        runs += own
        spent = median(x.cpu for x in own)
        each = spent / amount
        rows.append([
            own[0].what if all(x.status == 0 for x in own) else f"{own[0].what}: FAILED",
            f"{median(x.seconds for x in own):.2f}", f"{spent:.2f}", f"{each * 1e6:.4g}",
            f"{each / before:.2f}" if before else "",
            f"{max(x.largest_mib for x in own):.0f}", f"{max(x.tree_mib for x in own):.0f}",
        ])  # fmt: skip
        before = each
    shutil.rmtree(WORK, ignore_errors=True)
    head = [axis, "seconds", "CPU seconds", "CPU us per unit", "to the step before"]
    head += ["largest process MiB", "all processes MiB"]
    return runs, table(head, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    axes = {"entries": ENTRIES, "layers": LAYERS, "sizes": SIZES, "segments": SEGMENTS}
    parser.add_argument("axes", nargs="*", metavar="AXIS", help="entries, layers, sizes, segments; default: all")
    parser.add_argument("--most", type=int, default=None, help="leave out the steps above this amount")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RIG / "bench")
    options = parser.parse_args()
    runs, texts = [], []
    for axis in options.axes or axes:
        if axis not in axes:
            parser.error(f"unknown axis {shlex.quote(axis)}")
        found, text = grow(axis, [x for x in axes[axis] if not options.most or x <= options.most], options.rounds)
        runs += found
        texts.append(text)
    write(options.out, "growth", "\n\n".join(texts), runs)
    return 0 if all(x.status == 0 for x in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
