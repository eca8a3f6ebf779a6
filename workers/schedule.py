"""What beat sends, and how often. A duty claims its row in the ledger, so a second beat or a late tick is harmless."""

from __future__ import annotations

from typing import Any

from pipeline.broker import CONTROL_QUEUE
from tasks.duties import DUTIES

# Ticks expire, but stay in the queue until a worker has looked at them. A few of each duty are in it at most, however
# long no worker does, and however many beats there are.
MOST_TICKS = 4 * len(DUTIES)

_LEAST_EXPIRY_SECONDS = 2.0


def expiry(interval_seconds: float) -> float:
    """After how many seconds a tick is worthless that nobody took: the next one is due then."""
    return max(_LEAST_EXPIRY_SECONDS, interval_seconds)


def entry(task: str, interval_seconds: float) -> dict[str, Any]:
    """Beat's entry of a duty."""
    return {
        "task": task,
        "schedule": interval_seconds,
        "options": {"queue": CONTROL_QUEUE, "expires": expiry(interval_seconds)},
    }


def beat_schedule() -> dict[str, dict[str, Any]]:
    """One entry a duty, with the interval that the code has; beat asks the ledger for others."""
    return {duty.task: entry(duty.task, duty.interval_seconds) for duty in DUTIES}
