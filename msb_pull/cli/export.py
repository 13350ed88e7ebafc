"""The ``export`` command behind its options: one tree, under its name only once it is whole, or ``--to`` somewhere."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msb_pull.display.streams import is_standard_output
from msb_pull.ground.errors import MsbPullError, UsageError
from msb_pull.ground.sizes import counted, format_size, parse_size
from msb_pull.ground.text import visible
from msb_pull.image.reference import Reference, parse_argument
from msb_pull.work.export.export import ExportOptions, export_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.cli.run import Run
    from msb_pull.work.export.export import ExportResult
    from msb_pull.work.pull.plan import Delivered

_SHOWN = ("text", "json")


@dataclass(frozen=True, slots=True)
class ExportArguments:
    """What was typed."""

    images: Sequence[str]
    output: str | None = None
    to: str | None = None
    formats: Sequence[str] = ()
    paths: Sequence[str] = ()
    stat: str | None = None
    size: str | None = None
    force: bool = False

    @property
    def kinds(self) -> list[str]:
        """The formats that are none of standard output."""
        return list(dict.fromkeys(form for form in self.formats if form not in _SHOWN))


def export_images(run: Run, given: ExportArguments) -> None:
    """Writes the tree of one image, or puts images where ``--to`` says; raises UsageError."""
    if given.to is not None:
        _export_to(run, given, given.to)
        return
    if not given.output:
        hint = "msb-pull export ubuntu:22.04 -o rootfs.tar (`-o -` is a pipe)"
        raise UsageError("export: -o or --to is missing", hint=hint)
    if len(given.images) > 1:
        raise UsageError("export: -o is for one image", hint="name each in a command of its own")
    _export_tree(run, given, given.images[0], given.output)


def _to_microsandbox(run: Run, images: Sequence[str], folder: str | None, *, force: bool) -> None:
    from msb_pull.cli.run import Access, LazyClient
    from msb_pull.work.microsandbox.program import find_msb
    from msb_pull.work.microsandbox.stored import Stored

    if folder is not None:
        raise UsageError("--to microsandbox takes no folder", hint="Microsandbox keeps images where MSB_HOME says")
    names = run.names(images)
    program = find_msb(run.settings.msb)
    store = run.store_with(names)
    run.session.next_step = "Microsandbox has nothing new of what was under way; run the same command again"
    with contextlib.closing(LazyClient(run, [parse_argument(name) for name in names], Access())) as client:
        outcomes = Stored(store, program, client, run.job, force=force).deliver_all(names)
    run.session.next_step = None
    _show_delivered(run, names, outcomes)


def _show_delivered(run: Run, names: Sequence[str], outcomes: Sequence[Delivered | MsbPullError]) -> None:
    """Says of each image what another program has now, or why it has not."""
    from msb_pull.cli.pull import delivered_fields

    errors = [outcome for outcome in outcomes if isinstance(outcome, MsbPullError)]
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, MsbPullError):
            run.session.tell(outcome)
        else:
            _tell_delivered(run, visible(name), outcome)
    documents = [
        {"status": "failed", "image": name, "error": run.session.document_of(outcome)}
        if isinstance(outcome, MsbPullError)
        else {"status": "ok", "image": name, **delivered_fields(outcome)}
        for name, outcome in zip(names, outcomes, strict=True)
    ]
    if run.display.format == "json":
        run.write({"status": "failed" if errors else "ok", "images": documents}, "")
    if errors:
        run.fail(errors)


def _tell_delivered(run: Run, name: str, delivered: Delivered) -> None:
    if not delivered.changed:
        run.display.note(f"Microsandbox has {name} already", done=True)
        return
    if delivered.recreated:
        from msb_pull.cli.pull import recreated

        run.warn(recreated(name))
    run.display.note(f"Loaded {name} into Microsandbox in {delivered.seconds:.1f}s", done=True)


def _to_podman(run: Run, images: Sequence[str], folder: str | None, *, force: bool) -> None:
    """Standard output stays empty, or gets the document; the first time says what podman needs."""
    from msb_pull.work.podman.conf import conf_path
    from msb_pull.work.podman.export import export_to_podman

    # What is shown already is brought up to date in any case.
    del force
    names = run.names(images)
    run.session.next_step = "podman sees what it saw before; run the same command again"
    references = [Reference.parse(name) for name in names]
    result = export_to_podman(run.store_with(names), references, Path(folder) if folder else None, run.job)
    run.session.next_step = None
    if run.display.format == "json":
        run.write(
            {
                "status": "ok",
                "folder": str(result.folder),
                "images": [{"status": "ok", "image": name} for name in names],
                "shown": list(result.images),
                "first": result.first,
                "storage_conf": result.storage_conf,
            },
            "",
        )
    shown = counted(len(result.images), "image")
    run.display.note(f"podman's view {visible(str(result.folder))} shows {shown}", done=True)
    if result.first:
        run.display.note(f"For podman to read it, {conf_path()} needs these lines (fuse-overlayfs, or owners are wrong")
        run.display.note("and deleted files are there again):")
        for line in ("", *result.storage_conf.splitlines()):
            run.display.note(f"    {line}" if line else "")


# What ``--to`` can say -> what puts images there: it is given the images as they were typed, what follows a colon
# behind the word (None for nothing), and whether to do again what was done.
_PLACES: dict[str, Callable[..., None]] = {"microsandbox": _to_microsandbox, "podman": _to_podman}


def _export_to(run: Run, given: ExportArguments, where: str) -> None:
    word, colon, folder = where.partition(":")
    if word not in _PLACES:
        raise UsageError(f"--to: {word!r} is not one of {', '.join(_PLACES)}")
    unfit = {
        "-o": given.output,
        "--format": given.kinds,
        "--path": given.paths,
        "--stat": given.stat,
        "--size": given.size,
    }
    for option, value in unfit.items():
        if value:
            raise UsageError(f"--to and {option}: choose one")
    if colon and not folder:
        raise UsageError(f"--to {where}: there is nothing behind the colon")
    _PLACES[word](run, given.images, folder or None, force=given.force)


def _export_tree(run: Run, given: ExportArguments, image: str, output: str) -> None:
    reference = Reference.parse(image, run.settings.default_registry)
    kinds = given.kinds
    if len(kinds) > 1:
        raise UsageError(f"--format: choose one of {' and '.join(kinds)}")
    form = kinds[0] if kinds else None
    options = ExportOptions(format=form, paths=given.paths, stat=given.stat, size=_bytes(given.size), force=given.force)
    store = run.store_with([str(reference)])
    if is_standard_output(output):
        with run.binary_output("export", "a file system") as out:
            result = export_image(store, reference, out, options, run.job)
    else:
        result = export_image(store, reference, output, options, run.job)
    if run.display.format == "json":
        run.write(_document(result, output), "")
    where = "standard output" if is_standard_output(output) else visible(output)
    size = f"{result.entries} {'entry' if result.entries == 1 else 'entries'}, {format_size(result.bytes)}"
    name = visible(str(reference))
    run.display.note(f"Exported {name} to {where}: {result.format}, {size} in {result.seconds:.1f}s", done=True)


def _bytes(size: str | None) -> int | None:
    try:
        return None if size is None else parse_size(size)
    except ValueError as error:
        raise UsageError(f"--size: {error}") from None


def _document(result: ExportResult, output: str) -> dict[str, Any]:
    return {
        "status": "ok",
        "file": output,
        "format": result.format,
        "reference": result.reference,
        "digest": result.digest,
        "entries": result.entries,
        "size_bytes": result.bytes,
        "seconds": round(result.seconds, 3),
    }
