"""verify, prune, rm and save on a real store: their lines, documents, questions and exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from msb_pull.ground.sizes import format_size
from tests.conftest import REPOSITORY, program, program_environment
from tests.support.program import run_program
from tests.support.sample import LAYERS, MANIFEST, NAME, SAMPLE
from tests.support.terminal import Terminal, plain


@pytest.fixture
def run(tmp_path):
    """Runs the program on a store that holds the sample."""

    def call(*words, text=True):
        return run_program([*words, "--home", tmp_path / "home"], text=text)

    done = call("pull", f"oci:{SAMPLE}:1", "--as", "sample:1", "--platform", "linux/amd64")
    assert (done.returncode, done.stdout) == (0, f"{NAME}@{MANIFEST}\n"), done.stderr
    return call


@pytest.fixture
def layer(tmp_path):
    return tmp_path / "home" / "layers" / f"{LAYERS[0]}.extracted"


def test_verify(run, layer):
    done = run("verify")
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert done.stderr.startswith("Verified 2 layers (16.9 kB) in ")
    assert run("verify", "--quick", "sample:1").stderr.startswith("Compared 2 layers")
    assert run("verify", "-q").stderr == ""
    (layer / "etc" / "passwd").write_text("x" * 67)
    (layer / "etc" / "\x1b[2Jnew").write_text("")
    done = run("verify")
    assert done.returncode == 6
    assert done.stderr.splitlines() == [
        "error: 1 of 2 layers damaged",
        "  hint: `msb-pull verify --repair` fetches them again",
    ]
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert {len(row) for row in rows} == {5}
    assert {row[0] for row in rows} == {LAYERS[0][7:19]}
    assert {"/etc/passwd", "/etc/\\x1b[2Jnew"} <= {row[1] for row in rows}


@pytest.mark.parametrize("damaged", [False, True])
def test_an_image_that_is_removed_while_it_is_verified(run, layer, tmp_path, damaged):
    """It was looked at, and is nobody's loss."""
    home = str(tmp_path / "home")
    if damaged:
        (layer / "etc" / "passwd").write_text("x" * 67)
    code = (
        "import msb_pull.cli.verify as place\n"
        "found = place.verify_images\n"
        "def verified(store, *arguments, **named):\n"
        "    report = found(store, *arguments, **named)\n"
        "    with store.database(create=True) as database:\n"
        f"        database.remove([{NAME!r}])\n"
        "    return report\n"
        "place.verify_images = verified\n"
        "from msb_pull.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "verify", "--repair", "--home", home],
        env=program_environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, "not in the store" in done.stderr) == (0, False), done.stderr


def test_verify_as_json(run, layer):
    document = json.loads(run("verify", "--format", "json").stdout)
    assert (document["status"], document["images"]) == ("ok", [NAME])
    assert [(x["digest"], x["verdict"], x["damages"]) for x in document["layers"]] == [
        (x, "proven", []) for x in LAYERS
    ]
    (layer / "etc" / "passwd").unlink()
    done = run("verify", "--format", "json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["status"]) == (6, "failed")
    assert document["layers"][0]["verdict"] == "damaged"
    assert "/etc/passwd" in {x["path"] for x in document["layers"][0]["damages"]}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["verify", "none:1"], 3, "error: docker.io/library/none:1: not in the store"),
        (["rm", "none:1"], 3, "error: docker.io/library/none:1: not in the store"),
        (["save", "none:1", "-o", "x"], 3, "error: docker.io/library/none:1: not in the store"),
        (["prune", "--all"], 2, "error: prune: cannot ask for confirmation without a terminal"),
        (["prune", "--all", "--filter", "x=y"], 2, "error: --filter 'x=y': unknown"),
        (["save", "sample:1", "-o", "x", "--format", "zip"], 2, "error: --format: 'zip' is not one of oci, docker"),
        (
            ["save", "sample:1", "-o", "x", "--format", "oci", "--format", "docker"],
            2,
            "error: --format: choose one kind",
        ),
        (["save", "sample:1", "-o", "-", "--format", "json"], 2, "error: save: standard output cannot carry"),
        (["save", "sample:1", "-o", "/proc/none/x"], 7, "error: /proc/none: no such folder\n"),
    ],
)
def test_errors(run, words, code, said):
    done = run(*words)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    if "json" not in words:
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "code", "out", "error"),
    [
        (["verify"], 0, "", "No images.\n"),
        (["prune"], 0, "", "Nothing to remove.\n"),
        (["ls"], 0, "", "No images.\n"),
        (["rm", "x"], 3, "", None),
        (["save", "x", "-o", "y"], 3, "", None),
        (["verify", "x"], 3, "", None),
        (["inspect", "x"], 3, "", None),
        (["pull", "--policy", "never", "x"], 3, "", None),
    ],
)
def test_where_there_is_no_store_none_is_made(tmp_path, words, code, out, error):
    done = run_program([*words, "--home", tmp_path / "none"])
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert error is None or done.stderr == error
    assert words[0] == "pull" or not (tmp_path / "none").exists()


