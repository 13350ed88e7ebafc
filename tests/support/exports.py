"""An image with all that unpackers are known to get wrong, and stores that hold it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from msb_pull import PullOptions, Store, pull_image
from tests.conftest import RIG
from tests.support.archive import END, directory, hardlink, hdr, pax, reg, symlink, xattr
from tests.support.imagebuild import simple_layout
from tests.support.treecompare import walk

needs_root = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="owners and devices need root on Linux"
)

NAME = "made/here:1"
GIB = 1 << 30
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
LONG = b"n" * 255
# "caf\xe9" is Latin-1; no decoder of UTF-8 takes it.
LATIN = b"caf\xe9"

BOTTOM = [
    directory(b"./", mode=0o755, mtime=1),
    directory(b"closed", mode=0o555, mtime=2),
    reg(b"closed/none", b"secret", mode=0o000, mtime=3),
    reg(b"su", b"#!", mode=0o4755, uid=1000, gid=4_000_000_000),
    reg(b"guid", b"#!", mode=0o2755, uid=4_000_000_000, gid=7),
    xattr(b"security.capability", CAPABILITY) + reg(b"ping", b"ELF", mode=0o755),
    xattr(b"user.note", b"a\nb=c\0") + reg(b"noted", b"x"),
    directory(b"back", mtime=4),
    reg(b"back/old", b"old"),
    directory(b"veiled", mode=0o1777, mtime=5),
    reg(b"veiled/old", b"old"),
    reg(b"shared", b"one file", uid=5, gid=6, mtime=7),
    symlink(b"shared-link", b"shared", uid=8, gid=9, mtime=10),
    directory(b"usr", mtime=11),
    directory(b"usr/lib", mtime=12),
    symlink(b"lib", b"usr/lib", mtime=13),
    reg(LONG, b"long"),
    directory(b"d", mtime=14),
    reg(b"d/" + LONG, b"long below"),
    symlink(b"d/far", b"x" * 300, mtime=15),
    reg(LATIN, b"latin"),
    pax((b"mtime", b"-12345.987654321")) + reg(b"before-1970", b"b"),
    pax((b"mtime", b"4102444800.000000001")) + reg(b"after-2038", b"a"),
    hdr(b"null", typ=b"3", mode=0o666, major=1, minor=3),
    hdr(b"disk", typ=b"4", mode=0o660, gid=6, major=8, minor=300),
    hdr(b"pipe", typ=b"6", mode=0o622),
    reg(b"gone", b"gone"),
]
TOP = [
    reg(b"back/.wh.old"),
    reg(b"back/old", b"new"),
    directory(b"veiled", mode=0o1777, mtime=5),
    reg(b"veiled/.wh..wh..opq"),
    reg(b"veiled/new", b"new"),
    hardlink(b"second", b"shared"),
    hardlink(b"second-link", b"shared-link"),
    hardlink(b"third", b"shared"),
    reg(b"lib/through", b"through the symlink below"),
    reg(b".wh.gone"),
]


def sparse(name: bytes, size: int, *segments: tuple[int, bytes]) -> bytes:
    """A sparse file in GNU tar's format 1.0."""
    lines = b"%d\n" % len(segments) + b"".join(b"%d\n%d\n" % (at, len(data)) for at, data in segments)
    body = lines + bytes(-len(lines) % 512) + b"".join(data for _, data in segments)
    records = ((b"major", b"1"), (b"minor", b"0"), (b"name", name), (b"realsize", b"%d" % size))
    return pax(*((b"GNU.sparse." + key, value) for key, value in records)) + reg(b"GNUSparseFile.0/x", body)


def layout(folder: Path, *layers: list[bytes]) -> Path:
    """An image of these layers, bottom first; that of the known traps where none are given."""
    return simple_layout(folder, [b"".join(entries) + END for entries in layers or (BOTTOM, TOP)])


def store_of(home: Path, *images: tuple[Path, str]) -> Store:
    """A store with these layouts under these names, pulled in this order."""
    store = Store.open(home)
    for folder, name in images:
        pull_image(f"oci:{folder}", store, PullOptions(name=name))
    return store


def all_facts(root: Path) -> dict[bytes, tuple[object, ...]]:
    """What lstat and the attributes say of every name, by path: kind, mode, owner, device, time, links, attributes."""
    found: dict[bytes, tuple[object, ...]] = {}
    for name in walk(os.fsencode(root)):
        path = os.path.join(os.fsencode(root), name)
        facts = os.lstat(path)
        names = sorted(x for x in os.listxattr(path, follow_symlinks=False) if x != "security.selinux")
        attributes = [(x, os.getxattr(path, x, follow_symlinks=False)) for x in names]
        links = 0 if stat.S_ISDIR(facts.st_mode) else facts.st_nlink
        said = facts.st_mode, facts.st_uid, facts.st_gid, facts.st_rdev, facts.st_mtime_ns, links, attributes
        content = Path(os.fsdecode(path)).read_bytes() if stat.S_ISREG(facts.st_mode) else b""
        found[name] = *said, content, os.readlink(path) if stat.S_ISLNK(facts.st_mode) else b""
    return found


def untarred(archive: Path, folder: Path) -> Path:
    """The archive as GNU tar unpacks it as root."""
    folder.mkdir()
    command = ["tar", "-xpf", str(archive), "-C", str(folder), "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    done = subprocess.run([*command, "--delay-directory-restore"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def by_umoci(folder: Path, tag: str, where: Path) -> Path:
    """The tree that umoci makes of a layout as root."""
    command = ["umoci", "raw", "unpack", "--image", f"{folder}:{tag}", str(where)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return where


def real_layout(name: str) -> tuple[Path, str]:
    """A layout of the rig with the tag of its image; the test is skipped without the rig."""
    source = RIG / "layouts" / name
    if not source.is_dir():
        pytest.skip(f"no layouts of real images below {RIG}")
    first = json.loads((source / "index.json").read_bytes())["manifests"][0]
    return source, first["annotations"]["org.opencontainers.image.ref.name"]
