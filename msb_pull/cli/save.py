"""The ``save`` command behind its options: one archive, under its name only once it is whole."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from msb_pull.display.streams import is_standard_output
from msb_pull.ground.errors import LocalError, UsageError
from msb_pull.ground.sizes import counted, format_size
from msb_pull.ground.text import visible
from msb_pull.work.export.place import ELSEWHERE, file_draft, is_stream, unwritten
from msb_pull.work.save import Format, save_images

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from msb_pull.cli.run import Run
    from msb_pull.image.digest import Digest
    from msb_pull.store.store import Store
    from msb_pull.work.save import SaveResult

_TWO_KINDS = "--format: choose one kind of archive, oci or docker"


def save_archive(
    run: Run, images: Sequence[str], output: str, formats: Sequence[str], without: Sequence[str] = ()
) -> None:
    """Writes one archive, under its name only once it is whole, less the layers of ``without``."""
    form = _archive_format(formats)
    names = run.names(images)
    store = run.store_with(names)
    left_out = _layers_of(run, store, without)
    run.session.next_step = "the archive is not complete; run the same command again"
    with _archive(run, output) as out:
        result = save_images(store, names, out, Format(form), run.job, left_out)
    run.session.next_step = None
    if run.display.format == "json":
        run.write(_saved_document(result, output, form), "")
    where = "standard output" if is_standard_output(output) else visible(output)
    size, count = format_size(result.bytes), sum(image.left_out for image in result.images)
    less = f", without {counted(count, 'layer')}" if without else ""
    run.display.note(
        f"Saved {counted(len(result.images), 'image')} to {where}: {size} in {result.seconds:.1f}s{less}", done=True
    )


def _layers_of(run: Run, store: Store, texts: Sequence[str]) -> Collection[Digest]:
    if not texts:
        return frozenset()
    from msb_pull.work.without import layers_of

    return layers_of(store, texts, run.settings.default_registry, run.job)


def _archive_format(formats: Sequence[str]) -> str:
    kinds = [form for form in formats if form not in ("text", "json")]
    unknown = [form for form in kinds if form not in ("oci", "docker")]
    if unknown or len(set(kinds)) > 1:
        raise UsageError(f"--format: {(unknown or kinds)[-1]!r} is not one of oci, docker" if unknown else _TWO_KINDS)
    return kinds[0] if kinds else "oci"


@contextlib.contextmanager
def _archive(run: Run, output: str) -> Iterator[BinaryIO]:
    """Where the archive is written to; a file gets its name at the end, and nothing is left of one that failed."""
    if is_standard_output(output):
        with run.binary_output("save", "an archive") as out:
            yield out
        return
    path = Path(output).expanduser()
    try:
        if not path.parent.is_dir():
            raise LocalError(f"{visible(str(path.parent))}: no such folder", hint=ELSEWHERE)
        if not is_stream(path):
            # Where a link leads is meant, as with any program that simply opens the file.
            path = path.resolve()
            run.session.next_step = f"{output} was not written; run the same command again"
        with file_draft(path, force=True, buffering=-1) as out:
            try:
                yield out
                out.flush()
            except OSError as error:
                # Once the draft is gone, what is free says nothing of why the disk was full.
                raise unwritten(error, path) from error
    except OSError as error:
        raise unwritten(error, path) from error


def _saved_document(result: SaveResult, output: str, form: str) -> dict[str, Any]:
    return {
        "status": "ok",
        "file": output,
        "format": form,
        "size_bytes": result.bytes,
        "seconds": round(result.seconds, 3),
        "images": [
            {"reference": x.reference, "digest": x.digest, "layers": x.layers, "left_out": x.left_out}
            for x in result.images
        ],
    }
