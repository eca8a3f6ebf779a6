"""What beat sends, and how often. A duty claims its row in the ledger, so a second beat or a late tick is harmless."""

from __future__ import annotations

from typing import Any

from pipeline.broker import CONTROL_QUEUE
from tasks.maintenance import DUTIES


def beat_schedule() -> dict[str, dict[str, Any]]:
    """One entry a duty. A tick that nobody took before the next one is due is worthless, and expires."""
    return {
        duty.task: {
            "task": duty.task,
            "schedule": duty.interval_seconds,
            "options": {"queue": CONTROL_QUEUE, "expires": max(2.0, duty.interval_seconds)},
        }
        for duty in DUTIES
    }
