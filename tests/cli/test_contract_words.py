"""The options of every command, written down once here: help, documents, completions and program must say the same."""

from __future__ import annotations

import functools
import os
import re
import subprocess

import pytest

from msb_pull.config.file import REGISTRY_KEYS, SETTING_TABLES, TOP_KEYS
from msb_pull.config.table import TABLE
from tests.conftest import REPOSITORY, need
from tests.support.program import run_program

USAGE = (REPOSITORY / "docs" / "usage.md").read_text(encoding="utf-8")
COMPLETIONS = REPOSITORY / "completions"

# Each line is one option as its help shows it: names, value, and behind # the variables that set it.
EVERY = """
--home DIR # MICROSANDBOX_HOME
--layers-dir DIR # MSB_PULL_LAYERS_DIR
--config FILE # MSB_PULL_CONFIG
--format text|json
-q, --quiet
-v, --verbose
--progress auto|bars|plain|json|none # MSB_PULL_PROGRESS
--color auto|always|never # NO_COLOR FORCE_COLOR
--debug
-h, --help
"""
AUTHFILE = (
    "--authfile FILE # REGISTRY_AUTH_FILE MSB_REGISTRY_USERNAME MSB_REGISTRY_PASSWORD MSB_REGISTRY_TOKEN "
    "MSB_REGISTRY_HOST\n"
)
OWN = {
    "pull": f"""
--policy missing|always|newer|never
-f, --force
--platform OS/ARCH[/VARIANT] # MSB_PULL_PLATFORM
-j, --jobs N # MSB_PULL_JOBS
--limit-rate BYTES/s
--plain-http
--tls-no-verify
--ca-cert FILE
{AUTHFILE}
--creds-stdin
--anonymous
--max-layer-size SIZE
--max-entries N
--max-window SIZE
--allow-no-xattr
--as REF
--to WHERE
--msb PROGRAM # MSB_PATH
-n, --dry-run
--require-signature KEY
--no-signature-check
--lock FILE
--locked FILE
--upgrade
--lock-platform OS/ARCH[/VARIANT]
""",
    "ls": "--filter KEY=VALUE\n--sort name|size|pulled\n--no-trunc",
    "inspect": "--layers\n--lowerdir\n--files",
    "export": "-o, --output OUT\n--format tar|dir|erofs|squashfs|ext4\n--path PATH\n"
    "--stat native|containers|microsandbox\n--size SIZE\n-f, --force\n--to WHERE\n--msb PROGRAM # MSB_PATH\n"
    + AUTHFILE,
    "save": "-o, --output FILE\n--format oci|docker\n--without IMAGE|FILE",
    "verify": f"--quick\n--repair\n{AUTHFILE}",
    "rm": "",
    "prune": "-a, --all\n--filter KEY=VALUE\n-y, --yes\n-n, --dry-run\n--no-wait\n--keep SIZE\n--min-free SIZE",
    "df": "",
}


def table(text: str) -> dict[str, set[str]]:
    """An option as help shows it -> its variables."""
    lines = [line.split(" # ") for line in text.splitlines() if line]
    return {option: set(more[0].split()) if more else set() for option, *more in lines}


def wanted(command: str) -> dict[str, set[str]]:
    every = table(EVERY)
    if command in ("save", "export"):
        # Its own --format takes the words of the common one, too.
        del every["--format text|json"]
    return every | table(OWN[command])


