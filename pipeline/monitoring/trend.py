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
    """The slope of (days, value). None where there are not enough samples yet."""
    times = [day for day, _ in samples]
    if len(samples) < LEAST_SAMPLES or max(times) - min(times) < LEAST_DAYS:
        return None
    return Trend(slope(samples), len(samples), max(times) - min(times))


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Of (time, value), by time: the median of the slopes between every two, which up to 29 % of outliers do not move
    far (Theil-Sen; Sen, 1968). 0.0 where no two are of different times. At most 300 are taken, evenly."""
    taken = sorted(samples)[:: max(1, len(samples) // 300)]
    slopes = [
        (later - earlier) / (at - before) for (before, earlier), (at, later) in combinations(taken, 2) if at > before
    ]
    return median(slopes) if slopes else 0.0


def days_until_full(used: float, room: float | None, found: Trend | None) -> float | None:
    """Days until `used` reaches `room` at this growth; 0 where it has. None: not known, or it does not grow."""
    if room is None:
        return None
    if used >= room:
        return 0.0
    if found is None or found.per_day <= _NOTHING_BYTES:
        return None
    return (room - used) / found.per_day
