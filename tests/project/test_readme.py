"""What README says is what the program does: variables, exit codes, the configuration, commands, files."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from msb_pull.config import settings as config
from msb_pull.config.table import TABLE
from msb_pull.ground.errors import ExitCode
from tests.conftest import REPOSITORY, need, program, program_environment

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def subsection(title: str) -> str:
    return README.partition(f"\n### {title}\n")[2].partition("\n### ")[0]


def code(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_variables_are_those_of_the_configuration():
    named = set(re.findall(r"\| `?([A-Z_`, ]+)`? \|", section("Configuration")))
    variables = {word for cell in named for word in re.findall(r"[A-Z_]{4,}", cell)}
    ours = {x.variable for x in TABLE.values() if x.variable}
    assert ours <= variables
    assert {name for name in variables if name.startswith("MSB_PULL_")} == {
        name for name in ours if name.startswith("MSB_PULL_")
    }


def test_no_variable_is_named_elsewhere_only():
    """A variable that the source knows but README does not would be a secret."""
    source = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "msb_pull").rglob("*.py"))
    assert set(re.findall(r"\bMSB_(?:PULL|REGISTRY)_[A-Z_]+\b", source)) <= set(re.findall(r"MSB_[A-Z_]+", README))


def test_exit_codes_are_all_listed():
    listed = {int(x) for row in re.findall(r"^\| ([\d, ]+) \|", section("Exit codes"), re.M) for x in row.split(", ")}
    assert listed == {int(status) for status in ExitCode}


def test_configuration_example_is_read(tmp_path):
    (example,) = code("toml")
    path = tmp_path / "config.toml"
    path.write_text(example)
    settings = config.load({"config": str(path)}, {})
    assert settings.registries.keys() == tomllib.loads(example)["registries"].keys()
    assert settings.limit_rate == 50_000_000


def test_links_lead_to_files():
    targets = [x for x in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in x]
    paths = re.findall(r"(?:tests|completions|docs|examples|msb_pull)/[\w./-]*\w", README)
    missing = [x for x in [*targets, *paths] if not (REPOSITORY / x).exists()]
    assert not missing


@pytest.mark.parametrize("command", ["pull", "ls", "inspect", "verify", "prune", "rm", "save"])
def test_options_named_for_a_command_exist(command):
    """Each `msb-pull COMMAND … --option` of README is an option of that command's help."""
    lines = [line.split("#")[0] for block in code("sh") for line in block.splitlines()]
    used = {option for line in lines for option in re.findall(rf"msb-pull {command} [^|;)]*", line)}
    options = {option for use in used for option in re.findall(r"(?<!\S)--[a-z-]+", use)}
    run = subprocess.run(
        [*program(), command, "--help"],
        capture_output=True,
        text=True,
        env=program_environment(COLUMNS="200"),
        timeout=30,
    )
    assert run.returncode == 0, run.stderr
    assert {option for option in options if option not in run.stdout} == set()


def test_python_examples_compile():
    examples = code("python")
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")


def test_shell_examples_parse():
    if shutil.which("bash") is None:
        pytest.skip("bash is missing")
    for example in code("sh"):
        run = subprocess.run(["bash", "-n"], input=example, text=True, capture_output=True)
        assert run.returncode == 0, run.stderr


def test_the_essence_of_the_ci_script_stands_in_it():
    (essence,) = code("sh", subsection("In CI"))
    script = {line.strip() for line in (REPOSITORY / "examples" / "ci.sh").read_text(encoding="utf-8").splitlines()}
    assert not [line for line in essence.splitlines() if line not in script]


@pytest.fixture
def shell(tmp_path):
    """Runs lines of README as they stand, in an empty folder, with the sample under the names that README uses."""
    need("bash")
    (tmp_path / "msb-pull").write_text(f'#!/bin/sh\nexec {shlex.join(program())} "$@"\n')
    (tmp_path / "msb-pull").chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    environment = program_environment(MSB_PULL_PLATFORM="linux/amd64")
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"

    def run(lines: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", lines], env=environment, cwd=folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name in ("ubuntu:22.04", "alpine"):
        run(f"msb-pull pull -q oci:{REPOSITORY}/tests/sample:1 --as {name}")
    return run


def test_saved_here_and_pulled_there(shell):
    save, pull, *_ = code("sh", subsection("Offline"))[0].splitlines()
    before = shell("msb-pull inspect --files ubuntu:22.04")
    shell(f"{save}\nexport MICROSANDBOX_HOME=$PWD/other\n{pull}")
    assert shell("MICROSANDBOX_HOME=$PWD/other msb-pull inspect --files ubuntu:22.04") == before


def test_everyday_commands(shell):
    lines = [
        *code("sh", section("Everyday use"))[0].splitlines(),
        *code("sh", subsection("Verify and prune"))[0].splitlines(),
    ]
    # What reaches for a registry, and what asks a person.
    local = [line for line in lines if not re.match(r"msb-pull (ubuntu|pull|verify --repair|prune --all)", line)]
    assert len(local) == 6
    shell("\n".join(sorted(local, key=lambda line: "rm" in line.split())))


def test_layers_are_mounted(shell):
    need("fuse-overlayfs", "fusermount3")
    if not Path("/dev/fuse").exists():
        pytest.skip("/dev/fuse is missing")
    mounted = shell(code("sh", subsection("Mounting the layers"))[0])
    assert "etc" in mounted.split()
