"""Options and arguments of the commands, each written once, and the classes that parse and explain them.

Every value stays the text that was typed: ``config`` turns text into values, alike for option, variable and file.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from msb_pull.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.cli_run import Run, Session

_REGISTRY = "Registry and credentials"
_LIMITS = "Limits"
_EVERYWHERE = "Options of every command"

Flag = bool
Text = str | None

Images = Annotated[list[str] | None, typer.Argument(metavar="IMAGE...", show_default=False)]
Image = Annotated[str | None, typer.Argument(metavar="IMAGE", show_default=False)]
Pattern = Annotated[str | None, typer.Argument(metavar="PATTERN", show_default=False)]

Force = Annotated[Flag, typer.Option("-f", "--force", help="Fetch and unpack every layer again, and swap it in.")]
PlainHttp = Annotated[
    Flag,
    typer.Option(
        "--plain-http",
        help="Speak HTTP with the registry of IMAGE (names of this machine fall back to it by themselves).",
        rich_help_panel=_REGISTRY,
    ),
]
TlsNoVerify = Annotated[
    Flag,
    typer.Option(
        "--tls-no-verify",
        help="Accept any certificate of the registry of IMAGE. Digests are still checked.",
        rich_help_panel=_REGISTRY,
    ),
]
CaCert = Annotated[
    Text,
    typer.Option(
        "--ca-cert",
        metavar="FILE",
        help="Trust the authorities in this PEM file for the registry of IMAGE.",
        rich_help_panel=_REGISTRY,
    ),
]
CredsStdin = Annotated[
    Flag,
    typer.Option(
        "--creds-stdin",
        help="Read one line `user:password` from standard input.",
        rich_help_panel=_REGISTRY,
    ),
]
Anonymous = Annotated[
    Flag, typer.Option("--anonymous", help="Use no credentials, even if there are some.", rich_help_panel=_REGISTRY)
]
AllowNoXattr = Annotated[
    Flag,
    typer.Option(
        "--allow-no-xattr",
        help="Go on, with a warning, where the file system has no user attributes; owners and modes are then lost.",
        rich_help_panel=_LIMITS,
    ),
]
As = Annotated[
    Text, typer.Option("--as", metavar="REF", help="Record an image from a folder or an archive under this name.")
]
DryRunPull = Annotated[
    Flag, typer.Option("-n", "--dry-run", help="Say what would be fetched and how much; write nothing.")
]
DryRun = Annotated[Flag, typer.Option("-n", "--dry-run", help="Say what would be removed; remove nothing.")]
Yes = Annotated[Flag, typer.Option("-y", "--yes", help="Do not ask. Needed where there is no terminal.")]
NoWait = Annotated[Flag, typer.Option("--no-wait", help="Give up (exit code 7) instead of waiting for a running pull.")]
All = Annotated[Flag, typer.Option("-a", "--all", help="Also remove images: every one, or those that match --filter.")]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="KEY=VALUE",
        help="Only images with reference=GLOB, platform=OS/ARCH, until=24h (pulled longer ago) or incomplete=true. "
        "The same key twice means either; different keys mean both.",
        show_default=False,
    ),
]
Sort = Annotated[Text, typer.Option("--sort", metavar="name|size|pulled", help="Order of the lines; default: name.")]
NoTrunc = Annotated[Flag, typer.Option("--no-trunc", help="Whole digests instead of their first 12 digits.")]
Layers = Annotated[Flag, typer.Option("--layers", help="Print just the layer directories, bottom first, one a line.")]
Lowerdir = Annotated[
    Flag,
    typer.Option(
        "--lowerdir", help="Print one string for `mount -t overlay -o lowerdir=...`: top first, through short links."
    ),
]
Files = Annotated[
    Flag, typer.Option("--files", help="List the merged tree from the records, without touching the layers.")
]
Quick = Annotated[Flag, typer.Option("--quick", help="Compare everything but the contents of files.")]
Repair = Annotated[Flag, typer.Option("--repair", help="Fetch damaged layers again and swap them in.")]
Output = Annotated[Text, typer.Option("-o", "--output", metavar="FILE", help="Where to write; `-` is standard output.")]
SaveFormat = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="oci|docker",
        help="Kind of archive; default: oci. `docker` is for `docker load`. May be given twice, since text and json "
        "choose what standard output carries, as everywhere.",
        show_default=False,
    ),
]


def _settings_options(
    policy: Annotated[
        Text,
        typer.Option(
            metavar="missing|always|newer|never",
            help="When to ask the registry. missing (default): only if the image is not complete here. always: every "
            "time, keeping layers that match. newer: as always, but without a network the local image will do. "
            "never: local or an error.",
        ),
    ] = None,
    platform: Annotated[
        Text,
        typer.Option(
            metavar="OS/ARCH[/VARIANT]",
            help="Platform to choose; default: linux and this machine's processor. [env: MSB_PULL_PLATFORM]",
        ),
    ] = None,
    jobs: Annotated[
        Text,
        typer.Option(
            "-j", "--jobs", metavar="N", help="Layers at once, 1 to 64; default: by processors. [env: MSB_PULL_JOBS]"
        ),
    ] = None,
    limit_rate: Annotated[
        Text,
        typer.Option(
            metavar="BYTES/s", help="Most bytes a second for all downloads together, as 10M.", rich_help_panel=_LIMITS
        ),
    ] = None,
    max_layer_size: Annotated[
        Text,
        typer.Option(
            metavar="SIZE", help="Largest unpacked layer that is accepted; default: 64GiB.", rich_help_panel=_LIMITS
        ),
    ] = None,
    max_entries: Annotated[
        Text,
        typer.Option(
            metavar="N", help="Most files in a layer that are accepted; default: 5000000.", rich_help_panel=_LIMITS
        ),
    ] = None,
    authfile: Annotated[
        Text,
        typer.Option(
            metavar="FILE",
            help="Credentials as `docker login` and `podman login` write them. [env: REGISTRY_AUTH_FILE; also "
            "MSB_REGISTRY_USERNAME and MSB_REGISTRY_PASSWORD, or MSB_REGISTRY_TOKEN]",
            rich_help_panel=_REGISTRY,
        ),
    ] = None,
) -> None:
    """The settings that only some commands take as options."""


def _common_options(
    home: Annotated[
        Text,
        typer.Option(
            metavar="DIR",
            help="Where images live; default: ~/.microsandbox. [env: MICROSANDBOX_HOME]",
            rich_help_panel=_EVERYWHERE,
        ),
    ] = None,
    layers_dir: Annotated[
        Text,
        typer.Option(
            metavar="DIR",
            help="Where layers live; default: HOME/layers. [env: MSB_PULL_LAYERS_DIR]",
            rich_help_panel=_EVERYWHERE,
        ),
    ] = None,
    config: Annotated[
        Text,
        typer.Option(
            metavar="FILE",
            help="Configuration file; default: msb-pull/config.toml in the user's configuration folder. "
            "[env: MSB_PULL_CONFIG]",
            rich_help_panel=_EVERYWHERE,
        ),
    ] = None,
    form: Annotated[
        Text,
        typer.Option(
            "--format",
            metavar="text|json",
            help="What standard output carries; default: text.",
            rich_help_panel=_EVERYWHERE,
        ),
    ] = None,
    quiet: Annotated[
        Flag,
        typer.Option(
            "-q", "--quiet", help="No progress, no summary; results and errors stay.", rich_help_panel=_EVERYWHERE
        ),
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            show_default=False,
            help="Log lines instead of bars; twice: HTTP too. Secrets are left out.",
            rich_help_panel=_EVERYWHERE,
        ),
    ] = 0,
    progress: Annotated[
        Text,
        typer.Option(
            metavar="auto|bars|plain|json|none",
            help="How progress is shown; auto: bars on a terminal, else lines. [env: MSB_PULL_PROGRESS]",
            rich_help_panel=_EVERYWHERE,
        ),
    ] = None,
    color: Annotated[
        Text,
        typer.Option(
            metavar="auto|always|never",
            help="Colour; default: auto. [env: NO_COLOR, FORCE_COLOR]",
            rich_help_panel=_EVERYWHERE,
        ),
    ] = None,
    debug: Annotated[
        Flag, typer.Option("--debug", help="Show where in the program an error arose.", rich_help_panel=_EVERYWHERE)
    ] = False,
) -> None:
    """The options that every command takes."""


_SETTINGS = inspect.signature(_settings_options, eval_str=True).parameters
_COMMON = inspect.signature(_common_options, eval_str=True).parameters


def command(
    app: typer.Typer, *, usage: str, examples: str, settings: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers ``function(run, **own_options)`` as a command that takes the common options and ``settings`` too.

    ``run`` is ready to use when the function is called: settings are read and the display knows how to show things.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        # A command that has its own --format answers for the common one too.
        common = [p for p in _COMMON.values() if p.name not in {x.name for x in own}]
        context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        every = [context, *own, *(_SETTINGS[name] for name in settings), *common]

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
        app.command(function.__name__, cls=PlainCommand, options_metavar=usage, epilog="\b\n" + examples)(invoke)
        return function

    return register


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


class PlainCommand(typer.core.TyperCommand):
    """A command whose values stay text, with help in sections of plain text."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        """The parameters, none of which turns its text into anything."""
        return [as_typed(param) for param in super().get_params(ctx)]

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The usage line as it was written."""
        return [self.options_metavar or ""]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Writes the options in sections, in the order in which the sections first appear."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and param.param_type_name == "option":
                title = getattr(param, "rich_help_panel", None)
                sections.setdefault(title if isinstance(title, str) else "Options", []).append(record)
        # The help option comes last and belongs to the options of every command.
        sections.setdefault(_EVERYWHERE, []).append(sections["Options"].pop())
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    # Padded, so that the texts of all sections stand below one another.
                    formatter.write_dl([(f"{name:<22}", text) for name, text in records], col_max=22)

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Writes the examples as they stand."""
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write_text(inspect.cleandoc(self.epilog.removeprefix("\b\n")).join(("\b\n", "")))


def needed(images: Sequence[str] | None, what: str) -> list[str]:
    """The images of a command that needs some; raises UsageError when there are none."""
    if not images:
        raise UsageError(f"{what}: no image named", hint=f"`msb-pull {what} --help` shows examples")
    return list(images)
