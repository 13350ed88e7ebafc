"""The strict reader: odd archives are read as Go reads them, broken ones are refused with a reason."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msb_pull.ground.limits import Limits
from msb_pull.layer.limits import LayerError
from msb_pull.layer.tar.entry import DIR, REG
from msb_pull.layer.tar.tar import TarReader
from tests.support.archive import END, directory, field, hardlink, hdr, pax, reg, symlink
from tests.support.counting import steps
from tests.support.reading import gnu_long, names, one, read


def refused(*parts: bytes, match: str, **options) -> LayerError:
    with pytest.raises(LayerError, match=match) as caught:
        read(*parts, **options)
    return caught.value


def patched(block: bytes, at: int, value: bytes) -> bytes:
    """A header with some bytes replaced and its checksum made right again."""
    block = block[:at] + value + block[at + len(value) :]
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block[:512]) + block[156:]


@pytest.mark.parametrize("step", [1, 7, 511, 512, 513, 1 << 20])
def test_pieces_of_any_size_give_the_same(step):
    found, reader = read(directory(b"d"), reg(b"d/f", b"x" * 1300), symlink(b"l", b"d"), reg(b"e"), step=step)
    assert [(e.name, e.type, data) for e, data in found] == [
        (b"d", ord("5"), b""),
        (b"d/f", ord("0"), b"x" * 1300),
        (b"l", ord("2"), b""),
        (b"e", ord("0"), b""),
    ]
    assert (reader.entries, reader.content_bytes) == (4, 1300)


def test_an_unread_payload_is_passed_over():
    reader = TarReader(io.BytesIO(reg(b"a", b"x" * 3_000_000) + reg(b"b") + END), limits=Limits())
    reader.next()
    assert reader.next().name == b"b"


# Owners (A48, E10, E12)


def test_a48_owners_from_base_256_and_pax():
    assert one(hdr(b"f", uid=3_000_000_000))[0].uid == 3_000_000_000
    assert one(pax((b"uid", b"77")), hdr(b"f", uid=5))[0].uid == 77
    assert one(pax((b"gid", b"4294967295")), hdr(b"f"))[0].gid == (1 << 32) - 1


def test_a48_an_empty_pax_owner_means_the_header_and_a_malformed_one_nothing():
    assert one(pax((b"uid", b"")), hdr(b"f", uid=5))[0].uid == 5
    for value in (b"abc", b"-1", b"1_0", b" 1", b"0x1", b"1.0"):
        refused(pax((b"uid", value)), hdr(b"f", uid=5), match="malformed")


@pytest.mark.parametrize("uid", [-1, 1 << 32, 1 << 40])
def test_e10_owners_that_no_reader_takes_are_refused(uid):
    refused(hdr(b"f", uid=uid), match="out of range")
    if uid > 0:
        refused(pax((b"uid", b"%d" % uid)), hdr(b"f"), match="out of range")


def test_e12_type_bits_in_the_mode_do_not_count():
    entry, _ = one(hdr(b"d", typ=b"5", mode=0o100644))
    assert (entry.type, entry.mode) == (DIR, 0o644)


# Names (A54 to A58, A8)


def test_a54_long_names_in_every_form_and_pax_wins():
    long = b"d/" * 80 + b"f"
    assert names(gnu_long(long), hdr(b"short")) == [long]
    assert names(pax((b"path", b"PPP")), hdr(b"short")) == [b"PPP"]
    assert names(gnu_long(b"LLL"), pax((b"path", b"PPP")), hdr(b"x")) == [b"PPP"]
    assert names(pax((b"path", b"PPP")), gnu_long(b"LLL"), hdr(b"x")) == [b"PPP"]
    assert names(patched(hdr(b"f"), 345, b"some/dir")) == [b"some/dir/f"]
    entry, _ = one(gnu_long(b"t" * 200, b"K"), symlink(b"s", b"x"))
    assert entry.linkname == b"t" * 200


def test_a54_extensions_of_one_entry_do_not_reach_the_next():
    assert names(gnu_long(b"LLL"), hdr(b"a"), hdr(b"b")) == [b"LLL", b"b"]


def test_a55_star_ends_its_prefix_earlier():
    block = patched(patched(hdr(b"f"), 345, b"p" * 140), 508, b"tar\0")
    assert names(block) == [b"p" * 131 + b"/f"]


def test_a56_names_are_bytes():
    assert names(hdr(b"caf\xe9"), pax((b"path", b"\xff\xfe")), hdr(b"x")) == [b"caf\xe9", b"\xff\xfe"]


def test_a57_unicode_twins_are_two_names():
    assert names(hdr("é".encode()), hdr("e\u0301".encode())) == ["é".encode(), "e\u0301".encode()]


def test_a58_global_headers_are_passed_over():
    block = pax((b"uid", b"77"), (b"path", b"evil"))
    entry, _ = one(patched(block[:512], 156, b"g") + block[512:], hdr(b"f", uid=5))
    assert (entry.name, entry.uid) == (b"f", 5)


def test_a8_nul_in_a_pax_name_is_refused():
    refused(pax((b"path", b"a\0b")), hdr(b"f"), match="NUL")
    refused(pax((b"linkpath", b"a\0b")), symlink(b"s", b"x"), match="NUL")


@pytest.mark.parametrize(
    "body", [b"5 a=b\n", b"x a=b\n", b"99 path=f\n", b"11 path=f\n", b"9 path=f\n\n", b"6 =ab\n", b"8 abcd\n "]
)
def test_malformed_extended_headers_are_refused(body):
    block = hdr(b"x", typ=b"x", size=len(body)) + body + bytes(-len(body) % 512)
    refused(block, hdr(b"f"), match="malformed")


# Attributes (A51)


def test_a51_attributes_hold_any_bytes():
    value = b"\xff\0\n=x"
    entry, _ = one(pax((b"SCHILY.xattr.user.a", value), (b"SCHILY.xattr.security.capability", b"\1")), hdr(b"f"))
    assert entry.xattrs == {b"user.a": value, b"security.capability": b"\1"}


def test_a51_the_name_ends_at_the_first_equals_sign():
    assert one(pax((b"SCHILY.xattr.user.k", b"=v")), hdr(b"f"))[0].xattrs == {b"user.k": b"=v"}
    assert one(pax((b"LIBARCHIVE.xattr.user.k", b"dg==")), hdr(b"f"))[0].xattrs is None


def test_a49_malformed_times_are_refused():
    for value in (b"abc", b"1e400", b"NaN", b"--1", b"1.x", b"1 "):
        refused(pax((b"mtime", value)), hdr(b"f"), match="malformed")
    assert one(pax((b"mtime", b"1700000000.123456789")), hdr(b"f"))[0].mtime_ns == 1_700_000_000_123_456_789


# Sparse files (A59, A60)


def sparse_1_0(realsize: int, pairs, data: bytes, name: bytes = b"GNUSparseFile.0/f") -> bytes:
    table = b"%d\n" % len(pairs) + b"".join(b"%d\n%d\n" % pair for pair in pairs)
    body = table + bytes(-len(table) % 512) + data
    before = pax(
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"real/name"),
        (b"GNU.sparse.realsize", b"%d" % realsize),
    )
    return before + reg(name, body)


def gnu_sparse(realsize: int, pairs, data: bytes) -> bytes:
    block = hdr(b"f", typ=b"S", size=len(data))
    table = b"".join(field(offset, 12) + field(length, 12) for offset, length in pairs[:4])
    block = patched(patched(block, 257, b"ustar  \0"), 386, table.ljust(96, b"\0"))
    block = patched(block, 483, field(realsize, 12))
    if len(pairs) > 4:
        block = patched(block, 482, b"\1")
        more = b"".join(field(offset, 12) + field(length, 12) for offset, length in pairs[4:])
        block += more.ljust(512, b"\0")
    return block + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    "version",
    [
        [(b"GNU.sparse.major", b"1")],
        [(b"GNU.sparse.minor", b"0")],
        [(b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"2"), (b"GNU.sparse.map", b"0,3")],
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"1")],
        [(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")],
    ],
)
def test_a60_half_a_sparse_version_is_refused(version):
    """Go and Python take such a file for a plain one, GNU tar for a sparse one."""
    body = b"1\n0\n3\n".ljust(512, b"\0") + b"abc"
    refused(pax(*version, (b"GNU.sparse.realsize", b"3")) + reg(b"f", body), match="sparse format is unknown")


def test_a60_the_sparse_map_of_an_old_directory_is_not_that_of_the_next_file():
    """Found by fuzzing: type NUL with a slash at the end is a directory, and the file after it was read as sparse."""
    one = (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"600")
    following = reg(b"f", b"1\n0\n3\n".ljust(512, b"\0") + b"abc")
    refused(pax(*one) + hdr(b"d/", typ=b"\0") + following, match="directory with a sparse map")
    refused(pax(*one, (b"GNU.sparse.name", b"d/")) + hdr(b"d", typ=b"\0") + following, match="sparse map")


@pytest.mark.parametrize("typ", [b"1", b"2", b"5", b"6", b"S"])
def test_a60_a_sparse_map_for_what_is_no_file_is_refused(typ):
    """Found by fuzzing: some readers look for its data, others pass over it."""
    header = pax((b"GNU.sparse.map", b"0,3"), (b"GNU.sparse.size", b"3"))
    refused(header + hdr(b"d", typ=typ, link=b"x"), match="other than a regular file")


def test_a60_a_sparse_size_without_a_map_is_refused():
    """Found by fuzzing: nothing, zeros, or what follows, as readers go."""
    refused(pax((b"GNU.sparse.realsize", b"600")) + hdr(b"f"), match="sparse map is missing")


@pytest.mark.parametrize("count", [2, 6])
def test_a59_a60_every_sparse_format_gives_the_same_map(count):
    pairs = [(number * 4096, 512) for number in range(count)]
    data, size = b"s" * 512 * count, 2 << 30
    listed = b",".join(b"%d,%d" % pair for pair in pairs)
    records = [r for o, n in pairs for r in ((b"GNU.sparse.offset", b"%d" % o), (b"GNU.sparse.numbytes", b"%d" % n))]
    archives = {
        "gnu": gnu_sparse(size, pairs, data),
        "0.0": pax((b"GNU.sparse.size", b"%d" % size), *records) + reg(b"f", data),
        "0.1": pax((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.map", listed)) + reg(b"f", data),
        "1.0": sparse_1_0(size, pairs, data),
    }
    for form, archive in archives.items():
        entry, payload = one(archive)
        assert (entry.size, entry.stored, entry.sparse) == (size, len(data), tuple(pairs)), form
        assert payload == data
        assert entry.name == (b"real/name" if form == "1.0" else b"f")


@pytest.mark.parametrize(
    "pairs",
    [[(0, 512), (256, 512)], [(4096, 512), (0, 512)], [(0, 1 << 40), (1 << 40, 0)], [(9000, 1024)]],
)
def test_a59_overlapping_and_leaving_maps_are_refused(pairs):
    refused(sparse_1_0(9216, pairs, b"s" * 1024), match="sparse map")
    refused(gnu_sparse(9216, pairs, b"s" * 1024), match="sparse map")


def test_a59_a75_holes_count_as_content():
    refused(sparse_1_0(8 << 60, [(0, 512)], b"s" * 512), match="more than", max_bytes=64 << 30)


# Types (A61 to A63, A20)


def test_a61_unknown_types_are_refused_and_volume_labels_skipped():
    assert names(hdr(b"label", typ=b"V"), hdr(b"f")) == [b"f"]
    for kind in b"ZMDNXA":
        refused(hdr(b"f", typ=bytes([kind]), size=3), match="unsupported tar entry type")


def test_a62_old_and_contiguous_files():
    assert one(hdr(b"f", typ=b"7"))[0].type == REG
    assert one(hdr(b"f", typ=b"\0"))[0].type == REG
    assert one(hdr(b"d/", typ=b"\0"))[0].type == DIR
    assert one(reg(b"f/", b"x"))[0].type == REG


def test_a63_sizes_of_types_without_content_do_not_count():
    found = read(patched(directory(b"d"), 124, field(512, 12)), reg(b"f", b"x"))[0]
    assert [entry.name for entry, _ in found] == [b"d", b"f"]
    refused(patched(directory(b"d"), 124, field(512, 12)) + b"b" * 512, match="damaged")


def test_a20_a_hard_link_with_a_body_is_refused_at_the_body():
    refused(patched(hardlink(b"h", b"f"), 124, field(3, 12)) + b"abc".ljust(512, b"\0"), match="damaged")


@pytest.mark.parametrize(("major", "minor"), [(-1, 0), (0, 1 << 40)])
def test_a43_device_numbers_out_of_range(major, minor):
    refused(patched(hdr(b"n", typ=b"3"), 329, field(major, 8) + field(minor, 8)[:8]), match="device number")


# Damage (A64 to A69)


@pytest.mark.parametrize("size", [-512, -1, 1 << 62])
def test_a64_absurd_sizes_are_refused_before_anything_is_read(size):
    refused(patched(hdr(b"f"), 124, field(size, 12)), match="negative|more than")
    refused(patched(hdr(b"x", typ=b"x"), 124, field(size, 12)), match="extension header")


@pytest.mark.parametrize("value", [b"0000000009\0\0", b"+0000000012\0", b"0x000000012\0", b"00_00000012\0"])
def test_malformed_numbers_are_refused(value):
    refused(patched(hdr(b"f"), 124, value), match="malformed")


def test_a65_a_damaged_header_is_refused_wherever_it_stands():
    archive = reg(b"a", b"x") + reg(b"b", b"y")
    for at in (0, 100, 148, 300, 511, 1024, 1024 + 157):
        broken = archive[:at] + bytes([archive[at] ^ 0x21]) + archive[at + 1 :]
        refused(broken, match="damaged")


def test_a65_signed_checksums_of_old_writers_are_taken():
    block = hdr(b"caf\xe9")
    signed = sum(b - 256 if b > 127 else b for b in block[:148] + b" " * 8 + block[156:])
    assert names(block[:148] + b"%06o\0 " % signed + block[156:]) == [b"caf\xe9"]


def test_a66_a_cut_archive_is_refused_except_between_entries():
    archive = reg(b"a", b"x" * 600) + reg(b"b", b"y")
    refused(archive[:100], end=b"", match="inside a header")
    refused(archive[:1000], end=b"", match="inside a file")
    refused(archive[:1200], end=b"", match="padding")
    refused(archive[: 1536 + 100], end=b"", match="inside a header")
    refused(gnu_long(b"L" * 600)[:700], end=b"", match="extension header")
    refused(gnu_long(b"L"), end=b"", match="after an extension header")
    assert names(archive, end=b"") == [b"a", b"b"]
    assert names(archive, end=bytes(512)) == [b"a", b"b"]


def test_a67_an_entry_after_a_block_of_zeros_is_refused():
    refused(reg(b"a"), bytes(512), reg(b"b"), match="follows a block of zeros")


@pytest.mark.parametrize("zeros", [0, 512, 1024, 10240])
def test_a68_empty_archives(zeros):
    found, reader = read(end=bytes(zeros))
    assert (found, reader.entries, reader.bytes_read) == ([], 0, zeros)


def test_a69_what_follows_the_end_is_read_to_its_end():
    _, reader = read(reg(b"a"), end=END + bytes(8192))
    assert not reader.trailing_garbage
    _, reader = read(reg(b"a"), end=END + b"GARBAGE")
    assert reader.trailing_garbage
    assert reader.bytes_read == 512 + 1024 + 7
    _, reader = read(reg(b"a"), end=bytes(512) + b"GARBAGE" * 100)
    assert reader.trailing_garbage


# Bombs (A75)


def test_a75_limits_name_the_option_that_raises_them():
    error = refused(reg(b"a"), reg(b"b"), reg(b"c"), match="more than 2 entries", max_entries=2)
    assert "--max-entries" in error.hint
    error = refused(reg(b"a", b"x" * 600), reg(b"b", b"x" * 600), match="more than 1000 bytes", max_bytes=1000)
    assert "--max-layer-size" in error.hint


def test_a75_a_huge_extension_header_is_refused_by_its_size_alone():
    refused(patched(hdr(b"x", typ=b"x"), 124, field(4 << 30, 12)), end=b"", match="extension header of 4294967296")


def test_a75_floods_of_records_are_refused():
    flood = b"".join(b"11 a%03d=bc\n" % (number % 1000) for number in range(40_000))
    block = hdr(b"x", typ=b"x", size=len(flood)) + flood + bytes(-len(flood) % 512)
    refused(block, hdr(b"f"), match="more than 16384 records")


@pytest.mark.parametrize("typ", [b"x", b"g", b"L", b"K"])
def test_a75_extension_headers_before_one_entry_count_together(typ):
    """Each kept its own limit, and attributes of all of them were held until the entry came."""
    record = b"1020 SCHILY.xattr.user.%d="
    body = b"".join((record % number).ljust(1019, b"v") + b"\n" for number in range(500))
    one = hdr(b"x", typ=typ, size=len(body)) + body + bytes(-len(body) % 512)
    refused(one * 3, hdr(b"f"), match="extension headers of more than 1048576 bytes before one entry")
    assert names(one * 2, hdr(b"f"), one * 2, hdr(b"f"))


def test_a75_long_sparse_maps_take_no_square():
    """A map is read once, and one that is too long not to its end."""
    half, long, longer = (sparse_1_0(600, [(1, 0)] * count, b"") for count in (30_000, 60_000, 250_000))
    assert one(long)[0].sparse == ()
    assert steps(lambda: one(long)) < 2.1 * steps(lambda: one(half))
    assert steps(lambda: refused(longer, match="sparse map is too long")) < 10_000


def test_a75_a_sparse_map_of_empty_blocks_ends():
    """Each says that another one follows, and none holds a pair."""
    header = patched(gnu_sparse(600, [], b""), 482, b"\1")
    refused(header, (bytes(504) + b"\1" + bytes(7)) * 4000, match="sparse map is too long")


def test_errors_carry_number_and_name():
    error = refused(reg(b"a"), hdr(b"evil\x1b[2J", typ=b"Z"), match="entry 1")
    assert error.message.startswith('entry 1 "evil\\x1b[2J": ')


# Against Python's own reader

ENTRIES = st.lists(
    st.one_of(
        st.builds(reg, st.binary(min_size=1, max_size=120).filter(lambda n: b"\0" not in n), st.binary(max_size=2000)),
        st.builds(directory, st.binary(min_size=1, max_size=90).filter(lambda n: b"\0" not in n)),
        st.builds(symlink, st.just(b"s"), st.binary(min_size=1, max_size=90).filter(lambda n: b"\0" not in n)),
    ),
    max_size=6,
)


def by_tarfile(data: bytes) -> list[tuple]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        return [
            (
                member.name.encode("utf-8", "surrogateescape"),
                member.mode & 0o7777,
                member.size if member.isreg() else 0,
                archive.extractfile(member).read() if member.isreg() else b"",
            )
            for member in archive
        ]


def by_us(data: bytes, step: int = 1 << 20) -> list[tuple]:
    return [(e.name.rstrip(b"/"), e.mode, e.size, content) for e, content in read(data, end=b"", step=step)[0]]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ENTRIES, st.integers(1, 3000))
def test_valid_archives_read_as_tarfile_reads_them(parts, step):
    data = b"".join(parts) + END
    expected = [(name.rstrip(b"/"), *rest) for name, *rest in by_tarfile(data)] if parts else []
    assert by_us(data, step) == expected


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ENTRIES,
    st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 6000),
)
def test_damaged_archives_are_refused_or_read(parts, changes, cut):
    data = bytearray(b"".join(parts) + END)
    for at, value in changes:
        data[at % len(data)] = value
    damaged = bytes(data[: max(1, len(data) - cut % len(data))])
    try:
        read(damaged, end=b"")
    except LayerError:
        return
