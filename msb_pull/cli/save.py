"""The ``save`` command behind its options: one archive, under its name only once it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from msb_pull.display.streams import OutputClosed, give_up, is_terminal, output_error
from msb_pull.ground.errors import LocalError, UsageError, exhausted, local_error
from msb_pull.ground.sizes import counted, format_size
from msb_pull.ground.text import visible
from msb_pull.work.save import Format, save_images

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from msb_pull.cli.run import Run
    from msb_pull.work.save import SaveResult

_TWO_KINDS = "--format: choose one kind of archive, oci or docker"
_ELSEWHERE = "choose another place with -o"


def save_archive(run: Run, images: Sequence[str], output: str, formats: Sequence[str]) -> None:
    """Writes one archive, under its name only once it is whole."""
    form = _archive_format(formats)
    names = run.names(images)
    store = run.store_with(names)
    run.session.next_step = "the archive is not complete; run the same command again"
    with _archive(run, output) as out:
        result = save_images(store, names, out, Format(form), run.job)
    run.session.next_step = None
    if run.display.format == "json":
        run.write(_saved_document(result, output, form), "")
    where = "standard output" if output == "-" else visible(output)
    size = format_size(result.bytes)
    run.display.note(
        f"Saved {counted(len(result.images), 'image')} to {where}: {size} in {result.seconds:.1f}s", done=True
    )


def _archive_format(formats: Sequence[str]) -> str:
    kinds = [form for form in formats if form not in ("text", "json")]
    unknown = [form for form in kinds if form not in ("oci", "docker")]
    if unknown or len(set(kinds)) > 1:
        raise UsageError(f"--format: {(unknown or kinds)[-1]!r} is not one of oci, docker" if unknown else _TWO_KINDS)
    return kinds[0] if kinds else "oci"


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
        run.session.next_step = f"{output} was not written; run the same command again"
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with draft.open("xb") as out:
                yield out
            draft.replace(path)
        except OSError as error:
            # Once the draft is gone, what is free says nothing of why the disk was full.
            raise _unwritten(error, path) from error
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritten(error, path) from error


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
        raise UsageError(
            "save: refusing to write an archive to a terminal", hint="msb-pull save IMAGE -o - > FILE, or -o FILE"
        )
    if run.display.format == "json":
        raise UsageError("save: standard output cannot carry an archive and a document", hint="name a file with -o")
    out = run.display.streams.stdout.buffer
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
