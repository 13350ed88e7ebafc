"""What Typer does not do by itself: images without a command, near misses, plain help, errors in our own form."""

from __future__ import annotations

import inspect
from copy import copy
from types import MethodType
from typing import TYPE_CHECKING, Any

import typer
import typer.core

from msb_pull.cli.options import COMMON, SETTINGS
from msb_pull.config.table import EVERYWHERE, TABLE
from msb_pull.ground.errors import MsbPullError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.cli.run import Run, Session

_HELP = "help"
# What other programs for images, docker first, call what a command here does.
_CALLED_ELSEWHERE = {
    _HELP: "--help",
    "history": "inspect",
    "image": "ls",
    "images": "ls",
    "list": "ls",
    "load": "pull docker-archive:FILE",
    "remove": "rm",
    "rmi": "rm",
}
# How like a command or an option a word must be to pass for its misspelling.
_NEAR = 0.78
_EXAMPLES = """\
msb-pull ubuntu:22.04
msb-pull ghcr.io/acme/app:1 --platform linux/arm64
msb-pull ls
msb-pull inspect --lowerdir ubuntu:22.04"""


def command(
    app: typer.Typer, *, usage: str, examples: str, settings: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers ``function(run, **own_options)`` as a command that takes the common options and ``settings`` too.

    ``run`` is ready to use when the function is called: settings are read and the display knows how to show things.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        # A command that has its own --format answers for the common one too.
        common = [p for p in COMMON.values() if p.name not in {x.name for x in own}]
        context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        every = [context, *own, *(SETTINGS[name] for name in settings), *common]

        def invoke(**values: Any) -> None:
            session: Session = values.pop("ctx").obj
            mine = {p.name: values[p.name] for p in own}
            run: Run = session.begin(values)
            function(run, **mine)

        invoke.__name__ = function.__name__
        invoke.__doc__ = function.__doc__
        invoke.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in every]
        )
        app.command(function.__name__, cls=PlainCommand, options_metavar=usage, epilog=examples)(invoke)
        return function

    return register


def build(app: typer.Typer, argv: Sequence[str]) -> Any:
    """What runs a command line: all commands, or the one that its first word names, in a tenth of the time (4 ms)."""
    named = [info for info in app.registered_commands if info.name in argv[:1]]
    if named:
        app = copy(app)
        app.registered_commands = named
    return typer.main.get_command(app)


def as_typed(param: Any) -> Any:
    """``param``, which now keeps the text that was typed.

    Typer 0.29 loads pydantic (0.08 s, more than a whole warm pull may take) to turn text into text.
    """
    param.process_value = MethodType(_keep, param)
    return param


def _keep(param: Any, ctx: typer.Context, value: Any) -> Any:
    if value is None and (param.multiple or param.nargs == -1):
        value = ()
    return param.callback(ctx, param, value) if param.callback is not None else value


