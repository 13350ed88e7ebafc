"""Export: the merged tree of one image in a form that others boot, mount or import. Nothing in the store changes."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msb_pull.ground import events
from msb_pull.ground.errors import UsageError
from msb_pull.ground.running import Throttle
from msb_pull.work.export.formats import FILE, TAR, Task, format_of
from msb_pull.work.export.place import file_draft, folder_draft, is_stream, output_path, unwritten
from msb_pull.work.export.tree import merged_tree
from msb_pull.work.listing import find_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.ground.running import Job
    from msb_pull.image.reference import Reference
    from msb_pull.store.index.stored import StoredImage
    from msb_pull.store.store import Store
    from msb_pull.work.export.formats import Format
    from msb_pull.work.export.tree import Inode, MergedTree

# Bytes and pieces between two looks at whether to tell of progress.
_TOLD = 1 << 18
_CALLS = 64


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export.

    ``format`` is by default what the name of the output means; a stream gets a tar, or the file itself where ``paths``
    is the path of one. With ``paths`` only what stands there and below is written, and the directories on the way.
    ``stat`` says how a folder keeps owners (``directory.STATS``), ``size`` of how many bytes an ext4 file system is (by
    default what it holds plus a tenth plus 64 MiB). ``force`` replaces what exists.
    """

    format: str | None = None
    paths: Sequence[str] = ()
    stat: str | None = None
    size: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was exported: ``entries`` names, and ``bytes`` of the file that was written."""

    reference: str
    digest: str | None
    format: str
    entries: int
    bytes: int
    seconds: float


def export_image(
    store: Store, reference: Reference, out: str | BinaryIO, options: ExportOptions, job: Job
) -> ExportResult:
    """Writes the merged tree of a stored image to ``out``, a path or a stream that need not be seekable.

    Every file is compared with the checksum of its layer's record on the way. A path is the old one, or not there,
    until all is written; what a stream got before an error is worthless. Raises NotFoundError, ContentError for what is
    damaged, UsageError, LocalError, Cancelled; OSError of a stream.
    """
    started = time.monotonic()
    image = find_image(store, reference)
    store.uses.touch(image.reference)
    with store.lock_shared(job.tell_waiting, job.cancel):
        if isinstance(out, str):
            path = Path(out).expanduser()
            folder = out.endswith("/") or path.is_dir()
            form = format_of(path.name, options.format, folder=folder, stream=not folder and is_stream(path))
            if options.stat is not None and not form.folder:
                raise UsageError(f"--stat: {form.name} keeps owners by itself", hint="it is for --format dir")
            if options.size is not None and not form.sized:
                raise UsageError(f"--size: {form.name} is as large as its content", hint="it is for --format ext4")
            entries, written = _to_path(store, image, Path(out), form, options, job)
        else:
            form, entries, written = _to_stream(store, image, out, options, job)
    digest = str(image.digest) if image.digest else None
    return ExportResult(image.reference, digest, form.name, entries, written, time.monotonic() - started)


def _to_stream(
    store: Store, image: StoredImage, out: BinaryIO, options: ExportOptions, job: Job
) -> tuple[Format, int, int]:
    if options.format is None and len(options.paths) == 1:
        from msb_pull.work.export.single import single_file

        with single_file(store, image, os.fsencode(options.paths[0])) as inode:
            if inode is not None:
                return FILE, 1, FILE.write([inode], out, _task(image, [inode], job))
    with merged_tree(store, image, job) as tree:
        form, inodes = _for_stream(tree, options)
        tree.forget()
        return form, len(inodes), form.write(inodes, out, _task(image, inodes, job))


def _for_stream(tree: MergedTree, options: ExportOptions) -> tuple[Format, list[Inode]]:
    if options.format is None and len(options.paths) == 1:
        # Whoever wants the one file wants what it holds, not where it leads.
        real = tree.real_path(os.fsencode(options.paths[0]), followed=True)
        inodes = tree.inodes([real])
        is_file = inodes[-1].path == real and inodes[-1].kind == stat.S_IFREG
        return (FILE, inodes[-1:]) if is_file else (TAR, inodes)
    form = TAR if options.format is None else format_of("", options.format)
    _refuse_unstreamed(form)
    return form, _chosen(tree, options)


def _refuse_unstreamed(form: Format) -> None:
    if not form.streamed:
        raise UsageError(f"export: {form.name} cannot be written to a stream", hint="name a file with -o")


def _chosen(tree: MergedTree, options: ExportOptions) -> list[Inode]:
    return tree.inodes([tree.real_path(os.fsencode(path)) for path in options.paths])


def _to_path(
    store: Store, image: StoredImage, out: Path, form: Format, options: ExportOptions, job: Job
) -> tuple[int, int]:
    path = output_path(store, out, folder=form.folder, force=options.force)
    if path.is_fifo():
        _refuse_unstreamed(form)
    how = ""
    if form.folder:
        from msb_pull.work.export.directory import chosen_stat

        how = chosen_stat(options.stat)
    with merged_tree(store, image, job) as tree:
        inodes = _chosen(tree, options)
        tree.forget()
        try:
            drafted = folder_draft if form.folder else file_draft
            with drafted(path, force=options.force) as draft:
                try:
                    task = _task(image, inodes, job, name=path.name, stat=how, size=options.size)
                    return len(inodes), form.write(inodes, draft, task)
                except OSError as error:
                    # Once the draft is gone, what is free says nothing of why the disk was full.
                    raise unwritten(error, path) from error
        except OSError as error:
            raise unwritten(error, path) from error


def _task(
    image: StoredImage, inodes: Sequence[Inode], job: Job, *, name: str = "", stat: str = "", size: int | None = None
) -> Task:
    warn = partial(job.warn, image.reference)
    return Task(image, name, stat, size, _progress(image.reference, inodes, job), warn)


def _progress(reference: str, inodes: Sequence[Inode], job: Job) -> Callable[[int], None]:
    """Tells of the bytes of each piece, and ends the work when it is to end."""
    total = sum(inode.stored for inode in inodes if inode.has_content)
    done = told = 0
    calls = _CALLS
    throttle = Throttle()

    def count(size: int) -> None:
        nonlocal done, told, calls
        job.cancel.check()
        done += size
        calls += 1
        # Most pieces are small files, and looking at a clock takes as long as opening one.
        if done - told < _TOLD and calls < _CALLS and done < total:
            return
        told, calls = done, 0
        if throttle.passes(last=done == total):
            job.tell(events.ExportProgress(reference, done, total))

    count(0)
    return count
