"""The commands: options in, one call, result out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from msb_pull.cli import options as opt
from msb_pull.cli.group import Group, build, command, usage_error
from msb_pull.cli.run import Access, Run, Session
from msb_pull.cli.signals import Interrupts
from msb_pull.display.streams import Streams
from msb_pull.ground.errors import Cancelled, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_ABOUT = """\
Pull container images into ready-to-mount, verifiable layer directories.

Without a command, every word is an image to pull. Standard output carries only what was asked for: after a pull one
line for each image, pinned to its digest. Progress, summaries and errors go to standard error."""

app = typer.Typer(
    cls=Group,
    add_completion=False,
    rich_markup_mode=None,
    options_metavar="[OPTIONS] IMAGE... | COMMAND ...",
    help=_ABOUT,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        from msb_pull.cli.version import version_text

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


@command(
    app,
    usage="[OPTIONS] IMAGE...",
    settings=(
        *("policy", "platform", "jobs", "msb", "authfile", "limit_rate", "max_layer_size", "max_entries"),
        "max_window",
    ),
    examples="""\
msb-pull pull ubuntu:22.04
msb-pull pull --policy newer --platform linux/arm64 ghcr.io/acme/app:1
msb-pull pull -q alpine busybox            two lines, pinned, and nothing else
msb-pull pull oci:build/layout:1 --as registry.example.com/app:1
msb-pull pull --to microsandbox ubuntu:22.04
msb-pull pull --lock images.lock alpine:3 ghcr.io/acme/app:1
msb-pull pull --locked images.lock         the same images, on any machine
podman save app | msb-pull pull docker-archive:-""",
)
def pull(
    run: Run,
    images: opt.Images = None,
    force: opt.Force = False,
    as_: opt.As = None,
    to: opt.PullTo = None,
    dry_run: opt.DryRunPull = False,
    lock: opt.Lock = None,
    locked: opt.Locked = None,
    upgrade: opt.Upgrade = False,
    lock_platforms: opt.LockPlatforms = None,
    plain_http: opt.PlainHttp = False,
    tls_no_verify: opt.TlsNoVerify = False,
    ca_cert: opt.CaCert = None,
    creds_stdin: opt.CredsStdin = False,
    anonymous: opt.Anonymous = False,
    allow_no_xattr: opt.AllowNoXattr = False,
    require_signature: opt.RequireSignature = None,
    no_signature_check: opt.NoSignatureCheck = False,
) -> None:
    """Pull images into the store.

    For each image one line is printed: its name, pinned to the digest. Lines keep the order of the arguments.

    IMAGE is a name in a registry (ubuntu, ghcr.io/acme/app:1, name@sha256:...), an image layout folder
    (oci:DIR[:TAG]) or an archive (oci-archive:FILE[:TAG], docker-archive:FILE[:NAME]; `-` is standard input).

    An image that is complete in the store needs no request, and an interrupted pull continues where it stopped.
    Several images are pulled at the same time, and what they share is fetched once. All of them are tried; failures are
    listed at the end.
    """
    from msb_pull.cli.pull import LockChoice, Signing, Wishes, pull_images

    pull_images(
        run,
        list(images or ()) if locked is not None or upgrade else opt.needed(images, "pull"),
        Access(plain_http, tls_no_verify, ca_cert, creds_stdin, anonymous),
        wishes=Wishes(force=force, name=as_, to=to, dry_run=dry_run, allow_no_xattr=allow_no_xattr),
        choice=LockChoice(lock, locked, upgrade, tuple(lock_platforms or ())),
        signing=Signing(tuple(require_signature or ()), no_signature_check),
    )


@command(
    app,
    usage="[OPTIONS] [PATTERN]",
    examples="""\
