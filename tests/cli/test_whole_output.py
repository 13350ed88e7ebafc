"""Standard output takes every byte, or the command fails: unbuffered, not blocking, closed, on a full disk."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from tests.conftest import REPOSITORY, program, program_environment
from tests.support.home import LINUX

NAME = "localhost/sample:1"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("output") / "home"
    words = ("pull", "-q", *LINUX, f"oci:{REPOSITORY / 'tests' / 'sample'}:1", "--as", NAME, "--home", str(home))
    subprocess.run([*program(), *words], env=program_environment(), check=True, capture_output=True, timeout=60)
    return home


def command(home, *words):
    return [*program(), *words, "--home", str(home)]


def environment(unbuffered):
    return program_environment(PYTHONUNBUFFERED=unbuffered)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("save", NAME, "-o", "-"), ("inspect", "--files", NAME), ("ls", "--format", "json")])
def test_a_pipe_that_does_not_block_and_is_read_late_gets_every_byte(home, words, unbuffered):
    whole = subprocess.run(command(home, *words), env=environment(""), capture_output=True, timeout=60).stdout
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = subprocess.Popen(command(home, *words), env=environment(unbuffered), stdout=writer)
    os.close(writer)
    time.sleep(0.5)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == whole
    assert process.wait(60) == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("save", NAME, "-o", "-"), ("inspect", NAME), ("ls",), ("pull", "-q", NAME)])
def test_a_full_disk_behind_standard_output_is_an_error(home, words, unbuffered):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(home, *words), env=environment(unbuffered), stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[0]) == (7, "error: standard output: no space left on device")


@pytest.mark.parametrize("words", [("save", NAME, "-o", "-"), ("inspect", NAME), ("ls",), ("pull", "-q", NAME)])
def test_a_closed_standard_output_is_an_error(home, words):
    line = '"$@" >&-'
    done = subprocess.run(
        ["sh", "-c", line, "sh", *command(home, *words)],
        env=environment(""), stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[0]) == (7, "error: standard output: bad file descriptor")


PAGES = [("--version",), ("--version", "-v"), ("--help",), ("pull", "--help"), ("ls", "-h"), ()]


@pytest.mark.parametrize("words", PAGES)
@pytest.mark.parametrize(("to", "why"), [(">/dev/full", "no space left on device"), (">&-", "bad file descriptor")])
def test_pages_that_cannot_be_written_are_an_error(words, to, why):
    done = subprocess.run(
        ["sh", "-c", f'"$@" {to}', "sh", *program(), *words],
        env=environment(""), stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, f"error: standard output: {why}\n")


@pytest.mark.parametrize("words", PAGES)
def test_a_page_that_nobody_reads(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*program(), *words], env=environment(""), stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("to", "why"), [(">/dev/full", "no space left on device"), (">&-", "bad file descriptor")])
def test_an_error_whose_document_cannot_be_written(home, to, why):
    done = subprocess.run(
        ["sh", "-c", f'"$@" {to}', "sh", *command(home, "inspect", "nothing", "--format", "json")],
        env=environment(""), stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    first, *_, last = done.stderr.splitlines()
    assert (done.returncode, last) == (3, f"error: standard output: {why}")
    assert first.endswith("nothing:latest: not in the store")


def test_nothing_of_ours_takes_the_place_of_a_closed_standard_error(home, tmp_path):
    file = tmp_path / "saved.tar"
    line = '"$@" 2>&- <&-'
    words = command(home, "save", NAME, "-o", str(file), "-v", "--progress", "plain")
    done = subprocess.run(["sh", "-c", line, "sh", *words], env=environment(""), timeout=60, capture_output=True)
    assert done.returncode == 0
    listed = subprocess.run(["tar", "-tf", file], capture_output=True, text=True, timeout=60)
    assert (listed.returncode, listed.stderr) == (0, "")
