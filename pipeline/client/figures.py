"""The figures of the whole, and the application's own among them."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsFloat

from pipeline.client.connection import Connected
from pipeline.errors import InvalidRequest
from pipeline.ledger import overrides
from pipeline.monitoring.cluster import ClusterStats
from pipeline.monitoring.window import APPLICATION_COUNTS, APPLICATION_VALUES, SlowOperation, Window
from pipeline.observe import count, observe

# Names of one process: each is a series in Redis for as long as its figures are kept.
MOST_NAMES = 100
# Beyond it, percentiles could not be told any more (and nothing that is measured is as great).
MOST_VALUE = 1e15

_NAME = re.compile(r"[a-z0-9_.]{1,64}")


class Metrics:
    """The application's own figures, beside those of Millrace: `millrace stats` and `client.stats()` show them.

    Each call takes microseconds and waits for nobody: a thread reports what was recorded every
    `metrics.report_seconds`. While Redis is away, an hour's figures are kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: set[str] = set()

    def record(self, name: str, value: SupportsFloat) -> None:
        """One value, of which count, mean and percentiles are wanted: a size, a duration in seconds.

        name: 1 to 64 of a-z, 0-9, `_` and `.`; at most MOST_NAMES in one process. value: 0 to MOST_VALUE.
        Raises InvalidRequest.
        """
        observe(APPLICATION_VALUES, self._checked(name, value), name)

    def count(self, name: str, number: SupportsFloat = 1) -> None:
        """So many more of something, of which the sum is wanted. Raises as `record`."""
        count(APPLICATION_COUNTS, self._checked(name, number), name)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Records the seconds that what is done within takes, whether it fails or not. Raises as `record`."""
        self._checked(name, 0)
        started = time.perf_counter()
        try:
            yield
        finally:
            observe(APPLICATION_VALUES, time.perf_counter() - started, name)

    def _checked(self, name: str, value: SupportsFloat) -> float:
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (math.isfinite(number) and 0 <= number <= MOST_VALUE):
            raise InvalidRequest(
                f"{value!r:.100} cannot be recorded as {name!r}: a value is a number, 0 to {MOST_VALUE:g}."
            )
        if not isinstance(name, str) or name not in self._names:
            self._enter(name)
        return number

    def _enter(self, name: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidRequest(f"{name!r} is no name of a metric: 1 to 64 of a-z, 0-9, _ and . make one.")
        with self._lock:
            if name not in self._names and len(self._names) >= MOST_NAMES:
                raise InvalidRequest(
                    f"{name!r} would be metric number {MOST_NAMES + 1} of this process; {MOST_NAMES} are the limit. "
                    "Put what varies (an id, a user) into your own logs, not into the name."
                )
            self._names.add(name)


_own_metrics = Metrics()  # of this process, as what it records is


class Figures(Connected):
    """What was measured: of all processes together, over the last minutes."""

    @property
    def metrics(self) -> Metrics:
        """For the application's own figures."""
        return _own_metrics

    def stats(self, minutes: float = 5) -> Window:
        """What all processes measured in the last minutes (at most a day of them), summed in Redis.

        Each reports every `metrics.report_seconds`: what is younger may be missing. Raises BrokerUnavailable.
        """
        return self._figures.read(minutes)

    def slow_operations(self, limit: int = 20) -> list[SlowOperation]:
        """The slowest of the last hundred that took longer than `logs.slow_seconds`. Raises BrokerUnavailable."""
        return self._figures.slowest(limit)

    def set_slow_seconds(self, seconds: float | None) -> float:
        """From now on, workers log an operation as slow that takes longer; 0: none is, None: as their settings say.

        In effect within fifteen seconds, without a restart. Returns what is in effect here. Raises InvalidRequest.
        """
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
            raise InvalidRequest(f"{seconds!r} is no number of seconds from which on an operation is slow.")
        with self._services.ledger.transaction() as own:
            if seconds is None:
                overrides.clear(own, overrides.SLOW_SECONDS)
            else:
                overrides.set(own, overrides.SLOW_SECONDS, seconds)
        return self.settings.logs.slow_seconds if seconds is None else seconds

    def reset_stats(self) -> None:
        """Forgets all figures, for everybody. Raises BrokerUnavailable."""
        self._figures.reset()

    @property
    def _figures(self) -> ClusterStats:
        return self._services.figures
