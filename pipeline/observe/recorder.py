"""What this process counts and measures, until it is drained: by name and label values, in memory alone.

Recording costs about a microsecond, waits for nobody and raises nothing. What the names mean, and their labels, is in
`pipeline/monitoring/metrics.py`; who drains a process, and where to, is in `pipeline/monitoring/reporting.py`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from pipeline import errors
from pipeline.observe.context import context, logger
from pipeline.observe.measured import Measured, Slow

OPERATION_SECONDS = "operation_seconds"
OPERATION_ERRORS = "operation_errors"
# Classes of errors that are not ours are anybody's: they are told of together, so that there is an end to them.
OTHER_ERROR = "other"
# A class with this attribute, and true, says that something was left off, and is no failure.
HARMLESS = "harmless"

_ERRORS = errors.__name__

_log = logger("slow")


class Recorder:
    """Thread-safe. Of one process: a forked child begins with nothing (`clear`)."""

    def __init__(self) -> None:
        self.enabled = True
        self.slow_seconds = 0.0  # an operation that takes longer is logged; 0: none is
        self.slow_by_design: Mapping[str, float] = {}  # operations that may take longer than that, and how long
        self._lock = threading.Lock()
        self._measured = Measured()
        self._listeners: list[Callable[[], None]] = []
        self._waiting: list[Callable[[], None]] = []

    def count(self, name: str, number: float, labels: tuple[str, ...]) -> None:
        if not self.enabled:
            return
        with self._lock:
            self._measured.count((name, labels), number)
        if self._waiting:
            self._wake()

    def observe(self, name: str, value: float, labels: tuple[str, ...]) -> None:
        if not self.enabled:
            return
        with self._lock:
            sketch = self._measured.sketch((name, labels))
            if sketch is not None:
                sketch.add(value)
        if self._waiting:
            self._wake()

    def gauge(self, name: str, value: float, labels: tuple[str, ...]) -> None:
        if not self.enabled:
            return
        with self._lock:
            self._measured.gauge((name, labels), value)
        if self._waiting:
            self._wake()

    def slow(self, slow: Slow) -> None:
        if self.enabled:
            with self._lock:
                self._measured.add_slow(slow)

    def drain(self) -> Measured:
        """What was recorded since the last call; it is the caller's now."""
        with self._lock:
            measured, self._measured = self._measured, Measured()
        return measured

    def clear(self) -> None:
        """In a fresh child: what its parent had recorded is its parent's, and so is its lock."""
        self._lock = threading.Lock()
        self._measured = Measured()
        self._waiting = list(self._listeners)

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls it at the next record of this process, and at the first one of each process forked from it."""
        self._listeners.append(listener)
        self._waiting.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        """Does not call it any more."""
        for known in (self._listeners, self._waiting):
            if listener in known:
                known.remove(listener)

    def _wake(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for listener in waiting:
            listener()


recorder = Recorder()
os.register_at_fork(after_in_child=recorder.clear)


def count(name: str, number: float = 1.0, *labels: str) -> None:
    """So many more of something."""
    recorder.count(name, number, labels)


def observe(name: str, value: float, *labels: str) -> None:
    """One value, finite and not negative, of which percentiles are wanted."""
    recorder.observe(name, value, labels)


def gauge(name: str, value: float, *labels: str) -> None:
    """What something is at the moment."""
    recorder.gauge(name, value, labels)


def error_class(kind: type[BaseException]) -> str:
    """Under what errors of this class are counted: a name of pipeline.errors, or `other`."""
    return next((known.__name__ for known in kind.__mro__ if known.__module__ == _ERRORS), OTHER_ERROR)


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
        record(self._name, time.perf_counter() - self._started, kind)


def record(name: str, seconds: float, kind: type[BaseException] | None = None) -> None:
    """An operation that took so long. kind: the class of what it raised."""
    recorder.observe(OPERATION_SECONDS, seconds, (name,))
    if kind is not None and issubclass(kind, Exception) and not getattr(kind, HARMLESS, False):
        recorder.count(OPERATION_ERRORS, 1, (name, error_class(kind)))
    if 0 < recorder.slow_seconds < seconds and seconds > recorder.slow_by_design.get(name, 0.0):
        _tell_slow(name, seconds, kind)


def _tell_slow(name: str, seconds: float, kind: type[BaseException] | None) -> None:
    error = error_class(kind) if kind is not None else None
    recorder.slow(Slow(name, seconds, time.time(), error, context()))
    _log.warning("%s took %.3f s", name, seconds, extra={"operation": name, "seconds": seconds})
