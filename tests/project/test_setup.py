"""tests/setup.sh: which Debian packages it asks for. A copy of its table with a fault in it would end every CI run."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "setup.sh"
PAIRS = dict(
    pair.split(":")
    for pair in re.search(r"^packages=\(\n(.*?)^\)", SCRIPT.read_text(encoding="utf-8"), re.M | re.S)[1].split()
)


@pytest.fixture
def path(tmp_path):
    """A PATH with nothing but what the script itself calls, and an apt-get that writes down what it is asked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "env"):
        (folder / name).symlink_to(shutil.which(name))
    program(folder / "apt-get", f'printf "%s\\n" "$*" >>{tmp_path}/asked')
    program(folder / "sudo", 'shift; [ "$1" = true ] || exec "$@"')
    return folder


def program(path, text="true"):
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)


def asked(path):
    """The packages that the script installs; it ends at the interpreter, which is none."""
    log = path.parent / "asked"
    log.unlink(missing_ok=True)
    environment = {**os.environ, "PATH": str(path), "PYTHON": shutil.which("false")}
    done = subprocess.run(
        [shutil.which("bash"), str(SCRIPT), "--no-run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "needs 3.11" in done.stderr
    lines = log.read_text().splitlines() if log.exists() else []
    return [word for line in lines if " install " in line for word in line.split() if word[0] != "-"][1:]


def test_each_missing_program_names_its_package(path):
    assert asked(path) == [*PAIRS, "python3-venv"]


# What every Debian has, or comes with a package of the table: bash, tar, util-linux, e2fsprogs.
WITHOUT_ASKING = {"bash", "tar", "unshare", "setpriv", "e2fsck"}


def test_all_programs_that_tests_ask_for_can_be_brought():
    """Else a test passes over what it should show, or fails a run of CI that could not have known."""
    asked_for = {
        word.value
        for path in SCRIPT.parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "need"
        for word in call.args
        if isinstance(word, ast.Constant)
    }
    assert asked_for > {"umoci", "bash"}
    assert asked_for - {*PAIRS.values()} - WITHOUT_ASKING == set()


def test_what_is_there_is_not_installed(path):
    for name in PAIRS.values():
        program(path / name)
    assert asked(path) == ["python3-venv"]
