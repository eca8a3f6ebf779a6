"""What was recorded: counts, sketches of values, gauges; can be added up and sent on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.observe.sketch import Sketch

# A metric's name, and the values of its labels in the order in which the table of metrics names them.
Series = tuple[str, tuple[str, ...]]

# More series than any process has business with: a label took values without bound. The rest is not recorded.
MOST_SERIES = 2_000
# Slow operations that are remembered until the next report: the last ones.
MOST_SLOW = 20


@dataclass(frozen=True, slots=True)
class Slow:
    """A run of an operation that took longer than `slow_seconds`."""

    operation: str
    seconds: float
    at: float  # when it had ended, in seconds since 1970
    error: str | None  # under what its error is counted
    context: Mapping[str, str]  # what was bound: CONTEXT_KEYS


@dataclass(slots=True)
class Measured:
    """Of some time; gauges as they were last set. Of each kind MOST_SERIES at most. Not thread-safe."""

    counts: dict[Series, float] = field(default_factory=dict)
    sketches: dict[Series, Sketch] = field(default_factory=dict)
    gauges: dict[Series, float] = field(default_factory=dict)
    slow: list[Slow] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.counts or self.sketches or self.gauges or self.slow)

    def count(self, series: Series, number: float) -> None:
        if series in self.counts or len(self.counts) < MOST_SERIES:
            self.counts[series] = self.counts.get(series, 0.0) + number

    def sketch(self, series: Series) -> Sketch | None:
        """That of the series, made where it is missing; None where there are too many."""
        found = self.sketches.get(series)
        if found is None and len(self.sketches) < MOST_SERIES:
            found = self.sketches[series] = Sketch()
        return found

    def gauge(self, series: Series, value: float) -> None:
        if series in self.gauges or len(self.gauges) < MOST_SERIES:
            self.gauges[series] = value

    def add_slow(self, slow: Slow) -> None:
        self.slow = [*self.slow[1 - MOST_SLOW :], slow]

    def merge(self, later: Measured) -> None:
        """Adds what was recorded after it."""
        for series, number in later.counts.items():
            self.count(series, number)
        for series, values in later.sketches.items():
            if (known := self.sketch(series)) is not None:
                known.merge(values)
        for series, value in later.gauges.items():
            self.gauge(series, value)
        self.slow = [*self.slow, *later.slow][-MOST_SLOW:]

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": [[name, labels, number] for (name, labels), number in self.counts.items()],
            "sketches": [[name, labels, found.to_json()] for (name, labels), found in self.sketches.items()],
            "gauges": [[name, labels, value] for (name, labels), value in self.gauges.items()],
            "slow": [[run.operation, run.seconds, run.at, run.error, dict(run.context)] for run in self.slow],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Measured:
        """Of what `to_json` made."""
        return cls(
            {(name, tuple(labels)): number for name, labels, number in found["counts"]},
            {(name, tuple(labels)): Sketch.from_json(values) for name, labels, values in found["sketches"]},
            {(name, tuple(labels)): value for name, labels, value in found["gauges"]},
            [Slow(*run) for run in found["slow"]],
        )
