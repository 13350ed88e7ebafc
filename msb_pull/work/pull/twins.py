"""Layers that are in the store under another digest: the same tar stream, compressed in another way.

Such a twin is not fetched. Its stream is made again from its record and its directory, and goes through the same child
and the same comparison with the ``diff_id`` as one that was downloaded; only the compressed digest is not compared with
anything. That the blob of this digest has this content is what the image says, and images can lie. So what is made
never gets the plain name of the blob (``Bases.key_for``), which stands for what was downloaded; and whoever believes
something else of the same digest downloads it, and then has the last word.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from msb_pull.ground.errors import ContentError, NotFoundError, raise_if_exhausted
from msb_pull.ground.pools import Handoff
from msb_pull.ground.sizes import counted
from msb_pull.layer.noted import noted_diff_id
from msb_pull.store.index.keys import LayerKey, layers_noted
from msb_pull.work.recorded import layer_stream, load_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from msb_pull.ground.running import Cancel
    from msb_pull.image.digest import Digest
    from msb_pull.layer.report import UnpackReport
    from msb_pull.layer.unpack.process import LayerProcess
    from msb_pull.source.interface import Source
    from msb_pull.store.store import Store
    from msb_pull.work.pull.plan import WantedLayer


class Twins:
    """What the store can make layers from; every method may be called from any thread.

    What was there when it was asked first is known, and layers of the very same digest at any time.
    """

    def __init__(self, store: Store, source: Source, *, off: bool) -> None:
        """For layers of ``source``; where they are ``off``, only for those that it lacks."""
        self._store = store
        self._source = source
        self._off = off
        self._lock = threading.Lock()
        self._noted: list[tuple[LayerKey, str]] | None = None
        self._claimed: dict[Digest, set[str]] | None = None

    def find(self, wanted: WantedLayer) -> LayerKey | None:
        """The layer to make this one from: another form of it, or one with the same content; None where none is.

        None as well where its blob is at hand, which has both digests.
        """
        if not self._source.lacks(wanted.descriptor) and (self._off or not self._source.remote):
            return None
        digest, diff_id = wanted.descriptor.digest, str(wanted.diff_id)
        # Live: a lie must not take the place of what came since the others were looked at.
        forms = self._there(digest)
        if forms and (forms[0][0] == LayerKey(digest) or all(noted == diff_id for _, noted in forms)):
            # The first one was downloaded if its name is plain, and then it has the last word.
            key, noted = forms[0]
            return key if noted == diff_id else None
        if forms or self._is_doubtful(digest, diff_id):
            return None
        with self._lock:
            if self._noted is None:
                self._noted = self._there()
            known = self._noted
        return min((key for key, noted in known if noted == diff_id and self._store.has_layer(key)), default=None)

    def anew(self) -> Twins:
        """The same with all that is known by now."""
        return Twins(self._store, self._source, off=self._off)

    def check(self, name: str, where: str, missing: Sequence[WantedLayer]) -> None:
        """Raises NotFoundError for layers that the source is known to lack, and that cannot be made either."""
        lost = [x for x in missing if self._source.lacks(x.descriptor) and self.find(x) is None]
        if lost:
            raise NotFoundError(
                f"{name}: {counted(len(lost), 'layer')} of it are neither in {where} nor in the store",
                cause=f"missing: {', '.join(x.descriptor.digest.short for x in lost)}",
                hint="pull what they were left out for first, or take an archive that has all layers",
            )

    def unpack(
        self, key: LayerKey, wanted: WantedLayer, process: LayerProcess, progress: Callable[[int], None], cancel: Cancel
    ) -> tuple[UnpackReport, int]:
        """Feeds the stream of a layer to ``process``, which the caller ends; returns its report, and the stream's size.

        ``progress`` hears how many bytes of the blob that would have been. Raises ContentError where the layer cannot
        be read, or is not what its notes say; LocalError, Cancelled.
        """
        try:
            return self._unpack(key, wanted, process, progress, cancel)
        except OSError as error:
            raise_if_exhausted(error)
            # Another process may just be swapping it.
            raise ContentError(f"layer {key.short}: cannot be read", cause=error.strerror) from error

    def _unpack(
        self, key: LayerKey, wanted: WantedLayer, process: LayerProcess, progress: Callable[[int], None], cancel: Cancel
    ) -> tuple[UnpackReport, int]:
        record, nodes = load_layer(self._store, key)
        hasher, size, done = wanted.diff_id.hasher(), wanted.descriptor.size, 0

        def pass_on(piece: bytes) -> None:
            hasher.update(piece)
            process.write(piece)

        with contextlib.ExitStack() as ending:
            feeding = ending.enter_context(Handoff(pass_on))
            # A thread that waits for the child gets away only when the child is gone.
            ending.push(lambda kind, error, trace: process.kill() if error else None)
            for piece in layer_stream(self._store, key, record, nodes):
                cancel.check()
                done += len(piece)
                feeding.put(bytes(piece))
                progress(size * done // record.length)
            feeding.finish()
            if hasher.hexdigest() != wanted.diff_id.hex:
                raise ContentError(f"layer {key.short}: its stream no longer matches its diff_id")
            if wanted.descriptor.digest == wanted.diff_id and done != size:
                raise ContentError(f"layer {key.short} has {done} bytes instead of {size}")
            return process.finish(), done

    def _there(self, digest: Digest | None = None) -> list[tuple[LayerKey, str]]:
        """The complete layers, all or those with a digest, in the order of their names, and the content of each."""
        store = self._store
        keys = layers_noted(store.own / "records", digest)
        noted = ((key, noted_diff_id(store.notes_path(key))) for key in keys if store.has_layer(key))
        return [(key, diff_id) for key, diff_id in noted if diff_id is not None]

    def _is_doubtful(self, digest: Digest, diff_id: str) -> bool:
        """Whether an image of the store says that the blob of a digest has another content."""
        with self._lock:
            if self._claimed is None:
                self._claimed = {}
                if self._store.has_images:
                    with self._store.database(create=False) as database:
                        layers = [layer for image in database.images() for layer in image.layers]
                    for layer in layers:
                        self._claimed.setdefault(layer.digest, set()).add(str(layer.diff_id))
        return bool(self._claimed.get(digest, set()) - {diff_id})
