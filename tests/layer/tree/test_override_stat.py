"""The attribute user.containers.override_stat and the attributes of images: part E of the catalogue of edge cases."""

from __future__ import annotations

import ast
import errno
import os
import runpy
import stat
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from msb_pull.layer import attributes
from msb_pull.layer.attributes import disk_name, override_stat, parse_override_stat
from msb_pull.layer.limits import LayerError
from msb_pull.layer.settle.settle import Settled
from msb_pull.layer.tree import dress, tree
from tests.conftest import REPOSITORY
from tests.support.archive import (
    END,
    OVERRIDE,
    assert_proven,
    attributes_of,
    directory,
    extract,
    hardlink,
    hdr,
    override,
    pax,
    reg,
    symlink,
    xattr,
)
from tests.support.unprivileged import as_nobody, folder_of_nobody

pytestmark = pytest.mark.disk

KINDS = {
    stat.S_IFREG: "0100",
    stat.S_IFDIR: "040",
    stat.S_IFLNK: "0120",
    stat.S_IFCHR: "020",
    stat.S_IFBLK: "060",
    stat.S_IFIFO: "010",
}


def names(path) -> list[str]:
    return sorted(name for name in os.listxattr(path, follow_symlinks=False) if name != OVERRIDE)


@pytest.mark.parametrize(("kind", "start"), KINDS.items())
@pytest.mark.parametrize("mode", [0, 0o644, 0o4755, 0o2755, 0o1777, 0o7777])
def test_e1_grammar(kind, start, mode):
    value = override_stat(kind, mode, 7, 8).decode("ascii")
    # Type bits and mode share digits: 0o040000 | 0o7777.
    assert value == f"7:8:0{int(start, 8) * 0o1000 + mode:o}"
    assert int(value.split(":")[2], 8) == kind | mode


def test_e1_examples():
    assert override_stat(stat.S_IFREG, 0o644, 0, 0) == b"0:0:0100644"
    assert override_stat(stat.S_IFDIR, 0o755, 0, 0) == b"0:0:040755"
    assert override_stat(stat.S_IFDIR, 0o1777, 0, 0) == b"0:0:041777"
    assert override_stat(stat.S_IFREG, 0o4755, 0, 0) == b"0:0:0104755"


def test_e1_on_disk(tmp_path):
    extract(
        tmp_path / "l",
        *(directory(b"tmp", mode=0o1777), reg(b"sudo", mode=0o4755), reg(b"f", uid=1000, gid=1001)),
        reg(b"shadow", mode=0, gid=42),
    )
    found = {name: override(tmp_path / "l" / name) for name in ("tmp", "sudo", "f", "shadow")}
    assert found == {
        "tmp": "0:0:041777",
        "sudo": "0:0:0104755",
        "f": "1000:1001:0100644",
        "shadow": "0:42:0100000",
    }


def test_e2_the_longest_value_fits_into_what_libkrun_reads():
    value = override_stat(stat.S_IFREG, 0o7777, 2**32 - 1, 2**32 - 1)
    assert (value, len(value)) == (b"4294967295:4294967295:0107777", 29)


def test_e3_placeholders_carry_the_real_type(tmp_path):
    """The three-field form is what krun needs; fuse-overlayfs is told in the documentation."""
    extract(tmp_path / "l", hdr(b"c", typ=b"3", major=1, minor=3), hdr(b"b", typ=b"4", major=8), hdr(b"p", typ=b"6"))
    kinds = {name: parse_override_stat(os.getxattr(tmp_path / "l" / name, OVERRIDE))[2] for name in "cbp"}
    assert {name: stat.S_IFMT(mode or 0) for name, mode in kinds.items()} == {
        "c": stat.S_IFCHR,
        "b": stat.S_IFBLK,
        "p": stat.S_IFIFO,
    }


def test_e4_top_directory_without_an_entry(tmp_path):
    extract(tmp_path / "l", reg(b"a/f"))
    assert override(tmp_path / "l") == "0:0:040755"


