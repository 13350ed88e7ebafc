"""Archives of images with sparse members, as `tar -S` and bsdtar write them where a layout has holes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from msb_pull.ground.errors import ContentError
from msb_pull.ground.pax import BadRecord
from msb_pull.ground.tarfields import BadField
from msb_pull.source.local.files import Extent, FileBlob, Piece
from msb_pull.source.local.tarindex import read_sparse
from tests.conftest import need
from tests.support.imagebuild import DockerImage, LayoutBuilder, archive_bytes, docker_archive, regular
from tests.support.local_images import read

MIB = 1 << 20
# Zeros at the beginning, in the middle and at the end, and more than four pieces of content.
CONTENT = bytes(MIB) + b"".join(bytes([number]) * 70_000 + bytes(MIB - 70_000) for number in range(1, 31)) + b"end"
TARS = [archive_bytes([regular("holes", CONTENT)]), archive_bytes([regular("zeros", bytes(5 * MIB))])]
WRITERS = {
    "bsdtar": ["bsdtar", "-cf"],
    "gnu": ["tar", "--format=gnu", "-Scf"],
    "pax 0.0": ["tar", "--format=pax", "--sparse-version=0.0", "-Scf"],
    "pax 0.1": ["tar", "--format=pax", "--sparse-version=0.1", "-Scf"],
    "pax 1.0": ["tar", "--format=pax", "--sparse-version=1.0", "-Scf"],
}


def dig_holes(folder: Path) -> None:
    """Makes every block of zeros a hole."""
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            with path.open("wb") as file:
                for at in range(0, len(data), 4096):
                    if data[at : at + 4096].strip(b"\0"):
                        file.seek(at)
                        file.write(data[at : at + 4096])
                file.truncate(len(data))


def packed(folder: Path, archive: Path, writer: str) -> Path:
    command = WRITERS[writer]
    need(command[0])
    if command[0] == "tar" and not sys.platform.startswith("linux"):
        pytest.skip("the system's tar is not GNU's")
    dig_holes(folder)
    subprocess.run([*command, str(archive), "-C", str(folder), *sorted(os.listdir(folder))], check=True, timeout=60)
    # What is to be tested is there: the holes are not stored.
    assert archive.stat().st_size < sum(map(len, TARS)) / 2
    return archive


@pytest.fixture
def layout(tmp_path) -> Path:
    builder = LayoutBuilder(tmp_path / "layout")
    builder.add(builder.image(TARS, "plain"), "1")
    builder.write()
    return builder.folder


@pytest.fixture
def docker(tmp_path) -> Path:
    archive = docker_archive(tmp_path / "plain.tar", DockerImage(TARS, ["made/here:1"]))
    folder = tmp_path / "docker"
    folder.mkdir()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True, timeout=60)
    return folder


@pytest.mark.parametrize("writer", WRITERS)
def test_a_layout_with_holes(local, layout, tmp_path, writer):
    archive = packed(layout, tmp_path / "image.tar", writer)
    assert local.layers(f"oci-archive:{archive}") == TARS


@pytest.mark.parametrize("writer", WRITERS)
def test_what_docker_saved_and_somebody_packed_anew(local, docker, tmp_path, writer):
    archive = packed(docker, tmp_path / "image.tar", writer)
    assert local.layers(f"docker-archive:{archive}") == TARS


@pytest.mark.parametrize("writer", WRITERS)
def test_from_standard_input(local, layout, tmp_path, writer, monkeypatch):
    archive = packed(layout, tmp_path / "image.tar", writer)
    with archive.open("rb") as file:
        saved = os.dup(0)
        os.dup2(file.fileno(), 0)
        try:
            assert local.layers("oci-archive:-") == TARS
        finally:
            os.dup2(saved, 0)
            os.close(saved)


def test_a_layer_is_read_on_from_any_byte(local, layout, tmp_path):
    archive = packed(layout, tmp_path / "image.tar", "pax 1.0")
    resolved = local.resolve(f"oci-archive:{archive}", "made/here:1")
    descriptor = resolved.manifest.layers[0]
    for offset in (1, 512, MIB - 1, MIB + 70_000, 3 * MIB + 7, len(TARS[0]) - 1, len(TARS[0])):
        assert read(local.opened[-1], descriptor, offset, size=99_991) == TARS[0][offset:]


def test_pieces_in_any_place_and_reads_of_any_size(tmp_path):
    chance = random.Random(5)
    file = tmp_path / "file"
    file.write_bytes(chance.randbytes(5000))
    for _ in range(200):
        marks = sorted(chance.sample(range(6000), 8))
        pieces = [Piece(a, chance.randrange(5000 - (b - a)) if b - a < 5000 else 0, b - a)
                  for a, b in zip(marks[::2], marks[1::2], strict=True) if b - a < 5000]  # fmt: skip
        expected = bytearray(6500)
        for piece in pieces:
            expected[piece.at : piece.at + piece.size] = file.read_bytes()[piece.start : piece.start + piece.size]
        offset = chance.randrange(6501)
        found = b""
        with FileBlob(Extent(os.open(file, os.O_RDONLY), tuple(pieces), 6500), "it", offset) as blob:
            while chunk := blob.read(chance.randrange(1, 3000)):
                found += chunk
        assert found == bytes(expected[offset:])


# Maps that make no sense


def old_header(pairs: list[tuple[int, int]], size: int, more: int = 0) -> bytes:
    fields = b"".join(b"%011o\0%011o\0" % pair for pair in pairs).ljust(96, b"\0")
    return bytes(156) + b"S" + bytes(386 - 157) + fields + bytes([more]) + b"%011o\0" % size + bytes(17)


def look(header: bytes = bytes(512), pax: tuple[tuple[bytes, bytes], ...] = (), stored: int = 0, content: bytes = b""):
    return read_sparse(header, pax, 0, stored, lambda at, size: content[at : at + size])


def first(**fields: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((b"GNU.sparse." + name.encode(), value) for name, value in fields.items())


LATEST = first(major=b"1", minor=b"0", realsize=b"100")


def test_an_ordinary_member_has_no_map():
    assert look() is None


def test_all_of_it_may_be_a_hole():
    for found in (look(old_header([], 100)), look(pax=first(size=b"100")), look(pax=first(size=b"100", map=b"100,0"))):
        assert (found.size, found.pieces) == (100, ())


@pytest.mark.parametrize(
    "wrong",
    [
        {"header": old_header([(0, 10)], 5), "stored": 10},
        {"header": old_header([(0, 10)], 10), "stored": 5},
        {"header": old_header([(0, 10)], 100), "stored": 50},
        {"header": old_header([(10, 10), (0, 10)], 100), "stored": 20},
        {"header": old_header([(0, 10), (5, 10)], 100), "stored": 20},
        {"header": old_header([], 1 << 32)[:483] + b"\x80" + b"\xff" * 11 + bytes(17)},
        {"header": old_header([], 5, more=1)},
        {"header": old_header([], 5, more=1), "content": (bytes(504) + b"\1" + bytes(7)) * 10},
        {"header": old_header([], 5)[:386] + b"x" * 24 + old_header([], 5)[410:]},
        {"pax": first(size=b"100", map=b"0,10,")}, {"pax": first(size=b"100", map=b"0")},
        {"pax": first(size=b"100", map=b"-1,1"), "stored": 1}, {"pax": first(map=b"0,1"), "stored": 1},
        {"pax": first(size=b"9" * 30)}, {"pax": first(size=b"2000000000000")},
        {"pax": first(major=b"2", minor=b"0", realsize=b"1")},
        {"pax": LATEST}, {"pax": LATEST, "stored": 512, "content": bytes(512)},
        {"pax": LATEST, "stored": 512, "content": b"1\n0\n".ljust(512, b"\0")},
        {"pax": LATEST, "stored": 512, "content": b"9999999\n0\n".ljust(512, b"\0")},
        {"pax": LATEST, "stored": 612, "content": b"1\n0\n200\n".ljust(612, b"\0")},
        {"pax": LATEST, "stored": 100, "content": b"1\n0\n0\n".ljust(100, b"\0")},
        {"pax": first(major=b"1", minor=b"0"), "stored": 512, "content": b"0\n".ljust(512, b"\0")},
    ],
)  # fmt: skip
def test_a_map_that_makes_no_sense(wrong):
    with pytest.raises((BadRecord, BadField), match=r"sparse (map|size|format)|number in its header"):
        look(**wrong)


def test_a_map_without_end_is_read_to_a_limit_only():
    asked = []

    def endless(at: int, size: int) -> bytes:
        asked.append(size)
        return bytes(504) + b"\1" + bytes(7)

    with pytest.raises(BadRecord):
        read_sparse(old_header([], 5, more=1), (), 0, 0, endless)
    assert len(asked) < 10_000
    asked.clear()

    def lines(at: int, size: int) -> bytes:
        asked.append(size)
        return b"100000\n" + b"1" * (size - 7)

    with pytest.raises(BadRecord):
        read_sparse(bytes(512), LATEST, 0, 1 << 40, lines)
    assert sum(asked) <= 1 << 22


def test_a_bad_map_names_the_archive(local, layout, tmp_path):
    archive = packed(layout, tmp_path / "image.tar", "pax 0.1")
    data = archive.read_bytes()
    at = data.index(b"GNU.sparse.map=") + len(b"GNU.sparse.map=")
    archive.write_bytes(data[:at] + b"x" + data[at + 1 :])
    said = local.refused(ContentError, f"oci-archive:{archive}")
    assert said.startswith(f"oci-archive:{archive}: the archive is damaged: the sparse member at byte ")