msb-pull ls
msb-pull ls 'ghcr.io/*'
msb-pull ls --filter until=720h --sort size
msb-pull ls -q --filter incomplete=true""",
)
def ls(
    run: Run,
    pattern: opt.Pattern = None,
    filters: opt.Filters = None,
    sort: opt.Sort = None,
    no_trunc: opt.NoTrunc = False,
) -> None:
    """List the images of the store.

    PATTERN is a glob for names, as in 'ubuntu*' or '*/app:*'. Images that Microsandbox pulled are listed too, without
    a digest. With -q only names are printed, one per line. A terminal that is too narrow for all columns gets fewer.
    """
    from msb_pull.cli.ls import show_list

    show_list(run, pattern, filters or [], sort or "name", whole=no_trunc)


@command(
    app,
    usage="[OPTIONS] IMAGE",
    examples="""\
msb-pull inspect ubuntu:22.04
msb-pull inspect --format json ubuntu:22.04 | jq .config.env
fuse-overlayfs -o "lowerdir=$(msb-pull inspect --lowerdir ubuntu:22.04),xattr_permissions=2" merged""",
)
def inspect(
    run: Run,
    image: opt.Image = None,
    layers: opt.Layers = False,
    lowerdir: opt.Lowerdir = False,
    files: opt.Files = False,
) -> None:
    """Show what an image is made of and where it is stored.

    Digest, platform, who has signed it, what it runs, and for each layer its size, entries, state and directory. No
    network is used.
    """
    chosen = [name for name, wanted in (("layers", layers), ("lowerdir", lowerdir), ("files", files)) if wanted]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]}: choose one")
    from msb_pull.cli.inspect import show_image

    show_image(run, opt.needed([image] if image else [], "inspect")[0], part=chosen[0] if chosen else None)


@command(
    app,
    usage="[OPTIONS] IMAGE -o OUT | IMAGE... --to WHERE",
    settings=("msb", "authfile"),
    examples="""\
msb-pull export ubuntu:22.04 -o rootfs.tar
msb-pull export ubuntu:22.04 -o rootfs/                     a folder
msb-pull export ubuntu:22.04 -o disk.ext4 --size 4GiB        a disk for a virtual machine
msb-pull export ubuntu:22.04 -o - | tar -tv
msb-pull export ubuntu:22.04 --path etc/os-release -o -
msb-pull export app:1 -o - | podman import - app:flat
msb-pull export ubuntu:22.04 app:1 --to microsandbox
msb-pull export ubuntu:22.04 app:1 --to podman""",
)
def export(
    run: Run,
    images: opt.Images = None,
    output: opt.ExportOutput = None,
    to: opt.ExportTo = None,
    form: opt.ExportFormat = None,
    paths: opt.Paths = None,
    stat: opt.Stat = None,
    size: opt.Size = None,
    force: opt.Replace = False,
) -> None:
    """Write the merged tree of an image, or hand it to another program.

    All layers on each other, as a container would see them, in a tar, a folder, or a file system that a kernel mounts:
    owners, full modes, times, attributes, devices, hard links and holes are those of the image, whoever runs this.
    Contents are checked on the way, and no network is used. The same image gives the same tar, EROFS and ext4 image on
    every machine; .tar.gz and .tar.zst are compressed.

    With --to microsandbox the layers go as the registry has them, and are asked for once more; without a network they
    are made again from the store.
    """
    from msb_pull.cli.export import ExportArguments, export_images

    given = ExportArguments(opt.needed(images, "export"), output, to, form or [], paths or [], stat, size, force)
    export_images(run, given)


@command(
    app,
    usage="[OPTIONS] IMAGE... -o FILE",
    examples="""\
msb-pull save ubuntu:22.04 -o ubuntu.tar
msb-pull save --format docker app:1 -o - | docker load
msb-pull save app:2 --without app:1 -o update.tar
msb-pull save app:1 -o app.tar && skopeo copy oci-archive:app.tar docker://registry.example.com/app:1""",
)
def save(
    run: Run,
    images: opt.Images = None,
    output: opt.Output = None,
    form: opt.SaveFormat = None,
    without: opt.Without = None,
) -> None:
    """Write images into an archive, checked on the way out.

    `podman load`, `skopeo copy oci-archive:FILE` and `msb load` take the default kind, `docker load` takes
    `--format docker`. Nothing but the store is read, so this works without a network.

    With --without only `msb-pull pull oci-archive:FILE` takes it, where the store has the layers that were left out.
    """
    if not output:
        raise UsageError("save: -o is missing", hint="msb-pull save ubuntu:22.04 -o ubuntu.tar (`-o -` is a pipe)")
    from msb_pull.cli.save import save_archive

    save_archive(run, opt.needed(images, "save"), output, form or [], without or [])


