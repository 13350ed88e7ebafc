"""A program that shows a made-up pull through the real display; run by the terminal tests.

Arguments: count of layers, layers at once, seconds that the pull takes.
"""

from __future__ import annotations

import sys
import time

from msb_pull.config import settings as config
from msb_pull.display.display import Display
from msb_pull.display.streams import Streams
from msb_pull.ground import events as e
from tests.support.events import IMAGE, digest, planned, progress

SIZE = 10_000_000


def main() -> None:
    count, jobs, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    display = Display(Streams.of_process())
    display.configure(config.load({"jobs": str(jobs)}), form="text", quiet=False, verbosity=0)
    display.observe(e.Resolving(IMAGE))
    display.observe(planned(*[SIZE] * count, present={0}))
    groups = [range(first, min(first + jobs, count)) for first in range(1, count, jobs)]
    steps = 20
    for group in groups:
        for step in range(1, steps + 1):
            for layer in group:
                phase = e.Phase.UNPACKING if step == steps else e.Phase.DOWNLOADING
                display.observe(progress(layer, SIZE * step // steps, SIZE, phase))
            time.sleep(seconds / steps / len(groups))
        for layer in group:
            display.observe(e.LayerDone(IMAGE, digest(layer), SIZE, SIZE, present=False))
    display.note(f"Pulled {IMAGE}: 10.0 MB in 1.0s", done=True)
    display.result(f"{IMAGE}@{digest(0)}")
    display.close()


if __name__ == "__main__":
    main()
