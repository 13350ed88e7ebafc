"""The ``ls`` and ``df`` commands behind their options: what is here, and what it takes."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from msb_pull.display.tables import ago, rfc3339, table
from msb_pull.ground.sizes import format_size
from msb_pull.ground.text import visible
from msb_pull.work.listing import ListedImage, list_images
from msb_pull.work.select import lost_database, parse_filters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.cli.run import Run
    from msb_pull.work.prune.report import DiskReport

# The lines of ``df`` that count something.
_AMOUNTS = ("images", "layers", "shared", "records", "partial")
# What a narrow terminal can do without. Whether an image is complete stands in the last column.
_SPARE = ("LAYERS", "PLATFORM", "DIGEST")
_COLUMNS = ("IMAGE", "DIGEST", "PLATFORM", "LAYERS", "SIZE", "PULLED")


def show_list(run: Run, pattern: str | None, filters: Sequence[str], sort: str, *, whole: bool) -> None:
    """Prints the images that match, as a table, as bare names (``-q``) or as a JSON list."""
    selection = parse_filters([*filters, *([f"reference={pattern}"] if pattern else [])])
    store = run.store(create=False)
    images = list_images(store, selection, sort)
    if not images:
        if lost := lost_database(store):
            run.warn(f"{lost.message}; {lost.hint}")
        run.display.note("No images.")
    if run.display.quiet:
        text = "\n".join(visible(image.reference) for image in images)
    elif images:
        text = _table(run, images, whole=whole)
    else:
        text = ""
    run.write([_listed(image) for image in images], text)


def _table(run: Run, images: Sequence[ListedImage], *, whole: bool) -> str:
    now = datetime.datetime.now(datetime.UTC)
    rows = [
        (
            image.reference,
            _shown_digest(image.digest, whole=whole),
            image.platform or "-",
            str(image.layers),
            format_size(image.size),
            ago(image.pulled_at, now) + ("" if image.complete else " (incomplete)"),
        )
        for image in images
    ]
    spare = _SPARE[:2] if whole else _SPARE
    color, room = run.display.colored_stdout, run.display.room
    return table(_COLUMNS, rows, right=("LAYERS", "SIZE"), color=color, room=room, spare=spare)


def _shown_digest(digest: str | None, *, whole: bool) -> str:
    if digest is None:
        return "-"
    return digest if whole else digest.partition(":")[2][:12]


def _listed(image: ListedImage) -> dict[str, Any]:
    return {
        "reference": image.reference,
        "digest": image.digest,
        "platform": image.platform,
        "layers": image.layers,
        "size_bytes": image.size,
        "pulled_at": rfc3339(image.pulled_at),
        "complete": image.complete,
    }


def show_usage(run: Run) -> None:
    """Prints what the store takes, and how full its budget is, if it has one."""
    from msb_pull.work.prune.budget import Budget
    from msb_pull.work.prune.report import report_disk

    report = report_disk(run.store(create=False), Budget(run.settings.keep, run.settings.min_free))
    if report.trouble is not None:
        run.warn(f"{report.trouble.message}; {report.trouble.hint}")
    run.write(_usage_document(report), "\n".join([_usage_table(report, run), *_budget_lines(report, run)]))


def _usage_table(report: DiskReport, run: Run) -> str:
    amounts = [(name, getattr(report, name)) for name in _AMOUNTS]
    rows = [(name, str(amount.count), format_size(amount.size)) for name, amount in amounts]
    reclaimable = "unknown" if report.reclaimable is None else format_size(report.reclaimable)
    rows += [("total", "", format_size(report.total)), ("reclaimable", "", reclaimable)]
    rows += [("free", "", format_size(report.free))]
    return table(("WHAT", "COUNT", "SIZE"), rows, right=("COUNT", "SIZE"), color=run.display.colored_stdout)


def _budget_lines(report: DiskReport, run: Run) -> list[str]:
    if report.limit is None:
        return []
    share = f" ({100 * report.total // report.limit}%)" if report.limit else ""
    text = f"{format_size(report.total)} of {format_size(report.limit)}{share}"
    bar = run.display.bar(report.total, report.limit, beside=len(f"budget    {text}"))
    return ["", "  ".join(filter(None, ("budget", bar, text)))]


def _usage_document(report: DiskReport) -> dict[str, Any]:
    amounts = {name: getattr(report, name) for name in _AMOUNTS}
    return {
        **{name: {"count": amount.count, "size_bytes": amount.size} for name, amount in amounts.items()},
        "total_bytes": report.total,
        "reclaimable_bytes": report.reclaimable,
        "free_bytes": report.free,
        "file_system_bytes": report.file_system,
        "budget_bytes": report.limit,
    }
