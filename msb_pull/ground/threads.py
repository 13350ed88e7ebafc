"""Threads, with an error that says what to raise where the system has none left; Python has a RuntimeError for that."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from msb_pull.ground.errors import exhausted

if TYPE_CHECKING:
    from collections.abc import Callable


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Starts a thread that ends with the process; raises LocalError when there can be no more."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise exhausted(error) or error from None
    return thread
