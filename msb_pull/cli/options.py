"""Options and arguments of the commands, each written once.

Every value stays the text that was typed: ``config`` turns text into values, alike for option, variable and file.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated

import typer

from msb_pull.ground.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_REGISTRY = "Registry and credentials"
_LIMITS = "Limits"
EVERYWHERE = "Options of every command"

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
        help="Read `user:password` from standard input, all of it.",
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
        "--lowerdir", help="Print one string for `fuse-overlayfs -o lowerdir=...`: top first, through short links."
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


Policy = Annotated[
    Text,
    typer.Option(
        metavar="missing|always|newer|never",
        help="When to ask the registry. missing (default): only if the image is not complete here. always: every "
        "time, keeping layers that match. newer: as always, but without a network the local image will do. "
        "never: local or an error.",
    ),
]
Platform = Annotated[
    Text,
    typer.Option(
        metavar="OS/ARCH[/VARIANT]",
        help="Platform to choose; default: linux and this machine's processor. [env: MSB_PULL_PLATFORM]",
    ),
]
Jobs = Annotated[
    Text,
    typer.Option(
        "-j", "--jobs", metavar="N", help="Layers at once, 1 to 64; default: by processors. [env: MSB_PULL_JOBS]"
    ),
]
LimitRate = Annotated[
    Text,
    typer.Option(
        metavar="BYTES/s", help="Most bytes a second for all downloads together, as 10M.", rich_help_panel=_LIMITS
    ),
]
MaxLayerSize = Annotated[
    Text,
    typer.Option(
        metavar="SIZE", help="Largest unpacked layer that is accepted; default: 64GiB.", rich_help_panel=_LIMITS
    ),
]
MaxEntries = Annotated[
    Text,
    typer.Option(
        metavar="N", help="Most files in a layer that are accepted; default: 5000000.", rich_help_panel=_LIMITS
    ),
]
MaxWindow = Annotated[
    Text,
    typer.Option(
        metavar="SIZE",
        help="Largest window of zstd that is accepted, memory for each layer at work; default: 128MiB.",
        rich_help_panel=_LIMITS,
    ),
]
Authfile = Annotated[
    Text,
    typer.Option(
        metavar="FILE",
        help="Credentials as `docker login` and `podman login` write them. [env: REGISTRY_AUTH_FILE; also "
        "MSB_REGISTRY_USERNAME and MSB_REGISTRY_PASSWORD, or MSB_REGISTRY_TOKEN, for the registry MSB_REGISTRY_HOST]",
        rich_help_panel=_REGISTRY,
    ),
]


def _settings_options(
    policy: Policy = None,
    platform: Platform = None,
    jobs: Jobs = None,
    limit_rate: LimitRate = None,
    max_layer_size: MaxLayerSize = None,
    max_entries: MaxEntries = None,
    max_window: MaxWindow = None,
    authfile: Authfile = None,
) -> None:
    """The settings that only some commands take as options."""


Home = Annotated[
    Text,
    typer.Option(
        metavar="DIR",
        help="Where images live; default: ~/.microsandbox. [env: MICROSANDBOX_HOME]",
        rich_help_panel=EVERYWHERE,
    ),
]
LayersDir = Annotated[
    Text,
    typer.Option(
        metavar="DIR",
        help="Where layers live; default: HOME/layers. [env: MSB_PULL_LAYERS_DIR]",
        rich_help_panel=EVERYWHERE,
    ),
]
ConfigFile = Annotated[
    Text,
    typer.Option(
        metavar="FILE",
        help="Configuration file; default: msb-pull/config.toml in the user's configuration folder. "
        "[env: MSB_PULL_CONFIG]",
        rich_help_panel=EVERYWHERE,
    ),
]
Form = Annotated[
    Text,
    typer.Option(
        "--format",
        metavar="text|json",
        help="What standard output carries; default: text.",
        rich_help_panel=EVERYWHERE,
    ),
]
Quiet = Annotated[
    Flag,
    typer.Option("-q", "--quiet", help="No progress, no summary; results and errors stay.", rich_help_panel=EVERYWHERE),
]
Verbose = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbose",
        count=True,
        show_default=False,
        help="Log lines instead of bars; twice: HTTP too. Secrets are left out.",
        rich_help_panel=EVERYWHERE,
    ),
]
Progress = Annotated[
    Text,
    typer.Option(
        metavar="auto|bars|plain|json|none",
        help="How progress is shown; auto: bars on a terminal, else lines. [env: MSB_PULL_PROGRESS]",
        rich_help_panel=EVERYWHERE,
    ),
]
Color = Annotated[
    Text,
    typer.Option(
        metavar="auto|always|never",
        help="Colour; default: auto. [env: NO_COLOR, FORCE_COLOR]",
        rich_help_panel=EVERYWHERE,
    ),
]
Debug = Annotated[
    Flag, typer.Option("--debug", help="Show where in the program an error arose.", rich_help_panel=EVERYWHERE)
]


def _common_options(
    home: Home = None,
    layers_dir: LayersDir = None,
    config: ConfigFile = None,
    form: Form = None,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    progress: Progress = None,
    color: Color = None,
    debug: Debug = False,
) -> None:
    """The options that every command takes."""


SETTINGS = inspect.signature(_settings_options, eval_str=True).parameters
COMMON = inspect.signature(_common_options, eval_str=True).parameters


def needed(images: Sequence[str] | None, what: str) -> list[str]:
    """The images of a command that needs some; raises UsageError when there are none."""
    if not images:
        raise UsageError(f"{what}: no image named", hint=f"`msb-pull {what} --help` shows examples")
    return list(images)
