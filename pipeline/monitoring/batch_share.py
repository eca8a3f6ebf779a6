"""The share of their size that batches have now: 1.0; less while memory is short or work too slow (`triggers.py`)."""

from __future__ import annotations

import threading
import time

from pipeline.ledger import overrides
from pipeline.ledger.engine import Connection
from pipeline.monitoring.triggers import LEAST_SHARE, SHARE
from pipeline.observe import logger

# A process looks so often, within a transaction that it has open anyway.
LOOK_SECONDS = 10.0

_log = logger("batches")


class BatchShare:
    """As this process last read it. Thread-safe; a forked child looks for itself."""

    def __init__(self, look_seconds: float = LOOK_SECONDS) -> None:
        self._look_seconds = look_seconds
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._value = 1.0

    @property
    def value(self) -> float:
        """LEAST_SHARE to 1.0, as last read."""
        return self._value

    def read(self, connection: Connection) -> float:
        """The share now, at most LOOK_SECONDS old."""
        with self._lock:
            if time.monotonic() - self._looked < self._look_seconds:
                return self._value
            self._looked = time.monotonic()
        found = overrides.get(connection, SHARE)
        value = 1.0 if found is None else min(1.0, max(LEAST_SHARE, found.value))
        if value != self._value:
            _log.info("batches have %.0f %% of their size now", 100 * value, extra={"batch_share": value})
        self._value = value
        return value
