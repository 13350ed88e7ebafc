"""One layer: from its source, through every check, into a staging directory.

The compressed bytes are kept, counted and hashed, inflated, hashed again against the diff_id and piped into the child
that writes the tree, all in one pass: one thread receives, one inflates, one hashes the tar stream and feeds the child.
Nothing leaves staging here; publishing is the pull's business.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from msb_pull.ground import events
from msb_pull.ground.errors import ContentError, local_error
from msb_pull.ground.pools import Handoff
from msb_pull.ground.running import SMALL, Throttle, processors
from msb_pull.image.readers import CHUNK, COPY_AGAIN, BlobReader, DigestMismatch
from msb_pull.layer.compression import Decompressor, open_decompressor
from msb_pull.layer.report import UnpackOptions, UnpackReport
from msb_pull.layer.unpack.process import LayerProcess
from msb_pull.work.memory import keep_freed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from msb_pull.ground.limits import Limits
    from msb_pull.ground.running import Job
    from msb_pull.image.manifest import Descriptor
    from msb_pull.layer.unpack.process import Start
    from msb_pull.source.interface import Source
    from msb_pull.store.staging import Staging
    from msb_pull.store.store import Store
    from msb_pull.work.pull.coming import Coming
    from msb_pull.work.pull.plan import WantedLayer
    from msb_pull.work.pull.receiving import Arrived
    from msb_pull.work.pull.twins import Twins


class FetchedLayer(NamedTuple):
    """A layer that lies in staging, verified, and what is still to be said about it.

    ``reused``: it was made from one that the store has under another digest.
    """

    staging: Staging
    report: UnpackReport
    tar_bytes: int
    fetched: int
    reused: bool = False


class LayerFetcher:
    """Fetches the layers of one image; every method may be called from any thread of the pool.

    ``coming`` knows them, and those of other images of the same command. ``start`` makes their children.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        limits: Limits,
        *,
        coming: Coming,
        start: Start,
        xattrs: bool,
        image: str,
        job: Job,
        twins: Twins,
        arrived: Arrived | None = None,
    ) -> None:
        self._store = store
        self._coming = coming
        self._start = start
        self._source = source
        self._limits = limits
        self._xattrs = xattrs
        self._image = image
        self._job = job
        self._twins = twins
        self._arrived = arrived
        if job.own_process:
            keep_freed()

    def fetch(self, wanted: WantedLayer, resources: contextlib.ExitStack) -> FetchedLayer:
        """Brings one layer into a staging directory, which lives until ``resources`` is closed.

        A blob that does not match its digest is fetched once more from its first byte, since proxies and partial files
        go bad; the second mismatch is final. Raises ContentError, NetworkError, AccessError, LocalError, Cancelled.
        """
        with self._source.obeying(self._job.cancel):
            return self._reuse(wanted, resources) or self._fetch_twice(wanted, resources)

    def _fetch_twice(self, wanted: WantedLayer, resources: contextlib.ExitStack) -> FetchedLayer:
        try:
            return self._fetch_once(wanted, resources)
        except DigestMismatch as error:
            self._forget(wanted)
            self._warn(f"{error.message}; fetching it again from the start")
        try:
            return self._fetch_once(wanted, resources)
        except DigestMismatch as error:
            self._forget(wanted)
            if not self._source.remote:
                error.hint = COPY_AGAIN
            raise

    def _reuse(self, wanted: WantedLayer, resources: contextlib.ExitStack) -> FetchedLayer | None:
        """Makes the layer from one with the same content, where that saves fetching it; None where it must be fetched.

        Raises what :meth:`fetch` does.
        """
        twin, descriptor = self._twins.find(wanted), wanted.descriptor
        if twin is None:
            return None
        try:
            with self._told(), contextlib.ExitStack() as attempt:
                staging = attempt.enter_context(self._store.staging(descriptor.digest))
                process = LayerProcess(staging.path, staging.record, self._options(descriptor), self._start)
                try:
                    progress = self._progress(descriptor, events.Phase.UNPACKING)
                    report, tar_bytes = self._twins.unpack(twin, wanted, process, progress, self._job.cancel)
                finally:
                    process.kill()
                resources.enter_context(attempt.pop_all())
                return FetchedLayer(staging, report, tar_bytes, 0, reused=True)
        except ContentError as error:
            self._warn(f"layer {descriptor.digest.short} could not be made from one with the same content: {error}")
            return None

    def _fetch_once(self, wanted: WantedLayer, resources: contextlib.ExitStack) -> FetchedLayer:
        # Twice: once staging is gone, what is free says nothing of why the disk was full.
        with self._told(), contextlib.ExitStack() as attempt:
            staging = attempt.enter_context(self._store.staging(wanted.descriptor.digest))
            with self._told(), self._kept(wanted) as keep:
                fetched = self._unpack(wanted, staging, keep)
            resources.enter_context(attempt.pop_all())
            return fetched

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise local_error(error, self._store.layers) from error

    def _unpack(self, wanted: WantedLayer, staging: Staging, keep: int | None) -> FetchedLayer:
        descriptor = wanted.descriptor
        blob = BlobReader(
            descriptor.digest,
            descriptor.size,
            lambda offset: self._source.open_blob(descriptor, offset),
            keep=keep,
            progress=self._progress(descriptor),
            cancel=self._job.cancel,
        )
        options = self._options(descriptor)
        process = LayerProcess(staging.path, staging.record, options, self._start)
        try:
            apart = options.filler or self._coming.fewer_than(processors())
            pipe = _Pipe(wanted, process, self._limits, apart=apart)
            with contextlib.ExitStack() as ending:
                feeding = ending.enter_context(Handoff(pipe.pass_on))
                inflating, put = self._inflating(pipe, feeding, keep)
                ending.enter_context(inflating)
                # A thread that waits for the child gets away only when the child is gone.
                ending.push(lambda kind, error, trace: process.kill() if error else None)
                trouble = _pump(blob, put)
                blob.verify()
                if self._arrived is not None and keep is not None:
                    self._arrived(descriptor.digest, keep)
                if trouble is None:
                    try:
                        inflating.finish()
                        return FetchedLayer(staging, pipe.finish(feeding), pipe.tar_bytes, blob.fetched)
                    except ContentError as error:
                        trouble = error
                    finally:
                        if pipe.warning:
                            self._warn(f"layer {descriptor.digest.short}: {pipe.warning}")
                trouble.message = f"layer {descriptor.digest.short}: {trouble.message}"
                raise trouble
        finally:
            process.kill()

    def _inflating(
        self, pipe: _Pipe, feeding: Handoff[bytes], keep: int | None
    ) -> tuple[Handoff[Any], Callable[[bytes], None]]:
        """The step that inflates, and what takes the pieces of the blob for it."""

        def inflate(chunk: bytes) -> None:
            pipe.inflate(chunk, feeding)

        if self._arrived is None or keep is None:
            inflating = Handoff(inflate)
            return inflating, inflating.put
        # Whoever waits for the blob gets it before it is unpacked: what waits here lies in the file, however much.
        ahead = Handoff(_read_again(keep, inflate), sys.maxsize)
        return ahead, lambda chunk: ahead.put(len(chunk))

    def _options(self, descriptor: Descriptor) -> UnpackOptions:
        # Where several large layers come at once, all processors are busy as it is, and more processes only get into
        # each other's way. One that is waited for alone in the end gets a second one, and goes before the others.
        leader = self._coming.leader()
        leads = leader == descriptor.digest
        return UnpackOptions(
            max_entries=self._limits.max_entries,
            max_bytes=self._limits.max_bytes,
            max_extension=self._limits.max_extension,
            xattrs=self._xattrs,
            filler=leads and descriptor.size >= SMALL and processors() > 1,
            behind=leader is not None and not leads,
        )

    @contextlib.contextmanager
    def _kept(self, wanted: WantedLayer) -> Iterator[int | None]:
        """Opens the partial file of a remote blob; what a local source holds need not be kept twice."""
        if not self._source.remote:
            yield None
            return
        path = self._store.partial_path(wanted.descriptor.digest)
        keep = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            yield keep
        finally:
            os.close(keep)

    def _warn(self, text: str) -> None:
        self._job.warn(self._image, text)

    def _progress(
        self, descriptor: Descriptor, before: events.Phase = events.Phase.DOWNLOADING
    ) -> Callable[[int], None]:
        digest, total = str(descriptor.digest), descriptor.size
        throttle = Throttle()

        def report(done: int) -> None:
            if throttle.passes(last=done == total):
                phase = events.Phase.UNPACKING if done == total else before
                self._job.tell(events.LayerProgress(self._image, digest, phase, done, total))

        return report

    def _forget(self, wanted: WantedLayer) -> None:
        self._store.partial_path(wanted.descriptor.digest).unlink(missing_ok=True)


