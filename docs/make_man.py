"""Writes ``docs/msb-pull.1``, the manual page, from the help of the program and two tables of ``docs/usage.md``.

python docs/make_man.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from msb_pull import __version__
from msb_pull.cli.app import app
from msb_pull.config.table import EVERYWHERE

PAGE = Path(__file__).with_name("msb-pull.1")
USAGE = Path(__file__).with_name("usage.md")


def escaped(text: str) -> str:
    """Text that roff shows as it stands, with what stands between backticks in bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    text = text.replace("'", "\\(aq")
    # A line that begins with a dot would be a request.
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", re.sub(r"^\.", r"\\&.", text, flags=re.M))


def section(title: str, *lines: str) -> list[str]:
    return [f".SH {title}", *lines]


def paragraphs(text: str) -> list[str]:
    first, *others = text.strip().split("\n\n")
    return [escaped(first), *(line for other in others for line in (".PP", escaped(other)))]


def literal(text: str) -> list[str]:
    return [".PP", ".RS 4", ".nf", *map(escaped, text.splitlines()), ".fi", ".RE"]


def described(term: str, text: str) -> list[str]:
    return [".TP", f"\\fB{escaped(term)}\\fR", escaped(text)]


def options(command: Any, *, common: bool) -> list[str]:
    """The options of a command that every command has, or those that are its own."""
    context = typer.Context(command)
    lines = []
    for param in command.get_params(context):
        everywhere = getattr(param, "rich_help_panel", None) == EVERYWHERE
        record = param.get_help_record(context)
        if param.param_type_name == "option" and param.name != "help" and everywhere == common:
            lines += described(*record)
    return lines


def table(title: str) -> list[str]:
    """The rows of the table in a section of the page on usage, as terms and what they mean."""
    text = USAGE.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", text, re.M)[1:]
    return [line for term, meaning in rows for line in described(term.replace("`", ""), meaning)]


def page() -> str:
    """The page."""
    program: Any = typer.main.get_command(app)
    summary, _, about = program.help.partition("\n\n")
    lines = [
        ".\\\" Made by docs/make_man.py from the program's help; changes belong there.",
        f'.TH MSB\\-PULL 1 "" "msb\\-pull {__version__}" "User Commands"',
        *section("NAME", f"msb\\-pull \\- {escaped(summary[0].lower() + summary[1:].rstrip('.'))}"),
        *section("SYNOPSIS", "\\fBmsb\\-pull\\fR [\\fIOPTIONS\\fR] \\fIIMAGE\\fR..."),
    ]
    for name, command in program.commands.items():
        lines += [".br", f"\\fBmsb\\-pull {name}\\fR {escaped(command.options_metavar)}"]
    lines += section("DESCRIPTION", *paragraphs(about)) + section("COMMANDS")
    for name, command in program.commands.items():
        lines += [f'.SS "msb\\-pull {name} {escaped(command.options_metavar)}"', *paragraphs(command.help)]
        lines += options(command, common=False) + literal(command.epilog)
    lines += section("OPTIONS OF EVERY COMMAND", *options(program.commands["ls"], common=True))
    lines += described("-h, --help", "Show help and exit.") + described("-V, --version", "Show the version and exit.")
    lines += section("ENVIRONMENT", *table("Configuration"))
    lines += section("EXIT STATUS", *table("Exit codes"))
    lines += section("SEE ALSO", "\\fBfuse\\-overlayfs\\fR(1), \\fBskopeo\\fR(1), \\fBpodman\\-pull\\fR(1)")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
