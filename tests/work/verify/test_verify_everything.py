"""Every byte of a store is proven or found: what verify must see beyond the contents of plain files."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zlib
from pathlib import Path

import pytest

from msb_pull.ground.errors import ContentError
from msb_pull.ground.running import Job
from msb_pull.work.save import Format, save_images
from msb_pull.work.verify.layers import Verdict
from tests.support.archive import END, directory, hardlink, hdr, pax, reg, symlink, xattr
from tests.support.world import NAME, World, sparse

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may set these")


@pytest.fixture
def world(tmp_path):
    return lambda *layers: World(tmp_path, [b"".join(layer) + END for layer in layers])


@pytest.fixture
def times(request):
    """Puts a file's time back, so that nothing but its content tells."""

    def back(path: Path, change) -> None:
        facts = path.lstat()
        change()
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns), follow_symlinks=False)

    return back


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def forged(data: bytes, checksum: int) -> bytes:
    """Bytes of the same length, other than ``data``, with this CRC-32: the last four can make it anything."""
    start = b"X" + data[1:-4]
    table = [0] * 256
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
        table[byte] = value
    wanted, register = checksum ^ 0xFFFFFFFF, zlib.crc32(start) ^ 0xFFFFFFFF
    places = []
    for _ in range(4):
        place = next(i for i, value in enumerate(table) if value >> 24 == wanted >> 24)
        wanted = (wanted ^ table[place]) << 8
        places.append(place)
    end = bytearray()
    for place in reversed(places):
        end.append(place ^ register & 0xFF)
        register = register >> 8 ^ table[place]
    made = start + bytes(end)
    assert zlib.crc32(made) == checksum and made != data and len(made) == len(data)
    return made


def test_what_is_written_into_a_hole_is_found(world, times):
    it = world([sparse(b"f")])
    path = it.trees[0] / "f"
    assert it.verdicts() == [Verdict.PROVEN]
    times(path, lambda: write_at(path, 600_000, b"!"))
    assert it.kinds() == {(b"f", "content")}


def test_zeros_that_fill_a_hole_are_what_the_image_says(world, times):
    it = world([sparse(b"f")])
    path = it.trees[0] / "f"
    times(path, lambda: write_at(path, 600_000, bytes(5000)))
    assert it.verdicts() == [Verdict.PROVEN]


OVERWRITTEN = {
    "a file by a file": [reg(b"f", b"first" * 99), reg(b"f", b"second")],
    "three times": [reg(b"f", b"1"), reg(b"f", b"2"), reg(b"f", b"1"), reg(b"f", b"3")],
    "a file by a symlink": [reg(b"f", b"first"), symlink(b"f", b"elsewhere")],
    "a directory by a file": [reg(b"d/one", b"1"), reg(b"d/deep/two", b"22"), reg(b"d", b"3")],
    "all links of a file": [reg(b"f", b"first"), hardlink(b"g", b"f"), reg(b"f", b"2"), reg(b"g", b"3")],
    "a sparse file": [sparse(b"f"), sparse(b"f", b"t"), reg(b"f", b"2")],
    "what a whiteout holds": [hdr(b".wh.x", size=3) + b"abc" + bytes(509)],
    "what AUFS left": [reg(b".wh..wh.orph/1", b"orphan"), reg(b".wh..wh.plnk/1.2", b"link")],
}


@pytest.mark.parametrize("entries", OVERWRITTEN.values(), ids=OVERWRITTEN)
def test_what_a_layer_overwrites_is_kept_and_the_layer_proven_and_saved(world, entries):
    it = world(entries)
    assert it.verdicts() == [Verdict.PROVEN], it.verify().layers[0].damages
    assert it.verdicts(quick=True) == [Verdict.UNCHANGED]
    with (it.folder / "saved.tar").open("wb") as out:
        save_images(it.store, [NAME], out, Format.OCI, Job())
    kept = list(it.record_of(0, "kept").iterdir())
    assert kept
    for path in kept:
        data = path.read_bytes()
        for broken in (data[:-1], data + b"x", bytes([data[0] ^ 1]) + data[1:]):
            path.write_bytes(broken)
            assert {kind for _, kind in it.kinds()} == {"overwritten"}
        path.write_bytes(data)
    assert it.verdicts() == [Verdict.PROVEN]
    (it.record_of(0, "kept") / "more").write_bytes(b"x")
    assert {kind for _, kind in it.kinds()} == {"overwritten"}