def on_disk(run) -> dict:
    """What a prune of everything would give back; blocks differ from file system to file system."""
    document = json.loads(run("prune", "--all", "-n", "--format", "json").stdout)
    assert document["freed_bytes"] == sum(layer["size_bytes"] for layer in document["layers"])
    # No less than the content, no more than two blocks for each of the 42 entries, and the record.
    assert 16_928 <= document["freed_bytes"] <= 16_928 + 60 * 8192
    return document


def test_prune(run, tmp_path):
    done = run("prune")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "Nothing to remove.\n")
    done = run("prune", "--all", "--dry-run")
    plan = on_disk(run)
    size = format_size(plan["freed_bytes"])
    assert (done.returncode, done.stderr) == (0, f"Would remove 1 image and 2 layers ({size}).\n")
    sizes = [format_size(layer["size_bytes"]) for layer in plan["layers"]]
    removed = f"image {NAME}\nlayer {LAYERS[0]} {sizes[0]}\nlayer {LAYERS[1]} {sizes[1]}\n"
    assert done.stdout == removed
    assert run("ls", "-q").stdout == f"{NAME}\n"
    assert run("prune", "--all", "--filter", "until=1h", "-y").stderr == "Nothing to remove.\n"
    done = run("prune", "--all", "--yes")
    assert (done.returncode, done.stdout) == (0, removed)
    assert done.stderr == f"Removed 1 image and 2 layers, freed {format_size(plan['freed_bytes'])}\n"
    assert list((tmp_path / "home" / "layers").glob("*.extracted")) == []


def test_prune_takes_the_locks_of_images_that_are_gone(run, tmp_path):
    def locks():
        return [name for name in os.listdir(tmp_path / "home/layers/.msb-pull/locks") if name.startswith("image-")]

    assert run("pull", "--policy", "never", "localhost/misspelled:1").returncode == 3
    assert len(locks()) == 2
    assert run("prune", "--dry-run").returncode == 0
    assert len(locks()) == 2
    assert run("prune").returncode == 0
    assert len(locks()) == 1
    assert run("rm", NAME).returncode == 0
    assert run("prune", "--yes").returncode == 0
    assert locks() == []


def test_prune_as_json(run):
    document = on_disk(run)
    assert [(layer.pop("size_bytes") > 0, layer) for layer in document["layers"]] == [
        (True, {"name": LAYERS[0], "digest": LAYERS[0]}),
        (True, {"name": LAYERS[1], "digest": LAYERS[1]}),
    ]
    assert {key: value for key, value in document.items() if key not in ("layers", "freed_bytes")} == {
        "status": "ok",
        "dry_run": True,
        "images": [NAME],
        "files": [],
        "leftovers": 0,
    }


