"""The commands that check, free and copy what the store holds, behind their options."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from msb_pull.display.lines import short
from msb_pull.display.streams import OutputClosed, give_up, is_terminal, output_error
from msb_pull.ground.errors import (
    ContentError,
    LocalError,
    MsbPullError,
    NotFoundError,
    UsageError,
    exhausted,
    local_error,
)
from msb_pull.ground.sizes import counted, format_size
from msb_pull.ground.text import visible, visible_bytes
from msb_pull.image.reference import Reference, parse_argument

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from msb_pull.cli.run import Run
    from msb_pull.layer.proof.compare import Damage
    from msb_pull.store.index.proven import Difference
    from msb_pull.store.store import Store
    from msb_pull.work.prune import PrunePlan
    from msb_pull.work.save import SaveResult
    from msb_pull.work.verify.verify import LayerReport, VerifyReport


def verify_store(run: Run, images: Sequence[str], *, quick: bool, repair: bool) -> None:
    """Verifies images, prints one line for each damage, and says how it went; code 6 when damage is left."""
    from msb_pull.work.verify.verify import VerifyReport, verify_images

    store = _store(run, images) if images else run.filled_store()
    if store is None:
        report = VerifyReport((), (), (), 0.0)
    else:
        report = verify_images(
            store, _named(run, images), quick=quick, jobs=run.settings.jobs, observer=run.observe, cancel=run.cancel
        )
    if repair and (report.damaged or report.misrecorded) and store is not None:
        report = _repair(run, store, report)
    for layer in report.layers:
        if layer.remark:
            run.warn(f"layer {short(layer.digest)}: {layer.remark}")
    lines = [_rows_line(x.reference, difference) for x in report.rows for difference in x.differences]
    lines += [_damage_line(layer, damage) for layer in report.layers for damage in layer.damages]
    error: MsbPullError | None = None
    if report.damaged or report.misrecorded:
        error = _damage_error(report, repair=repair)
    elif report.unreadable:
        count = f"{len(report.unreadable)} of {counted(len(report.layers), 'layer')}"
        error = LocalError(f"{count} could not be read", hint="verify as the user who owns the store")
    document = {"status": "failed" if error else "ok", **_verify_document(report)}
    if error:
        document["error"] = run.session.document_of(error)
    run.write(document, "\n".join(lines))
    if error:
        for failure in report.failures:
            run.session.tell(failure)
        run.session.tell(error)
        run.fail([error])
    else:
        run.display.note(
            _verify_summary(report, quick=quick) if report.images else "No images.", done=bool(report.images)
        )


def prune_store(run: Run, filters: Sequence[str], *, everything: bool, yes: bool, dry_run: bool, wait: bool) -> None:
    """Plans, asks, removes; prints one line for everything that went or, in a dry run, would go."""
    from msb_pull.work.prune import apply_prune, plan_prune
    from msb_pull.work.select import parse_filters

    selection = parse_filters(filters) if everything else None
    store = run.store(create=False)
    if not dry_run:
        store.register(needed=False)
    plan = plan_prune(store, selection)
    for remark in plan.remarks:
        run.warn(remark)
    if plan.empty or dry_run:
        run.write(_removed_document(plan, dry_run=dry_run), _removed_lines(plan))
        would = f"Would remove {_contents(plan)} ({format_size(plan.size)})."
        run.display.note("Nothing to remove." if plan.empty else would)
        return
    if not yes and not _agreed(run, plan):
        run.write(_removed_document(type(plan)((), (), (), (), 0), dry_run=False), "")
        run.display.note("Nothing removed.")
        return
    removed = apply_prune(store, plan, wait=wait, observer=run.observe, cancel=run.cancel)
    _show_removed(run, removed)


def remove_from_store(run: Run, images: Sequence[str]) -> None:
    """Removes images and what only they need; prints one line for everything that went."""
    from msb_pull.work.prune import remove_images

    store = _store(run, images)
    _show_removed(run, remove_images(store, _named(run, images), observer=run.observe, cancel=run.cancel))


def save_archive(run: Run, images: Sequence[str], output: str, formats: Sequence[str]) -> None:
    """Writes one archive, under its name only once it is whole."""
    from msb_pull.work.save import Format, save_images

    form = _archive_format(formats)
    store = _store(run, images)
    names = _named(run, images)
    with _archive(run, output) as out:
        result = save_images(store, names, out, Format(form), observer=run.observe, cancel=run.cancel)
    if run.display.format == "json":
        run.write(_saved_document(result, output, form), "")
    where = "standard output" if output == "-" else visible(output)
    size = format_size(result.bytes)
    run.display.note(
        f"Saved {counted(len(result.images), 'image')} to {where}: {size} in {result.seconds:.1f}s", done=True
    )


def _store(run: Run, images: Sequence[str]) -> Store:
    """The store; raises NotFoundError when there is none, since then it has no image either."""
    store = run.filled_store()
    if store is None:
        message = f"{_named(run, images)[0]}: not in the store"
        raise NotFoundError(message, cause=f"there is no store in {run.settings.home}")
    return store


def _named(run: Run, images: Sequence[str]) -> list[str]:
    """The canonical names of what was typed."""
    return list(dict.fromkeys(str(Reference.parse(text, run.settings.default_registry)) for text in images))


def _repair(run: Run, store: Store, report: VerifyReport) -> VerifyReport:
    from msb_pull.cli.pull import Access, LazyClient
    from msb_pull.work.pull.plan import PullOptions
    from msb_pull.work.verify.repair import repair_layers
    from msb_pull.work.verify.verify import stored_images

    settings = run.settings
    options = PullOptions(
        jobs=settings.jobs,
        max_layer_size=settings.max_layer_size,
        max_entries=settings.max_entries,
        max_window=settings.max_window,
        # What the pull was allowed to do without, its repair is too.
        allow_no_xattr=True,
    )
    sources = [parse_argument(x.reference) for x in stored_images(store, report.images) if x.source == "registry"]
    with contextlib.closing(LazyClient(run, sources, Access())) as client:
        return repair_layers(store, report, client, options, observer=run.observe, cancel=run.cancel)


def _agreed(run: Run, plan: PrunePlan) -> bool:
    if not run.display.can_ask:
        raise UsageError(
            "prune: there is nobody to ask",
            hint="--yes removes without a question, --dry-run shows what would go",
        )
    return run.display.ask(f"Remove {_contents(plan)} ({format_size(plan.size)})?")


def _contents(plan: PrunePlan) -> str:
    """``3 images and 7 layers``."""
    parts = [
        (plan.images, "image"),
        (plan.layers, "layer"),
        (plan.partials, "unfinished download"),
        (plan.records, "stray record"),
        (range(plan.leftovers), "leftover"),
    ]
    shown = [counted(len(items), noun) for items, noun in parts if items]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown) or "nothing"


def _show_removed(run: Run, removed: PrunePlan) -> None:
    run.write(_removed_document(removed, dry_run=False), _removed_lines(removed))
    run.display.note(f"Removed {_contents(removed)}, freed {format_size(removed.size)}", done=True)


def _removed_lines(plan: PrunePlan) -> str:
    lines = [f"image {visible(reference)}" for reference in plan.images]
    lines += [f"layer {layer.name} {format_size(layer.size)}" for layer in plan.layers]
    lines += [f"file {visible(file.name)} {format_size(file.size)}" for file in (*plan.partials, *plan.records)]
    return "\n".join(lines)


def _removed_document(plan: PrunePlan, *, dry_run: bool) -> dict[str, Any]:
    return {
        "status": "ok",
        "dry_run": dry_run,
        "images": list(plan.images),
        # A layer that looks different on another base has a name of its own: its digest, "+", a part of that base's.
        "layers": [
            {"name": layer.name, "digest": layer.name.partition("+")[0], "size_bytes": layer.size}
            for layer in plan.layers
        ],
        "files": [{"name": file.name, "size_bytes": file.size} for file in (*plan.partials, *plan.records)],
        "leftovers": plan.leftovers,
        "freed_bytes": plan.size,
    }


def _archive_format(formats: Sequence[str]) -> str:
    kinds = [form for form in formats if form not in ("text", "json")]
    unknown = [form for form in kinds if form not in ("oci", "docker")]
    if unknown or len(set(kinds)) > 1:
        raise UsageError(f"--format: {(unknown or kinds)[-1]!r} is not one of oci, docker" if unknown else _TWO_KINDS)
    return kinds[0] if kinds else "oci"


_TWO_KINDS = "--format: an archive is of one kind, oci or docker"


@contextlib.contextmanager
def _archive(run: Run, output: str) -> Iterator[BinaryIO]:
    """Where the archive is written to; a file gets its name at the end, and nothing is left of one that failed."""
    if output == "-":
        with _standard_output(run) as out:
            yield out
        return
    path = Path(output).expanduser()
    try:
        if not path.parent.is_dir():
            raise LocalError(f"{visible(str(path.parent))}: no such folder", hint=_ELSEWHERE)
        if path.exists() and not path.is_file():
            # A pipe or a device has no half-written state to hide.
            with path.open("wb") as out:
                yield out
            return
        # Where a link leads is meant, as with any program that simply opens the file; /dev/stdout is one, too.
        path = path.resolve()
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with draft.open("xb") as out:
                yield out
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritten(error, path) from error


_ELSEWHERE = "choose another place with -o"


def _unwritten(error: OSError, path: Path) -> LocalError:
    """What went wrong with the archive, or with the store that it was to be made from."""
    if spent := exhausted(error):
        return spent
    named = Path(os.fsdecode(error.filename)) if error.filename else path
    if named.parent != path.parent:
        return local_error(error, path.parent)
    told = local_error(OSError(error.errno, error.strerror, str(path)), path.parent)
    # A limit of this process is the same in every place.
    hint = told.hint if error.errno == errno.EFBIG else _ELSEWHERE
    return LocalError(told.message, cause=told.cause, hint=hint)


@contextlib.contextmanager
def _standard_output(run: Run) -> Iterator[BinaryIO]:
    if is_terminal(run.display.streams.stdout):
        raise UsageError("save: an archive is nothing to read", hint="msb-pull save IMAGE -o - > FILE, or -o FILE")
    if run.display.format == "json":
        raise UsageError("save: standard output cannot carry an archive and a document", hint="name a file with -o")
    out = run.display.streams.binary_stdout
    try:
        yield out
        out.flush()
    except BrokenPipeError:
        give_up(run.display.streams.stdout)
        raise OutputClosed from None
    except OSError as error:
        if error.filename is not None:
            raise
        give_up(run.display.streams.stdout)
        raise output_error(error) from error


def _saved_document(result: SaveResult, output: str, form: str) -> dict[str, Any]:
    return {
        "status": "ok",
        "file": output,
        "format": form,
        "size_bytes": result.bytes,
        "seconds": round(result.seconds, 3),
        "images": [{"reference": x.reference, "digest": x.digest, "layers": x.layers} for x in result.images],
    }


def _damage_error(report: VerifyReport, *, repair: bool) -> ContentError:
    parts = []
    if report.damaged:
        parts.append(f"{len(report.damaged)} of {counted(len(report.layers), 'layer')} damaged")
    if report.misrecorded:
        parts.append(f"the records of {len(report.misrecorded)} of {counted(len(report.images), 'image')} damaged")
    message = ", ".join(parts)
    if not repair:
        what = "fetches them again" if report.damaged else "writes them anew"
        return ContentError(message, hint=f"`msb-pull verify --repair` {what}")
    if report.failures:
        return ContentError(message, cause=f"not repaired: {report.failures[0].message}")
    return ContentError(message, hint="their images can be pulled again with --force")


def _damage_line(layer: LayerReport, damage: Damage) -> str:
    """Five fields with a tab between them, which no field can hold."""
    path = "/" + visible_bytes(damage.path)
    return "\t".join((short(layer.digest), path, damage.kind, visible(damage.expected), visible(damage.found)))


def _rows_line(reference: str, difference: Difference) -> str:
    """The same five fields of what is recorded of an image."""
    fields = (reference, difference.place, "record", difference.expected, difference.found)
    return "\t".join(map(visible, fields))


def _verify_summary(report: VerifyReport, *, quick: bool) -> str:
    size = format_size(sum(layer.bytes for layer in report.layers))
    proven = len(report.layers) - len(report.unprovable)
    text = f"{'Compared' if quick else 'Verified'} {counted(proven, 'layer')} ({size}) in {report.seconds:.1f}s"
    if report.repaired:
        text += f", {counted(len(report.repaired), 'layer')} repaired"
    if report.mended:
        text += f", {counted(len(report.mended), 'record')} written anew"
    if report.unprovable:
        text += f"; {counted(len(report.unprovable), 'layer')} cannot be proven"
    return text


def _verify_document(report: VerifyReport) -> dict[str, Any]:
    return {
        "images": list(report.images),
        "seconds": round(report.seconds, 3),
        "records": [
            {
                "image": rows.reference,
                "repaired": rows.reference in report.mended,
                "damages": [
                    {"place": difference.place, "expected": difference.expected, "found": difference.found}
                    for difference in rows.differences
                ],
            }
            for rows in report.rows
        ],
        "layers": [
            {
                "digest": layer.digest,
                "verdict": str(layer.verdict),
                "repaired": layer.digest in report.repaired,
                "remark": layer.remark or None,
                "content_bytes": layer.bytes,
                "entries": layer.entries,
                "images": list(layer.images),
                "damages": [
                    {
                        "path": "/" + damage.path.decode("utf-8", "surrogateescape"),
                        "kind": damage.kind,
                        "expected": damage.expected,
                        "found": damage.found,
                    }
                    for damage in layer.damages
                ],
            }
            for layer in report.layers
        ],
    }
