"""What else may take an image while it is pulled, so that nothing is fetched twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from msb_pull.ground.running import Job
from msb_pull.image.digest import Digest
from msb_pull.source.interface import ResolvedImage, Source

# Called by threads of the pool with a blob that has arrived and matches its digest, and the descriptor of the file that
# holds it. The file may be closed and removed once the call has returned: who needs it longer duplicates the
# descriptor.
Arrived = Callable[[Digest, int], None]


@dataclass(frozen=True, slots=True)
class Taking:
    """How an image is to be pulled while something else takes it: as which job, and what to tell of its blobs.

    Only what comes over a network is told of.
    """

    job: Job
    arrived: Arrived


# Given an image that was resolved, its source, which stays open for as long as the ``with`` block lasts, and the job.
# What leaves the block is the end of the pull; an error that was set off by whoever takes the image becomes its own.
Receive = Callable[[ResolvedImage, Source, Job], AbstractContextManager[Taking]]