def _show_help(ctx: typer.Context, param: Any, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        ctx.obj.display.result(ctx.get_help())
        raise typer.Exit


class _Plain:
    """What commands and their group share."""

    options_metavar: str | None

    def get_params(self, ctx: typer.Context) -> list[Any]:
        """The parameters, none of which converts its text."""
        return [as_typed(param) for param in super().get_params(ctx)]  # type: ignore[misc]

    def get_help_option(self, ctx: typer.Context) -> Any:
        """The help option, whose page is written as every result is."""
        option: Any = super().get_help_option(ctx)  # type: ignore[misc]
        option.callback = _show_help
        return option

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:
        """The usage line as it was written."""
        return [self.options_metavar or ""]


class PlainCommand(_Plain, typer.core.TyperCommand):  # type: ignore[misc]
    """A command whose values stay text, with help in sections of plain text."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Leaves in every error the command whose help page tells more."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if getattr(error, "ctx", None) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            raise

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Writes the options in sections, in the order in which the sections first appear."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and param.param_type_name == "option":
                title = getattr(param, "rich_help_panel", None)
                sections.setdefault(title if isinstance(title, str) else "Options", []).append(record)
        # The help option comes last and belongs to the options of every command.
        sections.setdefault(EVERYWHERE, []).append(sections["Options"].pop())
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    # Padded, so that the texts of all sections stand below one another.
                    formatter.write_dl([(f"{name:<22}", text) for name, text in records], col_max=22)

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Writes the examples as they stand."""
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write_text("\b\n" + self.epilog)


class Group(_Plain, typer.core.TyperGroup):  # type: ignore[misc]
    """Commands, or images to pull when the first word is none."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Leaves the options of the bare form for ``pull``; ``help`` is another word for ``--help``."""
        ctx.ignore_unknown_options = True
        return super().parse_args(ctx, self._help(args[1:]) if args[:1] == [_HELP] else args)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple[str | None, Any, list[str]]:  # type: ignore[override]
        """The command that the first word names, else ``pull``; raises UsageError for what could be either."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        word = self._first_word(args) or ""
        if word in self.commands and args[0].startswith("-"):
            options = " ".join(args[: args.index(word)])
            raise UsageError(f"{options}: options go after the command", hint=f"msb-pull {word} {options} ...")
        if near := self._meant(word):
            raise UsageError(
                f"no such command: {word!r}",
                hint=f"did you mean `msb-pull {near}`? To pull an image of this name: `msb-pull pull {word}`",
            )
        return "pull", self.commands["pull"], args

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Writes the commands before the two options."""
        self.format_commands(ctx, formatter)
        with formatter.section("Options"):
            formatter.write_dl([x for param in self.get_params(ctx) if (x := param.get_help_record(ctx))])

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Writes the examples as they stand."""
        with formatter.section("Examples"):
            formatter.write_text("\b\n" + _EXAMPLES)
        formatter.write_paragraph()
        formatter.write_text("`msb-pull COMMAND --help` explains a command and its options.")

    def _help(self, words: list[str]) -> list[str]:
        """The arguments that show the page for ``help`` with these words; raises UsageError."""
        for word in words:
            if word not in self.commands and not word.startswith("-"):
                near = self._meant(word)
                hint = f"did you mean `msb-pull help {near}`?" if near in self.commands else "`msb-pull help` lists all"
                raise UsageError(f"no such command: {word!r}", hint=hint)
        return [*words, "--help"]

    def _meant(self, word: str) -> str | None:
        """The command that a word may have been meant for, None where it can only be an image."""
        if set(word) & set(":/@."):
            return None
        import difflib

        near = difflib.get_close_matches(word.lower(), self.commands, n=1, cutoff=_NEAR)
        return _CALLED_ELSEWHERE.get(word.lower()) or (near[0] if near else None)

    def _first_word(self, args: Sequence[str]) -> str | None:
        """The first word that is neither an option nor the value of one."""
        takes_value = {
            name
            for command in self.commands.values()
            for param in command.params
            if param.param_type_name == "option" and not (getattr(param, "is_flag", 0) or getattr(param, "count", 0))
            for name in param.opts
        }
        words = iter(args)
        for word in words:
            if not word.startswith("-") or word == "-":
                return word
            if _wants_next(word, takes_value):
                next(words, None)
        return None


def _wants_next(word: str, takes_value: set[str]) -> bool:
    """Whether the value of the option (or of the last of a cluster like ``-qj``) is the next word."""
    if word.startswith("--"):
        return word in takes_value
    for position, letter in enumerate(word[1:], start=2):
        if f"-{letter}" in takes_value:
            return position == len(word)
    return False


def _is_like(option: str, typed: str) -> bool:
    """Whether an option may be what was meant; Typer suggests much that is not."""
    import difflib

    ratio = difflib.SequenceMatcher(None, option.lstrip("-"), typed.lstrip("-")).ratio()
    return option.startswith(typed) or ratio >= _NEAR


def usage_error(error: typer.TyperException) -> MsbPullError:
    """Typer's own words in our form, with the nearest option or the page to read as the hint."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "msb-pull"
    option = getattr(error, "option_name", None)
    near = [x for x in getattr(error, "possibilities", None) or () if option is not None and _is_like(x, option)]
    hint = f"did you mean {' or '.join(sorted(near))}?" if near else f"`{path} --help` lists the options"
    # Some settings have no option.
    setting = TABLE.get((option or "").removeprefix("--").replace("-", "_"))
    if setting is not None and setting.metavar is None and setting.key is not None:
        hint = f"it is {setting.key} in the configuration file"
    message = f"no such option: {option}" if type(error).__name__ == "NoSuchOption" else error.format_message()
    return UsageError(message[:1].lower() + message[1:].rstrip("."), hint=hint)
