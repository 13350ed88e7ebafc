"""Where archives are ambiguous they are read as Go's archive/tar and GNU tar read them."""

from __future__ import annotations

import pytest

from msb_pull.layer.limits import LayerError
from tests.support.archive import directory, extract, field, hdr, pax, reg, symlink, tree
from tests.support.reading import gnu_long, names, one

GNU = b"ustar  \0"


def test_a_prefix_that_old_docker_wrote_over_the_times_of_a_gnu_header_counts(tmp_path):
    prefix = b"home/openshift/" + b"d" * 100
    header = hdr(b"file", uid=0x200000, magic=GNU, prefix=prefix)
    assert names(header) == [prefix + b"/file"]
    extract(tmp_path / "layer", header)
    assert prefix.decode() + "/file" in tree(tmp_path / "layer")


@pytest.mark.parametrize(
    "times",
    [
        field(1_700_000_000, 12) + field(1_700_000_001, 12),
        field(1_700_000_000, 12),
        field(1 << 40, 12) + field(-5, 12),
        b"caf\xe9" + b"d" * 60,
    ],
    ids=["octal", "atime alone", "base-256", "not ASCII"],
)
def test_the_times_of_a_gnu_header_are_no_prefix(times):
    assert names(hdr(b"file", magic=GNU, prefix=times)) == [b"file"]


def test_a_directory_without_a_name_is_the_top(tmp_path):
    report = extract(tmp_path / "layer", directory(b"", mode=0o700), reg(b"f", b"x"))
    assert tree(tmp_path / "layer") == {"f": "x"}
    assert report.entries == 2


@pytest.mark.parametrize("entry", [hdr(b""), hdr(b"", typ=b"6"), symlink(b"", b"x")], ids=["file", "fifo", "symlink"])
def test_what_is_no_directory_needs_a_name(tmp_path, entry):
    with pytest.raises(LayerError, match="the name is empty"):
        extract(tmp_path / "layer", entry)


def test_the_last_of_two_extended_headers_replaces_the_earlier():
    assert names(pax((b"path", b"one/path")), pax((b"mtime", b"1")), reg(b"real", b"x")) == [b"real"]
    entry, _ = one(pax((b"SCHILY.xattr.user.a", b"1"), (b"uid", b"7")), pax((b"SCHILY.xattr.user.b", b"2")), hdr(b"f"))
    assert (entry.xattrs, entry.uid) == ({b"user.b": b"2"}, 0)


def test_the_last_of_two_sparse_maps_replaces_the_earlier():
    first = pax((b"GNU.sparse.map", b"0,3"), (b"GNU.sparse.size", b"9"))
    second = pax((b"GNU.sparse.map", b"2,3"), (b"GNU.sparse.size", b"5"))
    entry, _ = one(first, second, reg(b"f", b"abc"))
    assert (entry.size, entry.sparse) == (5, ((2, 3),))


def test_the_last_of_two_long_names_counts_and_an_empty_one_says_nothing():
    assert names(gnu_long(b"one"), gnu_long(b"two"), hdr(b"f")) == [b"two"]
    assert names(gnu_long(b""), hdr(b"f")) == [b"f"]
    assert one(gnu_long(b"", b"K"), symlink(b"s", b"there"))[0].linkname == b"there"


def test_an_empty_record_takes_back_an_earlier_one_of_the_same_header():
    records = ((b"path", b"p"), (b"uid", b"7"), (b"mtime", b"1"), (b"path", b""), (b"uid", b""), (b"mtime", b""))
    entry, _ = one(pax(*records), hdr(b"f", uid=5, mtime=9))
    assert (entry.name, entry.uid, entry.mtime_ns) == (b"f", 5, 9_000_000_000)
