"""The record: the stream of a layer without its content, and what is said of a damaged one."""

from __future__ import annotations

import gzip

import pytest

from msb_pull.ground.errors import ContentError
from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.model import expected_tree
from msb_pull.layer.proof.standing import belongs_on
from msb_pull.layer.tar.record import Record
from tests.support.archive import END, directory, reg


def test_a69_the_record_holds_no_content(make):
    layer, _ = make(reg(b"secret", b"needle" * 1000))
    assert b"needle" not in gzip.decompress(layer.record.read_bytes())


def test_entries_of_a_record_have_checksums_instead_of_content(make):
    layer, _ = make(reg(b"f", b"abc"), directory(b"d"), reg(b"e"))
    assert [(e.name, e.crc) for e in Record(layer.record).entries()] == [(b"f", 0x352441C2), (b"d", None), (b"e", None)]


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
