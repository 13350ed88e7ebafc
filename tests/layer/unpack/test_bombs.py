"""Small blobs that want much (A75): refused early, with little memory in the program and in the child that unpacks."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import program_environment
from tests.support.archive import END, directory, field, hdr, pax, reg
from tests.support.imagebuild import LayoutBuilder

GIB, MIB = 1 << 30, 1 << 20
ZEROS = gzip.compress(bytes(64 * MIB), 9, mtime=0)
# What the program's own process may take at most, and each child (bytes).
PARENT, CHILD = 100 * MIB, 50 * MIB

SCRIPT = """
import json, resource, sys
from msb_pull import ContentError, PullOptions, Store, pull_image
limits = {name: int(value) for name, value in (word.split("=") for word in sys.argv[3:])}
try:
    pull_image(f"oci:{sys.argv[2]}:1", Store.open(sys.argv[1]), PullOptions(name="localhost/bomb:1", **limits))
    said = "pulled"
except ContentError as error:
    said = f"{error.message} {error.hint or ''}"
# What getrusage says of this process begins with what the one that started it took.
with open("/proc/self/status") as status:
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(json.dumps([said, own << 10, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10]))
"""


def zeros(size: int) -> Iterator[bytes]:
    """Members of a gzip file that hold so many zeros, whole 64 MiB of them."""
    for _ in range(size // (64 * MIB)):
        yield ZEROS


def packed(*parts: bytes) -> bytes:
    return gzip.compress(b"".join(parts), 6, mtime=0)


def announced(size: int, **more) -> bytes:
    """A header alone that says how large what follows is."""
    block = hdr(b"huge", **more)
    block = block[:124] + field(size, 12) + block[136:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def repeated(entries: bytes, times: int) -> list[bytes]:
    return [packed(entries)] * times


ATTRIBUTES = pax(*((b"SCHILY.xattr.user.%d" % index, b"v" * 40) for index in range(12_000)))


def deep(number: int) -> bytes:
    """A file below nine hundred directories."""
    return pax((b"path", b"%d/" % number + b"dir/" * 900 + b"f")) + reg(b"f")


SPARSE = (b"GNU.sparse.map", b"0,512"), (b"GNU.sparse.size", b"%d" % (8 << 60))
# A zstd frame (RFC 8878) of two gibibytes of zeros, 128 KiB in each block of four bytes.
ZSTD_HEAD = b"\x28\xb5\x2f\xfd\0" + bytes([(31 - 10) << 3])
ZSTD_ZEROS = (1 << 1 | (128 << 10) << 3).to_bytes(3, "little") + b"\0"
BOMBS = {
    "10 GiB in one file": ([packed(announced(10 * GIB)), *zeros(10 * GIB)], "--max-layer-size"),
    "10 GiB in many files": ([packed(announced(64 * MIB)), ZEROS] * 160, "--max-layer-size"),
    "10 GiB after the end": ([packed(reg(b"f"), END), *zeros(10 * GIB)], "follow the end of the archive"),
    "a PAX header of 4 GiB": (
        [packed(announced(4 * GIB, typ=b"x")), *zeros(4 * GIB)],
        "extension header of 4294967296",
    ),
    "a long name of 4 GiB": ([packed(announced(4 * GIB, typ=b"L")), *zeros(4 * GIB)], "extension header of 4294967296"),
    "a sparse file of 8 EiB": ([packed(pax(*SPARSE), reg(b"s", b"x" * 512), END)], "--max-layer-size"),
    "10 million entries": (repeated(directory(b"d") * 50_000, 200), "--max-entries"),
    "a zstd window of 2 GiB": ([ZSTD_HEAD, ZSTD_ZEROS * (2 * GIB >> 17)], "--max-window"),
    "directories without entries": (
        [packed(*map(deep, range(100)), END)],
        "directories without an entry of their own than a layer may have",
    ),
    "attributes in a thousand headers": (repeated(ATTRIBUTES, 1000), "extension headers of more than"),
}


def image(folder: Path, parts: Sequence[bytes]) -> Path:
    """A layout whose layer is these members; nobody gets so far as to find that its diff_id is that of the blob."""
    layout = LayoutBuilder(folder)
    compressed = b"".join(parts)
    tars = [gzip.decompress(compressed)] if len(parts) == 1 else [compressed]
    layout.add(layout.image(tars, "gzip" if len(parts) == 1 else "plain"), "1")
    return layout.write()


def pull(tmp_path: Path, layout: Path, **limits: int) -> tuple[str, int, int]:
    words = [f"{name}={value}" for name, value in limits.items()]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "home"), str(layout), *words],
        env=program_environment(), capture_output=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr.decode()
    said, parent, child = json.loads(run.stdout)
    print(said[:90], parent >> 20, child >> 20)
    return said, parent, child


# Some take seconds of processor time, and minutes on a machine that is busy with other things.
@pytest.mark.timeout(320)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a75_bombs_are_refused_with_little_memory(tmp_path, bomb):
    """What follows the end of an archive used to be held until a thousand pieces of it had come."""
    parts, why = BOMBS[bomb]
    layout = image(tmp_path / "layout", parts)
    said, parent, child = pull(tmp_path, layout, max_layer_size=256 * MIB, max_entries=50_000)
    assert why in said
    assert parent < PARENT
    assert child < CHILD


@pytest.mark.timeout(620)
def test_a75_memory_does_not_grow_with_the_number_of_entries(tmp_path):
    peaks = []
    for count in (1_000, 20_000):
        entries = [directory(b"d"), *(reg(b"d/f%d" % (number % 500), b"x") for number in range(count)), END]
        layout = image(tmp_path / f"layout{count}", [packed(*entries)])
        said, parent, child = pull(tmp_path, layout, max_entries=1_000_000)
        assert said == "pulled"
        peaks.append((parent, child))
    assert peaks[1][0] < PARENT
    assert peaks[1][1] < min(CHILD, peaks[0][1] + 8 * MIB)
