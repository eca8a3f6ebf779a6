"""Beat's scheduler: it sends no more ticks than somebody may come to take."""

from __future__ import annotations

from typing import Any

from celery.beat import PersistentScheduler

from pipeline.broker import CONTROL_QUEUE
from pipeline.observe import logger
from tasks.maintenance import DUTIES

# Ticks expire, but stay in the queue until a worker has looked at them. A few of each duty are in it at most, however
# long no worker does, and however many beats there are.
MOST_TICKS = 4 * len(DUTIES)

_log = logger("beat")


class BoundedScheduler(PersistentScheduler):  # type: ignore[misc] # celery has no types
    """Leaves a tick out while as many wait as may: the next one comes soon enough."""

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> Any:
        """The result of sending; None for a tick that is left out. Raises SchedulingError where Redis is away."""
        if producer is not None and waiting(producer) >= MOST_TICKS:
            _log.warning("%s is left out: %d ticks wait already, no worker takes them", entry.name, MOST_TICKS)
            return None
        return super().apply_async(entry, producer=producer, advance=advance, **options)


def waiting(producer: Any) -> int:
    """Messages in the control queue. Raises what redis raises; beat logs it, and goes on with the next tick."""
    return int(producer.channel.client.llen(CONTROL_QUEUE))
