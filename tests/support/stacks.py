"""Random stacks of layers, put on each other as a pull would, and what each reader says that they show.

python -m tests.support.stacks [FIRST-LAST]      compares that many stacks (0-100000 unless told), with umoci as well
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from msb_pull.ground.errors import ContentError
from msb_pull.layer.attributes import OVERRIDE_STAT, parse_override_stat
from msb_pull.layer.notes import Notes
from msb_pull.layer.proof.prove import prove
from msb_pull.layer.proof.task import ProofTask
from msb_pull.layer.report import UnpackOptions
from msb_pull.layer.rules import is_whiteout, join
from msb_pull.layer.settle.lowers import MergedView
from msb_pull.layer.settle.settle import settle
from msb_pull.layer.tree.kept import keep_aside
from msb_pull.layer.unpack.unpack import unpack
from msb_pull.work.merge import merge
from tests.support.archive import END, derived, directory, hardlink, hdr, reg, symlink
from tests.support.imagebuild import simple_layout

NAMES = [b"a", b"b", b"c"]
TRICKS = [b".wh.a", b".wh.b", b".wh.c", b".wh..wh..opq", b".wh..wh.plnk", b".wh..wh.orph"]
TARGETS = [b"a", b"/b", b"../a", b"b/c", b"..", b"/", b"../../../../tmp", b"c/../a", b"../victim", b"../layer-evil"]


class Layer:
    """One layer on those below it (nearest first), as a pull would leave it in ``folder``."""

    def __init__(self, folder: Path, entries: list[bytes], below: list[Path]) -> None:
        self.tree, self.record, self.notes, self.kept = (folder / x for x in ("tree", "record", "notes", "kept"))
        self.stream = b"".join(entries) + END
        self.below = below
        self.tree.mkdir(parents=True, mode=0o700)
        root = os.open(self.tree, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with self.record.open("wb") as record:
                report = unpack(io.BytesIO(self.stream), root, record.fileno(), UnpackOptions())
        finally:
            os.close(root)
        self.settled = settle(self.tree, report, below)
        keep_aside(self.tree, self.kept)
        self.diff_id = "sha256:" + hashlib.sha256(self.stream).hexdigest()
        notes = Notes.of(report, self.settled.derived, diff_id=self.diff_id, tar_bytes=len(self.stream), chain="")
        notes.save(self.notes)

    def check(self) -> None:
        """The proof agrees with what was written, and settling once more derives the same."""
        paths = map(str, (self.tree, self.record, self.notes))
        task = ProofTask(*paths, self.diff_id, False, str(self.kept), [list(map(str, self.below))])
        found = prove(task, lambda done, total, entries: None)
        assert found.damages == []
        assert found.diff_id == self.diff_id
        facts = [{key: fact[key] for key in fact if key != "copied"} for fact in self.settled.derived]
        assert derived(self.record, self.below) == facts


def build(folder: Path, stack: list[list[bytes]]) -> list[Layer]:
    """All layers of a stack, bottom first; raises ContentError where one is refused."""
    layers: list[Layer] = []
    for number, entries in enumerate(stack):
        below = [layer.tree for layer in reversed(layers)]
        layers.append(Layer(folder / str(number), entries, below))
    return layers


# What readers say: by path (kind, mode, uid, gid, content or target, first path of the same file)

Said = dict[bytes, tuple[object, ...]]


def listed(layers: list[Layer]) -> Said:
    """What ``inspect --files`` would list; content is told by its size."""
    found = merge([(str(number), layer.record, layer.notes) for number, layer in enumerate(layers)])
    return {
        file.path: (
            "file" if file.kind == "hardlink" else file.kind,
            *((file.mode, file.uid, file.gid) if file.kind not in ("symlink", "hardlink") else ()),
            *((file.target,) if file.kind == "symlink" else ()),
            *((file.size,) if file.kind == "file" else ()),
        )
        for file in found
    }


def as_listed(shown: Said, linked: set[bytes]) -> Said:
    """What :func:`shown` says, as far as a listing does; of ``linked`` paths that does not repeat the facts."""
    said: Said = {}
    for path, (kind, mode, uid, gid, content) in shown.items():
        if path in linked:
            said[path] = ("file",)
        elif kind == "symlink":
            said[path] = (kind, content)
        else:
            said[path] = (kind, mode, uid, gid, *((len(content),) if kind == "file" else ()))  # type: ignore[arg-type]
    return said


def shown(layers: list[Layer]) -> Said:
    """What lies in the directories of the layers, put on each other as the image-spec says."""
    found: Said = {}
    with MergedView([layer.tree for layer in reversed(layers)]) as view:
        pending = [b""]
        while pending:
            path = pending.pop()
            inside = view.look(path)
            assert inside is not None
            names = set()
            for number in inside.layers:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    names |= set(os.listdir(os.fsencode(layers[len(layers) - 1 - number].tree) + b"/" + path))
            for name in sorted(names):
                there = None if is_whiteout(name) else view.look(join(path, name))
                if there is None:
                    continue
                place = os.path.join(os.fsencode(layers[len(layers) - 1 - there.layer].tree), there.path)
                found[there.path] = _facts(place)
                if there.is_directory:
                    pending.append(there.path)
    return found


_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}
_KINDS |= {stat.S_IFCHR: "char", stat.S_IFBLK: "block"}


def _facts(place: bytes) -> tuple[object, ...]:
    if os.path.islink(place):
        return "symlink", None, None, None, os.readlink(place)
    uid, gid, mode = parse_override_stat(os.getxattr(place, OVERRIDE_STAT, follow_symlinks=False))
    assert mode is not None
    kind = _KINDS[stat.S_IFMT(mode)]
    content = Path(os.fsdecode(place)).read_bytes() if kind == "file" else b""
    return kind, mode & 0o7777, uid, gid, content


def unpacked_by_umoci(folder: Path, stack: list[list[bytes]]) -> Said:
    """The tree that umoci makes of the same image; wants root."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    simple_layout(folder / "layout", [b"".join(entries) + END for entries in stack], compression="plain")
    image = f"{folder / 'layout'}:1"
    run = subprocess.run(
        ["umoci", "raw", "unpack", "--image", image, folder / "bundle"], capture_output=True, text=True
    )
    if run.returncode:
        raise ValueError(run.stderr)
    top = os.fsencode(folder / "bundle")
    found: Said = {}
    for parent, folders, files in os.walk(top):
        for name in folders + files:
            place = os.path.join(parent, name)
            facts = os.lstat(place)
            kind = _KINDS[stat.S_IFMT(facts.st_mode)]
            if kind == "symlink":
                said: tuple[object, ...] = (kind, None, None, None, os.readlink(place))
            else:
                content = Path(os.fsdecode(place)).read_bytes() if kind == "file" else b""
                said = kind, stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid, content
            found[os.path.relpath(place, top)] = said
    return found


