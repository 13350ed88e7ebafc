"""``export --to podman`` as a script sees it."""

from __future__ import annotations

import json

import pytest

from tests.support.exports import NAME, layout
from tests.support.home import Home
from tests.support.podman import shown

FULL = f"docker.io/{NAME}"


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path)
    assert made.run("pull", f"oci:{layout(made.folder / 'layout')}", "--as", NAME).returncode == 0
    return made


def test_the_lines_for_podman_are_said_once_and_standard_output_stays_empty(home):
    view = home.store / "podman"
    first = home.run("export", NAME, "--to", "podman")
    assert (first.returncode, first.stdout) == (0, "")
    assert f"podman's view {view} shows 1 image\n" in first.stderr
    assert f'    additionalimagestores = ["{view}"]\n' in first.stderr
    assert "    mount_program = " in first.stderr
    second = home.run("export", NAME, "--to", "podman")
    assert (second.returncode, second.stdout) == (0, "")
    assert second.stderr.endswith(f"podman's view {view} shows 1 image\n")
    assert "additionalimagestores" not in second.stderr
    assert shown(view) == [FULL]
    assert home.run("export", NAME, "--to", "podman:quiet", "-q").stderr == ""


def test_the_document(home, tmp_path):
    done = home.run("export", NAME, "--to", f"podman:{tmp_path / 'view'}", "--format", "json")
    document = json.loads(done.stdout)
    assert list(document) == ["status", "folder", "images", "shown", "first", "storage_conf"]
    assert document["images"] == [{"status": "ok", "image": FULL}]
    assert (document["folder"], document["shown"], document["first"]) == (str(tmp_path / "view"), [FULL], True)
    assert f'additionalimagestores = ["{tmp_path / "view"}"]' in document["storage_conf"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--to", "podman:"), 2, "there is nothing behind the colon"),
        (("--to", "podman", "-o", "x"), 2, "--to and -o: choose one"),
        (("--to", "podman:layout"), 2, "is not empty, and msb-pull has not made it"),
        (("--to", "podman", "other:1"), 3, "other:1: not in the store"),
    ],
)
def test_errors(home, words, code, said):
    done = home.run("export", NAME, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert not (home.store / "podman" / "overlay").exists()


def test_rm_and_prune_name_the_view(home):
    assert home.run("export", NAME, "--to", "podman").returncode == 0
    says = f"warning: podman's view {home.store / 'podman'} shows {FULL}: it will no longer"
    assert says in home.run("prune", "--all", "--dry-run").stderr
    assert shown(home.store / "podman") == [FULL]
    done = home.run("rm", NAME)
    assert done.returncode == 0
    assert says in done.stderr
    assert "podman" not in done.stdout
    assert shown(home.store / "podman") == []
