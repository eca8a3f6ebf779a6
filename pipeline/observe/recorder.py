"""What this process counts and measures, until it is drained: by name and label values, in memory alone.

Recording costs about a microsecond, waits for nobody and raises nothing. What the names mean, and their labels, is in
`pipeline/monitoring/metrics.py`; who drains a process, and where to, is in `pipeline/monitoring/reporting.py`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from pipeline.errors import MillraceError
from pipeline.observe.context import logger
from pipeline.observe.sketch import Sketch

# A metric's name, and the values of its labels in the order in which the table of metrics names them.
Series = tuple[str, tuple[str, ...]]

OPERATION_SECONDS = "operation_seconds"
OPERATION_ERRORS = "operation_errors"

# More series than this process has any business with: a label took values without bound. The rest is not recorded.
MOST_SERIES = 2_000

_log = logger("slow")


@dataclass(slots=True)
class Measured:
    """What was recorded since the last drain; gauges as they were last set."""

    counts: dict[Series, float] = field(default_factory=dict)
    sketches: dict[Series, Sketch] = field(default_factory=dict)
    gauges: dict[Series, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.counts or self.sketches or self.gauges)


class Recorder:
    """Thread-safe. Of one process: a forked child begins with nothing (`clear`)."""

    def __init__(self) -> None:
        self.enabled = True
        self.slow_seconds = 0.0  # an operation that takes longer is logged; 0: none is
        self._lock = threading.Lock()
        self._measured = Measured()

    def count(self, name: str, number: float, labels: tuple[str, ...]) -> None:
        if not self.enabled:
            return
        series = (name, labels)
        with self._lock:
            counts = self._measured.counts
            if series in counts or len(counts) < MOST_SERIES:
                counts[series] = counts.get(series, 0.0) + number

    def observe(self, name: str, value: float, labels: tuple[str, ...]) -> None:
        if not self.enabled:
            return
        series = (name, labels)
        with self._lock:
            sketch = self._measured.sketches.get(series)
            if sketch is None:
                if len(self._measured.sketches) >= MOST_SERIES:
                    return
                sketch = self._measured.sketches[series] = Sketch()
            sketch.add(value)

    def gauge(self, name: str, value: float, labels: tuple[str, ...]) -> None:
        if not self.enabled:
            return
        with self._lock:
            if (name, labels) in self._measured.gauges or len(self._measured.gauges) < MOST_SERIES:
                self._measured.gauges[name, labels] = value

    def drain(self) -> Measured:
        """What was recorded since the last call; it is the caller's now."""
        with self._lock:
            measured, self._measured = self._measured, Measured()
        return measured

    def clear(self) -> None:
        """In a fresh child: what its parent had recorded is its parent's, and so is its lock."""
        self._lock = threading.Lock()
        self._measured = Measured()


recorder = Recorder()


def count(name: str, number: float = 1.0, *labels: str) -> None:
    """So many more of something."""
    recorder.count(name, number, labels)


def observe(name: str, value: float, *labels: str) -> None:
    """One value, finite and not negative, of which percentiles are wanted."""
    recorder.observe(name, value, labels)


def gauge(name: str, value: float, *labels: str) -> None:
    """What something is at the moment."""
    recorder.gauge(name, value, labels)


class operation:  # noqa: N801 - used as `with operation("embed"):`
    """Times what is done within, counts its errors by class, and logs it where it is slow.

    name: of a closed set (`OPERATIONS` of the table of metrics). What is raised within goes on.
    """

    __slots__ = ("_name", "_started")

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = 0.0

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._started
        recorder.observe(OPERATION_SECONDS, seconds, (self._name,))
        if kind is not None and issubclass(kind, Exception):
            # Other classes are anybody's: they are told of together, so that there is an end to them.
            recorder.count(
                OPERATION_ERRORS, 1, (self._name, kind.__name__ if issubclass(kind, MillraceError) else "other")
            )
        if 0 < recorder.slow_seconds < seconds:
            _log.warning("%s took %.3f s", self._name, seconds, extra={"operation": self._name, "seconds": seconds})
