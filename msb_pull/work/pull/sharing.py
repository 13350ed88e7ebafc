"""What the images of one command share: threads, children, what is still to fetch, and what one had to let go."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from msb_pull.ground.pools import Admission, LargestFirst
from msb_pull.layer.unpack.forkserver import ForkServer
from msb_pull.work.pull.coming import Allowance, Coming

if TYPE_CHECKING:
    from msb_pull.ground.running import Job
    from msb_pull.image.digest import Digest
    from msb_pull.work.pull.fetch import FetchedLayer
    from msb_pull.work.pull.plan import WantedLayer


class Shelf:
    """Layers that were unpacked and let go, each for whoever gets its lock next; at most one of a digest and diff_id.

    What nobody takes is dropped when the ``with`` block is left.
    """

    def __init__(self) -> None:
        self._layers: dict[tuple[Digest, Digest], tuple[FetchedLayer, contextlib.ExitStack]] = {}

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for _, resources in self._layers.values():
            resources.close()

    def put(self, wanted: WantedLayer, fetched: FetchedLayer, resources: contextlib.ExitStack) -> None:
        """Takes over a layer, whose lock the caller still holds, and the staging directory in ``resources``."""
        self._layers[wanted.descriptor.digest, wanted.diff_id] = fetched, resources.pop_all()

    def take(self, wanted: WantedLayer, resources: contextlib.ExitStack) -> FetchedLayer | None:
        """Hands over a layer, whose lock the caller holds, with its staging directory; None when there is none."""
        fetched, held = self._layers.pop((wanted.descriptor.digest, wanted.diff_id), (None, resources))
        if fetched is not None:
            resources.enter_context(held)
        return fetched


class Together:
    """The threads, as many as ``job`` says, and the rest, for as long as the ``with`` block lasts."""

    def __init__(self, job: Job) -> None:
        self.pool = LargestFirst(job.at_once, large=job.large_at_once, most=lambda: job.at_once)
        self.admission = Admission()
        self.children = ForkServer()
        self.coming = Coming()
        self.shelf = Shelf()
        self.allowance = Allowance(job)
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Together:
        self._ending.callback(self.children.close)
        self._ending.enter_context(self.shelf)
        self._ending.enter_context(self.pool)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ending.close()
