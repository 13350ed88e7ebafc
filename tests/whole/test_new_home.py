"""A home that is new, or was emptied, beside a layers folder that is there already."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import REPOSITORY
from tests.support.home import LINUX
from tests.support.program import run_program

PULL = ("pull", "-q", *LINUX, f"oci:{REPOSITORY / 'tests' / 'sample'}:1", "--as", "localhost/sample:1")


def run(*words):
    return run_program(words)


@pytest.mark.parametrize("home", ["home", "another/below"])
def test_a_home_that_is_not_there_is_made_beside_layers_that_are(tmp_path, home):
    layers = ("--layers-dir", tmp_path / "layers")
    assert run(*PULL, "--home", tmp_path / "home", *layers).returncode == 0
    shutil.rmtree(tmp_path / "home")
    done = run(*PULL, "--home", tmp_path / home, *layers)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / home).stat().st_mode & 0o777 == 0o700
    assert run("verify", "--home", tmp_path / home, *layers).returncode == 0


def test_an_emptied_home_is_filled_again(tmp_path):
    places = ("--home", tmp_path / "home", "--layers-dir", tmp_path / "layers")
    assert run(*PULL, *places).returncode == 0
    for file in (tmp_path / "home").iterdir():
        file.unlink()
    assert run(*PULL, *places).returncode == 0
    assert "localhost/sample:1" in run("ls", *places).stdout
