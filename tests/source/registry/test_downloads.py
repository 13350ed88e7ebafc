"""How fast downloads come, and what ends the waiting for them."""

from __future__ import annotations

import pytest

from msb_pull.ground.errors import Cancelled
from msb_pull.ground.running import Cancel
from msb_pull.source.http.retry import Clock
from msb_pull.source.http.sockets import Patience
from msb_pull.source.registry.downloads import Limiter


def test_a_wait_for_the_rate_ends_with_the_part_of_the_work_that_it_is_for():
    patience, failed = Patience(Cancel()), Cancel()
    failed.set()
    limiter = Limiter(1, Clock(), patience)
    with patience.obeying(failed), pytest.raises(Cancelled):
        limiter.take(1000)
