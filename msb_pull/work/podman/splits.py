"""What podman makes the archives of shown layers again from, for ``podman save`` and ``podman push``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isal import isal_zlib

from msb_pull.ground.errors import ContentError
from msb_pull.layer.proof.model import content_paths
from msb_pull.layer.tar.split import split_lines
from msb_pull.work.recorded import layer_stream, load_layer

if TYPE_CHECKING:
    from typing import BinaryIO

    from msb_pull.ground.running import Job
    from msb_pull.store.podman.shown import ShownLayer
    from msb_pull.store.store import Store


class SplitWriter:
    """Writes tar-split's metadata of layers of a locked store; reads the contents of all their files."""

    def __init__(self, store: Store, job: Job) -> None:
        self._store = store
        self._job = job

    def write(self, layer: ShownLayer, out: BinaryIO) -> bool:
        """Writes that of one layer, compressed; False, and a warning, where there can be none.

        Raises OSError, Cancelled.
        """
        store, key = self._store, layer.key
        try:
            record, nodes = load_layer(store, key)
            stream = layer_stream(store, key, record, nodes)
            deflate = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
            for line in split_lines(record, stream, content_paths(nodes)):
                out.write(deflate.compress(line))
                self._job.cancel.check()
            out.write(deflate.flush())
        except ContentError as error:
            self._job.warn("", f"podman cannot save or push layer {key.short}: {error.message}")
            return False
        return True
