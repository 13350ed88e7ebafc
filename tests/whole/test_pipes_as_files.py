"""A pipe in the place of a file that the user names, or has: an error at once, whatever it is for."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.conftest import program, program_environment

# What is said, and what comes of it; {} is the pipe's path.
CASES = {
    "key": (["--require-signature", "{}"], 2, "{}: cannot read the public key\n  cause: not a regular file\n"),
    "lock": (["--lock", "{}"], 7, "{}: not a file\n"),
    "locked": (["--locked", "{}"], 7, "{}: cannot read the lock file\n  cause: not a regular file\n"),
    "config": (["--config", "{}"], 2, "{}: cannot read the configuration file\n  cause: not a regular file\n"),
}


def pull(folder, *words):
    line = [*program(), "pull", "127.0.0.1:1/acme/app:1", "--home", str(folder / "store"), *words]
    env = program_environment(HOME=str(folder), XDG_CONFIG_HOME=str(folder / ".config"))
    return subprocess.run(line, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("case", CASES)
def test_what_is_named(tmp_path, case):
    words, code, text = CASES[case]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = pull(tmp_path, *(word.format(pipe) for word in words))
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert f"error: {text.format(pipe)}" in done.stderr


def test_the_default_configuration(tmp_path):
    path = tmp_path / ".config" / "msb-pull" / "config.toml"
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    done = pull(tmp_path)
    assert done.returncode == 2
    assert str(path) in done.stderr and "not a regular file" in done.stderr
