"""The ``verify`` command behind its options."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msb_pull.display.lines import short_name
from msb_pull.ground.errors import ContentError, LocalError, MsbPullError
from msb_pull.ground.sizes import counted, format_size
from msb_pull.ground.text import visible, visible_bytes
from msb_pull.image.reference import parse_argument
from msb_pull.work.select import lost_database, still_stored
from msb_pull.work.verify.layers import Verdict
from msb_pull.work.verify.verify import VerifyReport, verify_images

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.cli.run import Run
    from msb_pull.layer.proof.task import Damage
    from msb_pull.store.index.proven import Difference
    from msb_pull.store.store import Store
    from msb_pull.work.verify.layers import LayerReport

# How many images a hint names.
_SHOWN = 3


def verify_store(run: Run, images: Sequence[str], *, quick: bool, repair: bool) -> None:
    """Verifies images, prints one line for each damage, and says how it went; code 6 when damage is left."""
    names = run.names(images)
    store = run.store_with(names) if names else run.filled_store()
    if store is None:
        lost = lost_database(run.store(create=False))
        report = VerifyReport((), (), (), 0.0, unchecked=(lost,) if lost else ())
    else:
        report = verify_images(store, names, run.job, quick=quick)
        report = replace(report, unsigned=_unsigned(run, store, report))
        if repair and (report.damaged or report.misrecorded):
            report = _repair(run, store, report)
    for layer in report.layers:
        if layer.remark:
            run.warn(f"layer {short_name(layer.digest)}: {layer.remark}")
    lines = [_rows_line(x.reference, difference) for x in report.rows for difference in x.differences]
    lines += ["\t".join((name, "signature", "record", "signed", visible(x.cause or ""))) for name, x in report.unsigned]
    lines += [_damage_line(layer, damage) for layer in report.layers for damage in layer.damages]
    error = _error(report, repair=repair)
    document = {"status": "failed" if error else "ok", **_verify_document(report)}
    if error:
        document["error"] = run.session.document_of(error)
    run.write(document, "\n".join(lines))
    if error:
        unsigned = [x for _, x in report.unsigned]
        for failure in (*report.failures, *report.unchecked, *unsigned):
            if failure is not error:
                run.session.tell(failure)
        run.session.tell(error)
        run.fail([error])
    elif report.images:
        run.display.note(_verify_summary(report, quick=quick), done=True)
    else:
        run.display.note("No images.")


def _unsigned(run: Run, store: Store, report: VerifyReport) -> tuple[tuple[str, MsbPullError], ...]:
    """The images that are not signed as required; nothing is loaded for it where nothing is asked for or kept."""
    # What is recorded of the others is wrong, which was said.
    sound = sorted(set(report.images) - {x.reference for x in report.rows})
    stored = still_stored(store, sound)
    rules = run.settings.rules
    if not rules:
        stored = [image for image in stored if store.has_kept_signature(image.reference)]
    if not stored:
        return ()
    from msb_pull.work.signed import unsigned_images

    return tuple(unsigned_images(store, stored, rules))


def _repair(run: Run, store: Store, report: VerifyReport) -> VerifyReport:
    from msb_pull.cli.run import Access, LazyClient
    from msb_pull.work.pull.plan import PullOptions
    from msb_pull.work.verify.repair import repair_layers

    settings = run.settings
    run.session.next_step = "repaired layers stay; run the same command again to repair the rest"
    # What the pull was allowed to do without, its repair is too.
    options = PullOptions(limits=settings.limits, allow_no_xattr=True)
    sources = [parse_argument(x.reference) for x in still_stored(store, report.images) if x.source == "registry"]
    with contextlib.closing(LazyClient(run, sources, Access())) as client:
        return repair_layers(store, report, client, options, run.job)


def _error(report: VerifyReport, *, repair: bool) -> MsbPullError | None:
    """What is still wrong, with damage first."""
    if not report.damaged and not report.misrecorded:
        if report.unsigned:
            return report.unsigned[0][1]
        unreadable = report.having(Verdict.UNREADABLE)
        if not unreadable:
            return report.unchecked[0] if report.unchecked else None
        count = f"{len(unreadable)} of {counted(len(report.layers), 'layer')}"
        return LocalError(f"{count} could not be read", hint="verify as the user who owns the store")
    parts = []
    if report.damaged:
        parts.append(f"{len(report.damaged)} of {counted(len(report.layers), 'layer')} damaged")
    if report.misrecorded:
        parts.append(f"the records of {len(report.misrecorded)} of {counted(len(report.images), 'image')} are damaged")
    message = ", ".join(parts)
    if not repair:
        what = "fetches them again" if report.damaged else "rewrites them"
        return ContentError(message, hint=f"`msb-pull verify --repair` {what}")
    if report.failures:
        return ContentError(message, cause=f"not repaired: {report.failures[0].message}")
    return ContentError(message, hint=f"`msb-pull pull --force` of {_affected(report)} fetches them again")


def _affected(report: VerifyReport) -> str:
    """The images with damage that is still there: ``a:1, b:1 and 5 more images``."""
    names = {name for layer in report.damaged for name in layer.images} | {x.reference for x in report.misrecorded}
    shown = sorted(names)[:_SHOWN]
    more = f" and {counted(len(names) - _SHOWN, 'more image')}" if len(names) > _SHOWN else ""
    return ", ".join(shown) + more


def _damage_line(layer: LayerReport, damage: Damage) -> str:
    """Five fields with a tab between them, which no field can hold."""
    path = "/" + visible_bytes(damage.path)
    return "\t".join((short_name(layer.digest), path, damage.kind, visible(damage.expected), visible(damage.found)))


def _rows_line(reference: str, difference: Difference) -> str:
    """The same five fields of what is recorded of an image."""
    fields = (reference, difference.place, "record", difference.expected, difference.found)
    return "\t".join(map(visible, fields))


def _verify_summary(report: VerifyReport, *, quick: bool) -> str:
    size = format_size(sum(layer.bytes for layer in report.layers))
    unprovable = report.having(Verdict.UNPROVABLE)
    proven = len(report.layers) - len(unprovable)
    text = f"{'Compared' if quick else 'Verified'} {counted(proven, 'layer')} ({size}) in {report.seconds:.1f}s"
    if report.repaired:
        text += f", {counted(len(report.repaired), 'layer')} repaired"
    if report.mended:
        text += f", {counted(len(report.mended), 'record')} rewritten"
    if unprovable:
        text += f"; {counted(len(unprovable), 'layer')} cannot be proven"
    return text


def _verify_document(report: VerifyReport) -> dict[str, Any]:
    return {
        "images": list(report.images),
        "seconds": round(report.seconds, 3),
        "unsigned": [
            {"image": name, "message": error.message, "cause": error.cause} for name, error in report.unsigned
        ],
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
                # As in the document of prune: the name tells the forms of one digest apart.
                "name": layer.digest,
                "digest": layer.digest.partition("+")[0],
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
