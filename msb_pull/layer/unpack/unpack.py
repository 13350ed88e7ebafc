"""Unpacks one layer: strict reader, tree writer and record, in a child process that cannot leave its directory.

:func:`child_main` is what :class:`msb_pull.layer.unpack.process.LayerProcess` starts.
"""

from __future__ import annotations

import errno
import os
import sys

from msb_pull.ground.errors import file_size_limit
from msb_pull.layer.attributes import DISK_MODES
from msb_pull.layer.child import say
from msb_pull.layer.limits import MAX_NOTED, LayerError
from msb_pull.layer.report import UnpackOptions, UnpackReport, encode
from msb_pull.layer.tar.record import RecordWriter
from msb_pull.layer.tar.tar import TarReader
from msb_pull.layer.tree.links import COPIES
from msb_pull.layer.tree.tree import TreeWriter
from msb_pull.layer.unpack.ring import RingReader, slots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from msb_pull.layer.tar.blocks import Stream
    from msb_pull.layer.tar.entry import Entry
    from msb_pull.layer.unpack.filler import Filler

# What a file system cannot take of an entry is the entry's fault, not the disk's.
_ENTRY_ERRORS = {
    errno.ENAMETOOLONG: "its name or link target is too long for the file system",
    errno.EILSEQ: "the file system does not accept its name",
    errno.EINVAL: "the file system does not accept its name",
    errno.EFBIG: "the file is larger than the limit",
}
# How much nicer a process is that others go before (setpriority(2)): they get about nine tenths of a processor.
_BEHIND = 10


def unpack(
    stream: Stream,
    root: int,
    record: int,
    options: UnpackOptions,
    *,
    exact_modes: bool = False,
    filler: Filler | None = None,
) -> UnpackReport:
    """Unpacks ``stream`` below the open directory ``root`` and writes its record into the open file ``record``.

    ``exact_modes`` says that the process's umask leaves the modes as they are. Raises LayerError for what is wrong
    with the layer, OSError (its ``filename`` the path of the entry) for what is wrong with the disk.
    """
    writer = RecordWriter(record)
    reader = TarReader(stream, limits=options, record=writer)
    tree = TreeWriter(root, xattrs=options.xattrs, exact_modes=exact_modes, max_copied=options.max_bytes, filler=filler)
    if filler is not None:
        filler.reader = reader
    entry = None
    try:
        chunk = reader.chunk
        add = tree.add
        following = reader.next
        while (entry := following()) is not None:
            add(entry, chunk)
        reader.drain()
        writer.close()
        tree.finish()
        # Each of them is within it already.
        if reader.content_bytes > tree.links.room:
            raise LayerError(reader.entries - 1, b"", COPIES)
    except (LayerError, OSError) as error:
        # Files that were made before may be written after, and the first error counts.
        failed = filler and filler.failure()
        raise _error_of(failed or error, failed.entry if failed else entry, options) from error
    finally:
        tree.close()
    return _report(reader, tree)


def _error_of(error: LayerError | OSError, entry: Entry | None, options: UnpackOptions) -> LayerError | OSError:
    """Says what the file system did not take, and of which entry."""
    if isinstance(error, LayerError) or entry is None:
        return error
    if error.errno in _ENTRY_ERRORS and not (error.errno == errno.EFBIG and _is_limited(options)):
        return LayerError(entry.index, entry.name, _ENTRY_ERRORS[error.errno])
    error.filename = entry.name
    return error


def _is_limited(options: UnpackOptions) -> bool:
    """Whether this system limits files to less than a layer may have, so that a large one is not the layer's fault."""
    most = file_size_limit()
    return most is not None and most < options.max_bytes


def _report(reader: TarReader, tree: TreeWriter) -> UnpackReport:
    report = UnpackReport()
    report.entries = reader.entries
    report.tar_bytes = reader.bytes_read
    report.content_bytes = reader.content_bytes
    report.placed = tree.placed
    report.implied = tree.implied
    report.hollow = tree.hollow
    report.missing_links = tree.links.missing
    report.turned = tree.turned
    report.warnings = tree.warnings.texts
    if tree.warnings.many_more:
        report.warnings.append(f"{tree.warnings.many_more} more warnings")
    report.unkept = tree.dress.unkept
    report.copied = tree.links.copied
    if report.copied:
        report.warnings.append(f"{len(report.copied)} hard links became copies, since the file system refused them")
    if report.noted > MAX_NOTED:
        what = "too many of its entries are redirected by symlinks or depend on other layers"
        raise LayerError(reader.entries - 1, b"", what)
    if reader.trailing_garbage:
        report.warnings.append("bytes other than zeros follow the end of the archive")
    return report


# The child: 0 is the socket of the ring, 1 takes the report, a line; arguments are descriptors of the ring's memory,
# root and record, and the options.


def child_main() -> NoReturn:
    """The whole life of a child process; what happened goes to standard output as one JSON document."""
    from msb_pull.layer.unpack.jail import limits_memory

    memory, root, record = map(int, sys.argv[1:4])
    options = UnpackOptions.from_arguments(sys.argv[4:])
    stream = RingReader(memory, 0, slots(filler=options.filler))
    if options.behind:
        # Before the jail, which allows no such call.
        _step_back()
    # It clears no mode bit that gets onto the disk.
    os.umask(0o777 & ~DISK_MODES)
    # Once jailed, Python can open no more modules; the text of an error needs a codec.
    LayerError(0, b"\n\xff", "")
    filler = None
    try:
        state, filler = _enter(root, stream, options)
        report = unpack(stream, root, record, options, exact_modes=True, filler=filler)
        report.jailed = state
        answer: dict[str, Any] = {"report": report.as_plain()}
    except LayerError as error:
        answer = {"layer": {"index": error.index, "name": error.name, "what": error.what, "hint": error.hint}}
    except MemoryError:
        what = "unpacking the layer needs more memory than allowed"
        answer = {"layer": {"index": 0, "name": b"", "what": what, "hint": None}}
        if not limits_memory():
            answer = {"os": {"errno": errno.ENOMEM, "name": None}}
    except OSError as error:
        name = error.filename
        answer = {"os": {"errno": error.errno or 0, "name": name if isinstance(name, (bytes, str)) else None}}
    if filler is not None:
        filler.end()
    say(encode(answer))
    # Nothing needs flushing, and tearing an interpreter down costs milliseconds.
    os._exit(0)


def _step_back() -> None:
    from contextlib import suppress

    os.nice(_BEHIND)
    # Linux may share processors out among sessions first, and each child leads its own (sched(7), autogroup).
    with suppress(OSError), open("/proc/self/autogroup", "wb", buffering=0) as share:
        share.write(b"%d" % _BEHIND)


def _enter(root: int, ring: RingReader, options: UnpackOptions) -> tuple[str, Filler | None]:
    """Enters the jail: what holds the process now, and the second one in there, if there can be one. Raises OSError."""
    from msb_pull.layer.unpack import jail

    fillers: list[Filler | None] = []
    if options.filler:
        from msb_pull.layer.unpack.filler import start

    def split() -> None:
        if options.filler:
            fillers.append(start(ring, jail.filter_calls if options.jail else lambda: None))

    state = "off"
    if options.jail:
        state = jail.enter(root, max_file_size=options.max_bytes, before_filter=split)
    else:
        split()
    return state, fillers[0] if fillers else None