class _Pipe:
    """Inflates, hashes and counts a layer on its way into the child.

    ``apart``: whether one thread inflates and another one hashes.
    """

    def __init__(self, wanted: WantedLayer, process: LayerProcess, limits: Limits, *, apart: bool) -> None:
        self.tar_bytes = 0
        self.warning: str | None = None
        self._task = wanted
        self._process = process
        self._limits = limits
        self._apart = apart
        self._hash = wanted.diff_id.hasher()
        self._decompressor: Decompressor | None = None
        self._head = b""

    def inflate(self, chunk: bytes, feeding: Handoff[bytes]) -> None:
        """Takes compressed bytes and hands the pieces of the tar stream over; raises ContentError."""
        if self._decompressor is None:
            # The magic of every format fits into six bytes, which a slow source may deliver one by one.
            self._head += chunk
            if len(self._head) < 6:
                return
            chunk = self._head
        self._feed(chunk, feeding)

    def pass_on(self, piece: bytes) -> None:
        """Hashes a piece of the tar stream and feeds the child; raises LayerError when the child found trouble."""
        self._hash.update(piece)
        self._process.write(piece)

    def finish(self, feeding: Handoff[bytes]) -> UnpackReport:
        """Ends the stream, compares the diff_id and takes the child's report; raises ContentError, LocalError."""
        if self._decompressor is None:
            self._feed(self._head, feeding)
        assert self._decompressor is not None
        self._decompressor.finish()
        feeding.finish()
        found = self._hash.hexdigest()
        if found != self._task.diff_id.hex:
            raise ContentError(
                "the content does not match its diff_id",
                cause=f"config says {self._task.diff_id}, unpacked {self._task.diff_id.algorithm}:{found}",
                hint="the image is broken or forged: its config does not match its layers",
            )
        return self._process.finish()

    def _feed(self, chunk: bytes, feeding: Handoff[bytes]) -> None:
        # Where every processor is busy, the thread that inflates hashes too, while its cache has the piece.
        feed = feeding.put if self._apart else self.pass_on
        for piece in self._inflate(chunk):
            feed(piece)

    def _inflate(self, chunk: bytes) -> Iterator[bytes]:
        if self._decompressor is None:
            media_type = self._task.descriptor.media_type
            self._decompressor, self.warning = open_decompressor(chunk[:6], media_type, self._limits.max_window)
        for piece in self._decompressor.feed(chunk):
            self.tar_bytes += len(piece)
            # Headers and padding come on top of what the files hold, so the child's own count stops a layer first,
            # unless the bytes are not files at all.
            if self.tar_bytes > 2 * self._limits.max_bytes + CHUNK:
                raise ContentError(
                    f"unpacks to more than {self._limits.max_bytes} bytes",
                    hint="raise --max-layer-size if you trust the image",
                )
            yield piece


def _read_again(keep: int, work: Callable[[bytes], None]) -> Callable[[int], None]:
    """Does ``work`` with pieces of so many bytes each, one behind the other, of the file where they are kept."""
    offset = 0

    def read(size: int) -> None:
        nonlocal offset
        piece = os.pread(keep, size, offset)
        offset += size
        work(piece)

    return read


def _pump(blob: BlobReader, put: Callable[[bytes], None]) -> ContentError | None:
    """Moves a whole blob on to be inflated; returns what is known by then to be wrong with its content, if anything.

    A blob with bad content is still read to its end, since only its digest tells whether the download or the image is
    to blame.
    """
    trouble: ContentError | None = None
    for chunk in blob.chunks():
        if trouble is None:
            try:
                put(chunk)
            except ContentError as error:
                trouble = error
    return trouble
