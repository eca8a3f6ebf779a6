"""What all processes together measured in the last minutes, and the figures that are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Self

from pipeline.observe import RELATIVE_ERROR, Series, Sketch

# Series of which the readers here know what they mean; `pipeline/monitoring/metrics.py` has all of them.
OPERATION_SECONDS = "operation_seconds"
OPERATION_ERRORS = "operation_errors"
APPLICATION_VALUES = "application_value"
APPLICATION_COUNTS = "application_count"


@dataclass(frozen=True)
class Distribution:
    """Of the values of one series; min, mean and max are exact, percentiles within RELATIVE_ERROR (2 %)."""

    count: int
    min: float
    mean: float
    max: float
    p50: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, sketch: Sketch, **others: Any) -> Self:
        """Of a sketch with a value at least."""

        def quantile(q: float) -> float:
            return sketch.quantile(q) or 0.0

        return cls(
            count=sketch.count,
            min=sketch.least,
            mean=sketch.mean or 0.0,
            max=sketch.greatest,
            p50=quantile(0.5),
            p90=quantile(0.9),
            p95=quantile(0.95),
            p99=quantile(0.99),
            **others,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class OperationStats(Distribution):
    """How often an operation ran, in how many seconds, and how often it failed; failed runs are counted and timed."""

    errors: int = 0
    errors_by_class: Mapping[str, int] = field(default_factory=dict)

    @property
    def error_rate(self) -> float:
        """The share of the runs that failed, 0 to 1."""
        return min(1.0, self.errors / self.count) if self.count else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "errors_by_class": dict(self.errors_by_class), "error_rate": self.error_rate}


@dataclass(frozen=True)
class SlowOperation:
    """A run that took longer than `slow_seconds`."""

    operation: str
    seconds: float
    at: datetime  # when it had ended, by the clock of its host
    host: str
    error: str | None  # the class of what it raised
    context: Mapping[str, str]  # the ids that were bound: CONTEXT_KEYS

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "at": self.at.isoformat(), "context": dict(self.context)}


@dataclass(frozen=True)
class Window:
    """Sums over all processes.

    since: from when on; whole slots, so that it may reach back by one slot more than was asked for.
    until: the end, by Redis' clock.
    processes: names of those that reported in it; a worker reports for its pool children too.
    """

    since: datetime
    until: datetime
    processes: tuple[str, ...]
    counts: Mapping[Series, float]
    sketches: Mapping[Series, Sketch]

    @property
    def seconds(self) -> float:
        return (self.until - self.since).total_seconds()

    @cached_property
    def operations(self) -> Mapping[str, OperationStats]:
        """By name, sorted."""
        errors: dict[str, dict[str, int]] = {}
        for (name, labels), number in self.counts.items():
            if name == OPERATION_ERRORS and len(labels) == 2:
                errors.setdefault(labels[0], {})[labels[1]] = round(number)
        found = {}
        for (name, labels), sketch in sorted(self.sketches.items()):
            if name == OPERATION_SECONDS and len(labels) == 1 and sketch.count:
                classes = dict(sorted(errors.get(labels[0], {}).items()))
                found[labels[0]] = OperationStats.of(sketch, errors=sum(classes.values()), errors_by_class=classes)
        return found

    @cached_property
    def values(self) -> Mapping[str, Distribution]:
        """What applications recorded of their own, by name, sorted."""
        return {
            labels[0]: Distribution.of(sketch)
            for (name, labels), sketch in sorted(self.sketches.items())
            if name == APPLICATION_VALUES and len(labels) == 1 and sketch.count
        }

    @cached_property
    def totals(self) -> Mapping[str, float]:
        """What applications counted of their own, by name, sorted."""
        return {
            labels[0]: number
            for (name, labels), number in sorted(self.counts.items())
            if name == APPLICATION_COUNTS and len(labels) == 1
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "since": self.since.isoformat(),
            "until": self.until.isoformat(),
            "seconds": round(self.seconds, 3),
            "processes": len(self.processes),
            "relative_error": RELATIVE_ERROR,
            "operations": {name: stats.to_json() for name, stats in self.operations.items()},
            "application": {
                "values": {name: stats.to_json() for name, stats in self.values.items()},
                "counts": dict(self.totals),
            },
        }
