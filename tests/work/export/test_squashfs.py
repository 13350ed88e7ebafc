"""SquashFS images, as the kernel shows them."""

from __future__ import annotations

import io
import os
import shutil
import struct
import tarfile
from pathlib import Path

import pytest

from msb_pull.ground.errors import ContentError, LocalError, UsageError
from msb_pull.work.export.squashfs import write_squashfs
from tests.support.archive import reg, xattr
from tests.support.disktrees import loop_mounted
from tests.support.erofs import folder
from tests.support.exports import NAME, layout, store_of
from tests.support.tools import need

NOBODY = 0xFFFF_FFFF
TOP = folder(mode=0o1750, mtime_ns=5_000_000_000)


def write_tar(out) -> None:
    """A tree with what the program has to take over."""
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **facts: object) -> None:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.mtime = kind, len(data), 7
            for fact, value in facts.items():
                setattr(member, fact, value)
            archive.addfile(member, io.BytesIO(data))

        add("./", tarfile.DIRTYPE, mode=TOP.mode, mtime=5)
        add("file", data=b"content", mode=0o4751, uid=4_000_000_000, gid=9, pax_headers={"SCHILY.xattr.user.a": "b"})
        add("other", tarfile.LNKTYPE, linkname="file")
        add("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        add("large", data=b"x" * 300_000, mode=0)


def make(path: Path, write=write_tar) -> bytes:
    with path.open("w+b", buffering=0) as out:
        assert write_squashfs(out, write) == path.stat().st_size
    return path.read_bytes()


def test_same_bytes_twice(tmp_path):
    need("tar2sqfs")
    assert make(tmp_path / "one") == make(tmp_path / "two")


def test_the_kernel_reads_it(tmp_path):
    need("tar2sqfs")
    make(tmp_path / "image")
    with loop_mounted(tmp_path / "image", "squashfs", tmp_path / "mounted") as at:
        file, null, top = (os.lstat(at / name) for name in ("file", "null", "."))
        assert (top.st_mode & 0o7777, top.st_uid, top.st_gid, top.st_mtime) == (TOP.mode, TOP.uid, TOP.gid, 5)
        assert (file.st_mode, file.st_uid, file.st_gid, file.st_mtime) == (0o104751, 4_000_000_000, 9, 7)
        assert file.st_ino == os.lstat(at / "other").st_ino
        assert null.st_rdev == os.makedev(1, 3)
        assert os.getxattr(at / "file", "user.a") == b"b"
        assert (at / "large").read_bytes() == b"x" * 300_000
        assert (at / "large").stat().st_mode & 0o7777 == 0


def test_attributes_that_it_cannot_hold_are_told_and_left_out(tmp_path):
    need("tar2sqfs")
    rules = struct.pack("<I" + 4 * "HHI", 2, 1, 6, NOBODY, 4, 4, NOBODY, 16, 6, NOBODY, 32, 4, NOBODY)
    listed = xattr(b"system.posix_acl_access", rules) + reg(b"listed", b"x")
    store = store_of(tmp_path / "home", (layout(tmp_path / "layout", [listed]), NAME))
    warnings = []
    store.export(NAME, tmp_path / "x.squashfs", observer=lambda event: warnings.append(getattr(event, "text", "")))
    assert any('"listed": SquashFS has no place for system.posix_acl_access; left out' in text for text in warnings)
    assert (tmp_path / "x.squashfs").read_bytes()[:4] == b"hsqs"


def test_no_program_is_a_question_of_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(UsageError, match="tar2sqfs is not installed") as caught:
        make(tmp_path / "image")
    hint = "install squashfs-tools-ng (Debian, Ubuntu), squashfs-tools-ng (Fedora) or squashfs-tools-ng (Homebrew)"
    assert caught.value.hint == hint


def test_what_the_writer_raises_ends_the_program(tmp_path):
    need("tar2sqfs")

    def damaged(out) -> None:
        write_tar(out)
        raise ContentError("damaged")

    with pytest.raises(ContentError, match="damaged"):
        make(tmp_path / "image", damaged)


def test_a_program_that_fails_is_told_of(tmp_path):
    need("tar2sqfs")
    with pytest.raises(LocalError, match="tar2sqfs failed") as caught:
        make(tmp_path / "image", lambda out: [out.write(b"no archive" * 100_000) for _ in range(10)])
    assert caught.value.cause
