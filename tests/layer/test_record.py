"""The record: from it and the directory comes the same tar stream again, byte for byte."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msb_pull.ground.errors import ContentError
from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.model import content_paths, expected_tree
from msb_pull.layer.proof.prove import ProofTask, prove
from msb_pull.layer.proof.standing import belongs_on
from msb_pull.layer.proof.stream import Listener, stream
from msb_pull.layer.record import Record
from msb_pull.layer.settle.settle import settle
from msb_pull.layer.tree.kept import Kept, keep_aside
from msb_pull.layer.unpack.unpack import UnpackOptions, unpack
from tests.support.archive import END, directory, hardlink, hdr, pax, reg, symlink, xattr


class Layer:
    """An archive unpacked with its record and notes."""

    def __init__(self, folder: Path, stream: bytes) -> None:
        self.tree, self.record = folder / "tree", folder / "record.tar"
        self.tree.mkdir(parents=True, mode=0o700)
        self.root = os.open(self.tree, os.O_RDONLY | os.O_DIRECTORY)
        with self.record.open("wb") as record:
            report = unpack(io.BytesIO(stream), self.root, record.fileno(), UnpackOptions())
        diff_id = "sha256:" + hashlib.sha256(stream).hexdigest()
        settled = settle(self.tree, report, [])
        self.kept = folder / "kept"
        keep_aside(self.tree, self.kept)
        Notes.of(report, settled.derived, diff_id=diff_id, tar_bytes=len(stream), chain="").save(folder / "notes")
        self.notes = Notes.load(folder / "notes")
        self.read = Record(self.record)
        self.nodes, self.lost = expected_tree(self.read, self.notes)

    def again(self) -> tuple[bytes, list[bytes]]:
        damaged: list[bytes] = []
        kept = Kept(str(self.kept))
        paths = content_paths(self.nodes)
        try:
            told = lambda path, expected, found: damaged.append(path)  # noqa: E731
            pieces = stream(self.read, self.root, paths, Listener(told), kept=kept)
            return b"".join(map(bytes, pieces)), damaged
        finally:
            kept.close()


@pytest.fixture
def make(tmp_path):
    made: list[Layer] = []

    def build(*parts: bytes, end: bytes = END) -> tuple[Layer, bytes]:
        stream = b"".join(parts) + end
        made.append(Layer(tmp_path / str(len(made)), stream))
        return made[-1], stream

    yield build
    for layer in made:
        os.close(layer.root)


def test_a_layer_of_everything_comes_back_byte_for_byte(make):
    layer, stream = make(
        directory(b"./"),
        directory(b"d", mtime=5),
        reg(b"d/f", b"content" * 300, mode=0o4755, uid=7),
        hardlink(b"d/h", b"d/f"),
        symlink(b"s", b"d"),
        reg(b"s/through", b"a symlink"),
        reg(b"implied/deep/f", b"x"),
        hdr(b"null", typ=b"3", major=1, minor=3),
        xattr(b"user.k", b"v"),
        reg(b"with", b"attribute"),
        pax((b"path", b"long/" * 40 + b"name")),
        reg(b"n", b"y" * 513),
        hdr(b".wh.gone"),
        reg(b"empty"),
        end=END + bytes(8192) + b"garbage",
    )
    assert layer.lost == 0
    assert layer.again() == (stream, [])


def test_a69_the_record_holds_no_content(make):
    layer, _ = make(reg(b"secret", b"needle" * 1000))
    assert b"needle" not in gzip.decompress(layer.record.read_bytes())


def test_entries_of_a_record_have_checksums_instead_of_content(make):
    layer, _ = make(reg(b"f", b"abc"), directory(b"d"), reg(b"e"))
    assert [(e.name, e.crc) for e in Record(layer.record).entries()] == [(b"f", 0x352441C2), (b"d", None), (b"e", None)]


def test_a_changed_file_is_named_and_the_rest_goes_on(make):
    layer, stream = make(reg(b"a", b"one"), reg(b"b", b"two"), reg(b"c", b"three"))
    (layer.tree / "b").write_bytes(b"owt")
    (layer.tree / "c").unlink()
    again, damaged = layer.again()
    assert damaged == [b"b", b"c"]
    assert len(again) == len(stream) and again != stream


def test_content_that_a_later_entry_replaced_is_counted_as_lost(make):
    layer, _ = make(reg(b"f", b"first"), reg(b"f", b"second"))
    assert layer.lost == 1
    kept, _ = make(reg(b"f", b"first"), hardlink(b"g", b"f"), reg(b"f", b"second"))
    assert kept.lost == 0
    assert kept.again()[1] == []


def test_a39_what_lies_with_the_hard_links_of_aufs_is_where_they_lead(make):
    """Verify used to call the link a file too many, since it looked for the file at its place in the end only."""
    layer, stream = make(
        *(reg(b".wh..wh.plnk/1.2", b"content"), hardlink(b"f", b".wh..wh.plnk/1.2")),
        *(hardlink(b"g", b".wh..wh.plnk/1.2"), reg(b".wh..wh.plnk/a/b"), reg(b".wh..wh.orph", b"")),
    )
    task = ProofTask(str(layer.tree), str(layer.record), str(layer.tree.parent / "notes"), layer.notes.diff_id, False)
    assert prove(task, lambda done, total, entries: None).damages == []
    assert layer.nodes[b"f"] is layer.nodes[b"g"]
    assert layer.again() == (stream, [])


def test_a_damaged_record_is_told(make):
    layer, _ = make(reg(b"f", b"x"))
    data = layer.record.read_bytes()
    for broken in (data[:-4], data[: len(data) // 2], b"no gzip at all", b""):
        layer.record.write_bytes(broken)
        with pytest.raises(ContentError):
            list(Record(layer.record).entries())


def test_a_record_of_no_layer_is_damaged_for_whoever_reads_it(tmp_path):
    """Its stream is sound, but a name in it climbs out of the layer."""
    path = tmp_path / "record"
    path.write_bytes(gzip.compress(directory(b"a/../..") + END))
    notes = Notes(diff_id="", tar_bytes=0, entries=0, content_bytes=0, chain="")
    with pytest.raises(ContentError, match="the record is damaged"):
        belongs_on(path, notes, [])
    with pytest.raises(ContentError, match="the record is damaged"):
        expected_tree(Record(path), notes)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_told_with_the_place():
    notes = Notes(diff_id="", tar_bytes=0, entries=0, content_bytes=0, chain="")
    with pytest.raises(OSError, match="No space left") as raised:
        notes.save(Path("/dev/full"))
    assert raised.value.filename == "/dev/full"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', "\xff", '{"version": 1, "diff_id": 5}'])
def test_damaged_notes_are_told(tmp_path, text):
    (tmp_path / "notes").write_text(text, encoding="latin-1")
    with pytest.raises(ContentError, match="notes of a layer are damaged"):
        Notes.load(tmp_path / "notes")


NAMES = st.sampled_from([b"a", b"b", b"d", b"d/a", b"d/b", b"d/e/f", b"l", b"l/x", b".wh.a", b"d/.wh..wh..opq"])
PARTS = st.lists(
    st.one_of(
        st.builds(reg, NAMES, st.binary(max_size=1500), uid=st.integers(0, 9)),
        st.builds(directory, NAMES, mode=st.sampled_from([0o755, 0o1777, 0o500])),
        st.builds(symlink, NAMES, st.sampled_from([b"d", b"/d/e", b"../..", b"missing", b"l"])),
        st.builds(hardlink, NAMES, NAMES),
        st.builds(hdr, NAMES, typ=st.sampled_from([b"3", b"4", b"6"])),
    ),
    max_size=8,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PARTS)
def test_any_layer_that_unpacks_comes_back(tmp_path_factory, parts):
    stream = b"".join(parts) + END
    try:
        layer = Layer(tmp_path_factory.mktemp("layer"), stream)
    except ContentError:
        return
    try:
        again, damaged = layer.again()
        assert damaged == []
        assert len(again) == len(stream)
        assert again == stream
    finally:
        os.close(layer.root)
