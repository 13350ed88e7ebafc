"""ls, inspect and completion on a real store."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, program, program_environment
from tests.support.program import run_program
from tests.support.sample import LAYERS, MANIFEST, NAME, SAMPLE
from tests.support.terminal import Terminal, plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def run(folder):
    """Runs the program on a store that holds the sample, and an image that another program recorded."""

    def call(*words, env=None):
        return run_program([*words, "--home", folder], env=program_environment(**(env or {})))

    if not (folder / "oci.db").exists():
        done = call("pull", f"oci:{SAMPLE}:1", "--as", "sample:1", "--platform", "linux/amd64")
        assert (done.returncode, done.stdout) == (0, f"{NAME}@{MANIFEST}\n"), done.stderr
        with contextlib.closing(sqlite3.connect(folder / "oci.db")) as database:
            database.execute("INSERT INTO images (reference, size_bytes) VALUES ('ghcr.io/a/b:2', 5000)")
            database.execute("INSERT INTO manifests (image_id, schema_version, media_type) VALUES (2, 2, 'x')")
            database.execute(
                "INSERT INTO layers (media_type, digest, diff_id, size_bytes) VALUES ('x', ?, ?, 5000)",
                ("sha256:" + "5" * 64, "sha256:" + "6" * 64),
            )
            database.execute("INSERT INTO manifest_layers (manifest_id, layer_id) VALUES (2, 3)")
            database.commit()
    return call


def test_list(run):
    done = run("ls")
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["IMAGE", "DIGEST", "PLATFORM", "LAYERS", "SIZE", "PULLED"]
    assert rows[0].split()[:4] == [NAME, MANIFEST[7:19], "linux/amd64", "2"]
    assert "2.3 kB" in rows[0]
    assert rows[1].split()[:6] == ["ghcr.io/a/b:2", "-", "-", "1", "5.0", "kB"]
    assert rows[1].endswith("(incomplete)")
    assert "\x1b" not in run("ls", env={"FORCE_COLOR": "1"}).stdout


@pytest.mark.parametrize(
    ("width", "words", "header"),
    [
        (120, (), "IMAGE DIGEST PLATFORM LAYERS SIZE PULLED"),
        (90, (), "IMAGE DIGEST PLATFORM SIZE PULLED"),
        (80, (), "IMAGE DIGEST SIZE PULLED"),
        (30, (), "IMAGE SIZE PULLED"),
        (30, ("--no-trunc",), "IMAGE DIGEST SIZE PULLED"),
    ],
)
def test_a_narrow_terminal_gets_fewer_columns(run, folder, width, words, header):
    assert run("ls").returncode == 0
    argv = [*program(), "ls", *words, "--home", str(folder)]
    with Terminal(argv, env=program_environment(PYTHONPATH=str(REPOSITORY)), columns=width) as terminal:
        assert terminal.wait() == 0
        assert plain(terminal.text).split()[: len(header.split())] == header.split()
        assert "(incomplete)" in plain(terminal.text)


@pytest.mark.parametrize("width", [400, 80])
def test_the_paths_of_layers_stand_alone_where_they_do_not_fit(run, folder, width):
    """So that they can be copied: no column stands before or behind them."""
    assert run("ls").returncode == 0
    argv = [*program(), "inspect", "sample:1", "--home", str(folder)]
    with Terminal(argv, env=program_environment(PYTHONPATH=str(REPOSITORY)), columns=width) as terminal:
        assert terminal.wait() == 0
        tables = plain(terminal.text).replace("\r", "").rstrip("\n").split("\n\n")[1:]
    paths = [f"{folder}/layers/{layer}.extracted" for layer in LAYERS]
    header = ["LAYER", "DIGEST", "SIZE", "UNPACKED", "ENTRIES", "STATE"]
    if width == 400:
        (rows,) = tables
        assert rows.splitlines()[0].split() == [*header, "PATH"]
        assert [line.split()[-1] for line in rows.splitlines()[1:]] == paths
    else:
        rows, below = tables
        assert rows.splitlines()[0].split() == header and len(rows.splitlines()) == 3
        assert all(len(line) <= 80 for line in rows.splitlines())
        assert below.splitlines() == ["PATH", *paths]


def test_list_of_names(run):
    assert run("ls", "-q").stdout == f"{NAME}\nghcr.io/a/b:2\n"
    assert run("ls", "-q", "--sort", "size").stdout == f"ghcr.io/a/b:2\n{NAME}\n"
    assert run("ls", "-q", "*/sample:*").stdout == f"{NAME}\n"
    assert run("ls", "-q", "--filter", "incomplete=true").stdout == "ghcr.io/a/b:2\n"
    assert run("ls", "-q", "--filter", "platform=linux/amd64").stdout == f"{NAME}\n"
    assert run("ls", "-q", "--filter", "until=1h").stdout == ""


def test_whole_digests(run):
    assert MANIFEST in run("ls", "--no-trunc").stdout


def test_list_as_json(run):
    done = run("ls", "--format", "json")
    first, second = json.loads(done.stdout)
    assert time.strptime(first.pop("pulled_at"), "%Y-%m-%dT%H:%M:%SZ")
    assert first == {
        "reference": NAME,
        "digest": MANIFEST,
        "platform": "linux/amd64",
        "layers": 2,
        "size_bytes": 2280,
        "complete": True,
    }
    assert (second["digest"], second["complete"]) == (None, False)


def test_nothing_to_list(run, tmp_path):
    for words in (["ls", "none*"], ["ls", "--home", str(tmp_path / "absent")]):
        done = run(*words) if len(words) == 2 else run_program(words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "No images.\n")
    assert run("ls", "none*", "--format", "json").stdout == "[]\n"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sort", "colour"], "--sort: 'colour' is not one of name, size, pulled"),
        (["--filter", "size=3"], "size"),
        (["--filter", "until=soon"], "until"),
        (["--filter", "reference"], "reference"),
    ],
)
def test_bad_words_for_the_list(run, words, said):
    done = run("ls", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[0]


def test_inspect(run, folder):
    done = run("inspect", "sample:1")
    assert (done.returncode, done.stderr) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in done.stdout.partition("\n\n")[0].splitlines())
    assert facts["Image"] == NAME
    assert facts["Digest"] == MANIFEST
    assert facts["Command"] == '["/usr/bin/hello"]'
    assert facts["User"] == "1000:1000"
    rows = done.stdout.partition("\n\n")[2].splitlines()
    assert rows[0].split() == ["LAYER", "DIGEST", "SIZE", "UNPACKED", "ENTRIES", "STATE", "PATH"]
    assert rows[1].split()[-1] == str(folder / "layers" / f"{LAYERS[0]}.extracted")
    document = json.loads(run("inspect", "sample:1", "--format", "json").stdout)
    assert document["config"]["cmd"] == ["/usr/bin/hello"]
    assert [layer["digest"] for layer in document["layers"]] == LAYERS
    assert [layer["entries"] for layer in document["layers"]] == [34, 8]


def test_layers_bottom_first_and_lowerdir_top_first(run, folder):
    paths = run("inspect", "--layers", "sample:1").stdout.splitlines()
    assert paths == [str(folder / "layers" / f"{digest}.extracted") for digest in LAYERS]
    links = run("inspect", "--lowerdir", "sample:1").stdout.removesuffix("\n").split(":")
    assert [str(Path(link).resolve()) for link in links] == paths[::-1]
    assert json.loads(run("inspect", "--lowerdir", "sample:1", "--format", "json").stdout)["lowerdir"] == ":".join(
        links
    )


@pytest.mark.parametrize("name", ["a b", "n\nl", "\u00fc\u65e5", "\x1b[31m", "-x", "%41", '"', "\udcff", "x" * 255])
@pytest.mark.parametrize("locale", ["C.UTF-8", "C", "POSIX"])
def test_homes_of_any_name(tmp_path, name, locale):
    """Every command finds the store, and what it prints of a path are the path's own bytes."""
    home, environment = tmp_path / name, program_environment(LC_ALL=locale)

    def call(*words):
        return run_program([*words, "--home", home], env=environment, text=False, check=True).stdout

    call("pull", "-q", f"oci:{SAMPLE}:1", "--as", "sample:1", "--platform", "linux/amd64")
    layers = [os.fsencode(home / "layers" / f"{digest}.extracted") for digest in LAYERS]
    assert call("inspect", "--layers", "sample:1") == b"".join(layer + b"\n" for layer in layers)
    links = call("inspect", "--lowerdir", "sample:1").removesuffix(b"\n").split(b":")
    assert [os.path.realpath(link) for link in links] == layers[::-1]
    assert json.loads(call("inspect", "--lowerdir", "sample:1", "--format", "json"))["lowerdir"] == os.fsdecode(
        b":".join(links)
    )
    assert b"\x1b" not in call("inspect", "sample:1")
    call("verify")


