"""Four workers, five images whose layers contradict each other, signals and damage: all comes right again.

``CHAOS_ROUNDS=500`` runs the long form, ``CHAOS_SEED`` other rounds; ``CHAOS_FIRST`` begins with that one.
"""

from __future__ import annotations

import os
import sys

import pytest

from tests.support.chaos import FOREVER, Chaos
from tests.support.fault_registry import FaultRegistry

# The environment of a test is cleaned before it runs, so these are read here.
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "60"))
FIRST = int(os.environ.get("CHAOS_FIRST", "0"))
SEED = os.environ.get("CHAOS_SEED", "1")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.timeout(120 + 10 * ROUNDS + 10 * FOREVER)
def test_everything_at_once_comes_right_again(tmp_path):
    with FaultRegistry() as registry:
        chaos, failures = Chaos(tmp_path, registry, SEED), []
        for number in range(FIRST, FIRST + ROUNDS):
            try:
                chaos.round(number)
            except AssertionError as error:
                failures.append(str(error))
    print(f"\nseed {SEED}, {ROUNDS} rounds, {len(failures)} with failures; (command, code): {dict(chaos.codes)}")
    print(f"longest: {chaos.longest[0]:.1f} s, {chaos.longest[1]}")
    assert not failures, "\n\n".join(failures)