@pytest.mark.parametrize("first", [True, False])
def test_e5_hard_links_keep_the_metadata_of_the_file(tmp_path, first):
    entries = [reg(b"f", b"x", mode=0o755, uid=5), hardlink(b"h", b"f", mode=0o644, uid=0, mtime=1)]
    extract(tmp_path / "l", *(entries if first else entries[::-1]))
    assert override(tmp_path / "l/f") == override(tmp_path / "l/h") == "5:0:0100755"
    assert (tmp_path / "l/h").stat().st_mtime == 1_700_000_000


@pytest.mark.parametrize("typ", [b"7", b"\0", b"0"])
def test_e6_every_kind_of_regular_entry(tmp_path, typ):
    extract(tmp_path / "l", hdr(b"f", typ=typ, size=1) + b"x".ljust(512, b"\0"))
    assert override(tmp_path / "l/f") == "0:0:0100644"


@pytest.mark.parametrize("key", [b"user.containers.override_stat", b"stat", b"containers.override_stat"])
@pytest.mark.parametrize("make", [reg, directory])
def test_e7_an_image_cannot_set_our_key(tmp_path, key, make):
    """Neither by its name nor by one that becomes it when it is escaped."""
    extract(tmp_path / "l", xattr(key, b"99:99:0777"), make(b"f", mode=0o755))
    assert override(tmp_path / "l/f").startswith("0:0:0")
    assert names(tmp_path / "l/f") == []


def test_e7_no_name_leads_to_our_key():
    for space in (
        b"",
        b"user.",
        b"security.",
        b"trusted.",
        b"system.",
        b"user.containers.",
        b"user.containers.override_",
    ):
        for rest in (b"", b"stat", b"containers.override_stat", b"override_stat"):
            assert disk_name(space + rest) != OVERRIDE.encode()


@pytest.mark.parametrize(
    "name",
    [
        "user.containers.override_opaque",
        "user.overlay.opaque",
        "user.overlay.redirect",
        "user.fuseoverlayfs.opaque",
        "trusted.overlay.opaque",
        "user.msb.override_stat",
    ],
)
def test_e8_names_that_readers_obey_are_escaped(tmp_path, name):
    extract(tmp_path / "l", xattr(name.encode(), b"y"), directory(b"d"), xattr(name.encode(), b"y"), reg(b"f"))
    assert names(tmp_path / "l/d") == names(tmp_path / "l/f") == [f"user.containers.override_{name}"]


def test_e9_capabilities_are_kept_escaped_even_as_root(tmp_path):
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    extract(
        tmp_path / "l", attributes_of((b"security.capability", value), (b"trusted.x", b"1")), reg(b"ping", mode=0o755)
    )
    assert names(tmp_path / "l/ping") == [
        "user.containers.override_security.capability",
        "user.containers.override_trusted.x",
    ]
    assert os.getxattr(tmp_path / "l/ping", "user.containers.override_security.capability") == value


@pytest.mark.parametrize("owner", [{"uid": 2**32}, {"gid": 2**32}, {"uid": -1}, {"gid": -5}])
def test_e10_ids_that_no_reader_takes_are_refused(tmp_path, owner):
    with pytest.raises(LayerError, match="out of range"):
        extract(tmp_path / "l", reg(b"f", **owner))
    with pytest.raises(ValueError, match="out of range"):
        override_stat(stat.S_IFREG, 0, owner.get("uid", 0), owner.get("gid", 0))


def test_e11_the_highest_id_is_written_with_a_warning(tmp_path):
    report = extract(tmp_path / "l", reg(b"f", uid=2**32 - 1), reg(b"g", uid=2**32 - 1, mode=0o600))
    assert override(tmp_path / "l/f") == "4294967295:0:0100644"
    assert len(report.warnings) == 1
    assert "4294967295" in report.warnings[0]


def test_e12_type_bits_come_from_the_type_alone(tmp_path):
    extract(tmp_path / "l", directory(b"d", mode=0o100644), reg(b"f", mode=0o040755), symlink(b"s", b"t"))
    assert (override(tmp_path / "l/d"), override(tmp_path / "l/f")) == ("0:0:040644", "0:0:0100755")


