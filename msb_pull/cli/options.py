"""Options and arguments of the commands, each written once.

Every value stays the text that was typed: ``config`` turns text into values, alike for option, variable and file.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated

import typer

from msb_pull.config.table import ACCESS, EVERYWHERE, LIMITS, LOCKS, TABLE
from msb_pull.ground.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.config.table import Setting

# A section of a help page.
SIGNATURES = "Signatures"

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
        help="Use plain HTTP for the registry of IMAGE (loopback names fall back to it automatically).",
        rich_help_panel=ACCESS,
    ),
]
TlsNoVerify = Annotated[
    Flag,
    typer.Option(
        "--tls-no-verify",
        help="Accept any certificate of the registry of IMAGE. Digests are still checked.",
        rich_help_panel=ACCESS,
    ),
]
CaCert = Annotated[
    Text,
    typer.Option(
        "--ca-cert",
        metavar="FILE",
        help="Trust the authorities in this PEM file for the registry of IMAGE.",
        rich_help_panel=ACCESS,
    ),
]
CredsStdin = Annotated[
    Flag, typer.Option("--creds-stdin", help="Read `user:password` from all of standard input.", rich_help_panel=ACCESS)
]
Anonymous = Annotated[
    Flag, typer.Option("--anonymous", help="Do not use credentials, even if there are any.", rich_help_panel=ACCESS)
]
AllowNoXattr = Annotated[
    Flag,
    typer.Option(
        "--allow-no-xattr",
        help="Continue with a warning if the file system has no user attributes; owners and modes are lost.",
        rich_help_panel=LIMITS,
    ),
]
As = Annotated[
    Text, typer.Option("--as", metavar="REF", help="Record an image from a folder or an archive under this name.")
]
RequireSignature = Annotated[
    list[str] | None,
    typer.Option(
        "--require-signature",
        metavar="KEY",
        help="Only images signed with this public key (PEM), or one of several. Rules of the configuration file hold, "
        "too.",
        rich_help_panel=SIGNATURES,
        show_default=False,
    ),
]
NoSignatureCheck = Annotated[
    Flag,
    typer.Option(
        "--no-signature-check",
        help="Check no signatures; refused (exit code 8) where a rule of the configuration file asks for one.",
        rich_help_panel=SIGNATURES,
    ),
]
Lock = Annotated[
    Text,
    typer.Option(
        "--lock",
        metavar="FILE",
        help="Write what the images are now into a lock file. What it says of them already stays, and is pulled.",
        rich_help_panel=LOCKS,
    ),
]
Locked = Annotated[
    Text,
    typer.Option(
        "--locked",
        metavar="FILE",
        help="Pull exactly what a lock file says, all of it where no IMAGE is named. No tag is asked for.",
        rich_help_panel=LOCKS,
    ),
]
Upgrade = Annotated[
    Flag,
    typer.Option(
        "--upgrade",
        help="With --lock: renew the images, all of the file where no IMAGE is named, for all its platforms.",
        rich_help_panel=LOCKS,
    ),
]
LockPlatforms = Annotated[
    list[str] | None,
    typer.Option(
        "--lock-platform",
        metavar="OS/ARCH[/VARIANT]",
        help="With --lock: lock this platform as well, without pulling it. May be given several times.",
        show_default=False,
        rich_help_panel=LOCKS,
    ),
]
DryRunPull = Annotated[
    Flag, typer.Option("-n", "--dry-run", help="Show what would be fetched and how much; write nothing.")
]
DryRun = Annotated[Flag, typer.Option("-n", "--dry-run", help="Show what would be removed; remove nothing.")]
Yes = Annotated[Flag, typer.Option("-y", "--yes", help="Do not ask for confirmation. Required without a terminal.")]
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
Sort = Annotated[Text, typer.Option("--sort", metavar="name|size|pulled", help="Sort order; default: name.")]
NoTrunc = Annotated[Flag, typer.Option("--no-trunc", help="Show full digests instead of the first 12 digits.")]
Layers = Annotated[Flag, typer.Option("--layers", help="Print just the layer directories, bottom first, one per line.")]
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
Output = Annotated[
    Text,
    typer.Option("-o", "--output", metavar="FILE", help="Where to write, also over a file; `-` is standard output."),
]
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
Without = Annotated[
    list[str] | None,
    typer.Option(
        "--without",
        metavar="IMAGE|FILE",
        help="Leave out the layers of this image, or of an archive or layout that was handed over before. May be given "
        "several times.",
        show_default=False,
    ),
]
ExportOutput = Annotated[
    Text,
    typer.Option(
        "-o", "--output", metavar="OUT", help="Where to write; `-` is standard output. The name tells the format."
    ),
]
ExportFormat = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="tar|dir|erofs|squashfs|ext4",
        help="What to write; default: as the name of OUT says (`OUT/` is a folder), tar on standard output. May be "
        "given twice, since text and json choose what standard output carries, as everywhere.",
        show_default=False,
    ),
]
Paths = Annotated[
    list[str] | None,
    typer.Option(
        "--path",
        metavar="PATH",
        help="Only this file or folder of the image; may be given several times. One file goes to standard output as "
        "it is, unless --format says otherwise.",
        show_default=False,
    ),
]
Stat = Annotated[
    Text,
    typer.Option(
        "--stat",
        metavar="native|containers|microsandbox",
        help="How a folder keeps owners, modes and devices: themselves (default for root), in the attribute of libkrun "
        "and fuse-overlayfs (default for others), or in that of Microsandbox.",
    ),
]
Size = Annotated[
    Text,
    typer.Option(
        "--size",
        metavar="SIZE",
        help="How large an ext4 file system is, such as 4GiB; default: what it holds plus a tenth plus 64MiB. The file "
        "has holes where nothing is.",
    ),
]
PullTo = Annotated[
    Text,
    typer.Option(
        "--to",
        metavar="WHERE",
        help="Also put images where another program keeps its own, while they arrive: `microsandbox`, through "
        "`msb load`.",
    ),
]
ExportTo = Annotated[
    Text,
    typer.Option(
        "--to",
        metavar="WHERE",
        help="Put images where another program keeps its own, instead of into a file: `microsandbox`, through "
        "`msb load`; `podman` or `podman:FOLDER`, as a read-only store of links for podman and buildah.",
    ),
]
Replace = Annotated[Flag, typer.Option("-f", "--force", help="Replace what is at OUT, or load what is there already.")]


Form = Annotated[
    Text,
    typer.Option(
        "--format", metavar="text|json", help="What standard output carries; default: text.", rich_help_panel=EVERYWHERE
    ),
]
Quiet = Annotated[
    Flag,
    typer.Option(
        "-q", "--quiet", help="No progress, no summary; results, warnings and errors stay.", rich_help_panel=EVERYWHERE
    ),
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
Debug = Annotated[
    Flag, typer.Option("--debug", help="Show where in the program an error occurred.", rich_help_panel=EVERYWHERE)
]


def _option(setting: Setting) -> inspect.Parameter:
    # Some depend on more than their own variable, and say so themselves.
    told = "[env" in setting.help or not setting.variable
    shown = setting.help if told else f"{setting.help} [env: {setting.variable}]"
    names = (setting.short, setting.option) if setting.short else (setting.option,)
    option = typer.Option(*names, metavar=setting.metavar, help=shown, rich_help_panel=setting.section)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(setting.name, kind, default=None, annotation=Annotated[Text, option])


def _common_options(form: Form = None, quiet: Quiet = False, verbose: Verbose = 0, debug: Debug = False) -> None:
    """The options of every command that are not settings."""


# The settings that have an option, by name, and what every command takes.
SETTINGS = {name: _option(setting) for name, setting in TABLE.items() if setting.metavar}
_OWN = inspect.signature(_common_options, eval_str=True).parameters
_IN_ORDER = ("home", "layers_dir", "config", "form", "quiet", "verbose", "progress", "color", "debug")
COMMON = {name: SETTINGS.get(name) or _OWN[name] for name in _IN_ORDER}


def needed(images: Sequence[str] | None, what: str) -> list[str]:
    """The images of a command that needs some; raises UsageError when there are none."""
    if not images:
        raise UsageError(f"{what}: no image named", hint=f"`msb-pull {what} --help` shows examples")
    return list(images)