@command(
    app,
    usage="[OPTIONS] [IMAGE...]",
    settings=("authfile",),
    examples="""\
msb-pull verify
msb-pull verify --quick ubuntu:22.04
msb-pull verify --repair ubuntu:22.04""",
)
def verify(run: Run, images: opt.Images = None, quick: opt.Quick = False, repair: opt.Repair = False) -> None:
    """Check layers against the digests of the registry.

    Without IMAGE all layers of the store are checked. The tar stream of each layer is recreated from the store,
    and its digest must be the one in the image's config. Prints one line per difference (layer, path, kind, expected,
    found) and ends with code 6 if there are any. Kept signatures are checked again, too, and end it with code 8 where
    an image is not signed as a rule requires.
    """
    from msb_pull.cli.verify import verify_store

    verify_store(run, images or [], quick=quick, repair=repair)


@command(
    app,
    usage="[OPTIONS] IMAGE...",
    examples="""\
msb-pull rm ubuntu:22.04
msb-pull rm $(msb-pull ls -q 'ghcr.io/acme/*')""",
)
def rm(run: Run, images: opt.Images = None) -> None:
    """Remove images, and the layers that nothing else needs.

    It does not ask, and first waits for other commands that use the store.
    """
    from msb_pull.cli.prune import remove_from_store

    remove_from_store(run, opt.needed(images, "rm"))


@command(
    app,
    usage="[OPTIONS]",
    settings=("keep", "min_free"),
    examples="""\
msb-pull prune
msb-pull prune --keep 20GB
msb-pull prune --dry-run --all --filter until=720h
msb-pull prune --yes""",
)
def prune(
    run: Run,
    everything: opt.All = False,
    filters: opt.Filters = None,
    yes: opt.Yes = False,
    dry_run: opt.DryRun = False,
    no_wait: opt.NoWait = False,
) -> None:
    """Remove what no image needs.

    Removes layers, their records, and downloads not resumed for a week. Shows what would go and how much
    space that frees, asks, and then removes it. Layers that Microsandbox still uses and directories that msb-pull
    does not know are kept.

    With --keep or --min-free whole images go as well, least recently used first, until the store fits: never one that
    a running pull uses. `msb-pull df` shows what the store takes.
    """
    from msb_pull.cli.prune import prune_store

    prune_store(run, filters or [], everything=everything, yes=yes, dry_run=dry_run, wait=not no_wait)


@command(
    app,
    usage="[OPTIONS]",
    examples="""\
msb-pull df
msb-pull df --format json | jq .total_bytes""",
)
def df(run: Run) -> None:
    """Show what the store takes on its disk.

    What the layers of images take, each counted once, and which of them several images share; records, unfinished
    downloads, what `msb-pull prune` would give back, and what is free. Where the configuration file has a budget for
    the store (`[store]`), also how full that is.
    """
    from msb_pull.cli.ls import show_usage

    show_usage(run)


def main(argv: Sequence[str], streams: Streams | None = None) -> int:
    """Runs one command line and returns its exit code."""
    interrupts = Interrupts()
    session = Session(streams or Streams.of_process(), interrupts, argv)

    def work() -> None:
        interrupts.install(session.say_farewell)
        program = build(app, argv)
        try:
            program.main(list(argv) or ["--help"], prog_name="msb-pull", standalone_mode=False, obj=session)
        except typer.TyperException as error:
            raise usage_error(error) from error
        except typer.Abort:
            raise Cancelled("interrupted") from None

    try:
        return session.guard(work)
    finally:
        session.display.close()
        interrupts.remove()