def test_a_layer_of_before_without_what_it_overwrote_is_damaged_and_repairable(world):
    it = world([reg(b"f", b"first"), reg(b"f", b"second")])
    shutil.rmtree(it.record_of(0, "kept"))
    assert it.kinds() == {(b"f", "overwritten")}
    assert it.verdicts(quick=True) == [Verdict.DAMAGED]
    it.pull(force=True)
    assert it.verdicts() == [Verdict.PROVEN]


def test_removing_an_image_takes_what_its_layers_overwrote(world):
    from msb_pull.work.prune.remove import remove_images

    it = world([reg(b"f", b"first"), reg(b"f", b"second")])
    remove_images(it.store, [NAME], Job())
    assert list((it.store.own / "records").iterdir()) == []


def test_a_forged_checksum_in_a_layer_with_an_overwritten_entry_is_found(world, times):
    data = b"root:x:0:0:root:/root:/bin/sh\n"
    it = world([reg(b"f", b"first"), reg(b"f", b"second"), reg(b"passwd", data)])
    path = it.trees[0] / "passwd"
    times(path, lambda: path.write_bytes(forged(data, zlib.crc32(data))))
    assert {kind for _, kind in it.kinds()} == {"stream"}


def test_one_changed_checksum_in_a_record_with_a_doubled_entry_is_found(world):
    import gzip

    it = world([reg(b"f", b"first"), reg(b"f", b"second")])
    record = it.record_of(0, "tar")
    data = gzip.decompress(record.read_bytes())
    for checksum in (zlib.crc32(b"first"), zlib.crc32(b"second")):
        place = data.index(checksum.to_bytes(4, "big"))
        record.write_bytes(gzip.compress(data[:place] + b"\0" + data[place + 1 :], 1))
        assert it.verdicts() == [Verdict.DAMAGED]


def test_a_layer_whose_folder_is_a_symlink_is_damaged(world):
    it = world([reg(b"f", b"x")])
    it.trees[0].rename(it.folder / "elsewhere")
    it.trees[0].symlink_to(it.folder / "elsewhere")
    assert it.kinds() == {(b"", "type")}


@pytest.mark.parametrize("suffix", ["json", "tar"])
def test_a_layer_without_its_proof_is_damaged(world, suffix):
    it = world([reg(b"f", b"x")])
    it.record_of(0, suffix).unlink()
    (it.trees[0] / "f").write_bytes(b"y")
    assert it.verdicts() == [Verdict.DAMAGED]
    assert it.verdicts(quick=True) == [Verdict.DAMAGED]


NESTED = b"[" * 100_000 + b"]" * 100_000


def of_fact(notes: dict, **changed) -> bytes:
    """The notes with another first fact before theirs."""
    first = notes["derived"][0] | changed
    return json.dumps(notes | {"derived": [first, *notes["derived"]]}).encode() + b"\n"


NOTES = {
    "empty": lambda notes: b"",
    "cut": lambda notes: json.dumps(notes).encode()[:-9],
    "nested": lambda notes: NESTED,
    "nested inside": lambda notes: json.dumps(notes).encode()[:-1] + b',"more":' + NESTED + b"}",
    "facts without keys": lambda notes: json.dumps(notes | {"derived": [{}]}).encode(),
    "facts that are none": lambda notes: json.dumps(notes | {"derived": [[], 3, None]}).encode(),
    "no top": lambda notes: of_fact(notes, kind="dropped", path=""),
    "a top that moves": lambda notes: of_fact(notes, kind="moved", asked="", path="a", to="z"),
    "a top that is a file": lambda notes: of_fact(notes, kind="claimed", path="", **{"from": "a/f"}),
    "a time as text": lambda notes: of_fact(notes, mtime_ns="x"),
    "a time that is none": lambda notes: of_fact(notes, mtime_ns=10**40),
    "an odd owner": lambda notes: of_fact(notes, override="abc"),
    "an odd attribute": lambda notes: of_fact(notes, xattrs={"user.x": "?"}),
    "a path that leads out": lambda notes: of_fact(notes, path="../../x"),
    "a name that is none": lambda notes: of_fact(notes, path="\ud800"),
    "moves in a circle": lambda notes: json.dumps(notes | {"moved": [["a", "a/b"], ["a/b", "a"]] * 40}).encode(),
    "odd places": lambda notes: json.dumps(notes | {"placed": {"0": "../../x", "-1": "f"}}).encode(),
    "a number as text": lambda notes: json.dumps(notes | {"entries": "1"}).encode(),
    "another number": lambda notes: json.dumps(notes | {"entries": 5}).encode(),
    "a different length": lambda notes: json.dumps(notes | {"tar_bytes": 5}).encode(),
    "another size": lambda notes: json.dumps(notes | {"content_bytes": -1}).encode(),
    "another diff_id": lambda notes: json.dumps(notes | {"diff_id": "sha256:" + "0" * 64}).encode(),
}


