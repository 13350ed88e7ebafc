"""Runs that are forked are what real starts are, and know nothing of each other."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import REPOSITORY, program, program_environment
from tests.support import program as support
from tests.support.fault_registry import Fault, FaultRegistry
from tests.support.program import run_program

SAMPLE = f"oci:{REPOSITORY / 'tests' / 'sample'}:1"


@pytest.mark.parametrize("words", [("ls",), ("pull",), ("nonsense", "--x"), ("inspect", "a"), ("pull", "-n", SAMPLE)])
def test_it_ends_as_a_real_start_does(words):
    real = subprocess.run([*program(), *words], capture_output=True, text=True, env=program_environment(), input="")
    forked = run_program(words)
    assert (forked.returncode, forked.stdout, forked.stderr) == (real.returncode, real.stdout, real.stderr)


def test_each_run_has_its_own_surroundings(tmp_path):
    """Folder, environment, standard input and umask."""
    (tmp_path / "a").mkdir()
    env = program_environment(MICROSANDBOX_HOME="../home")
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        run_program(["pull", SAMPLE, "--as", "s:1"], cwd=tmp_path / "a", env=env, umask=mask, check=True)
        run_program(["save", "s:1", "-o", f"{mask}.tar"], cwd=tmp_path / "a", env=env, umask=mask, check=True)
        assert (tmp_path / "a" / f"{mask}.tar").stat().st_mode & 0o777 == mode
    assert (tmp_path / "home").is_dir()
    assert "s:1" not in run_program(["ls"]).stdout
    refused = run_program(["pull", "-n", "--creds-stdin", "127.0.0.1:1/a"], input="no colon")
    assert "--creds-stdin" in refused.stderr and refused.returncode == 2


def test_one_that_takes_too_long_is_ended(tmp_path):
    with FaultRegistry() as registry:
        registry.always("/manifests/", Fault(delay=30))
        with pytest.raises(subprocess.TimeoutExpired):
            run_program(["pull", f"{registry.host}/a:1"], timeout=0.5)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_each_locale_is_that_of_a_real_start(locale, tmp_path):
    words, env = ("inspect", "\xfc\udcff"), program_environment(LC_ALL=locale)
    real = subprocess.run([*program(), *words], capture_output=True, env=env, input=b"")
    assert run_program(words, env=env, text=False).stderr == real.stderr


def test_another_interpreter_is_a_real_start(monkeypatch):
    monkeypatch.setattr(support, "_Server", None)
    monkeypatch.setattr(support, "_servers", {})
    assert run_program(["ls"], env=program_environment(PYTHONUTF8="1")).returncode == 0
