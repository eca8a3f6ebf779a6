"""Quantiles of many values in little memory, which can be added up over processes.

DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees", VLDB
2019): values are counted in buckets whose bounds grow by a factor. Any quantile is told with a relative error of
RELATIVE_ERROR at most; count, sum, least and greatest are exact.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

RELATIVE_ERROR = 0.02
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_E = 1 / math.log(_GAMMA)
# Values below this (a nanosecond, where they are seconds) are counted as zero.
_LEAST = 1e-9
ZERO = -1_000  # the bucket of zero; those of other values are above it


def bucket_of(value: float) -> int:
    """The bucket of a value, which is finite and not negative."""
    return math.ceil(math.log(value) * _PER_E) if value > _LEAST else ZERO


def value_of(bucket: int) -> float:
    """A value that no value of the bucket is further from than RELATIVE_ERROR of it."""
    return 0.0 if bucket == ZERO else 2 * _GAMMA**bucket / (_GAMMA + 1)


def upper_bound(bucket: int) -> float:
    """The upper bound of a bucket, which is in it."""
    return _GAMMA**bucket


@dataclass(slots=True)
class Sketch:
    """What is known of a set of values; empty at first. Not thread-safe."""

    count: int = 0
    total: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf
    buckets: dict[int, int] = field(default_factory=dict)

    def add(self, value: float) -> None:
        """A value, finite and not negative."""
        bucket = bucket_of(value)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.total += value
        # As min and max do, in a third of the time: this is called for everything that is measured.
        if value < self.least:  # noqa: PLR1730
            self.least = value
        if value > self.greatest:  # noqa: PLR1730
            self.greatest = value

    def merge(self, other: Sketch) -> None:
        """Adds the values of another one."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)

    def counts_up_to(self, bounds: Sequence[float]) -> list[int]:
        """How many of the values are not above each of the bounds (ascending, each the bound of a bucket): exact."""
        last = [ZERO if bound <= 0 else round(math.log(bound) * _PER_E) for bound in bounds]
        counts = [0] * len(bounds)
        for bucket, count in self.buckets.items():
            if (place := bisect_left(last, bucket)) < len(counts):
                counts[place] += count
        return list(accumulate(counts))

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """The value that a share q (0 to 1) of the values is not above, within RELATIVE_ERROR; None of no values.

        The one at rank `ceil(q * count)` of the values in order, as `numpy.quantile(..., method="inverted_cdf")`.
        """
        if not self.count:
            return None
        rank = max(1, math.ceil(q * self.count))
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                return min(max(value_of(bucket), self.least), self.greatest)
        return self.greatest

    def to_json(self) -> dict[str, object]:
        return {
            "count": self.count,
            "total": self.total,
            "least": self.least if self.count else None,
            "greatest": self.greatest if self.count else None,
            "buckets": {str(bucket): count for bucket, count in self.buckets.items()},
        }

    @classmethod
    def from_json(cls, found: Mapping[str, object]) -> Sketch:
        """Of what `to_json` made."""
        buckets = found["buckets"]
        assert isinstance(buckets, Mapping)
        least, greatest = found["least"], found["greatest"]
        return cls(
            count=int(str(found["count"])),
            total=float(str(found["total"])),
            least=math.inf if least is None else float(str(least)),
            greatest=-math.inf if greatest is None else float(str(greatest)),
            buckets={int(bucket): int(count) for bucket, count in buckets.items()},
        )
