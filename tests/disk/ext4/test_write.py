"""The images of the ext4 writer, checked by e2fsck, and read, written and grown by others."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from msb_pull.disk.ext4.attributes import foreign
from msb_pull.disk.ext4.format import super_block
from msb_pull.disk.ext4.geometry import GROUP, Geometry
from msb_pull.disk.ext4.write import write_image
from msb_pull.ground.errors import ContentError, UsageError
from tests.support.disktrees import FACTS, MEBI, facts_seen, linked_first, loop_mounted, traps, trees
from tests.support.erofs import SECOND, Inode, facts_of, folder, in_order
from tests.support.tools import lacking

UUID = bytes(range(16))
BLOCK = 4096
# The format's own limits of time: 34 bits, of which the sign is one.
EARLIEST, LATEST = -(2**31) * SECOND, (2**34 - 2**31 - 1) * SECOND


def make(path: Path, inodes: list[Inode], size: int | None = None) -> int:
    done: list[int] = []
    # A loop device that is about to go may still have the blocks of the former file.
    path.unlink(missing_ok=True)
    with path.open("w+b", buffering=0) as out:
        made = write_image(out, in_order(inodes), uuid=UUID, size=size, progress=done.append)
    assert made == path.stat().st_size
    stored = [one for one in inodes if one.kind == stat.S_IFREG and one.link_of is None]
    assert sum(done) == sum(len(piece) for one in stored for _, piece in one.pieces())
    return made


def tool(name: str, *words: object) -> str:
    """What one of the e2fsprogs says, which lie where an ordinary user's PATH ends."""
    found = shutil.which(name) or shutil.which(name, path="/sbin:/usr/sbin:/opt/homebrew/opt/e2fsprogs/sbin")
    if found is None:
        lacking(f"not installed: {name}")
    done = subprocess.run([found, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(path: Path) -> None:
    """Nothing in it is to be repaired."""
    tool("e2fsck", "-fn", path)


def expected(inodes: list[Inode]) -> dict[bytes, tuple[object, ...]]:
    """With the nearest times that the format has."""
    for one in inodes:
        one.mtime_ns = min(max(one.mtime_ns, EARLIEST), LATEST)
    return facts_of(inodes)


def ext4_traps() -> list[Inode]:
    # Attributes of 9 kB have no room in ext4, nor more than a block of them.
    kept = [one for one in traps() if one.path not in (b"heavy", b"many")]
    some = {b"user.%d" % one: b"v" * 90 for one in range(30)}
    return linked_first(
        [
            *kept,
            Inode(b"many", content=b"y" * 4000, xattrs=some),
            Inode(b"few", xattrs={b"user.\xe4": b"12345"}),
            *(Inode(b"to-%d" % size, stat.S_IFLNK, 0o777, target=b"t" * size) for size in (59, 60, 61, 4095)),
            folder(b"wide"),
            *(Inode(b"wide/%05d" % number) for number in range(10_000)),
            folder(b"names"),
            *(Inode(b"names/" + name) for name in (b'"', b"a\nb", b"<12>", b"\\", b" ", b"\r", b"\xff" * 255)),
        ]
    )


def test_the_kernel_reads_all_of_it(tmp_path):
    tree = ext4_traps()
    make(tmp_path / "image", tree)
    check(tmp_path / "image")
    with loop_mounted(tmp_path / "image", "ext4", tmp_path / "there") as where:
        found, wanted = facts_seen(where), expected(tree)
    assert found.keys() == wanted.keys()
    assert {path: (found[path], wanted[path]) for path in found if found[path] != wanted[path]} == {}


def test_same_bytes_twice(tmp_path):
    for name in ("one", "two"):
        make(tmp_path / name, linked_first([folder(), Inode(b"f", content=b"f" * 9000), folder(b"d")]))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


# User attributes are for files and directories alone, and a block has to hold all of them.
ATTRIBUTES = st.dictionaries(
    st.binary(min_size=1, max_size=20).map(lambda name: b"user." + name.replace(b"\0", b"-")),
    st.one_of(st.just(b"label"), st.binary(max_size=60), st.integers(0, 700).map(bytes)),
    max_size=4,
)


@pytest.mark.slow
@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(tree=trees(FACTS), attributes=st.lists(ATTRIBUTES, min_size=1, max_size=5))
def test_any_tree_reads_back(tmp_path, tree, attributes):
    for number, one in enumerate(tree):
        # The kernel takes an owner of -1 for none, and then not even root may open the file.
        one.uid, one.gid = min(one.uid, 2**32 - 2), min(one.gid, 2**32 - 2)
        able = one.kind in (stat.S_IFREG, stat.S_IFDIR)
        one.xattrs = attributes[number % len(attributes)] if able else {}
    make(tmp_path / "image", tree)
    check(tmp_path / "image")
    with loop_mounted(tmp_path / "image", "ext4", tmp_path / "there") as where:
        assert facts_seen(where) == expected(tree)


def test_files_of_many_extents(tmp_path):
    """A tree of extents in one block, one of two levels, and a file that is longer than a group."""
    segments = tuple((number * 3 * BLOCK + 5, 10) for number in range(1500))
    tree = [
        folder(),
        Inode(b"five", content=b"f", segments=segments[:5], length=15 * BLOCK),
        Inode(b"long", content=b"l" * 5000, length=150 * MEBI),
        Inode(b"many", content=b"m", segments=segments, length=1500 * 3 * BLOCK),
    ]
    tree[2].content *= 150 * MEBI // 5000 + 1
    make(tmp_path / "image", tree)
    check(tmp_path / "image")
    with loop_mounted(tmp_path / "image", "ext4", tmp_path / "there") as where:
        for one in tree[1:]:
            assert (where / os.fsdecode(one.path)).read_bytes() == one.whole()


# Sizes


def test_the_default_size_leaves_a_tenth_and_more(tmp_path):
    size = make(tmp_path / "image", [folder(), Inode(b"zeros", content=bytes(100 * MEBI))])
    assert size == 175 * MEBI
    assert (tmp_path / "image").stat().st_blocks * 512 < 102 * MEBI


@pytest.mark.parametrize("mebibytes", [6, 128, 129, 1000, 2049, 20_481, 1_000_000])
def test_any_size_is_whole_and_takes_no_space(tmp_path, mebibytes):
    tree = [folder(), Inode(b"file", content=b"f" * 9000)]
    assert make(tmp_path / "image", tree, mebibytes * MEBI) == mebibytes * MEBI
    assert (tmp_path / "image").stat().st_blocks * 512 < 40 * MEBI
    if mebibytes < 100_000:
        check(tmp_path / "image")
    with loop_mounted(tmp_path / "image", "ext4", tmp_path / "there") as where:
        assert (where / "file").read_bytes() == b"f" * 9000
        assert os.statvfs(where).f_blocks * os.statvfs(where).f_frsize > mebibytes * MEBI * 0.8 - 5 * MEBI


def test_odd_sizes(tmp_path):
    """The end of the last group, and one too small to be used."""
    for blocks in (GROUP - 1, GROUP, GROUP + 1, GROUP + 63, GROUP + 66, 3 * GROUP + 70):
        make(tmp_path / "image", [folder(), Inode(b"file", content=b"f" * 9000)], blocks * BLOCK + 17)
        check(tmp_path / "image")


@pytest.mark.parametrize("files", [10, 20_000])
def test_a_size_that_is_too_small(tmp_path, files):
    tree = [folder(), *(Inode(b"%d" % number, content=b"x" * 30) for number in range(files))]
    with pytest.raises(UsageError, match="--size: 1 MiB is too small") as caught:
        make(tmp_path / "image", tree, MEBI)
    least = int(caught.value.hint.split()[-2])
    make(tmp_path / "image", tree, least * MEBI)
    check(tmp_path / "image")


def test_many_empty_files_have_enough_inodes(tmp_path):
    make(tmp_path / "image", [folder(), *(Inode(b"%d" % number) for number in range(40_000))])
    check(tmp_path / "image")


def test_too_large(tmp_path):
    with pytest.raises(UsageError, match="less than 16 TiB"):
        make(tmp_path / "image", [folder()], 16 << 40)


def test_copies_stand_where_the_format_has_them():
    assert list(Geometry(30 * GROUP * BLOCK, 1).copies()) == [1, 3, 5, 7, 9, 25, 27]


# A disk to live on


def test_it_can_be_written_and_grown(tmp_path):
    image = tmp_path / "image"
    make(image, ext4_traps())
    os.truncate(image, 1 << 30)
    tool("resize2fs", image)
    check(image)
    with loop_mounted(image, "ext4", tmp_path / "there", "rw") as where:
        for number in range(2000):
            (where / "wide" / f"new-{number}").write_bytes(b"new" * number)
        os.setxattr(where / "few", "user.more", b"m" * 200)
        shutil.rmtree(where / "deep")
    check(image)
    with loop_mounted(image, "ext4", tmp_path / "there") as where:
        assert (where / "wide" / "new-1999").read_bytes() == b"new" * 1999
        assert os.getxattr(where / "few", "user.\udce4") == b"12345"


def test_a_copy_of_the_superblock_repairs_it(tmp_path):
    image = tmp_path / "image"
    make(image, [folder(), Inode(b"file", content=b"f" * 9000)], 200 * MEBI)
    with image.open("r+b") as out:
        out.write(bytes(BLOCK))
    tool("dumpe2fs", "-h", "-o", f"superblock={GROUP}", "-o", f"blocksize={BLOCK}", image)


# What it cannot hold


@pytest.mark.parametrize(
    ("inode", "words"),
    [
        (Inode(b"dev", stat.S_IFCHR, device=(4096, 0)), "dev: device 4096:0"),
        (Inode(b"far", stat.S_IFLNK, target=b"t" * 4096), "far: a symlink's target of 4096 bytes"),
        (Inode(b"f", xattrs={b"user.big": bytes(4096)}), "f: ext4 has room for 4064 bytes"),
    ],
)
def test_what_has_no_room_is_refused(tmp_path, inode, words):
    with pytest.raises(ContentError, match=words):
        make(tmp_path / "image", [folder(), inode])


def test_more_names_than_a_file_may_have(tmp_path):
    more = (Inode(b"b%05d" % number, link_of=b"a") for number in range(65_000))
    with pytest.raises(ContentError, match="a: ext4 takes no more than 65000 names"):
        make(tmp_path / "image", [folder(), Inode(b"a"), *more])


def test_more_folders_in_one_than_links_can_count(tmp_path):
    make(tmp_path / "image", [folder(), *(folder(b"%05d" % number) for number in range(65_100))])
    check(tmp_path / "image")


def test_attributes_of_other_systems_are_told_and_left_out(tmp_path):
    xattrs = {b"com.apple.q": b"q", b"user.": b"", b"system.posix_acl_access": b"?", b"user.kept": b"k"}
    assert foreign(xattrs) == [b"com.apple.q", b"system.posix_acl_access", b"user."]
    make(tmp_path / "image", [folder(), Inode(b"f", xattrs=xattrs)])
    check(tmp_path / "image")
    assert 'user.kept (1) = "k"' in tool("debugfs", "-R", "ea_list f", tmp_path / "image")


def test_the_largest_file_systems_have_copies_of_the_superblock_as_well():
    shape = Geometry((16 << 40) - 4096, 0)
    *_, last = shape.copies()
    assert last == 7**6
    copy = super_block(shape, last, (1, 1), UUID, (bytes(60), 0))
    assert struct.unpack_from("<H", copy, 90) == (last & 0xFFFF,)
