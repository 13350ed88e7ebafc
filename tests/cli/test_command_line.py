"""How words become commands: the bare form, near misses, options in the wrong place, help, errors in the options."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from msb_pull.cli import app as cli
from msb_pull.cli import pull as cli_pull
from msb_pull.display.streams import Streams
from msb_pull.ground import errors
from tests.conftest import program, program_environment
from tests.support.program import run_program

COMMANDS = ["pull", "ls", "inspect", "verify", "prune", "rm", "save"]


def run(*words, env=None, stdin=""):
    return run_program(words, env=program_environment(**(env or {})), input=stdin)


@pytest.fixture
def pulled(monkeypatch):
    """What reaches the pull: (images, settings, keywords) of each call."""
    calls = []

    def pull_images(run, images, access, **keywords):
        calls.append((list(images), run, access, keywords))

    monkeypatch.setattr(cli_pull, "pull_images", pull_images)
    return calls


def call(*words):
    streams = Streams(io.StringIO(), io.StringIO(), io.StringIO())
    code = cli.main(words, streams)
    return code, streams.stdout.getvalue(), streams.stderr.getvalue()


@pytest.mark.parametrize(
    ("words", "images"),
    [
        (["ubuntu:22.04"], ["ubuntu:22.04"]),
        (["-q", "ubuntu:22.04"], ["ubuntu:22.04"]),
        (["--platform", "linux/arm64", "ubuntu"], ["ubuntu"]),
        (["ubuntu", "--platform=linux/arm64", "alpine"], ["ubuntu", "alpine"]),
        (["ubuntu", "ls"], ["ubuntu", "ls"]),
        (["pull", "ls"], ["ls"]),
        (["pull", "prun"], ["prun"]),
        (["-j4", "-qv", "redis"], ["redis"]),
        (["--as", "save", "oci:x"], ["oci:x"]),
        (["--home", "/tmp/ls", "x:1"], ["x:1"]),
        (["--", "node"], ["node"]),
        (["-q", "--", "node"], ["node"]),
        (["lss:1"], ["lss:1"]),
        (["acme/prun"], ["acme/prun"]),
        *([[name], [name]] for name in ("nginx", "redis", "mysql", "bash", "node", "python", "rust", "vault", "solr")),
    ],
)
def test_words_without_a_command_are_pulled(pulled, words, images):
    assert call(*words) == (0, "", "")
    assert [x[0] for x in pulled] == [images]


def test_options_reach_the_settings(pulled):
    words = "-q --jobs 3 --policy newer --limit-rate 10M --max-layer-size 1GiB --max-entries 7 --anonymous -f x"
    assert call(*words.split())[0] == 0
    [(_, started, access, keywords)] = pulled
    settings = started.settings
    assert (settings.jobs, settings.policy, settings.limit_rate) == (3, "newer", 10_000_000)
    assert (settings.limits.max_bytes, settings.limits.max_entries) == (1 << 30, 7)
    assert access.anonymous and keywords["wishes"].force and not keywords["wishes"].dry_run
    assert started.display.quiet


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            "lss",
            "no such command: 'lss'",
            "did you mean `msb-pull ls`? To pull an image of this name: `msb-pull pull lss`",
        ),
        ("prun", "no such command: 'prun'", "msb-pull pull prun"),
        ("Verify", "no such command: 'Verify'", "`msb-pull verify`"),
        ("-q insepct x", "no such command: 'insepct'", "`msb-pull inspect`"),
        ("images", "no such command: 'images'", "`msb-pull ls`? To pull an image of this name: `msb-pull pull images`"),
        ("rmi x", "no such command: 'rmi'", "`msb-pull rm`?"),
        ("load -i x", "no such command: 'load'", "`msb-pull pull docker-archive:FILE`?"),
        ("-q help", "no such command: 'help'", "`msb-pull --help`?"),
        ("help lss", "no such command: 'lss'", "`msb-pull help ls`?"),
        ("help ubuntu", "no such command: 'ubuntu'", "`msb-pull help` lists all"),
        ("-q ls", "-q: options go after the command", "msb-pull ls -q"),
        ("--home /x -j 4 pull y", "--home /x -j 4: options go after the command", "msb-pull pull --home /x -j 4"),
        ("--all prune", "--all: options go after the command", "msb-pull prune --all"),
        ("--filter a=b ls", "--filter a=b: options go after the command", "msb-pull ls --filter a=b"),
        ("pull", "pull: no image named", "msb-pull pull --help"),
        ("pull --frce x", "no such option: --frce", "did you mean --force?"),
        ("pull --plaform x y", "no such option: --plaform", "did you mean --platform?"),
        ("pull --creds x", "no such option: --creds", "did you mean --creds-stdin?"),
        ("pull --retries 3 x", "no such option: --retries", "it is pull.retries in the configuration file"),
        ("pull --timeout 3 x", "no such option: --timeout", "it is pull.timeout in the configuration file"),
        ("pull --output 3 x", "no such option: --output", "`msb-pull pull --help` lists the options"),
        ("pull -z x", "no such option: -z", "`msb-pull pull --help`"),
        ("pull --jobs", "option '--jobs' requires an argument", None),
        ("x --jobs 65", "--jobs: '65' is not a number from 1 to 64", None),
        ("x --policy often", "--policy: 'often' is not one of missing, always, newer, never", None),
        ("x --format yaml", "--format: 'yaml' is not one of text, json", None),
        ("ls a b", "got unexpected extra argument(s) (b)", None),
        ("inspect --layers --files x", "--layers and --files: choose one", None),
        ("prune --filter until=1h", "--filter only works together with --all, --keep or --min-free", "--all --filter"),
        ("save x", "save: -o is missing", "-o ubuntu.tar"),
        ("x --config /none", "/none: no such configuration file", None),
    ],
)
def test_usage_errors(words, message, hint):
    code, out, error = call(*words.split())
    assert (code, out) == (2, "")
    lines = error.splitlines()
    assert lines[0] == f"error: {message}"
    assert hint is None or hint in lines[1]
    assert len(lines) <= 3


@pytest.mark.parametrize("words", ["pull images", "run", "images:1", "acme/images", "pull help"])
def test_names_of_images_that_are_words_of_others(pulled, words):
    assert call(*words.split())[0] == 0
    assert pulled[0][0] == [words.removeprefix("pull ")]


@pytest.mark.parametrize(("words", "same"), [("help", "--help"), ("help ls", "ls --help"), ("help pull -h", "pull -h")])
def test_help_is_a_word_as_well(words, same):
    shown = call(*words.split())
    assert shown == call(*same.split())
    assert shown[0] == 0 and shown[1].startswith("Usage: ")


def test_usage_errors_as_json_too():
    code, out, error = call("--format", "json", "lss")
    assert code == 2
    assert json.loads(out) == {
        "status": "failed",
        "error": {
            "code": 2,
            "kind": "usage",
            "message": "no such command: 'lss'",
            "cause": None,
            "hint": "did you mean `msb-pull ls`? To pull an image of this name: `msb-pull pull lss`",
        },
    }
    assert error.startswith("error: ")


@pytest.mark.parametrize("kind", [x for x in vars(errors).values() if isinstance(x, type) and hasattr(x, "exit_code")])
def test_every_error_has_its_code(monkeypatch, kind):
    def fail(*_, **__):
        raise kind("this failed", cause="because", hint="do that")

    monkeypatch.setattr(cli_pull, "pull_images", fail)
    code, out, error = call("x")
    assert (code, out) == (int(kind.exit_code), "")
    assert error == "error: this failed\n  cause: because\n  hint: do that\n"


def test_a_mistake_of_ours_is_one_line_and_a_hint(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cli_pull, "pull_images", fail)
    code, _, error = call("x")
    assert code == 1
    assert error.splitlines()[0] == "error: ZeroDivisionError: division by zero"
    assert "--debug" in error and "Traceback" not in error
    code, _, error = call("x", "--debug")
    assert code == 1
    assert error.startswith("Traceback") and "in fail" in error


def test_no_words_are_a_call_for_help():
    done, asked = run(), run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == asked.stdout == run("-h").stdout
    assert done.stdout.startswith("Usage: msb-pull [OPTIONS] IMAGE... | COMMAND")
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_help_of_every_command(command, columns):
    done = run(command, "--help", env={"COLUMNS": columns})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: msb-pull {command} ")
    assert "\nExamples:\n" in done.stdout
    assert "\nOptions of every command:\n" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.partition("\nExamples:")[0].splitlines())
    assert "\x1b" not in done.stdout and "\b" not in done.stdout


def test_every_option_has_a_text():
    program_ = cli.typer.main.get_command(cli.app)
    silent = [
        (name, param.opts)
        for name, command in program_.commands.items()
        for param in command.params
        if param.param_type_name == "option" and len(param.help or "") < 10
    ]
    assert not silent


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")
    assert done.stdout.startswith("msb-pull ")
    assert run("-V").stdout == done.stdout
    assert run("-V", "-q").stdout == done.stdout


def test_detailed_version():
    done = run("--version", "-v")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("msb-pull", "Python", "Platform", "Jail", "Home", "Layers", "Config"),
    ]


def loaded(*words, env=None):
    """The modules that a run of the program loads."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "msb_pull", *words],
        env=program_environment(**(env or {})), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def bare_python():
    done = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True)
    return set(done.stdout.split())


