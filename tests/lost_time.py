"""How long this process stood still: on a busy machine, who measures seconds measures those too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_STEP_SECONDS = 0.02


@contextmanager
def lost_time() -> Iterator[Callable[[], float]]:
    """Gives what tells by how many seconds a thread that sleeps for a moment, again and again, woke too late so far."""
    over = threading.Event()
    lost = 0.0

    def measure() -> None:
        nonlocal lost
        while not over.is_set():
            began = time.monotonic()
            time.sleep(_STEP_SECONDS)
            lost += time.monotonic() - began - _STEP_SECONDS

    measuring = threading.Thread(target=measure, name="lost-time")
    measuring.start()
    try:
        yield lambda: lost
    finally:
        over.set()
        measuring.join()