# Stacks


def wild(dice: random.Random) -> list[list[bytes]]:
    """A stack of few names and many tricks; many are refused."""
    return [
        [_wild_entry(dice, index) for index in range(dice.randint(1, 9))] for _ in range(dice.choice((1, 2, 2, 3, 4)))
    ]


def _wild_name(dice: random.Random) -> bytes:
    parts = [dice.choice(NAMES) for _ in range(dice.randint(1, 3))]
    if dice.random() < 0.1:
        parts[-1] = dice.choice(TRICKS)
    elif dice.random() < 0.05:
        parts.insert(1, b"..")
    return (b"/" if dice.random() < 0.1 else b"") + b"/".join(parts)


def _wild_entry(dice: random.Random, index: int) -> bytes:
    kind = dice.random()
    if kind < 0.07:
        return reg(dice.choice((b"", b"a/", b"b/")) + b".wh." + dice.choice((*NAMES, b".wh..opq")))
    kinds = ("file", "file", "directory", "symlink", "hardlink", "device")
    return _entry(dice, dice.choice(kinds), _wild_name(dice), index)


def tame(dice: random.Random) -> list[list[bytes]]:
    """A stack as tools make them: whiteouts first, directories before what is in them, no name with two types in one
    layer. Then no reader's answer depends on the order in which it works."""
    files: list[bytes] = []
    return [_tame_layer(dice, files) for _ in range(dice.choice((1, 2, 2, 3, 4)))]