def test_e13_symlinks_carry_nothing_on_linux(tmp_path):
    report = extract(tmp_path / "l", xattr(b"user.k", b"v"), symlink(b"s", b"t", uid=5))
    assert os.listxattr(tmp_path / "l/s", follow_symlinks=False) == []
    assert report.warnings == []


def test_e14_attributes_never_go_through_a_symlink(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    extract(
        tmp_path / "l",
        *(directory(b"d"), symlink(b"d", os.fsencode(outside)), xattr(b"user.k", b"v"), directory(b"d", uid=9)),
        *(symlink(b"f", os.fsencode(outside)), xattr(b"user.k", b"v"), reg(b"f", uid=9)),
    )
    assert os.listxattr(outside) == []
    assert override(tmp_path / "l/d") == "9:0:040755"


def test_e15_a_file_system_without_attributes(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOTSUP, "no")

    for module in (dress, tree, attributes):
        monkeypatch.setattr(module, "set_attribute", none)
    for module in (dress, attributes):
        monkeypatch.setattr(module, "list_attributes", none)
    entries = [xattr(b"user.k", b"v"), reg(b"f"), directory(b"d"), directory(b"d")]
    report = extract(tmp_path / "l", *entries, xattrs=False, proven=False)
    assert report.warnings == []
    with pytest.raises(OSError, match="no") as caught:
        extract(tmp_path / "m", reg(b"f"))
    assert caught.value.errno == errno.ENOTSUP


def test_e16_an_attribute_that_does_not_fit_is_a_warning(tmp_path):
    def full(descriptor, name, value):
        if len(value) > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.setxattr(descriptor, name, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dress, "set_attribute", full)
        report = extract(tmp_path / "l", attributes_of((b"user.big", b"x" * 70_000), (b"user.small", b"y")), reg(b"f"))
    assert override(tmp_path / "l/f") == "0:0:0100644"
    assert names(tmp_path / "l/f") == ["user.small"]
    assert len(report.warnings) == 1
    assert 'entry 0 "f": attribute "user.big"' in report.warnings[0]
    assert "disk full" not in report.warnings[0]
    assert "No space" not in report.warnings[0]


def test_e16_what_was_left_out_is_no_damage_and_what_was_kept_must_stay(tmp_path):
    """Verify took every large attribute for one that did not fit, and small ones that did not fit for damage."""
    layer, record = tmp_path / "l", tmp_path / "record"
    small = attributes_of(*((b"user.k%02d" % i, b"x" * 900) for i in range(80)))
    entries = [xattr(b"user.large", b"x" * 2000), reg(b"f"), small, reg(b"g"), xattr(b"user.large", b"y"), reg(b"h")]
    report = extract(layer, *entries, record=record)
    if report.unkept != [1]:
        pytest.skip("this file system has room for other sizes")
    os.removexattr(layer / "f", "user.large")
    with pytest.raises(AssertionError, match=r"\[Damage.b'f', 'attribute', 'user.large', 'nothing'.\]"):
        assert_proven(layer, record, b"".join(entries) + END, report, Settled([]))


def test_e16_our_own_attribute_that_does_not_fit_is_an_error(tmp_path, monkeypatch):
    """An image's attributes come after it, so that they never take its place."""
    told = []

    def full(descriptor, name, value):
        told.append(name)
        if value.endswith(b":0100644"):
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))

    for module in (dress, tree):
        monkeypatch.setattr(module, "set_attribute", full)
    with pytest.raises(OSError, match=os.strerror(errno.E2BIG)) as caught:
        extract(tmp_path / "l", xattr(b"user.k", b"v"), reg(b"f"))
    assert caught.value.filename == b"f"
    assert set(told) == {OVERRIDE.encode()}


def test_e16_really(tmp_path):
    """ext4 keeps about one block of attributes, others more: whatever fits, ours is there."""
    many = [(b"user.k%d" % i, b"x" * 900) for i in range(40)]
    extract(tmp_path / "l", attributes_of(*many, (b"user.huge", b"x" * 70000)), reg(b"f", uid=3))
    assert override(tmp_path / "l/f") == "3:0:0100644"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"0:0:0100644", (0, 0, 0o100644)),
        (b"0:0:0644", (0, 0, 0o644)),
        (b"0:0:0644:file", (0, 0, 0o644)),
        (b"1:2:644", (1, 2, 0o644)),
        (b"5:6:0666:char-1-3", (5, 6, 0o666)),
        (b"5:6:0666:block8:0", (5, 6, 0o666)),
        (b"x:x:0755", (None, None, 0o755)),
        (b"7:x:x", (7, None, None)),
        (b"4294967295:0:0107777", (2**32 - 1, 0, 0o107777)),
    ],
)
def test_e17_every_writer_is_read(value, expected):
    assert parse_override_stat(value) == expected


