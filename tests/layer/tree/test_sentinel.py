"""Whatever a hostile image holds, a tree beside the store stays as it was, to the byte and to the nanosecond.

Each image is unpacked without a jail, which alone would hold it, and pulled through the public interface; as root, and
as a user without any privilege who owns the tree and could change it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY, program_environment
from tests.support.archive import END
from tests.support.hostile import TOKEN, hostile
from tests.support.imagebuild import simple_layout
from tests.support.unprivileged import NOBODY, as_nobody, folder_of_nobody

SECRET = b"what no layer may hold"
# From a layer that is being made inside a store, six directories up, lies what is beside the store.
RELATIVE = b"../" * 6 + b"victim"

SCRIPT = """
import json, os, sys
from pathlib import Path
from msb_pull import ContentError, PullOptions, Store, pull_image
from tests.support.archive import extract
from tests.support.hostile import hostile
folder = Path(sys.argv[1])
store = Store.open(folder / "home")
# As deep as the staging directory of a pull.
deep = folder / "a" / "b" / "c" / "d" / "e"
deep.mkdir(parents=True)
outcomes = {}
for number, (name, layers) in enumerate(hostile(sys.argv[2].encode(), os.fsencode(folder / "victim")).items()):
    said = []
    for layer, entries in enumerate(layers):
        try:
            extract(deep / f"{number}-{layer}", *entries)
            said.append("unpacked")
        except ContentError:
            said.append("refused")
    try:
        pull_image(f"oci:{folder}/images/{number}:1", store, PullOptions(name=f"localhost/{number}:1"))
        said.append("pulled")
    except ContentError:
        said.append("refused")
    outcomes[name] = said
print(json.dumps(outcomes))
"""
# By name, or since what a hard link wants is in no layer; everything else is made inside its layer.
REFUSED = re.compile(
    r"containerd Hardlink(Relative|DownAndOut|Absolute|DirectRelative|DirectAbsolute|SymlinkBeforeCreateTarget)"
    r"|containerd Whiteout(RootParent|Parent|Root|CurrentDirectory|DirectoryName|RelativePath)"
    r"|moby (UntarInvalidFilenames .*|UntarParentTraversalContained|UntarAbsoluteHardlink|ApplyLayer plnk)"
    r"|moby (UntarInvalidHardlink .*|UntarInvalidSymlink read hardlink)"
    r"|umoci (Hardlink .*|ParentDir (DotDot|RootDotDot|ManyDotDots|Mixed)|RootIsNoDirectory)"
    r"|ours (long names|long targets|sparse name|a loop|link through a lower.*)"
)


def sentinel(root: Path) -> list[tuple]:
    """Everything that a change of any kind would change; ctime tells even what was put back."""
    found = []
    for path in [root, *sorted(root.rglob("*"))]:
        facts = path.lstat()
        attributes = [(name, os.getxattr(path, name)) for name in os.listxattr(path)]
        content = path.read_bytes() if path.is_file() else sorted(os.listdir(path))
        numbers = (facts.st_mode, facts.st_ino, facts.st_nlink, facts.st_uid, facts.st_gid, facts.st_size)
        found.append((str(path), *numbers, facts.st_mtime_ns, facts.st_ctime_ns, attributes, content))
    return found


def build(folder: Path, owner: int) -> None:
    """The tree, one whose name begins the same, and the images."""
    for name in ("victim", "victim-evil"):
        (folder / name / "void").mkdir(parents=True)
        (folder / name / "hello").write_bytes(SECRET)
        (folder / name / "hello").chmod(0o600)
        os.setxattr(folder / name / "hello", "user.sentinel", b"here")
    for number, layers in enumerate(hostile(RELATIVE, os.fsencode(folder / "victim")).values()):
        simple_layout(folder / "images" / str(number), [b"".join(entries) + END for entries in layers])
    subprocess.run(["chown", "-R", f"{owner}:{owner}", folder], check=True)
    for path in [folder / "victim", *(folder / "victim").rglob("*")]:
        os.utime(path, ns=(5, 5))


def attack(folder: Path, prefix) -> dict[str, list[str]]:
    before = [sentinel(folder / name) for name in ("victim", "victim-evil", "images")]
    command = prefix([sys.executable, "-c", SCRIPT, str(folder), RELATIVE.decode()])
    environment = program_environment(HOME=str(folder / "a"))
    run = subprocess.run(command, cwd="/", env=environment, capture_output=True, timeout=110)
    assert run.returncode == 0, run.stderr.decode()
    assert [sentinel(folder / name) for name in ("victim", "victim-evil", "images")] == before
    assert sorted(os.listdir(folder)) == ["a", "home", "images", "victim", "victim-evil"]
    for place in ("/", "/tmp", "/etc", str(folder), str(folder.parent)):
        assert TOKEN.decode() not in os.listdir(place)
    for base in (folder / "home", folder / "a"):
        for path in base.rglob("*"):
            assert path.is_symlink() or not path.is_file() or SECRET not in path.read_bytes(), path
    return json.loads(run.stdout)


def test_a1_a4_a5_a14_a16_a17_nothing_beside_the_store_changes(tmp_path):
    build(tmp_path, os.geteuid())
    outcomes = attack(tmp_path, lambda command: command)
    if os.geteuid() == 0:
        with folder_of_nobody() as folder:
            build(folder, NOBODY)
            assert attack(folder, lambda command: as_nobody(command, [REPOSITORY])) == outcomes
    assert len(outcomes) > 75
    for name, said in outcomes.items():
        assert said[-1] == ("refused" if REFUSED.fullmatch(name) else "pulled"), name
