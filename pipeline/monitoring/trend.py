"""How fast something grows, and when it will be full: of samples that jump, so by the median of slopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

# Fewer samples, or over less time, tell of an ingest that goes on at the moment and not of a trend.
LEAST_SAMPLES = 12
LEAST_DAYS = 1 / 24
# Growth of less than this in a day is none.
_NOTHING_BYTES = 1.0


@dataclass(frozen=True, slots=True)
class Trend:
    """per_day: growth, negative where it shrinks. samples, days: what it was told from."""

    per_day: float
    samples: int
    days: float


def trend(samples: Sequence[tuple[float, float]]) -> Trend | None:
    """The Theil-Sen slope of (days, value): the median of the slopes between every two samples, which up to 29 % of
    outliers do not move far (Sen, 1968). None where there are not enough samples yet.

    n samples: n * (n - 1) / 2 slopes; hand in a hundred or two at most.
    """
    times = [day for day, _ in samples]
    if len(samples) < LEAST_SAMPLES or max(times) - min(times) < LEAST_DAYS:
        return None
    slopes = [
        (later - earlier) / (day - before)
        for (before, earlier), (day, later) in combinations(sorted(samples), 2)
        if day > before
    ]
    return Trend(median(slopes), len(samples), max(times) - min(times))


def days_until_full(used: float, room: float | None, found: Trend | None) -> float | None:
    """Days until `used` reaches `room` at this growth; 0 where it has. None: not known, or it does not grow."""
    if room is None:
        return None
    if used >= room:
        return 0.0
    if found is None or found.per_day <= _NOTHING_BYTES:
        return None
    return (room - used) / found.per_day