@pytest.mark.parametrize(
    "value", [b"", b"0:0", b"a:0:0644", b"0:0:0888", b"-1:0:0644", b"+1:0:0", b" 1:0:0", b"1_0:0:0"]
)
def test_e17_nonsense_is_not(value):
    with pytest.raises(ValueError):
        parse_override_stat(value)


def test_e17_round_trip():
    for kind in KINDS:
        for mode in (0, 0o644, 0o7777):
            assert parse_override_stat(override_stat(kind, mode, 1, 2**32 - 1)) == (1, 2**32 - 1, kind | mode)


def test_e18_implied_directories(tmp_path):
    extract(tmp_path / "l", reg(b"a/b/c"))
    assert override(tmp_path / "l/a/b") == override(tmp_path / "l/a") == "0:0:040755"


def test_e19_of_two_packages_with_one_name_neither_is_taken_for_the_other(tmp_path):
    """Linux needs none of them, and macOS asks one for functions that both have with the same arguments."""
    (tmp_path / "xattr.py").write_text("raise ImportError('the wrong xattr')")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import tests.support.archive as a; from pathlib import Path; "
    code += "a.extract(Path(sys.argv[2]), a.xattr(b'user.k', b'v'), a.reg(b'f')); from msb_pull.store import probe; "
    code += "assert probe.probe(Path(sys.argv[1])).attributes"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "l")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        timeout=30,
    )
    assert run.returncode == 0, run.stderr.decode()
    assert os.getxattr(tmp_path / "l" / "f", "user.k") == b"v"
    used = set()
    for file in (REPOSITORY / "msb_pull").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "xattr":
                used.add(node.attr)
    assert used == {"setxattr", "getxattr", "listxattr", "removexattr"}


class FakeXattr(ModuleType):
    """The package as macOS has it, on the attributes of Linux; names come as text."""

    def __init__(self):
        super().__init__("xattr")
        self.setxattr, self.getxattr, self.removexattr = os.setxattr, os.getxattr, os.removexattr

    def listxattr(self, descriptor):
        return tuple(os.listxattr(descriptor))


