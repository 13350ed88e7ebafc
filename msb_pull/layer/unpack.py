"""Unpacks one layer: strict reader, tree writer and record, in a child process that cannot leave its directory."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

from msb_pull.errors import ContentError, LocalError, MsbPullError, local_error
from msb_pull.layer.limits import LayerError, Limits
from msb_pull.layer.record import RecordWriter
from msb_pull.layer.tar import TarReader
from msb_pull.layer.tree import TreeWriter

if TYPE_CHECKING:
    from pathlib import Path

    from msb_pull.layer.tar import Stream

# What a file system cannot take of an entry is the entry's fault, not the disk's.
_ENTRY_ERRORS = {
    errno.ENAMETOOLONG: "its name or link target is too long for the file system",
    errno.EILSEQ: "the file system does not take its name",
    errno.EINVAL: "the file system does not take its name",
    errno.EFBIG: "the file is larger than the limit",
}
_MAX_WARNINGS = 50


class UnpackOptions:
    """How to unpack: limits (bytes, entries), whether owners are kept in attributes, whether to jail the child."""

    __slots__ = ("jail", "max_bytes", "max_entries", "xattrs")

    def __init__(
        self,
        *,
        max_entries: int = 5_000_000,
        max_bytes: int = 64 << 30,
        xattrs: bool = True,
        jail: bool = True,
    ) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.xattrs = xattrs
        self.jail = jail

    def limits(self) -> Limits:
        """The bounds for the reader."""
        return Limits(max_entries=self.max_entries, max_bytes=self.max_bytes)


class UnpackReport:
    """What was unpacked, and what is left to do once the layers below are known. Paths are bytes."""

    __slots__ = (
        "content_bytes",
        "entries",
        "implied",
        "jailed",
        "missing_links",
        "placed",
        "tar_bytes",
        "warnings",
    )

    def __init__(self) -> None:
        self.entries = 0
        self.tar_bytes = 0
        self.content_bytes = 0
        self.jailed = ""
        self.placed: dict[int, bytes] = {}
        self.implied: list[bytes] = []
        self.missing_links: list[tuple[int, bytes, bytes]] = []
        self.warnings: list[str] = []

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values; names decoded with surrogate escapes."""
        return {
            "entries": self.entries,
            "tar_bytes": self.tar_bytes,
            "content_bytes": self.content_bytes,
            "jailed": self.jailed,
            "placed": [[index, os.fsdecode(path)] for index, path in self.placed.items()],
            "implied": [os.fsdecode(path) for path in self.implied],
            "missing_links": [[index, os.fsdecode(a), os.fsdecode(b)] for index, a, b in self.missing_links],
            "warnings": self.warnings,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> UnpackReport:
        """The inverse of :meth:`as_json`."""
        report = cls()
        report.entries = values["entries"]
        report.tar_bytes = values["tar_bytes"]
        report.content_bytes = values["content_bytes"]
        report.jailed = values["jailed"]
        report.placed = {index: os.fsencode(path) for index, path in values["placed"]}
        report.implied = [os.fsencode(path) for path in values["implied"]]
        report.missing_links = [(index, os.fsencode(a), os.fsencode(b)) for index, a, b in values["missing_links"]]
        report.warnings = values["warnings"]
        return report


def unpack(
    stream: Stream, root: int, record: int, options: UnpackOptions, *, exact_modes: bool = False
) -> UnpackReport:
    """Unpacks ``stream`` below the open directory ``root`` and writes its record into the open file ``record``.

    Raises LayerError for what is wrong with the layer, OSError for what is wrong with the disk.
    """
    writer = RecordWriter(record)
    reader = TarReader(stream, limits=options.limits(), record=writer)
    tree = TreeWriter(root, xattrs=options.xattrs, exact_modes=exact_modes)
    entry = None
    try:
        chunk = reader.chunk
        add = tree.add
        while (entry := reader.next()) is not None:
            add(entry, chunk)
        reader.drain()
        writer.close()
        tree.finish()
    except OSError as error:
        if entry is not None and error.errno in _ENTRY_ERRORS:
            raise LayerError(entry.index, entry.name, _ENTRY_ERRORS[error.errno]) from error
        raise
    finally:
        tree.close()
    report = UnpackReport()
    report.entries = reader.entries
    report.tar_bytes = reader.bytes_read
    report.content_bytes = reader.content_bytes
    report.placed = tree.placed
    report.implied = list(tree.implied)
    report.missing_links = tree.missing_links
    report.warnings = tree.warnings
    if reader.trailing_garbage:
        report.warnings.append("bytes that are no zeros follow the end of the archive")
    if len(report.warnings) > _MAX_WARNINGS:
        report.warnings[_MAX_WARNINGS:] = [f"{len(report.warnings) - _MAX_WARNINGS} more warnings"]
    return report


# The child: 0 is the tar stream, 1 the report; its arguments are the descriptors of root and record, and the options.


class _Input:
    """Raw reads from a pipe into the reader's own buffer."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def readinto(self, buffer: memoryview, /) -> int:
        return os.readv(self._descriptor, [buffer])


def child_main() -> None:
    """The whole life of a child process; what happened goes to standard output as one JSON document."""
    import json

    from msb_pull.layer import jail

    root, record = int(sys.argv[1]), int(sys.argv[2])
    settings = json.loads(sys.argv[3])
    jailed = settings.pop("jail")
    options = UnpackOptions(jail=jailed, **settings)
    os.umask(0)
    try:
        state = jail.enter(root, max_file_size=options.max_bytes) if jailed else "off"
        report = unpack(_Input(0), root, record, options, exact_modes=True)
        report.jailed = state
        answer: dict[str, Any] = {"report": report.as_json()}
    except LayerError as error:
        answer = {"layer": {"index": error.index, "message": error.message, "hint": error.hint}}
    except MemoryError:
        answer = {"layer": {"index": 0, "message": "the layer needs more memory than a layer may take", "hint": None}}
    except OSError as error:
        name = error.filename
        answer = {"os": {"errno": error.errno, "name": os.fsdecode(name) if isinstance(name, (bytes, str)) else None}}
    data = json.dumps(answer).encode("ascii")
    while data:
        data = data[os.write(1, data) :]
    # Nothing is left to be flushed, and tearing an interpreter down costs milliseconds.
    os._exit(0)


_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from msb_pull.layer.unpack import child_main; child_main()"
)
# Isolated, without site-packages: the child needs the standard library and this package alone.
_PYTHON = (sys.executable, "-I", "-S", "-B")


class LayerProcess:
    """The parent's end of one child that unpacks one layer into ``staging``, an empty directory of our own."""

    def __init__(self, staging: Path, record: Path, options: UnpackOptions) -> None:
        import json
        import subprocess
        from pathlib import Path as AnyPath

        self._staging = staging
        root = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        kept = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        settings = {name: getattr(options, name) for name in UnpackOptions.__slots__}
        package_parent = str(AnyPath(__file__).resolve().parent.parent.parent)
        try:
            self._process = subprocess.Popen(
                [*_PYTHON, "-c", _BOOTSTRAP, package_parent, str(root), str(kept), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(root, kept),
                env={},
                cwd="/",
                # A Ctrl-C at the terminal is for the parent, which ends its children itself.
                start_new_session=True,
            )
        finally:
            os.close(root)
            os.close(kept)
        assert self._process.stdin is not None
        self._input = self._process.stdin.fileno()
        _widen(self._input)
        self._over = False

    def write(self, data: bytes) -> None:
        """Hands bytes of the tar stream to the child; raises the child's own error if it has given up."""
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._input, view) :]
        except BrokenPipeError:
            self.finish()
            raise LocalError("the unpacking process ended early") from None

    def finish(self) -> UnpackReport:
        """Ends the stream and returns the child's report; raises LayerError, LocalError."""
        import json

        self._over = True
        process = self._process
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        out, err = process.communicate()
        try:
            answer = json.loads(out)
        except ValueError:
            raise self._crashed(err) from None
        if "report" in answer:
            return UnpackReport.from_json(answer["report"])
        raise self._error(answer)

    def kill(self) -> None:
        """Ends the child if it still runs."""
        process = self._process
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def _error(self, answer: dict[str, Any]) -> MsbPullError:
        if "layer" in answer:
            facts = answer["layer"]
            return ContentError(facts["message"], hint=facts["hint"])
        number, name = answer["os"]["errno"], answer["os"]["name"]
        where = str(self._staging) if name is None else f"{self._staging}: {name}"
        return local_error(OSError(number, os.strerror(number), where), self._staging)

    def _crashed(self, stderr: bytes) -> MsbPullError:
        lines = stderr.decode("utf-8", "backslashreplace").strip().splitlines()
        cause = lines[-1] if lines else f"exit status {self._process.returncode}"
        return LocalError("the unpacking process crashed", cause=cause)


def _widen(pipe: int) -> None:
    """A larger pipe means fewer switches between parent and child; where it is refused the default does."""
    try:
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
    except (ImportError, AttributeError, OSError):
        return
