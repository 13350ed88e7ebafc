"""The commands: options in, one call, result out."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from msb_pull import cli_options as opt
from msb_pull.cli_run import Run, Session
from msb_pull.cli_signals import Interrupts
from msb_pull.errors import Cancelled, MsbPullError, UsageError
from msb_pull.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.streams import Streams as StreamsType

_ABOUT = """\
Pull container images into ready-to-mount, verifiable layer directories.

Without a command, every word is an image to pull. Standard output carries the result only: after a pull one line
per image, pinned to its digest."""

_EXAMPLES = """\
msb-pull ubuntu:22.04
msb-pull ghcr.io/acme/app:1 --platform linux/arm64
msb-pull ls
msb-pull inspect --lowerdir ubuntu:22.04"""


class _Group(typer.core.TyperGroup):
    """Commands, or images to pull when the first word is none."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Leaves the options of the bare form for ``pull``."""
        ctx.ignore_unknown_options = True
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple[str | None, Any, list[str]]:  # type: ignore[override]
        """The command that the first word names, else ``pull``; raises UsageError for what could be either."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        word = self._first_word(args) or ""
        if word in self.commands and args[0].startswith("-"):
            options = " ".join(args[: args.index(word)])
            raise UsageError(f"{options}: options go after the command", hint=f"msb-pull {word} {options} ...")
        near = difflib.get_close_matches(word.lower(), self.commands, n=1, cutoff=0.75)
        if near and not set(word) & set(":/@."):
            raise UsageError(
                f"there is no command {word!r}",
                hint=f"`msb-pull {near[0]}` is one; to pull an image of this name: `msb-pull pull {word}`",
            )
        return "pull", self.commands["pull"], args

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The usage line as it was written."""
        return [self.options_metavar or ""]

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


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    rich_markup_mode=None,
    options_metavar="[OPTIONS] IMAGE... | COMMAND ...",
    help="\b\n" + _ABOUT.replace("\n\n", "\n\n\b\n"),
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        from msb_pull.cli_version import version_text

        session: Session = ctx.obj
        session.display.result(version_text(detailed=False))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "-V",
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version; with -v also Python, the jail and the paths in use.",
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


@opt.command(
    app,
    usage="[OPTIONS] IMAGE...",
    settings=(
        "policy",
        "platform",
        "jobs",
        "authfile",
        "limit_rate",
        "max_layer_size",
        "max_entries",
    ),
    examples="""\
msb-pull pull ubuntu:22.04
msb-pull pull --policy newer --platform linux/arm64 ghcr.io/acme/app:1
msb-pull pull -q alpine busybox            two lines, pinned, and nothing else
msb-pull pull oci:build/layout:1 --as registry.example.com/app:1
podman save app | msb-pull pull docker-archive:-""",
)
def pull(
    run: Run,
    images: opt.Images = None,
    force: opt.Force = False,
    as_: opt.As = None,
    dry_run: opt.DryRunPull = False,
    plain_http: opt.PlainHttp = False,
    tls_no_verify: opt.TlsNoVerify = False,
    ca_cert: opt.CaCert = None,
    creds_stdin: opt.CredsStdin = False,
    anonymous: opt.Anonymous = False,
    allow_no_xattr: opt.AllowNoXattr = False,
) -> None:
    """Pull images into the store and print one line for each, pinned to its digest.

    IMAGE is a name in a registry (ubuntu, ghcr.io/acme/app:1, name@sha256:...), an image layout folder
    (oci:DIR[:TAG]) or an archive (oci-archive:FILE[:TAG], docker-archive:FILE[:NAME]; `-` is standard input).

    An image that is complete in the store costs no request, and what an interrupted pull has fetched is not fetched
    again. With several images all are tried; failures are told at the end.
    """
    from msb_pull.cli_pull import Access, pull_images

    access = Access(plain_http, tls_no_verify, ca_cert, creds_stdin, anonymous)
    pull_images(
        run,
        opt.needed(images, "pull"),
        access,
        force=force,
        name=as_,
        dry_run=dry_run,
        allow_no_xattr=allow_no_xattr,
    )


def main(argv: Sequence[str], streams: StreamsType | None = None) -> int:
    """Runs one command line and returns its exit code."""
    interrupts = Interrupts()
    session = Session(streams or Streams.of_process(), interrupts, argv)
    interrupts.install(lambda: session.display.error(Cancelled("interrupted")))
    try:
        return session.guard(lambda: _parse_and_run(list(argv) or ["--help"], session))
    finally:
        session.display.close()


def _parse_and_run(argv: list[str], session: Session) -> None:
    program = typer.main.get_command(app)
    try:
        program.main(argv, prog_name="msb-pull", standalone_mode=False, obj=session)
    except typer.TyperException as error:
        raise _usage_error(error) from error
    except typer.Abort:
        raise Cancelled("interrupted") from None


def _usage_error(error: typer.TyperException) -> MsbPullError:
    """Typer's own words in our form, with the nearest option or the page to read as the hint."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "msb-pull"
    near = getattr(error, "possibilities", None)
    hint = f"did you mean {' or '.join(sorted(near))}?" if near else f"`{path} --help` lists what there is"
    option = getattr(error, "option_name", None)
    message = f"no such option: {option}" if type(error).__name__ == "NoSuchOption" else error.format_message()
    return UsageError(message[:1].lower() + message[1:].rstrip("."), hint=hint)
