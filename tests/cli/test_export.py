"""``export`` as a script sees it: exit codes, both streams, and what is left where it fails."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile

import pytest

from tests.conftest import REPOSITORY, program, program_environment
from tests.support.archive import END, reg
from tests.support.counting import wait_for
from tests.support.exports import NAME, layout
from tests.support.home import Home
from tests.support.imagebuild import simple_layout
from tests.support.microsandbox import FakeMicrosandbox
from tests.support.mounts import mounted
from tests.support.unprivileged import as_nobody, folder_of_nobody


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    made = Home(tmp_path_factory.mktemp("home"))
    assert made.run("pull", f"oci:{layout(made.folder / 'layout')}", "--as", NAME).returncode == 0
    zeros = simple_layout(made.folder / "zeros", [reg(b"zeros", bytes(400 << 20)) + END])
    assert made.run("pull", f"oci:{zeros}", "--as", "large:1").returncode == 0
    return made


def piped(home: Home, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*program(), "export", NAME, "-o", "-", *arguments, *home.command],
        env=program_environment(), capture_output=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_file_and_a_stream_hold_the_same(home, tmp_path):
    done = home.run("export", NAME, "-o", str(tmp_path / "x.tar"))
    assert (done.returncode, done.stdout) == (0, "")
    assert f"Exported docker.io/{NAME} to {tmp_path}/x.tar: tar, " in done.stderr
    stream = piped(home, "-q")
    assert (stream.returncode, stream.stderr) == (0, b"")
    assert stream.stdout == (tmp_path / "x.tar").read_bytes()


def test_the_document(home, tmp_path):
    done = home.run("export", NAME, "-o", str(tmp_path / "x.out"), "--format", "json", "--format", "tar")
    document = json.loads(done.stdout)
    assert (document["status"], document["format"], document["file"]) == ("ok", "tar", str(tmp_path / "x.out"))
    assert document["size_bytes"] == (tmp_path / "x.out").stat().st_size
    assert document["reference"] == f"docker.io/{NAME}"
    with tarfile.open(tmp_path / "x.out") as archive:
        assert document["entries"] == len(archive.getmembers())


def test_one_file(home):
    assert piped(home, "-q", "--path", "shared").stdout == b"one file"
    as_tar = piped(home, "-q", "--path", "shared", "--format", "tar").stdout
    with tarfile.open(fileobj=io.BytesIO(as_tar)) as archive:
        assert archive.getnames() == [".", "shared"]


def test_standard_output_carries_one_thing(home):
    done = piped(home, "--format", "json")
    assert done.returncode == 2
    assert "cannot carry a file system and a document" in json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["-o", "x.tar"], 2, "error: export: no image named"),
        ([NAME], 2, "error: export: -o or --to is missing"),
        ([NAME, "-o", "x.zip"], 2, "error: x.zip: the name does not tell the format"),
        ([NAME, "-o", "x.tar", "--format", "zip"], 2, "error: --format: 'zip' is not one of "),
        ([NAME, "-o", "store/x.tar"], 2, "store/x.tar: lies in the store"),
        ([NAME, "-o", "none/x.tar"], 7, "none: no such folder"),
        ([NAME, "-o", "x.tar", "--path", "nothing"], 3, f"docker.io/{NAME}: nothing at nothing"),
        (["none:1", "-o", "x.tar"], 3, "none:1: not in the store"),
    ],
)
def test_refusals(home, words, code, text):
    before = sorted(os.listdir(home.folder))
    done = home.run("export", *words)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert text in done.stderr
    assert sorted(os.listdir(home.folder)) == before


def test_a_reader_that_goes_away(home):
    process = home.start("export", "large:1", "-q", "-o", "-")
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(home, tmp_path, number, code):
    process = home.start("export", "large:1", "-o", str(tmp_path / "x.tar"))
    wait_for(lambda: list(tmp_path.glob(".x.tar.msb-pull-*")))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="mounting needs root on Linux")
def test_a_full_disk(home, tmp_path):
    with mounted(tmp_path, "ext4", "24M", "-F", "-b", "4096") as where:
        done = home.run("export", "large:1", "-o", str(where / "x.tar"))
        assert (done.returncode, done.stdout) == (7, "")
        assert f"error: {where}/x.tar: no space left" in done.stderr
        assert sorted(os.listdir(where)) == ["lost+found"]


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="becoming nobody needs root")
def test_nobody_writes_the_same_bytes(home):
    expected = hashlib.sha256(piped(home, "-q").stdout).hexdigest()
    with folder_of_nobody() as folder:
        source = home.folder / "layout"
        words = ["--home", str(folder / "store")]
        env = program_environment(HOME=str(folder))
        reach = [REPOSITORY, source]
        for command in (["pull", f"oci:{source}", "--as", NAME], ["export", NAME, "-q", "-o", str(folder / "x.tar")]):
            subprocess.run(
                as_nobody([*program(), *command, *words], reach), env=env, cwd="/", check=True, timeout=60,
                capture_output=True,
            )  # fmt: skip
        assert hashlib.sha256((folder / "x.tar").read_bytes()).hexdigest() == expected


def test_to_microsandbox(home, tmp_path):
    fake = FakeMicrosandbox(tmp_path / "msb")
    run = home.run("export", NAME, *fake.words)
    assert (run.returncode, run.stdout) == (0, ""), run.stderr
    assert list(fake.images()) == [f"docker.io/{NAME}"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([NAME, "--to", "nowhere"], 2, "error: --to: 'nowhere' is not one of microsandbox"),
        ([NAME, "--to", "microsandbox", "-o", "x.tar"], 2, "error: --to and -o: choose one"),
        ([NAME, "--to", "microsandbox", "--path", "etc"], 2, "error: --to and --path: choose one"),
        ([NAME, "--to", "microsandbox:"], 2, "error: --to microsandbox:: there is nothing behind the colon"),
        ([NAME, "--to", "microsandbox:x"], 2, "error: --to microsandbox takes no folder"),
        (
            [NAME, "--to", "microsandbox", "--msb", "no-such-msb"],
            2,
            "error: no-such-msb: no such program\n  hint: inst",
        ),
        ([NAME, NAME, "-o", "x.tar"], 2, "error: export: -o is for one image"),
    ],
)
def test_refusals_of_to(home, words, code, text):
    run = home.run("export", *words)
    assert run.returncode == code and text in run.stderr, run.stderr
