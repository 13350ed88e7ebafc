"""The ``export`` command behind its options: one tree, under its name only once it is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msb_pull.ground.errors import UsageError
from msb_pull.ground.sizes import counted, format_size, parse_size
from msb_pull.ground.text import visible
from msb_pull.image.reference import Reference
from msb_pull.work.export.export import ExportOptions, export_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msb_pull.cli.run import Run
    from msb_pull.work.export.export import ExportResult

_SHOWN = ("text", "json")


def export_tree(
    run: Run,
    image: str,
    output: str,
    formats: Sequence[str],
    *,
    paths: Sequence[str],
    how: str | None,
    size: str | None,
    force: bool,
) -> None:
    """Writes the merged tree of an image to ``output``."""
    reference = Reference.parse(image, run.settings.default_registry)
    kinds = list(dict.fromkeys(form for form in formats if form not in _SHOWN))
    if len(kinds) > 1:
        raise UsageError(f"--format: choose one of {' and '.join(kinds)}")
    options = ExportOptions(format=kinds[0] if kinds else None, paths=paths, stat=how, size=_bytes(size), force=force)
    store = run.store_with([str(reference)])
    if output == "-":
        with run.binary_output("export", "a file system") as out:
            result = export_image(store, reference, out, options, run.job)
    else:
        result = export_image(store, reference, output, options, run.job)
    if run.display.format == "json":
        run.write(_document(result, output), "")
    where = "standard output" if output == "-" else visible(output)
    size = f"{counted(result.entries, 'name')}, {format_size(result.bytes)}"
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
