"""The images of the EROFS writer, read by a reader of the tests, by erofs-utils and by the kernel."""

from __future__ import annotations

import io
import itertools
import stat
import subprocess

import pytest
from hypothesis import given, settings

from msb_pull.disk.erofs import layout
from msb_pull.disk.erofs.attributes import foreign
from msb_pull.disk.erofs.format import BLOCK
from msb_pull.disk.erofs.write import write_image
from msb_pull.ground.errors import ContentError
from tests.support.disktrees import FACTS, MEBI, facts_seen, linked_first, loop_mounted, traps, trees
from tests.support.erofs import Image, Inode, facts_of, folder, in_order
from tests.support.tools import need

UUID = bytes(range(16))


def image_of(inodes: list[Inode]) -> bytes:
    out = io.BytesIO()
    done: list[int] = []
    size = write_image(out, in_order(inodes), uuid=UUID, progress=done.append)
    assert size == len(out.getvalue())
    stored = [one for one in inodes if one.kind == stat.S_IFREG and one.link_of is None]
    assert sum(done) == sum(len(piece) for one in stored for _, piece in one.pieces())
    return out.getvalue()


def test_every_kind_reads_back():
    tree = linked_first(traps())
    image = Image(image_of(tree))
    found, wanted = image.read(), facts_of(tree)
    assert found.keys() == wanted.keys()
    assert {path: facts for path, facts in found.items() if facts != wanted[path]} == {}
    assert image.uuid == UUID


def test_same_bytes_twice():
    tree = linked_first(traps())
    assert image_of(tree) == image_of(tree)


def test_what_the_file_held_before_does_not_show():
    tree = linked_first(traps())
    fresh, used = io.BytesIO(), io.BytesIO(b"\xaa" * 40 * MEBI)
    for out in (fresh, used):
        size = write_image(out, tree, uuid=UUID, progress=lambda _: None)
    assert used.getvalue()[:size] == fresh.getvalue()


def test_inodes_of_many_areas(monkeypatch):
    monkeypatch.setattr(layout, "AREA", 2 * BLOCK)
    files = [Inode(b"%04d" % one, content=bytes([one % 256]) * (one * 37 % 9000)) for one in range(600)]
    tree = [folder(), *files]
    found, wanted = Image(image_of(tree)).read(), facts_of(tree)
    assert {path: facts for path, facts in found.items() if facts != wanted[path]} == {}
    assert len(layout.Layout(tree).areas) > 50
    # Whoever reads contents in the order of the tree has a few blocks to make at a time.
    ends = layout.Layout(tree).areas
    assert max(end - start for start, end in itertools.pairwise(ends)) <= 3 * BLOCK


def test_a_large_folder():
    tree = [folder(), *(Inode(b"%05d" % number) for number in range(10_000))]
    image = Image(image_of(tree))
    assert [name for name, _, _ in image.entries(image.root)] == [b".", b"..", *(one.path for one in tree[1:])]


def test_a_sparse_file_stays_small():
    data = image_of([folder(), Inode(b"disk", content=b"d", segments=((700 * MEBI, 60_000),), length=1024 * MEBI)])
    assert len(data) < 300_000


@pytest.mark.parametrize(
    ("length", "segments", "most"),
    [
        (64 * MEBI, ((0, 1), (64 * MEBI - 1, 1)), 80_000),
        (64 * MEBI, ((0, 1), (7, 1), (9, 1)), 60_000),
        (12_000 * 1024, tuple((at * 8192, 1) for at in range(1500)), 6_200_000),
    ],
    ids=["the ends", "near each other", "every second block"],
)
def test_segments_that_would_share_a_large_chunk_do_not(length, segments, most):
    file = Inode(b"disk", content=b"d", segments=segments, length=length)
    data = image_of([folder(), file])
    assert len(data) < most
    assert facts_of([folder(), file]) == Image(data).read()


def test_many_small_files_share_blocks():
    data = image_of([folder(), *(Inode(b"%04d" % number, content=b"x" * 700) for number in range(1000))])
    assert len(data) < 1000 * 900


def test_shared_attributes_are_held_once():
    label = {b"security.selinux": b"system_u:object_r:" + b"x" * 400}
    data = image_of([folder(), *(Inode(b"%03d" % number, xattrs=label) for number in range(500))])
    assert data.count(label[b"security.selinux"]) == 1


def test_attributes_of_other_systems_are_told_and_left_out():
    xattrs = {b"com.apple.quarantine": b"q", b"user.": b"", b"user.big": bytes(70_000), b"user.kept": b"k"}
    assert foreign(xattrs) == [b"com.apple.quarantine", b"user.", b"user.big"]
    found = Image(image_of([folder(), Inode(b"f", xattrs=xattrs)])).read()
    assert found[b"f"][-1] == {b"user.kept": b"k"}


def test_a_device_that_linux_cannot_have_is_refused():
    with pytest.raises(ContentError, match="dev: device 4096:0"):
        image_of([folder(), Inode(b"dev", stat.S_IFCHR, device=(4096, 0))])


def test_more_attributes_than_fit_are_refused():
    with pytest.raises(ContentError, match="f: EROFS takes no more than 255 attributes"):
        image_of([folder(), Inode(b"f", xattrs={b"user.%d" % one: b"v" * 9 for one in range(300)})])


# Random trees


@settings(max_examples=60, deadline=None)
@given(trees(FACTS))
def test_any_tree_reads_back(tree):
    assert Image(image_of(tree)).read() == facts_of(tree)


# The programs that others use


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    tree = linked_first([*traps(), folder(b"wide"), *(Inode(b"wide/%05d" % number) for number in range(10_000))])
    path = tmp_path_factory.mktemp("erofs") / "image.erofs"
    with path.open("wb", buffering=0) as out:
        write_image(out, tree, uuid=UUID, progress=lambda _: None)
    return path, tree


def test_fsck_finds_nothing(made):
    need("fsck.erofs")
    run = subprocess.run(["fsck.erofs", "--extract", made[0]], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_kernel_reads_all_of_it(made, tmp_path):
    with loop_mounted(made[0], "erofs", tmp_path) as where:
        found, wanted = facts_seen(where), facts_of(made[1])
    assert found.keys() == wanted.keys()
    assert {path: (found[path], wanted[path]) for path in found if found[path] != wanted[path]} == {}
