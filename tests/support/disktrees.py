"""Trees for the writers of file systems: one with all that an image can hold, random ones, and what a kernel shows."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.support.erofs import SECOND, Inode, folder, in_order
from tests.support.tools import lacking

MEBI = 1 << 20


def traps() -> list[Inode]:
    """All that an image can hold, and where sizes or numbers end."""
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    acl = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000500ffffffff")
    long = b"n" * 251
    return [
        folder(mode=0o1755, mtime_ns=5 * SECOND + 7, xattrs={b"user.top": b"1"}),
        *(Inode(b"size-%d" % size, content=os.urandom(size)) for size in (0, 1, 4031, 4032, 4033, 4095, 4096, 4097)),
        Inode(b"large", content=os.urandom(3 * MEBI + 5)),
        Inode(b"!before-dot", content=b"sorts before ."),
        Inode(b"-x"),
        Inode(b".hidden"),
        Inode(b"mode-0", mode=0),
        Inode(b"set-uid", mode=0o6755, uid=4_000_000_000, gid=4_000_000_001),
        Inode(b"old", mtime_ns=-SECOND * 86400 * 365 * 30 - 1),
        Inode(b"new", mtime_ns=SECOND * 86400 * 365 * 400 + 999_999_999),
        folder(b"closed", mode=0o555),
        folder(b"empty"),
        folder(b"deep"),
        folder(b"deep/\xff\xfe"),
        Inode(b"deep/\xff\xfe/\xe4\xf6 not UTF-8", content=b"x"),
        *(Inode(b"deep/%s-%03d" % (long, number), content=b"%d" % number) for number in range(60)),
        Inode(b"symlink", stat.S_IFLNK, 0o777, target=b"deep/\xff"),
        Inode(b"long-symlink", stat.S_IFLNK, 0o777, target=b"t" * 4050),
        Inode(b"null", stat.S_IFCHR, 0o666, device=(1, 3)),
        Inode(b"disk", stat.S_IFBLK, 0o660, device=(259, 70000)),
        Inode(b"fifo", stat.S_IFIFO, 0o600),
        Inode(b"link-a", content=b"linked" * 1000),
        Inode(b"deep/link-b", link_of=b"link-a"),
        Inode(b"empty/link-c", link_of=b"link-a"),
        Inode(b"capable", xattrs={b"security.capability": capability, b"user.a": b"", b"trusted.t": b"only"}),
        Inode(b"also", xattrs={b"security.capability": capability}),
        Inode(b"acl", xattrs={b"system.posix_acl_access": acl}),
        Inode(b"many", content=b"y" * 4000, xattrs={b"user.%d" % one: b"v" * 90 for one in range(30)}),
        Inode(b"heavy", content=b"z", xattrs={b"user.%s" % (b"h" * 250): os.urandom(9000)}),
        Inode(b"hollow", segments=(), length=10 * MEBI + 1),
        Inode(
            b"sparse", content=b"s", segments=((0, 1), (3 * MEBI + 17, 70_000), (9 * MEBI, MEBI + 1)), length=11 * MEBI
        ),
        Inode(b"one-hole", content=b"h", segments=((100, 100),), length=300),
    ]


def linked_first(inodes: list[Inode]) -> list[Inode]:
    """Of names of one file the first in order is the one that the others refer to."""
    order = in_order(inodes)
    for one in order:
        if one.link_of is not None:
            names = [two for two in order if one.link_of in (two.path, two.link_of)]
            first, held = names[0], next(two for two in names if two.link_of is None)
            if first is not held:
                first.content, held.content = held.content, b""
            for two in names:
                two.link_of = None if two is first else first.path
    return order


# Random trees

NAMES = st.binary(min_size=1, max_size=255).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"-"))
XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=20).map(lambda name: b"user." + name.replace(b"\0", b"-")),
    st.one_of(st.just(b"label"), st.binary(max_size=60), st.integers(0, 5000).map(bytes)),
    max_size=4,
)
FACTS = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "uid": st.integers(0, 2**32 - 1),
        "gid": st.integers(0, 2**32 - 1),
        "mtime_ns": st.integers(-(2**62), 2**62),
        "xattrs": XATTRS,
    }
)
SIZES = st.one_of(st.sampled_from([0, 1, 4095, 4096, 4097, 8192]), st.integers(0, 20_000))
SEGMENTS = st.lists(st.tuples(st.integers(1, 200_000), st.integers(1, 9000)), max_size=5)


@st.composite
def trees(draw: st.DrawFn, facts: st.SearchStrategy[dict[str, object]]) -> list[Inode]:
    """A random tree, whose owners, modes, times and attributes are ``facts``."""
    inodes = [folder(**draw(facts))]
    taken = {b""}
    for _ in range(draw(st.integers(0, 25))):
        above = draw(st.sampled_from([one.path for one in inodes if one.kind == stat.S_IFDIR]))
        name = draw(NAMES)
        path = above + b"/" + name if above else name
        if name in (b".", b"..") or path in taken:
            continue
        taken.add(path)
        kind = draw(
            st.sampled_from([stat.S_IFREG] * 3 + [stat.S_IFDIR] * 2 + [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
        )
        one = Inode(path, kind, **draw(facts))
        if kind == stat.S_IFREG:
            fill(draw, one, [two.path for two in inodes if two.kind == kind and two.link_of is None])
        one.target = b"t" * draw(st.integers(1, 4095)) if kind == stat.S_IFLNK else b""
        one.device = (
            draw(st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1))) if kind == stat.S_IFCHR else (0, 0)
        )
        inodes.append(one)
    return linked_first(inodes)


def fill(draw: st.DrawFn, one: Inode, others: list[bytes]) -> None:
    form = draw(st.sampled_from(["whole", "sparse", "link"]))
    if form == "link" and others:
        one.link_of = draw(st.sampled_from(others))
    elif form == "sparse":
        end, segments = 0, []
        for gap, length in draw(SEGMENTS):
            segments.append((end + gap, length))
            end += gap + length
        one.content, one.segments, one.length = b"s", tuple(segments), end + draw(st.integers(0, 50_000))
    else:
        one.content = b"c" * draw(SIZES)


# What a kernel shows


@contextmanager
def loop_mounted(image: Path, kind: str, where: Path, options: str = "ro") -> Iterator[Path]:
    """An image that the kernel has mounted for a block; the test is skipped where none can be."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting needs root on Linux")
    where.mkdir(exist_ok=True)
    command = ["mount", "-t", kind, "-o", f"loop,{options}", image, where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unknown filesystem" in done.stderr:
        pytest.skip(f"this kernel does not know {kind}")  # no package would bring it
    if "failed to setup loop" in done.stderr:
        lacking(f"cannot mount {kind}: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True, timeout=60)


def facts_seen(where: Path) -> dict[bytes, tuple[object, ...]]:
    """What the kernel shows of each name below a folder, in the form of ``facts_of``."""
    found: dict[bytes, tuple[object, ...]] = {}
    groups: dict[int, set[bytes]] = {}
    top = os.fsencode(where)
    for path in paths_below(top):
        groups.setdefault(os.lstat(path).st_ino, set()).add(path[len(top) + 1 :])
    for path in paths_below(top):
        facts, kind = os.lstat(path), stat.S_IFMT(os.lstat(path).st_mode)
        content: object = None
        if kind == stat.S_IFREG:
            content = Path(os.fsdecode(path)).read_bytes()
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        device = None
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            device = (os.major(facts.st_rdev), os.minor(facts.st_rdev))
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
        owner = (facts.st_uid, facts.st_gid, facts.st_mtime_ns)
        group = frozenset(groups[facts.st_ino])
        said = (kind, stat.S_IMODE(facts.st_mode), *owner, facts.st_nlink, group, content, device, xattrs)
        found[path[len(top) + 1 :]] = said
    return found


def paths_below(top: bytes) -> list[bytes]:
    """All names, the top first."""
    return [top, *(os.path.join(at, name) for at, folders, files in os.walk(top) for name in folders + files)]