def test_what_must_answer_at_once_loads_nothing_heavy():
    heavy = {"typer", "rich", "requests", "dataclasses", "pathlib"}
    assert not loaded("--version") & heavy
    assert not loaded("__complete", "images", "") & (heavy - {"dataclasses", "pathlib"})
    for words in (["--help"], ["pull", "--help"], ["ls", "--sort", "bad"], ["lss"]):
        assert not loaded(*words) & {"rich", "requests", "pydantic", "rich.console", "tomli"}


@pytest.mark.parametrize(("words", "most"), [(["--version"], 45), (["__complete", "images", "u"], 140)])
def test_start_loads_few_modules(words, most):
    """More than Python itself does, which is what a start takes."""
    assert len(loaded(*words) - bare_python()) <= most


def test_completion_is_silent_about_trouble(tmp_path):
    (tmp_path / "oci.db").write_bytes(b"no database at all, but long enough to be looked at " * 100)
    for words in (["images", "x", str(tmp_path)], ["images", "x", "/none"], ["other"], []):
        done = run("__complete", *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("words", [["pull", "--help"], ["--help"]])
def test_d37_a_reader_that_goes_away_is_no_error(words):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*program(), *words], env=program_environment(), stdout=write, stderr=subprocess.PIPE, timeout=30
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_streams(closed):
    """Started by a daemon with a stream closed."""
    script = f"import os, sys; os.close({closed}); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", script, *program(), "lss"], env=program_environment(), capture_output=True, timeout=30
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert os.path.exists(sys.executable)


@pytest.mark.parametrize("words", [("ls", "--home", "store"), ("pull", "oci:layout")])
def test_relative_paths_in_a_folder_that_is_gone(tmp_path, words):
    line = 'cd "$0" && rmdir "$0" && exec "$@"'
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        ["sh", "-c", line, str(tmp_path / "here"), *program(), *words],
        env=program_environment(PYTHONPATH=os.path.abspath(".")), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, "error: the current folder: No such file or directory\n")