@pytest.mark.parametrize("change", NOTES.values(), ids=NOTES)
def test_damaged_notes_are_damage_of_one_layer_and_the_others_are_verified(world, change):
    it = world([reg(b"a/f", b"x")], [reg(b"g", b"y")])
    notes = it.record_of(0, "json")
    notes.write_bytes(change(json.loads(notes.read_text())))
    assert it.verdicts() == [Verdict.DAMAGED, Verdict.PROVEN]
    assert it.verdicts(quick=True) == [Verdict.DAMAGED, Verdict.UNCHANGED]


ATTRIBUTES = {
    "user.overlay.opaque": b"y",
    "user.stranger": b"",
    "security.capability": b"\1\0\0\2" + bytes(16),
    "trusted.overlay.opaque": b"y",
    "system.posix_acl_access": bytes.fromhex("0200000001000600ffffffff02000700e803000004000400ffffffff")
    + bytes.fromhex("10000700ffffffff20000400ffffffff"),
}


@ROOT
@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize("path", ["f", "d", ""])
def test_an_attribute_of_any_namespace_is_found(world, name, path):
    it = world([reg(b"f", b"x"), directory(b"d"), reg(b"g", b"z")])
    os.setxattr(it.trees[0] / path, name, ATTRIBUTES[name])
    for quick in (False, True):
        assert (os.fsencode(path), "attribute") in it.kinds(quick=quick)


@ROOT
def test_an_attribute_of_a_symlink_is_found(world):
    it = world([symlink(b"s", b"x")])
    os.setxattr(it.trees[0] / "s", "trusted.overlay.redirect", b"y", follow_symlinks=False)
    assert it.kinds() == {(b"s", "attribute")}


@ROOT
@pytest.mark.parametrize("name", ["security.selinux", "security.ima"])
def test_what_the_host_sets_is_no_damage(world, name):
    it = world([reg(b"f", b"x")])
    try:
        os.setxattr(it.trees[0] / "f", name, b"label\0" if name == "security.selinux" else b"\1" + bytes(20))
    except OSError as error:
        pytest.skip(f"this system does not take it: {error.strerror}")
    assert it.verdicts() == [Verdict.PROVEN]


def test_what_the_file_system_cannot_keep_of_a_time_is_no_damage(world, monkeypatch):
    """A file system that ends in 2038, as xfs without bigtime, clamps what it is told."""
    real, end = os.utime, (1 << 31) - 1

    def utime(path, *, ns, **more):
        real(path, ns=tuple(min(time, end * 10**9) for time in ns), **more)

    it = world([reg(b"f", b"x", mtime=1 << 31), reg(b"g", b"x")])
    for tree in it.trees:
        real(tree / "f", (end, end))
    assert it.kinds() == {(b"f", "time")}
    monkeypatch.setattr(os, "utime", utime)
    assert it.verdicts() == [Verdict.PROVEN]
    real(it.trees[0] / "g", (end, end))
    assert it.kinds() == {(b"g", "time")}


def test_a_time_without_its_fraction_is_damage_where_the_file_system_keeps_it(world):
    it = world([pax((b"mtime", b"5.25")) + reg(b"f", b"x")])
    if (it.trees[0] / "f").stat().st_mtime_ns != 5_250_000_000:
        pytest.skip("this file system keeps no fractions")
    os.utime(it.trees[0] / "f", (5, 5))
    assert it.kinds() == {(b"f", "time")}