@functools.cache
def help_page(command: str) -> str:
    done = run_program([*command.split(), "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def shown(command: str) -> dict[str, set[str]]:
    """The options of a help page, with the variables named in their texts."""
    options: dict[str, set[str]] = {}
    for block in re.split(r"\n(?=  -)", help_page(command).partition("\nExamples:\n")[0])[1:]:
        # The name ends at two blanks or, when it is long, with its line.
        name = re.split(r"  |\n", block.strip())[0]
        options[name] = set(re.findall(r"\b[A-Z]{2,}_[A-Z_]+\b", block))
    return options


def names(options) -> set[str]:
    """All spellings, without values."""
    return {word for option in options for word in re.findall(r"(?<!\S)--?[a-z-]+", option)}


@pytest.mark.parametrize("command", OWN)
def test_help_lists_these_options_and_no_others(command):
    assert shown(command) == wanted(command)


def test_help_of_the_program_names_the_commands():
    listed = re.findall(r"^  ([a-z]+)  ", help_page("").partition("Commands:")[2].partition("Options:")[0], re.M)
    assert listed == list(OWN)
    assert set(shown("")) == {"-V, --version", "-h, --help"}


@pytest.mark.parametrize("command", OWN)
def test_the_program_takes_these_options(command):
    """Each is understood when it stands before an option that is not."""
    words = []
    for option in wanted(command):
        name, _, value = option.rpartition(", ")[2].partition(" ")
        if name != "--help":
            words += [name, "x"] if value else [name]
    done = run_program([command, *words, "--no-such-option"])
    assert (done.returncode, done.stdout) == (2, "")
    assert "\nerror: no such option: --no-such-option\n" in done.stderr


def test_variables_of_help_usage_and_configuration():
    """Each has an option or a key of the file; docs/usage.md says the same of it as help does."""
    named = {variable: option for command in OWN for option, found in shown(command).items() for variable in found}
    cells = re.findall(r"^\| (`[A-Z_`, ]+`) \| ([^|]*) \|$", USAGE, re.M)
    told = {variable: text for cell, text in cells for variable in re.findall(r"[A-Z_]+", cell)}
    without_option = {"OCI_REGISTRY_DOMAIN"}
    assert set(told) == set(named) | without_option
    credentials = {"MSB_REGISTRY_USERNAME", "MSB_REGISTRY_PASSWORD", "MSB_REGISTRY_TOKEN", "MSB_REGISTRY_HOST"}
    ours = {x.variable for x in TABLE.values() if x.variable}
    assert ours == set(told) - credentials - {"NO_COLOR", "FORCE_COLOR"}
    for variable, option in named.items():
        if variable not in credentials:
            assert f"`{option.rpartition(', ')[2].split()[0]}`" in told[variable], variable


def test_keys_of_the_file_stand_in_usage():
    """Those that few need are named below the example."""
    section = USAGE.partition("\n## Configuration\n")[2].partition("\n| variable")[0]
    example, _, below = section.partition("```toml\n")[2].partition("```")
    keys = set(re.findall(r"^(\w+) = ", example, re.M)) | set(re.findall(r"`(\w+)`", below))
    assert keys == {*TOP_KEYS, *REGISTRY_KEYS}.union(*SETTING_TABLES.values())


def offered(shell: str, command: str) -> set[str]:
    """What a shell offers behind ``msb-pull COMMAND -``."""
    line = f"msb-pull {command} -"
    if shell == "bash":
        script = f"""
source {COMPLETIONS}/msb-pull.bash
COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({line})
_msb_pull; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
        argv = ["bash", "--norc", "-c", script]
    elif shell == "zsh":
        # The file hands its options to zsh's own _arguments; this one shows them.
        script = f"""
compdef() {{ }}
_arguments() {{ print -rl -- "${{@[4,-1]}}"; return 0 }}
source {COMPLETIONS}/_msb-pull
words=({line}); CURRENT=$#words
_msb-pull
"""
        argv = ["zsh", "-f", "-c", script]
    else:
        argv = [
            "fish",
            "--no-config",
            "-c",
            f"source {COMPLETIONS}/msb-pull.fish; complete -C '{line}'; complete -C '{line}-'",
        ]
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "TERM": "dumb", "LANG": "C.UTF-8"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
    words = re.sub(r"\([^)]*\)|\[[^]]*\]", " ", done.stdout) if shell == "zsh" else done.stdout
    return set(re.findall(r"^[\s*]*(--?[A-Za-z][a-z-]*)", words, re.M))


@pytest.mark.parametrize("command", OWN)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_offer_these_options_and_no_others(shell, command):
    need(shell)
    assert offered(shell, command) == names(wanted(command))


@pytest.mark.parametrize("file", ["msb-pull.bash", "_msb-pull", "msb-pull.fish"])
def test_completions_know_the_values(file):
    """Every choice that help shows, in its order."""
    text = (COMPLETIONS / file).read_text(encoding="utf-8")
    values = {option.split()[-1] for command in OWN for option in wanted(command) if "|" in option}
    # In capitals stand things that have names of their own.
    choices = {value.replace("|", " ") for value in values if value.islower()}
    assert {words for words in choices if words not in text} == set()
