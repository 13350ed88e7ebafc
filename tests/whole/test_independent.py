"""What another program makes of the store must be what another unpacker makes of the image.

fuse-overlayfs (the C program of Debian) mounts the layers with the attribute of section 2 of the store's format;
umoci unpacks the same image as root. Both trees are compared name by name. msb-pull runs as root and as a user
without any privilege; the store must say the same in both cases.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, lacking, need, program, program_environment
from tests.support.make_sample import BASE, TOP, Layout, file, folder, hardlink, pipe, symlink
from tests.support.program import run_program
from tests.support.treecompare import Facts, describe, differences
from tests.support.unprivileged import as_nobody, folder_of_nobody

OVERRIDE = "user.containers.override_stat"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(autouse=True)
def tools():
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting and reference unpacking need root on Linux")
    need("fuse-overlayfs", "umoci", "unshare", "setpriv")
    if not Path("/dev/fuse").exists():
        lacking("/dev/fuse is missing, so nothing was read by fuse-overlayfs")


class Store:
    """A home that root or nobody pulls into."""

    def __init__(self, home: Path, *, privileged: bool) -> None:
        self.home, self.privileged = home, privileged

    def run(self, *arguments: str, reach: Path = REPOSITORY) -> str:
        words, env = [*arguments, "--home", str(self.home / "store")], program_environment(HOME=str(self.home))
        if self.privileged:
            return run_program(words, env=env, cwd="/", timeout=300, check=True).stdout
        command = as_nobody([*program(), *words], [REPOSITORY, reach])
        ran = subprocess.run(command, env=env, capture_output=True, text=True, cwd="/", timeout=300)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def pull(self, layout: Path, tag: str) -> str:
        return self.run("pull", "-q", f"oci:{layout}:{tag}", "--as", "made/here:1", reach=layout).strip()

    def lowerdir(self) -> str:
        return self.run("inspect", "--lowerdir", "made/here:1").strip()

    def layers(self) -> list[Path]:
        return [Path(line) for line in self.run("inspect", "--layers", "made/here:1").splitlines()]


@pytest.fixture(params=["root", "nobody"])
def store(request):
    with folder_of_nobody() as home:
        yield Store(home, privileged=request.param == "root")


@contextmanager
def mounted(lowerdir: str, where: Path):
    """The merged view of the layers, read by fuse-overlayfs."""
    where.mkdir()
    subprocess.run(["fuse-overlayfs", "-o", f"lowerdir={lowerdir},xattr_permissions=2", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def unpacked(layout: Path, tag: str, where: Path) -> Path:
    """The reference tree, made by umoci."""
    command = ["umoci", "raw", "unpack", "--image", f"{layout}:{tag}", str(where)]
    subprocess.run(command, check=True, capture_output=True)
    return where


def seen(store: Store, layout: Path, tag: str, tmp_path: Path) -> dict[bytes, Facts]:
    """What fuse-overlayfs makes of an image that was pulled into a store."""
    store.pull(layout, tag)
    with mounted(store.lowerdir(), tmp_path / f"mounted-{store.home.name}") as view:
        return describe(view)


def compare(store: Store, layout: Path, tag: str, tmp_path: Path):
    return differences(seen(store, layout, tag, tmp_path), describe(unpacked(layout, tag, tmp_path / "bundle")))


def exact(made, seconds: str):
    """Gives an entry a modification time as PAX text, finer than a float."""
    made[0].pax_headers = {"mtime": seconds}
    return made


def with_attributes(made, **values: str):
    """Gives an entry extended attributes; names with dots as in ``security__capability``."""
    made[0].pax_headers = {f"SCHILY.xattr.{name.replace('__', '.')}": value for name, value in values.items()}
    return made


CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000").decode("utf-8", "surrogateescape")

MODES = (0o000, 0o200, 0o400, 0o444, 0o600, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6755, 0o7777)

FIRST = [
    *BASE,
    folder("modes"),
    *(file(f"modes/file-{mode:o}", f"{mode:o}", mode, uid=mode, gid=4_000_000_000 + mode) for mode in MODES),
    *(folder(f"modes/folder-{mode:o}", mode, uid=7) for mode in MODES),
    folder("links"),
    file("links/a", "one inode, three names", 0o4711, uid=3),
    hardlink("links/b", "links/a"),
    folder("links/deep"),
    hardlink("links/deep/c", "/links/a"),
    symlink("links/up", "../../../../etc/passwd"),
    symlink("links/dangling", "nowhere//"),
    hardlink("links/up-too", "links/up"),
    exact(file("times", "nanoseconds"), "1700000000.123456789"),
    exact(file("old", "before 1970 is 1970"), "1"),
    with_attributes(file("ping", "may open raw sockets", 0o755), security__capability=CAPABILITY, user__mine="1=2"),
    with_attributes(folder("labelled"), user__label="a folder"),
    folder("gone"),
    file("gone/with-all", "x"),
    folder("replaced-by-file"),
    file("replaced-by-file/inside", "x"),
    file("replaced-by-folder", "x"),
    symlink("replaced-link", "etc"),
    file("removed-and-made", "old"),
    folder("closed", 0o700, uid=5, gid=6),
    folder("closed/inner", 0o750, uid=7, gid=8),
    file("closed/inner/old", "x"),
    folder("opaque"),
    file("opaque/hidden", "x"),
    folder("opaque/sub"),
    file("opaque/sub/hidden", "x"),
]

SECOND = [
    *TOP,
    file(".wh.gone"),
    file("replaced-by-file", "now a file"),
    folder("replaced-by-folder", 0o711),
    file("replaced-by-folder/inside", "now a folder"),
    folder("replaced-link", 0o750),
    file("replaced-link/own", "not in /etc"),
    file("closed/inner/new", "its parents stand in the layer below"),
    file("lib/through-a-link.so", "usr/lib is meant"),
    folder("opaque"),
    file("opaque/sub/new", "x"),
    file("opaque/.wh..wh..opq"),
]

THIRD = [
    file("usr/lib/late", "third"),
    file("usr/share/.wh.a name with spaces"),
    file(".wh.removed-and-made"),
    file("gone/again", "a new folder after the whiteout below"),
    file("links/.wh.b"),
]


def test_sample(store, tmp_path):
    assert compare(store, REPOSITORY / "tests" / "sample", "1", tmp_path) == []


def test_three_layers(store, tmp_path):
    layout = Layout(tmp_path / "layout")
    layout.image([FIRST, SECOND, THIRD], "3")
    assert compare(store, layout.folder, "3", tmp_path) == []


def test_hard_link_to_a_lower_layer(store, tmp_path):
    """The name below keeps its inode, so only the groups may differ."""
    layout = Layout(tmp_path / "layout")
    layout.image([[file("low", "content", 0o4750, uid=9), folder("d")], [hardlink("d/high", "low", 0o4750, uid=9)]])
    wrong = compare(store, layout.folder, "1", tmp_path)
    assert [line for line in wrong if ": links " not in line] == []


def test_special_files_keep_their_type_in_the_attribute(store, tmp_path):
    layout = Layout(tmp_path / "layout")
    device = pipe("null", 0o666)
    device[0].type, device[0].devmajor, device[0].devminor = b"3", 1, 3
    block = pipe("disk", 0o660)
    block[0].type, block[0].devmajor, block[0].devminor = b"4", 8, 0
    layout.image([[device, block, pipe("fifo", 0o600)]])
    store.pull(layout.folder, "1")
    (layer,) = store.layers()
    found = {path.name: (path.lstat(), os.getxattr(path, OVERRIDE)) for path in layer.iterdir()}
    assert {name: value for name, (_, value) in found.items()} == {
        "null": b"0:0:020666",
        "disk": b"0:0:060660",
        "fifo": b"0:0:010600",
    }
    assert all(stat.S_ISREG(facts.st_mode) and facts.st_size == 0 for facts, _ in found.values())


def test_nothing_on_disk_is_dangerous(store, tmp_path):
    """No set-uid bit, no closed folder and no foreign owner stands on the disk itself."""
    layout = Layout(tmp_path / "layout")
    layout.image([FIRST, SECOND, THIRD])
    store.pull(layout.folder, "1")
    owner = 0 if store.privileged else 65534
    for layer in store.layers():
        for path in [layer, *layer.rglob("*")]:
            facts = path.lstat()
            assert (facts.st_uid, facts.st_gid) == (owner, owner), path
            if path.is_symlink():
                continue
            least = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(facts.st_mode) & 0o7000 == 0 and facts.st_mode & least == least, path
            assert os.getxattr(path, OVERRIDE).count(b":") == 2


@pytest.mark.rig
@pytest.mark.parametrize(
    ("name", "tag", "users"), [("debian", "bookworm", ("root", "nobody")), ("python", "3.11", ("root",))]
)
def test_real_images(rig, tmp_path, name, tag, users):
    """The large one is pulled by root alone: what differs for others the small one shows."""
    layout = rig / "layouts" / name
    expected = describe(unpacked(layout, tag, tmp_path / "bundle"))
    for user in users:
        with folder_of_nobody() as home:
            store = Store(home, privileged=user == "root")
            assert differences(seen(store, layout, tag, tmp_path), expected) == [], user