def test_attributes_on_macos_go_through_the_package(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", "darwin")
        on_macos = SimpleNamespace(**runpy.run_path(attributes.__file__))
    assert on_macos.set_attribute is not os.setxattr
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        for fake in (None, FakeXattr()):
            # Without it nothing is loaded before somebody asks for an attribute.
            monkeypatch.setitem(sys.modules, "xattr", fake)
            if fake is None:
                with pytest.raises(ImportError):
                    on_macos.user_attributes(descriptor)
        on_macos.set_attribute(descriptor, b"user.k", b"v\0")
        on_macos.set_attribute(descriptor, b"user.empty", b"")
        assert on_macos.user_attributes(descriptor) == [(b"user.empty", b""), (b"user.k", b"v\0")]
        on_macos.remove_attribute(descriptor, b"user.k")
        assert on_macos.list_attributes(descriptor) == [b"user.empty"] == attributes.list_attributes(descriptor)
        with pytest.raises(OSError):
            on_macos.get_attribute(descriptor, b"user.k")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("value", [b"\xff\0\n=x", b"", b"a=b\nc", b"\0"])
def test_a51_values_are_bytes(tmp_path, value):
    extract(tmp_path / "l", xattr(b"user.k", value), reg(b"f"))
    assert os.getxattr(tmp_path / "l/f", "user.k") == value


@pytest.mark.parametrize("name", [b"security.selinux", b"system.nfs4_acl", b"security.evm", b"security.ima"])
def test_a51_attributes_of_a_host_are_left_out(tmp_path, name):
    extract(tmp_path / "l", xattr(name, b"x"), reg(b"f"))
    assert names(tmp_path / "l/f") == []


def test_a51_other_prefixes_are_ignored(tmp_path):
    extract(tmp_path / "l", pax((b"LIBARCHIVE.xattr.user.k", b"eA==")), reg(b"f"))
    assert names(tmp_path / "l/f") == []


def test_a51_names_that_no_system_takes_are_warnings(tmp_path):
    report = extract(tmp_path / "l", attributes_of((b"user." + b"n" * 300, b"x"), (b"user.", b"x")), reg(b"f", uid=2))
    assert override(tmp_path / "l/f") == "2:0:0100644"
    assert len(report.warnings) == 2


def test_a52_access_lists_are_kept_escaped(tmp_path):
    value = bytes.fromhex("02000000 01000600ffffffff 04000400ffffffff 20000400ffffffff")
    extract(tmp_path / "l", xattr(b"system.posix_acl_access", value), reg(b"f", mode=0o640))
    assert names(tmp_path / "l/f") == ["user.containers.override_system.posix_acl_access"]


def test_a52_access_lists_of_the_store_are_not_inherited(tmp_path):
    folder = tmp_path / "l"
    folder.mkdir()
    rule = bytes.fromhex(
        "02000000 01000700ffffffff 0200070001000000 04000700ffffffff 10000700ffffffff 20000700ffffffff"
    )
    try:
        os.setxattr(folder, "system.posix_acl_default", rule)
    except OSError:
        pytest.skip("this file system has no access lists")
    extract(folder, reg(b"f", mode=0o600), directory(b"d", mode=0o700))
    assert names(folder / "f") == names(folder / "d") == []
    assert (folder / "f").stat().st_mode & 0o777 == 0o600


SCRIPT = """
import os, sys
from pathlib import Path
from tests.support.archive import *
os.umask(int(sys.argv[2], 8))
root = Path(sys.argv[1])
modes = [0, 0o200, 0o400, 0o444, 0o111, 0o555, 0o644, 0o755, 0o777, 0o2755, 0o4755, 0o7777]
extract(
    root,
    *(reg(b"f%o" % mode, b"x", mode=mode, uid=mode, gid=7) for mode in modes),
    *(directory(b"d%o" % mode, mode=mode) + reg(b"d%o/f" % mode, b"y") for mode in modes),
    *(attributes_of((b"security.capability", b"c"), (b"trusted.x", b"t")) + reg(b"cap"),),
    *(hdr(b"null", typ=b"3", mode=0o666, major=1, minor=3), hdr(b"fifo", typ=b"6", mode=0)),
    *(symlink(b"s", b"/etc/shadow"), hardlink(b"h", b"f0"), reg(b"f444", b"z", mode=0o444), reg(b"d0", b"now a file")),
)
for path in sorted(root.rglob("*")):
    facts = path.lstat()
    said = os.listxattr(path, follow_symlinks=False)
    said = sorted((name, os.getxattr(path, name)) for name in said) if not path.is_symlink() else []
    content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    print(path.relative_to(root), oct(facts.st_mode), content, said)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mask", ["0", "077"])
def test_a45_root_and_nobody_make_the_same_tree(mask):
    outputs = []
    with folder_of_nobody() as home:
        for number, prefix in enumerate([lambda command: command, lambda command: as_nobody(command, [REPOSITORY])]):
            command = prefix([sys.executable, "-c", SCRIPT, str(home / f"tree{number}"), mask])
            # The test's own modules are imported from the working directory.
            ran = subprocess.run(
                command, cwd="/", env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, timeout=60
            )
            assert ran.returncode == 0, ran.stderr.decode()
            outputs.append(ran.stdout.decode())
    assert outputs[0] == outputs[1]
    assert "f4755 0o100755 b'x' [('user.containers.override_stat', b'2541:7:0104755')]" in outputs[0]
    assert "override_security.capability" in outputs[0]


def test_attributes_and_their_escape_agree():
    assert OVERRIDE.encode() == attributes.OVERRIDE_STAT
    assert attributes.OVERRIDE_STAT.startswith(attributes.ESCAPE)