MANY = {
    "whiteouts": [hdr(b".wh.%d" % number) for number in range(600)],
    "directories": [directory(b"%d" % number) for number in range(600)],
    "symlinks after a file": [reg(b"f", b"x"), *(symlink(b"%d" % number, b"f") for number in range(4000))],
    "empty files": [reg(b"%d" % number) for number in range(2000)],
    "behind the end": [reg(b"f", b"x"), END, bytes(300_000), b"g" * 300_000],
}


@pytest.mark.parametrize("entries", MANY.values(), ids=MANY)
def test_many_bytes_without_content_are_saved(world, entries):
    import hashlib
    import tarfile

    it = world(entries)
    saved = it.folder / "saved.tar"
    with saved.open("wb") as out:
        save_images(it.store, [NAME], out, Format.OCI, Job())
    stream = b"".join(entries) + END
    with tarfile.open(saved) as archive:
        member = archive.extractfile(f"blobs/sha256/{hashlib.sha256(stream).hexdigest()}")
        assert member is not None and member.read() == stream


def rewritten(notes: Path, edit) -> None:
    document = json.loads(notes.read_text())
    edit(document)
    notes.write_text(json.dumps(document) + "\n")


def test_notes_that_fit_a_swapped_file_are_found(world):
    """Where entries lie follows from the record, whatever the notes say."""
    it = world([directory(b"etc"), reg(b"etc/passwd", b"root:x"), reg(b"etc/other", b"evil:x")])
    passwd, other = it.trees[0] / "etc/passwd", it.trees[0] / "etc/other"
    passwd.rename(it.folder / "aside")
    other.rename(passwd)
    (it.folder / "aside").rename(other)
    facts = passwd.lstat()
    os.utime(it.trees[0] / "etc", (facts.st_mtime, facts.st_mtime))
    rewritten(it.record_of(0, "json"), lambda notes: notes.update(placed={"1": "etc/other", "2": "etc/passwd"}))
    for quick in (False, True):
        assert it.verdicts(quick=quick) == [Verdict.DAMAGED]


def test_notes_that_fit_a_moved_directory_are_found(world):
    it = world([directory(b"a", mode=0o700)], [reg(b"a/f", b"x")])
    move = {"kind": "moved", "asked": "a", "path": "a", "to": "b"}

    def edit(notes):
        notes["derived"] = [fact for fact in notes["derived"] if fact["path"] != "a"] + [move]
        notes["moved"] = [["a", "b"]]

    (it.trees[1] / "a").rename(it.trees[1] / "b")
    os.utime(it.trees[1], (0, 0))
    rewritten(it.record_of(1, "json"), edit)
    assert it.verdicts() == [Verdict.PROVEN, Verdict.DAMAGED]


def test_notes_that_fit_other_owners_of_an_implied_directory_are_found(world):
    it = world([directory(b"a", mode=0o700, uid=5)], [reg(b"a/f", b"x")])

    def edit(notes):
        for fact in notes["derived"]:
            if fact["path"] == "a":
                fact["override"] = "0:0:044777"

    os.setxattr(it.trees[1] / "a", "user.containers.override_stat", b"0:0:044777")
    rewritten(it.record_of(1, "json"), edit)
    for quick in (False, True):
        assert (b"a", "derived") in it.kinds(quick=quick)


def test_notes_that_fit_another_content_of_a_link_to_a_lower_layer_are_found(world, times):
    import hashlib

    it = world([reg(b"sudo", b"good")], [hardlink(b"su", b"sudo")])
    path = it.trees[1] / "su"
    assert it.verdicts() == [Verdict.PROVEN, Verdict.PROVEN]
    times(path, lambda: path.write_bytes(b"evil"))

    def edit(notes):
        for fact in notes["derived"]:
            if fact["kind"] == "link":
                fact["sha256"] = hashlib.sha256(b"evil").hexdigest()

    rewritten(it.record_of(1, "json"), edit)
    assert it.kinds() == {(b"su", "derived")}


def test_notes_with_a_new_file_are_found(world):
    it = world([reg(b"f", b"x")])
    new = {"kind": "link", "asked_path": "new", "path": "new", "from": "f", "real": "f", "mtime_ns": 0,
           "symlink": "/bin/sh"}  # fmt: skip
    (it.trees[0] / "new").symlink_to("/bin/sh")
    os.utime(it.trees[0] / "new", (0, 0), follow_symlinks=False)
    os.utime(it.trees[0], (0, 0))
    rewritten(it.record_of(0, "json"), lambda notes: notes["derived"].append(new))
    assert it.verdicts() == [Verdict.DAMAGED]


