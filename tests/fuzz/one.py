"""The process of one target, which libFuzzer takes over: `python -m tests.fuzz.one TARGET PROGRAM WORD …`.

PROGRAM runs this with the words that follow it; libFuzzer starts it for every part of a merge.
"""

from __future__ import annotations

import sys

import atheris

# The code that is measured; it must not have been imported before.
MEASURED = ["msb_pull.layer", "msb_pull.image", "msb_pull.source.http.challenge"]

if __name__ == "__main__":
    with atheris.instrument_imports(include=MEASURED):
        from tests.fuzz.targets import TARGETS
    atheris.Setup(sys.argv[2:], TARGETS[sys.argv[1]])
    atheris.Fuzz()
