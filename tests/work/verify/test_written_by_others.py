"""No local user can change an image: what is for all to write within it is not so on the disk."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest

from tests.support.archive import END, directory, hardlink, hdr, reg, symlink
from tests.support.home import LINUX
from tests.support.imagebuild import simple_layout
from tests.support.program import run_program

LAYERS = [
    b"".join(
        (
            *(directory(b"tmp", mode=0o1777), reg(b"tmp/open", b"for all", mode=0o666), reg(b"tool", mode=0o4775)),
            *(hdr(b"null", typ=b"3", mode=0o666, major=1, minor=3), symlink(b"link", b"tmp")),
            END,
        )
    ),
    # Both come to this layer from the one below: a directory's facts, and a file.
    b"".join((reg(b"tmp/more", b"x", mode=0o622), hardlink(b"again", b"tmp/open"), END)),
]
LOOSE = stat.S_IWGRP | stat.S_IWOTH


def run(*words, umask=0o022):
    return run_program(words, umask=umask)


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    # Made by somebody else, and open for everybody to look into.
    (home / "layers").mkdir(parents=True)
    return home


def pulled(home, tmp_path, *options, umask=0o022):
    simple_layout(tmp_path / "image", LAYERS)
    done = run(
        "pull", "-q", *LINUX, *options, f"oci:{tmp_path / 'image'}:1", "--as", "a:1", "--home", home, umask=umask
    )
    assert done.returncode == 0, done.stderr


def writable(home):
    found = []
    for folder, folders, files in os.walk(home):
        paths = [os.path.join(folder, name) for name in (*folders, *files)]
        found += [path for path in paths if not os.path.islink(path) and os.lstat(path).st_mode & LOOSE]
    return found


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_nothing_that_a_pull_makes_can_be_written_to_by_others(home, tmp_path, umask):
    pulled(home, tmp_path, umask=umask)
    assert writable(home) == []
    assert run("verify", "--home", home, umask=umask).returncode == 0
    assert run("rm", "a:1", "--home", home, umask=umask).returncode == 0
    assert writable(home) == []


@pytest.mark.parametrize("how", [(), ("--quick",)])
def test_layers_that_are_still_open_to_others_are_whole_and_said_to_be_open(home, tmp_path, how):
    pulled(home, tmp_path)
    (top,) = (path for path in (home / "layers").glob("*.extracted") if (path / "tool").exists())
    # As earlier versions left them.
    for name, mode in {"tmp": 0o777, "tmp/open": 0o666, "tool": 0o775, "null": 0o666}.items():
        (top / name).chmod(mode)
    done = run("verify", *how, "--home", home)
    assert (done.returncode, done.stdout) == (0, "")
    assert "4 paths writable by other users" in done.stderr
    advice = done.stderr.split("`")[1]
    assert advice == f"chmod -R go-w {top}"
    subprocess.run(advice.split(), check=True)
    done = run("verify", *how, "--home", home)
    assert done.returncode == 0
    assert "write" not in done.stderr


def test_bits_that_the_image_never_had_are_damage(home, tmp_path):
    pulled(home, tmp_path)
    (tool,) = (home / "layers").glob("*.extracted/tool")
    tool.chmod(0o777)
    done = run("verify", "--home", home)
    assert done.returncode == 6
    assert "/tool\tmode\t0755\t0777" in done.stdout
