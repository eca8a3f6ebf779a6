"""In which order a worker looks into its queues: weighted turns; high is served first and low is never starved."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.broker import CONTROL_QUEUE, WORK_QUEUES

# Of ten messages taken while everything is backlogged: seven high, two normal, one low. Spread out, so that no queue
# waits longer than it must.
TURNS = ("high", "high", "high", "normal", "high", "high", "high", "normal", "high", "low")

_ORDER = (CONTROL_QUEUE, *WORK_QUEUES)


class WeightedTurns:
    """kombu's queue cycle (`queue_order_strategy`): whose turn it is comes first, then the others by priority.

    Rescue work is few and short, and always first. kombu makes one per channel, and calls `rotate` after each message.
    """

    def __init__(self, queues: Iterable[str] = ()) -> None:
        self._queues: list[str] = []
        self._turn = 0
        self.update(queues)

    def update(self, queues: Iterable[str]) -> None:
        """The queues that this worker consumes."""
        known = {name: place for place, name in enumerate(_ORDER)}
        self._queues = sorted(queues, key=lambda name: (known.get(name, len(_ORDER)), name))

    def consume(self, count: int) -> list[str]:
        """The queues in the order in which the next message is looked for."""
        first = (CONTROL_QUEUE, TURNS[self._turn])
        return sorted(self._queues, key=lambda name: first.index(name) if name in first else len(first))[:count]

    def rotate(self, last_used: str) -> str:
        """A message came from this queue: the turn passes on. Rescue work takes nobody's turn."""
        if last_used != CONTROL_QUEUE:
            self._turn = (self._turn + 1) % len(TURNS)
        return last_used