@ROOT
def test_notes_that_excuse_a_missing_attribute_are_found(world):
    """What a file system could not take is believed only where it does not take it today either."""
    it = world([xattr(b"user.kept", b"value"), reg(b"f", b"x")])
    os.removexattr(it.trees[0] / "f", "user.kept")
    rewritten(it.record_of(0, "json"), lambda notes: notes.update(unkept=[0]))
    assert it.kinds() == {(b"f", "attribute")}


def test_one_flipped_byte_below_is_told_of_the_layer_below_alone(world, times):
    it = world([reg(b"sudo", b"good")], [hardlink(b"su", b"sudo")])
    path = it.trees[0] / "sudo"
    times(path, lambda: path.write_bytes(b"evil"))
    assert it.verdicts() == [Verdict.DAMAGED, Verdict.UNCHANGED]
    assert it.kinds() == {(b"sudo", "content")}


def test_the_hole_of_a_link_to_a_lower_layer_is_never_read(world, monkeypatch):
    """A file of some terabytes that is one hole costs a few calls."""
    from msb_pull.layer.tree import holes

    path = Path(world([reg(b"f", b"x")]).folder, "large")
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"data")
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system knows no holes")
    read = []
    real = os.pread
    monkeypatch.setattr(holes.os, "pread", lambda *words: read.append(words) or real(*words))
    with path.open("rb") as one, path.open("rb") as other:
        assert holes.same_content(one.fileno(), other.fileno())
        assert holes.first_data(one.fileno(), ((1 << 39, 4),), 1 << 40) is None
        assert holes.first_data(one.fileno(), (), 1 << 40) == 1 << 39
    assert len(read) < 20


def test_bytes_in_a_file_that_is_one_hole_are_found(world, times):
    it = world([pax((b"GNU.sparse.map", b""), (b"GNU.sparse.size", b"100000")) + reg(b"f")])
    assert it.verdicts() == [Verdict.PROVEN]
    file = it.trees[0] / "f"
    times(file, lambda: write_at(file, 5000, b"x"))
    assert it.kinds() == {(b"f", "content")}


@pytest.mark.parametrize("linked", [False, True])
def test_hard_links_of_symlinks_are_compared(world, linked):
    second = hardlink(b"b", b"a") if linked else symlink(b"b", b"x")
    it = world([symlink(b"a", b"x"), second])
    top, when = it.trees[0], os.stat(it.trees[0]).st_mtime_ns
    (top / "b").unlink()
    if linked:
        (top / "b").symlink_to("x")
        os.utime(top / "b", ns=(top.joinpath("a").lstat().st_mtime_ns,) * 2, follow_symlinks=False)
    else:
        os.link(top / "a", top / "b", follow_symlinks=False)
    os.utime(top, ns=(when, when))
    assert it.verdicts(quick=True) == [Verdict.DAMAGED]
    assert {kind for _, kind in it.kinds()} == {"link"}


def save(it: World) -> Path:
    saved = it.folder / "saved.tar"
    with saved.open("wb") as out:
        save_images(it.store, [NAME], out, Format.OCI, Job())
    return saved


def test_a_header_that_was_changed_in_the_record_is_not_saved(world):
    """No file tells of it: only the digest of the whole stream does."""
    it = world([reg(b"f", b"x")])
    record = it.record_of(0, "tar")
    stripped = gzip.decompress(record.read_bytes())
    header = reg(b"f", b"x")[:512]
    assert stripped.startswith(header)
    record.write_bytes(gzip.compress(reg(b"f", b"x", mtime=5)[:512] + stripped[512:]))
    with pytest.raises(ContentError, match="no longer matches its diff_id"):
        save(it)


@pytest.mark.parametrize("size", [5, -5, 1 << 20])
def test_the_length_in_the_notes_is_not_what_save_writes(world, size):
    it = world([reg(b"f", b"x")])
    sound = save(it).read_bytes()
    notes = it.record_of(0, "json")
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"tar_bytes": size}) + "\n")
    assert save(it).read_bytes() == sound


def test_damaged_notes_are_no_mistake_of_save(world):
    it = world([reg(b"a/f", b"x")])
    notes = it.record_of(0, "json")
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"derived": [{}]}) + "\n")
    with pytest.raises(ContentError, match="damaged"):
        save(it)
