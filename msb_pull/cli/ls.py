"""The ``ls`` command behind its options."""

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
        text = _table(images, whole=whole, color=run.display.colored_stdout)
    else:
        text = ""
    run.write([_listed(image) for image in images], text)


def _table(images: Sequence[ListedImage], *, whole: bool, color: bool) -> str:
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
    return table(_COLUMNS, rows, right=("LAYERS", "SIZE"), color=color)


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