def test_prune_takes_old_partial_downloads(run, tmp_path):
    partial = tmp_path / "home" / "layers" / ".msb-pull" / "partial" / f"sha256:{'7' * 64}"
    partial.write_bytes(b"x" * 4096)
    assert run("prune", "-y").stdout == ""
    old = time.time() - 8 * 86400
    os.utime(partial, (old, old))
    done = run("prune", "-y")
    assert done.stdout == f"file partial/sha256:{'7' * 64} 4.1 kB\n"
    assert done.stderr == "Removed 1 unfinished download, freed 4.1 kB\n"


@pytest.mark.parametrize(("answer", "left"), [("y\n", ""), ("n\n", NAME), ("\x04", NAME), ("\n", NAME)])
def test_prune_asks(run, tmp_path, answer, left):
    argv = [*program(), "prune", "--all", "--home", str(tmp_path / "home")]
    size = re.escape(format_size(on_disk(run)["freed_bytes"]))
    with Terminal(argv, env=program_environment(PYTHONPATH=str(REPOSITORY))) as terminal:
        terminal.expect(rf"image {re.escape(NAME)}\s+Remove 1 image and 2 layers \({size}\)\? \[y/N\] ")
        terminal.send(answer)
        assert terminal.wait() == 0
        assert ("Nothing removed." if left else "✓ Removed 1 image and 2 layers") in plain(terminal.text)
    assert run("ls", "-q").stdout.strip() == left


def test_prune_does_not_wait_if_told_so(run, tmp_path):
    import fcntl

    lock = tmp_path / "home" / "layers" / ".msb-pull" / "locks" / "store.lock"
    with open(lock, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        done = run("prune", "--all", "--yes", "--no-wait")
        assert (done.returncode, done.stdout) == (7, ""), done.stderr


def test_rm(run):
    size = format_size(on_disk(run)["freed_bytes"])
    done = run("rm", "sample:1")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"image {NAME}")
    assert done.stderr == f"Removed 1 image and 2 layers, freed {size}\n"
    assert run("ls", "-q").stdout == ""


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_save(run, tmp_path, kind):
    path = tmp_path / "saved.tar"
    done = run("save", "sample:1", "-o", str(path), "--format", kind)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"Saved 1 image to {path}: ")
    with tarfile.open(path) as archive:
        assert ("manifest.json" if kind == "docker" else "index.json") in archive.getnames()
    assert [x.name for x in tmp_path.iterdir() if "part" in x.name] == []
    piped = run("save", "sample:1", "-o", "-", "--format", kind, "-q", text=False)
    assert (piped.returncode, piped.stderr) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(piped.stdout)) as archive:
        assert len(archive.getnames()) >= 4


def test_save_where_a_link_leads(run, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.tar").symlink_to("real/x.tar")
    for _ in range(2):
        assert run("save", "sample:1", "-o", str(tmp_path / "link.tar")).returncode == 0
        assert (tmp_path / "link.tar").is_symlink()
        assert tarfile.is_tarfile(tmp_path / "real" / "x.tar")
        assert [x.name for x in (tmp_path / "real").iterdir()] == ["x.tar"]


@pytest.mark.parametrize("command", ["save", "export"])
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/./stdout"])
def test_standard_output_by_its_names(run, tmp_path, command, name):
    whole = run(command, "sample:1", "-q", "-o", "-", text=False).stdout
    done = run(command, "sample:1", "-o", name, text=False)
    assert (done.returncode, done.stdout) == (0, whole), done.stderr
    assert b" to standard output: " in done.stderr
    line = [*program(), command, "sample:1", "-o", name, "--home", str(tmp_path / "home")]
    with open(tmp_path / "x.tar", "wb") as out:
        subprocess.run(line, check=True, env=program_environment(), stdout=out, timeout=30)
    assert os.path.islink("/dev/stdout") and (tmp_path / "x.tar").read_bytes() == whole
    done = run(command, "sample:1", "-o", name, "--format", "json")
    assert done.returncode == 2 and "and a document" in done.stderr


@pytest.mark.parametrize("command", ["save", "export"])
def test_a_pipe_or_device_as_output_is_written_into(run, tmp_path, command):
    whole = run(command, "sample:1", "-q", "-o", "-", text=False).stdout
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    with subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE) as reader:
        done = run(command, "sample:1", "-o", str(tmp_path / "fifo"))
        assert (done.returncode, reader.stdout.read()) == (0, whole), done.stderr
    for name in ("/dev/null", str(tmp_path / "null")):
        assert run(command, "sample:1", "-o", name).returncode == 0
    # A shell's process substitution.
    read, write = os.pipe()
    line = [*program(), command, "sample:1", "-o", f"/dev/fd/{write}", "--home", str(tmp_path / "home")]
    with subprocess.Popen(["cat"], stdin=read, stdout=subprocess.PIPE) as reader:
        subprocess.run(line, check=True, env=program_environment(), pass_fds=[write], timeout=30)
        os.close(read)
        os.close(write)
        assert reader.stdout.read() == whole
    assert (tmp_path / "fifo").is_fifo() and (tmp_path / "null").is_symlink() and Path("/dev/null").is_char_device()
    assert sorted(x.name for x in tmp_path.iterdir()) == ["fifo", "home", "null"]


