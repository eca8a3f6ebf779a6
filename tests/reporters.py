"""What the clients of earlier tests still hand over: a client that closes waits a moment for it, and no longer."""

from __future__ import annotations

import threading

PATIENCE_SECONDS = 60.0


def let_them_end() -> None:
    """Returns when no client of an earlier test reports any more: what it hands over would be counted with this
    test's. For tests that have no client of their own yet."""
    for thread in threading.enumerate():
        if thread.name == "reporter":
            thread.join(PATIENCE_SECONDS)
