"""The archive of one image on its way into ``msb load``, with the registry's own bytes, while they arrive.

Blobs are handed over as they come to be whole, in any order, from the partial file that the pull keeps of each: there
is no second copy. What the archive is worthless without comes last, when every digest has been verified.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from msb_pull.ground import events
from msb_pull.ground.errors import Cancelled, ContentError
from msb_pull.ground.running import Cancel, Throttle, start_thread
from msb_pull.image.readers import CHUNK, BlobReader
from msb_pull.work import archive
from msb_pull.work.microsandbox.program import PLACE, Loading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from msb_pull.ground.events import Event
    from msb_pull.ground.running import Job
    from msb_pull.image.digest import Digest
    from msb_pull.image.manifest import Descriptor
    from msb_pull.source.interface import ResolvedImage, Source

# How long an interruption may go unheard, in seconds.
_SLICE = 0.1


class Feed:
    """Feeds one ``msb load`` in a thread of its own, which lives from :meth:`start` to :meth:`finish` or :meth:`stop`.

    ``failed`` is set once it has failed; ``folder`` is where the program keeps what it reads.
    """

    def __init__(self, image: ResolvedImage, source: Source, program: str, folder: Path | None, job: Job) -> None:
        self.failed = Cancel(job.cancel)
        self._image = image
        self._source = source
        self._program = program
        self._folder = folder
        self._job = job
        self._name = str(image.reference)
        self._stopped = Cancel(job.cancel)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        # All of these under the guard: blobs that were not begun, descriptors of those that have arrived, and which to
        # fetch from the source once more.
        self._guard = threading.Condition()
        self._left: dict[Digest, Descriptor] = {layer.digest: layer for layer in image.manifest.layers}
        self._held: dict[Digest, int] = {}
        self._again: set[Digest] = set()

    def start(self) -> None:
        """Starts thread and program; raises LocalError when there can be no more threads."""
        self._thread = start_thread(self._run, "load")

    def arrived(self, digest: Digest, handle: int) -> None:
        """Takes a blob that is whole and verified, from the file of a descriptor that may be closed after the call."""
        with self._guard:
            if digest in self._left and digest not in self._held and not self._stopped.is_set():
                self._held[digest] = os.dup(handle)
                self._guard.notify()

    def observe(self, event: Event) -> None:
        """Learns from the plan of the pull which blobs it will not fetch, and passes every event on."""
        if isinstance(event, events.PullPlanned):
            present = {layer.digest for layer in event.layers if layer.present}
            self.fetch_again(layer for layer in self._image.manifest.layers if str(layer.digest) in present)
        self._job.tell(event)

    def fetch_again(self, blobs: Iterable[Descriptor]) -> None:
        """Has blobs fetched that have not come, and will not come, in another way."""
        with self._guard:
            self._again.update(blob.digest for blob in blobs)
            self._guard.notify()

    def finish(self) -> None:
        """Waits until the image is loaded, once the pull has ended well; raises what went wrong, Cancelled."""
        self._job.tell(events.Delivering(self._name, PLACE))
        self.fetch_again(self._image.manifest.layers)
        self._join()
        if self._error is not None:
            raise self._error

    def stop(self) -> BaseException | None:
        """Ends thread and program, and returns what had gone wrong before."""
        self._stopped.set()
        self._join()
        return None if isinstance(self._error, Cancelled) else self._error

    def _join(self) -> None:
        # It asks for interruptions itself, and ends by them.
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            with Loading(self._program, self._folder, self._stopped) as loading:
                for blob, handle in self._blobs():
                    self._send(loading, blob, handle)
                self._send_documents(loading)
                loading.finish()
        except BaseException as error:  # noqa: BLE001 - it is for whoever waits for the end
            self._error = error
            self.failed.set()
        finally:
            with self._guard:
                self._left.clear()
                for handle in self._held.values():
                    os.close(handle)
                self._held.clear()

    def _blobs(self) -> Iterator[tuple[Descriptor, int | None]]:
        """Each distinct blob as soon as it can be sent, with a descriptor, or None for one to fetch from the source."""
        while (taken := self._take()) is not None:
            yield taken

    def _take(self) -> tuple[Descriptor, int | None] | None:
        with self._guard:
            while self._left:
                self._stopped.check()
                for digest in self._left:
                    if digest in self._held or digest in self._again:
                        return self._left.pop(digest), self._held.pop(digest, None)
                self._guard.wait(_SLICE)
        return None

    def _send(self, loading: Loading, blob: Descriptor, handle: int | None) -> None:
        loading.write(archive.header(archive.blob_name(blob.digest), blob.size))
        if handle is None:
            self._send_from_source(loading, blob)
        else:
            try:
                _send_file(loading, blob, handle)
            finally:
                os.close(handle)
        loading.write(archive.padding(blob.size))

    def _send_from_source(self, loading: Loading, blob: Descriptor) -> None:
        reader = BlobReader(
            blob.digest,
            blob.size,
            lambda offset: self._source.open_blob(blob, offset),
            keep=None,
            progress=self._progress(blob.size),
            cancel=self._stopped,
        )
        sent = 0
        for chunk in reader.chunks():
            # A longer blob than the header says would go on as the next file.
            sent += len(chunk)
            if sent <= blob.size:
                loading.write(chunk)
        reader.verify()

    def _progress(self, total: int) -> Callable[[int], None]:
        throttle = Throttle()

        def report(done: int) -> None:
            if throttle.passes(last=done == total):
                self._job.tell(events.ExportProgress(self._name, done, total))

        return report

    def _send_documents(self, loading: Loading) -> None:
        image = self._image
        manifest = archive.descriptor(image.manifest.media_type, image.digest, len(image.manifest_bytes))
        entry = archive.index_entry(manifest, self._name, image.platform)
        files = (
            (archive.blob_name(image.manifest.config.digest), image.config_bytes),
            (archive.blob_name(image.digest), image.manifest_bytes),
            (archive.INDEX_NAME, archive.index([entry])),
            (archive.LAYOUT_NAME, archive.LAYOUT),
        )
        for name, data in files:
            loading.write(archive.small_file(name, data))
        loading.write(archive.END)


def _send_file(loading: Loading, blob: Descriptor, handle: int) -> None:
    offset = 0
    while offset < blob.size and (chunk := os.pread(handle, min(CHUNK, blob.size - offset), offset)):
        loading.write(chunk)
        offset += len(chunk)
    if offset != blob.size:
        raise ContentError(f"blob {blob.digest.short}: its file was cut while it was read")


@contextlib.contextmanager
def feeding(
    image: ResolvedImage, source: Source, program: str, folder: Path | None, job: Job
) -> Iterator[tuple[Feed, Job]]:
    """A feed that has loaded the image when the block is left, and the job for who makes the blobs arrive.

    An error that leaves the block ends the program, which then has loaded nothing; where the feed itself has failed,
    its error takes the place of the interruption that followed from it.
    """
    feed = Feed(image, source, program, folder, job)
    if not source.remote:
        # Reading twice costs nothing, and nothing keeps what is read.
        feed.fetch_again(image.manifest.layers)
    feed.start()
    try:
        yield feed, replace(job, observer=feed.observe, cancel=feed.failed)
        feed.finish()
    except BaseException as error:
        cause = feed.stop()
        if cause is not None and cause is not error and isinstance(error, Cancelled) and not job.cancel.is_set():
            raise cause from None
        raise