def _tame_layer(dice: random.Random, files: list[bytes]) -> list[bytes]:
    types: dict[bytes, str] = {}
    linked: set[bytes] = set()
    found: list[bytes] = []
    for _ in range(dice.randint(0, 3)):
        parent = b"/".join(dice.choices(NAMES, k=dice.randint(0, 2)))
        types |= dict.fromkeys((parent.rsplit(b"/", count)[0] for count in range(parent.count(b"/") + 1)), "implied")
        found.append(reg(join(parent, b".wh." + dice.choice((*NAMES, *NAMES, b".wh..opq")))))
    for index in range(dice.randint(1, 9)):
        name = b"/".join(dice.choices(NAMES, k=dice.randint(1, 3)))
        kind = dice.choice(("file", "file", "directory", "directory", "symlink", "hardlink", "device"))
        above = [name.rsplit(b"/", count)[0] for count in range(1, name.count(b"/") + 1)]
        target = dice.choice(files or [name])
        if name in linked or (kind == "hardlink" and target == name):
            continue
        if types.get(name, kind) != kind or any(
            types.get(x, "directory") not in ("directory", "implied", "symlink") for x in above
        ):
            continue
        types |= dict.fromkeys((x for x in above if x not in types), "implied")
        types[name] = kind
        if kind == "file":
            files.append(name)
        if kind == "hardlink":
            linked.add(target)
        found.append(hardlink(name, target) if kind == "hardlink" else _entry(dice, kind, name, index))
    return found


def _entry(dice: random.Random, kind: str, name: bytes, index: int) -> bytes:
    owner = {"uid": dice.choice((0, 0, 7)), "gid": dice.choice((0, 0, 9))}
    if kind == "file":
        return reg(name, b"%d" % index * dice.randint(0, 3), mode=dice.choice([0, 0o644, 0o4755]), **owner)
    if kind == "directory":
        return directory(name, mode=dice.choice([0, 0o700, 0o1777]), **owner)
    if kind == "symlink":
        return symlink(name, dice.choice([*TARGETS, b"a/b", b"/c"]))
    if kind == "hardlink":
        return hardlink(name, b"/".join(dice.choices(NAMES, k=dice.randint(1, 3))))
    return hdr(name, typ=dice.choice((b"6", b"3", b"4")), major=1, minor=index, **owner)


def compare(folder: Path, stack: list[list[bytes]]) -> bool:
    """Writer, proof and listing agree on a stack; False where a layer of it is refused."""
    try:
        layers = build(folder, stack)
    except ContentError:
        return False
    for layer in layers:
        layer.check()
    said, names = listed(layers), shown(layers)
    linked = {path for path in said if said[path] == ("file",)}
    agree(said, as_listed(names, linked))
    return True


def agree(one: Said, other: Said) -> None:
    """Raises AssertionError with what two readers say differently."""
    odd = {path: (one.get(path), other.get(path)) for path in sorted(one.keys() | other.keys())}
    odd = {path: said for path, said in odd.items() if said[0] != said[1]}
    assert not odd, odd


def compare_with_umoci(folder: Path, stack: list[list[bytes]], dice: random.Random) -> bool:
    """Umoci makes the same tree of a stack; False where one of us refuses it, or where umoci's own answer changes with
    the order of the entries in a layer (as where one is written through a symlink that another one replaces)."""
    try:
        ours = shown(build(folder, stack))
        theirs = unpacked_by_umoci(folder, stack)
    except (ContentError, ValueError):
        return False
    if ours == theirs:
        return True
    for _ in range(12):
        try:
            if unpacked_by_umoci(folder, [dice.sample(layer, len(layer)) for layer in stack]) != theirs:
                return False
        except ValueError:
            return False
    agree(ours, theirs)
    return True


def ranges(text: str) -> range:
    """``20`` or ``400-450``."""
    first, dash, last = text.partition("-")
    return range(int(first), int(last)) if dash else range(int(first))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is one."""
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = Path(tempfile.mkdtemp(dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Compares as many stacks as the command line says; prints the odd ones, and how many there were of each kind."""
    counts: Counter[str] = Counter()
    for seed in ranges(sys.argv[1] if len(sys.argv) > 1 else "100000"):
        for what, work in WAYS.items():
            with scratch() as folder:
                try:
                    counts[f"{what}: " + ("compared" if work(folder, random.Random(seed)) else "passed over")] += 1
                except Exception as error:
                    counts[f"{what}: odd"] += 1
                    print(f"seed {seed}, {what}: {error!r}", flush=True)
    for what, count in sorted(counts.items()):
        print(f"{what}: {count}")
    sys.exit(any(what.endswith("odd") for what in counts))


WAYS = {
    "wild": lambda folder, dice: compare(folder, wild(dice)),
    "tame": lambda folder, dice: compare(folder, tame(dice)),
    "umoci": lambda folder, dice: compare_with_umoci(folder, tame(dice), dice),
}


if __name__ == "__main__":
    main()
