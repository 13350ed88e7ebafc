"""Raw tar entries from literals, as hostile as a test needs them, and trees described for comparison."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tempfile
from pathlib import Path

from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.model import Tree
from msb_pull.layer.proof.prove import prove
from msb_pull.layer.proof.standing import derived_again
from msb_pull.layer.proof.task import ProofTask
from msb_pull.layer.report import UnpackOptions, UnpackReport
from msb_pull.layer.settle.settle import Settled
from msb_pull.layer.tar.record import Record
from msb_pull.layer.tree.kept import keep_aside
from msb_pull.layer.unpack.unpack import unpack

OVERRIDE = "user.containers.override_stat"
WHEN = 1_700_000_000
END = bytes(1024)


def field(value: int, width: int) -> bytes:
    """Octal, or base-256 where octal cannot say it."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return bytes([0xFF if value < 0 else 0x80]) + (value % 256 ** (width - 1)).to_bytes(width - 1, "big")


def hdr(
    name,
    *,
    typ=b"0",
    size=0,
    mode=0o644,
    uid=0,
    gid=0,
    mtime=WHEN,
    link=b"",
    major=0,
    minor=0,
    magic=b"ustar\00000",
    prefix=b"",
) -> bytes:
    """One ustar header; long names get a PAX header before it."""
    long = []
    if len(name) > 100:
        long, name = [(b"path", name)], name[-50:]
    if len(link) > 100:
        long, link = [*long, (b"linkpath", link)], link[-50:]
    before = pax(*long) if long else b""
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            *(field(mode, 8), field(uid, 8), field(gid, 8), field(size, 12), field(mtime, 12)),
            *(b" " * 8, typ, link.ljust(100, b"\0"), magic),
            *(bytes(64), field(major, 8), field(minor, 8), prefix),
        )
    ).ljust(512, b"\0")
    return before + block[:148] + b"%06o\0 " % sum(block) + block[156:]


def reg(name, data=b"", **more) -> bytes:
    return hdr(name, size=len(data), **more) + data + bytes(-len(data) % 512)


def directory(name, *, mode=0o755, **more) -> bytes:
    return hdr(name, typ=b"5", mode=mode, **more)


def symlink(name, target, **more) -> bytes:
    return hdr(name, typ=b"2", mode=0o777, link=target, **more)


def hardlink(name, target, **more) -> bytes:
    return hdr(name, typ=b"1", link=target, **more)


def pax(*records) -> bytes:
    body = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(b"%d" % length) + len(rest) != length:
            length = len(b"%d" % length) + len(rest)
        body += b"%d" % length + rest
    return hdr(b"x", typ=b"x", size=len(body)) + body + bytes(-len(body) % 512)


def xattr(name, value) -> bytes:
    return attributes_of((name, value))


def attributes_of(*pairs) -> bytes:
    """Together in one header, since a second one would replace the first."""
    return pax(*((b"SCHILY.xattr." + name, value) for name, value in pairs))


def extract(folder: Path, *entries: bytes, record: Path | None = None, proven: bool = True, **options) -> UnpackReport:
    """Unpacks in this process, as a jailed child would, and proves it unless ``folder`` held something before.

    The record is kept where a path for it is given.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    fresh = not os.listdir(folder)
    stream = b"".join(entries) + END
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as elsewhere:
            kept = record or Path(elsewhere, "record")
            with kept.open("wb") as file:
                report = unpack(io.BytesIO(stream), root, file.fileno(), UnpackOptions(**options))
            if fresh and proven:
                assert_proven(folder, kept, stream, report, Settled([]))
            return report
    finally:
        os.close(root)


def assert_proven(
    folder: Path,
    record: Path,
    stream: bytes,
    report: UnpackReport,
    settled: Settled,
    below: list[Path] | None = None,
) -> None:
    """What lies there is what the stream said, on the layers ``below`` if they are known, and gives the stream back.

    What the layer overwrites is moved beside its record.
    """
    diff_id = "sha256:" + hashlib.sha256(stream).hexdigest()
    with tempfile.TemporaryDirectory(dir=folder.parent) as elsewhere:
        notes = Path(elsewhere, "notes")
        Notes.of(report, settled.derived, diff_id=diff_id, tar_bytes=len(stream), chain="").save(notes)
        kept = record.with_name(record.name + ".kept")
        keep_aside(folder, kept)
        stacks = [] if below is None else [list(map(str, below))]
        task = ProofTask(str(folder), str(record), str(notes), diff_id, False, str(kept), stacks)
        found = prove(task, lambda *_: None)
    assert not found.damages, found.damages
    assert found.denied == []
    assert found.diff_id == diff_id


def derived(record: Path, lowers: list[Path]) -> list[dict]:
    """What settling the layer of a record on other layers would derive."""
    layer = Tree.of(Record(record), Notes(diff_id="", tar_bytes=0, entries=0, content_bytes=0, chain=""))
    return derived_again(layer, lowers, hashed=True)


def override(path: Path) -> str:
    return os.getxattr(path, OVERRIDE, follow_symlinks=False).decode()


def tree(root: Path) -> dict[str, str]:
    """Every path below ``root``: content of files, targets of symlinks, a slash for directories."""
    found = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISLNK(facts.st_mode):
            found[name] = f"-> {os.readlink(path)}"
        elif stat.S_ISDIR(facts.st_mode):
            found[name] = "/"
        else:
            found[name] = path.read_text() if stat.S_ISREG(facts.st_mode) else "special"
    return found


def everything(root: Path) -> list[tuple]:
    """All that could change of a tree that must not."""
    found = []
    for path in [root, *sorted(root.rglob("*"))]:
        facts = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(facts.st_mode) else b""
        found.append((str(path), facts.st_mode, facts.st_ino, facts.st_mtime_ns, facts.st_nlink, content))
    return found