def test_what_needs_a_file_is_not_written_into_a_pipe(run, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    done = run("export", "sample:1", "-o", str(tmp_path / "fifo"), "--format", "erofs")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: export: erofs cannot be written to a stream\n")


def test_save_into_what_is_no_file(run, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen(["cat", tmp_path / "fifo"], stdout=subprocess.PIPE) as reader:
        assert run("save", "sample:1", "-o", str(tmp_path / "fifo")).returncode == 0
        assert tarfile.is_tarfile(io.BytesIO(reader.stdout.read()))
    assert (tmp_path / "fifo").is_fifo()
    done = run("save", "sample:1", "-o", str(tmp_path / "none" / "x.tar"))
    assert (done.returncode, done.stderr) == (
        7,
        f"error: {tmp_path}/none: no such folder\n  hint: choose another place with -o\n",
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", [("ls",), ("inspect", "sample:1"), ("save", "sample:1", "-o", "-")])
def test_a_standard_output_that_is_full(words, run, tmp_path):
    line = [*program(), *words, "--home", str(tmp_path / "home")]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            line, env=program_environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=30
        )
    assert (done.returncode, done.stderr) == (7, "error: standard output: no space left on device\n")


def test_save_as_json(run, tmp_path):
    done = run("save", "sample:1", "-o", str(tmp_path / "x.tar"), "--format", "json")
    document = json.loads(done.stdout)
    assert (document["status"], document["format"]) == ("ok", "oci")
    assert document["size_bytes"] == (tmp_path / "x.tar").stat().st_size
    assert document["images"][0]["reference"] == NAME


def test_a_save_that_fails_leaves_nothing(run, layer, tmp_path):
    (layer / "etc" / "passwd").write_text("x" * 67)
    done = run("save", "sample:1", "-o", str(tmp_path / "x.tar"))
    assert done.returncode == 6
    assert "etc/passwd" in done.stderr
    assert [x.name for x in tmp_path.iterdir()] == ["home"]


def test_an_archive_is_not_for_a_terminal(run, tmp_path):
    argv = [*program(), "save", "sample:1", "-o", "-", "--home", str(tmp_path / "home")]
    with Terminal(argv, env=program_environment(PYTHONPATH=str(REPOSITORY))) as terminal:
        assert terminal.wait() == 2
        assert "refusing to write an archive to a terminal" in plain(terminal.text)


def test_d37_a_reader_of_an_archive_that_goes_away(run, tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*program(), "save", "sample:1", "-o", "-", "--home", str(tmp_path / "home")],
        env=program_environment(), stdout=write, stderr=subprocess.PIPE, timeout=30,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
