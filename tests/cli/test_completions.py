"""The completion files, driven in the real shells."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from msb_pull.cli import app as cli
from msb_pull.cli.complete import matching
from tests.conftest import need
from tests.support.terminal import Terminal, plain

FOLDER = Path(__file__).resolve().parents[2] / "completions"
DIGEST = "sha256:" + "ab" * 32
STORE = [
    "docker.io/library/alpine:3.20",
    "docker.io/library/ubuntu:22.04",
    "docker.io/library/ubuntu:24.04",
    f"docker.io/library/debian@{DIGEST}",
    "ghcr.io/acme/app:1",
    "localhost:5000/x:1",
]


@pytest.fixture
def home(tmp_path):
    """A folder with a program that answers for the store, prints its words, and one file to complete."""
    program = tmp_path / "bin" / "msb-pull"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable} -S\nimport sys\nsys.path.insert(0, {str(FOLDER.parent)!r})\n"
        "from msb_pull.cli.complete import matching\n"
        f"names = {STORE!r}\n"
        "if sys.argv[1:3] == ['__complete', 'images']:\n"
        "    home = (sys.argv + [''])[4] if len(sys.argv) > 4 else ''\n"
        "    names = ['elsewhere/' + home.strip('/') + ':1'] if home else names\n"
        "    print('\\n'.join(matching(names, sys.argv[3])))\n"
        "else:\n"
        "    print('ARGS', *(f'<{word}>' for word in sys.argv[1:]))\n"
    )
    program.chmod(0o755)
    (tmp_path / "layout-folder").mkdir()
    (tmp_path / "archive-file.tar").write_text("")
    return tmp_path


def shell(home, name):
    env = {"PATH": f"{home}/bin:{os.environ['PATH']}", "HOME": str(home), "PS1": "READY ", "PROMPT": "READY "}
    if name == "bash":
        argv = ["bash", "--norc", "--noprofile", "-i"]
        setup = [f"source {FOLDER}/msb-pull.bash"]
    else:
        argv = ["zsh", "-f", "-i"]
        setup = [
            f"fpath=({FOLDER} $fpath)",
            "autoload -Uz compinit && compinit -u -D",
            "PROMPT='READY '; unsetopt beep",
            "zstyle ':completion:*' menu no",
        ]
    terminal = Terminal(argv, env=env, cwd=home, columns=200)
    for line in setup:
        terminal.send(line + "\n")
    terminal.send("echo SET''UP\n")
    terminal.expect(r"SETUP\r?\n.*READY ")
    return terminal


def completed(terminal, line):
    """The words the program gets when TAB follows ``line``."""
    terminal.send(line + "\t\n")
    found = terminal.expect(r"ARGS ([^\r\n]*)").group(1)
    terminal.expect("READY ")
    # zsh takes the slash behind a folder away again when the line is finished.
    return [word.rstrip("/") for word in re.findall(r"<(.*?)>", found)]


CASES = [
    ("msb-pull pul", ["pull"]),
    ("msb-pull pull alp", ["pull", "alpine:3.20"]),
    ("msb-pull alp", ["alpine:3.20"]),
    ("msb-pull rm ubuntu:2", ["rm", "ubuntu:2"]),
    ("msb-pull rm ubuntu:22", ["rm", "ubuntu:22.04"]),
    ("msb-pull inspect docker.io/library/ubuntu:24", ["inspect", "docker.io/library/ubuntu:24.04"]),
    ("msb-pull rm debian@", ["rm", f"debian@{DIGEST}"]),
    ("msb-pull rm debian@sha", ["rm", f"debian@{DIGEST}"]),
    ("msb-pull rm debian@sha256:a", ["rm", f"debian@{DIGEST}"]),
    ("msb-pull verify localhost:5000/", ["verify", "localhost:5000/x:1"]),
    ("msb-pull pull oci:lay", ["pull", "oci:layout-folder"]),
    ("msb-pull pull oci-archive:arch", ["pull", "oci-archive:archive-file.tar"]),
    ("msb-pull pull --policy nev", ["pull", "--policy", "never"]),
    ("msb-pull pull --policy=nev", ["pull", "--policy=never"]),
    ("msb-pull pull --plain", ["pull", "--plain-http"]),
    ("msb-pull ls --sort si", ["ls", "--sort", "size"]),
    ("msb-pull prune --no", ["prune", "--no-wait"]),
    ("msb-pull save alpine:3.20 -o arch", ["save", "alpine:3.20", "-o", "archive-file.tar"]),
    ("msb-pull save --format doc", ["save", "--format", "docker"]),
    ("msb-pull inspect --home /data else", ["inspect", "--home", "/data", "elsewhere/data:1"]),
    ("msb-pull --platform linux/arm6", ["--platform", "linux/arm64"]),
]


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_words_are_completed(home, name):
    need(name)
    with shell(home, name) as terminal:
        wrong = {}
        for line, expected in CASES:
            found = completed(terminal, line)
            if found != expected:
                wrong[line] = found
    assert not wrong


def test_bash_lists_what_fits(home):
    need("bash")
    with shell(home, "bash") as terminal:
        terminal.send("msb-pull inspect ubuntu:\t\t\t")
        listed = terminal.expect(r"22\.04.*24\.04")
        assert "alpine" not in plain(listed.group())


def test_fish(home):
    need("fish")
    cases = [
        ("msb-pull pul", {"pull"}),
        ("msb-pull rm ubuntu:", {"ubuntu:22.04", "ubuntu:24.04"}),
        ("msb-pull rm debian@", {f"debian@{DIGEST}"}),
        ("msb-pull alp", {"alpine:3.20"}),
        ("msb-pull pull oci:lay", {"oci:layout-folder/"}),
        ("msb-pull pull --policy nev", {"never"}),
        ("msb-pull pull --policy=nev", {"--policy=never"}),
        ("msb-pull save --format doc", {"docker"}),
        ("msb-pull prune --no", {"--no-wait"}),
        ("msb-pull ls --plain", set()),
        ("msb-pull inspect --home /data else", {"elsewhere/data:1"}),
        ("msb-pull -q pull ub", {"ubuntu:22.04", "ubuntu:24.04"}),
    ]
    script = f"source {FOLDER}/msb-pull.fish\n" + "".join(f"echo LINE; complete -C '{line}'\n" for line, _ in cases)
    env = {"PATH": f"{home}/bin:{os.environ['PATH']}", "HOME": str(home), "TERM": "dumb", "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], env=env, cwd=home, capture_output=True, text=True, timeout=60, check=True
    )
    parts = done.stdout.split("LINE\n")[1:]
    found = [{line.split("\t")[0] for line in part.splitlines()} for part in parts]
    assert dict(zip([line for line, _ in cases], found, strict=True)) == dict(cases)
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["msb-pull.bash", "_msb-pull", "msb-pull.fish"])
def test_files_know_every_option(name):
    """A new option must reach the three files, too."""
    text = (FOLDER / name).read_text()
    words = set(re.findall(r"--[a-z][a-z-]*", text))
    words |= {f"--{word}" for word in re.findall(r"-l ([a-z-]+)", text)}
    program = typer.main.get_command(cli.app)
    missing = {
        (command, option)
        for command, entry in program.commands.items()
        for param in entry.params
        for option in param.opts
        if option.startswith("--") and option not in words
    }
    assert not missing
    assert all(re.search(rf"\b{command}\b", text) for command in program.commands)


def test_zsh_file_begins_as_compinit_wants_it():
    assert (FOLDER / "_msb-pull").read_text().startswith("#compdef msb-pull\n")


def test_short_and_full_names():
    assert matching(STORE, "")[:2] == ["alpine:3.20", f"debian@{DIGEST}"]
    assert matching(STORE, "docker.io/library/u") == [
        "docker.io/library/ubuntu:22.04",
        "docker.io/library/ubuntu:24.04",
    ]
    assert matching(STORE, "library/u") == []
    assert matching(STORE, "ghcr") == ["ghcr.io/acme/app:1"]