@pytest.mark.parametrize("name", ["co:lon", "com,ma", "back\\slash"])
def test_homes_that_no_mount_option_can_name(tmp_path, name):
    home = ["--home", str(tmp_path / name)]

    def call(*words):
        return run_program([*words, *home])

    assert call("pull", f"oci:{SAMPLE}:1", "--as", "sample:1", "--platform", "linux/amd64").returncode == 0
    done = call("inspect", "--lowerdir", "sample:1")
    assert (done.returncode, done.stdout) == (7, "")
    assert "cannot be used in a mount option" in done.stderr
    assert call("inspect", "--layers", "sample:1").returncode == 0


def test_files(run):
    lines = run("inspect", "--files", "sample:1").stdout.splitlines()
    assert lines[0] == "drwxr-xr-x 1000/1000          0 2023-11-14 22:13 /app"
    assert "lrwxrwxrwx 0/0                0 2023-11-14 22:13 /bin -> usr/bin" in lines
    assert not [line for line in lines if "motd" in line or ".wh." in line]
    found = {
        file["path"]: file for file in json.loads(run("inspect", "--files", "sample:1", "--format", "json").stdout)
    }
    assert found["usr/bin/passwd"]["mode"] == "4755"
    assert found["usr/bin/hi"]["target"] == "usr/bin/hello"


def test_inspect_what_is_not_there(run):
    done = run("inspect", "smaple:1")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"did you mean {NAME}?" in done.stderr
    done = run("inspect", "--lowerdir", "ghcr.io/a/b:2")
    assert (done.returncode, done.stdout) == (3, "")
    assert "layer 555555555555 is missing" in done.stderr
    assert run("inspect", "--files", "ghcr.io/a/b:2").returncode == 3
    assert "missing" in run("inspect", "ghcr.io/a/b:2").stdout


def test_completion_reads_the_store(run, folder):
    done = run_program(["__complete", "images", "s", folder])
    assert (done.returncode, done.stdout, done.stderr) == (0, "sample:1\n", "")
