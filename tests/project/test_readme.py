"""What README and docs/usage.md say is what the program does: variables, exit codes, configuration, commands, files."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import tomllib
from pathlib import Path

import pytest

from msb_pull.config import settings as config
from msb_pull.config.table import TABLE
from msb_pull.ground.errors import ExitCode
from tests.conftest import REPOSITORY, lacking, need, program, program_environment
from tests.support.program import run_program

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
USAGE = (REPOSITORY / "docs" / "usage.md").read_text(encoding="utf-8")
BOTH = {"README": README, "usage": USAGE}
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("tests/*.md")])


def section(title: str, text: str = USAGE) -> str:
    """What stands below a heading, of whichever level, until the next one of any level."""
    found = re.split(rf"\n#+ {title}\n", text)
    assert len(found) == 2, title
    return re.split(r"\n#+ ", found[1])[0]


def code(language: str, text: str) -> list[str]:
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
    """A variable that the source knows but the documents do not would be a secret."""
    source = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "msb_pull").rglob("*.py"))
    assert set(re.findall(r"\bMSB_(?:PULL|REGISTRY)_[A-Z_]+\b", source)) <= set(re.findall(r"MSB_[A-Z_]+", USAGE))


def test_exit_codes_are_all_listed():
    listed = {int(x) for row in re.findall(r"^\| ([\d, ]+) \|", section("Exit codes"), re.M) for x in row.split(", ")}
    signals = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    # 141 is how shells report a program that a closed pipe ended.
    assert listed == {code for name, code in vars(ExitCode).items() if name.isupper()} | signals | {141}


def test_configuration_example_is_read(tmp_path):
    signatures, example = code("toml", USAGE)
    path = tmp_path / "config.toml"
    path.write_text(example + signatures)
    settings = config.load({"config": str(path)}, {})
    assert settings.registries.keys() == tomllib.loads(example)["registries"].keys()
    assert settings.limit_rate == 50_000_000
    assert [bool(x.keys) for x in settings.signatures] == [True, False, False, False]
    assert settings.signatures[1].trust_root == tmp_path / "trusted_root.json"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    links = [x for x in re.findall(r"\]\(([^)]+)\)", text) if "://" not in x]
    for path, _, heading in (link.partition("#") for link in links):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if heading:
            assert heading in headings(target.read_text(encoding="utf-8")), f"{path}#{heading}"
    paths = re.findall(r"(?<![\w/.<-])(?:tests|completions|docs|examples|msb_pull)/[\w./-]*\w", text)
    assert [x for x in paths if not (REPOSITORY / x).exists()] == []


def headings(text: str) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_readme_is_short():
    assert len(README.split()) <= 1000


@pytest.mark.parametrize("command", ["pull", "ls", "inspect", "verify", "prune", "rm", "save", "export"])
def test_options_named_for_a_command_exist(command):
    """Each `msb-pull COMMAND … --option` of both pages is an option of that command's help."""
    lines = [line.split("#")[0] for block in code("sh", README + USAGE) for line in block.splitlines()]
    used = {option for line in lines for option in re.findall(rf"msb-pull {command} [^|;)]*", line)}
    options = {option for use in used for option in re.findall(r"(?<!\S)--[a-z-]+", use)}
    run = run_program([command, "--help"], env=program_environment(COLUMNS="200"))
    assert run.returncode == 0, run.stderr
    assert {option for option in options if option not in run.stdout} == set()


@pytest.mark.parametrize("page", BOTH)
def test_python_examples_compile(page):
    examples = code("python", BOTH[page])
    assert examples
    for example in examples:
        compile(example, page, "exec")


@pytest.mark.parametrize("page", BOTH)
def test_shell_examples_parse(page):
    need("bash")
    for example in code("sh", BOTH[page]):
        run = subprocess.run(["bash", "-n"], input=example, text=True, capture_output=True)
        assert run.returncode == 0, run.stderr


def test_the_essence_of_the_ci_script_stands_in_it():
    (essence,) = code("sh", section("In CI"))
    script = {line.strip() for line in (REPOSITORY / "examples" / "ci.sh").read_text(encoding="utf-8").splitlines()}
    assert not [line for line in essence.splitlines() if line not in script]


@pytest.fixture
def shell(tmp_path):
    """Runs lines of a page as they stand, in an empty folder, with the sample under the names that they use."""
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


@pytest.mark.parametrize("page", BOTH)
def test_saved_here_and_pulled_there(shell, page):
    save, pull, *_ = code("sh", section("Offline", BOTH[page]))[0].splitlines()
    before = shell("msb-pull inspect --files ubuntu:22.04")
    shell(f"{save}\nexport MICROSANDBOX_HOME=$PWD/other\n{pull}")
    assert shell("MICROSANDBOX_HOME=$PWD/other msb-pull inspect --files ubuntu:22.04") == before


def test_everyday_commands(shell):
    lines = [
        *code("sh", section("Everyday use", README))[0].splitlines(),
        *code("sh", section("Verify and prune", README))[0].splitlines(),
    ]
    # What reaches for a registry, and what asks a person.
    local = [line for line in lines if not re.match(r"msb-pull (ubuntu|pull|verify --repair|prune --keep)", line)]
    assert len(local) == 7
    shell("\n".join(sorted(local, key=lambda line: "rm" in line.split())))


@pytest.mark.parametrize("page", BOTH)
def test_layers_are_mounted(shell, page):
    need("fuse-overlayfs", "fusermount3")
    if not Path("/dev/fuse").exists():
        lacking("/dev/fuse is missing")
    mounted = shell(code("sh", section("Mounting the layers", BOTH[page]))[0])
    assert "etc" in mounted.split()
