"""A circuit to something that may be away: who was refused a moment ago does not ask again and wait in vain again.

Closed: everybody goes through. After a failure it is open for a while, and everybody is turned away at once; then one
probe goes through while the others are still turned away. A probe that fails opens it for longer, one that succeeds
closes it. What all workers must know together is in the ledger (`pipeline.ledger.circuits`); this is one process's own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum

# A probe whose thread never came back must not keep the circuit open for good.
_PROBE_SECONDS = 60.0


class Admission(Enum):
    """What becomes of a call: it goes, it goes as the probe (and tells how it went), or it does not go now."""

    GO = "go"
    PROBE = "probe"
    REST = "rest"


class Circuit:
    """Thread-safe. Every admitted probe ends with `succeeded`, `failed` or `released`."""

    def __init__(self, rests: Sequence[float], clock: Callable[[], float] = time.monotonic) -> None:
        """rests: seconds that it is open after the first failure, the second in a row, ...; from then on the last."""
        self._rests = tuple(rests)
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0
        self._probe_until = 0.0
        self._why = ""

    @property
    def why(self) -> str:
        """What failed last; empty where it is closed."""
        return self._why

    @property
    def failures(self) -> int:
        """In a row; 0: closed."""
        return self._failures

    def admit(self) -> Admission:
        """Whether a call may go now."""
        if not self._failures:  # read without the lock: the usual case costs nothing
            return Admission.GO
        with self._lock:
            now = self._clock()
            if not self._failures:
                return Admission.GO
            if now < self._open_until or now < self._probe_until:
                return Admission.REST
            self._probe_until = now + _PROBE_SECONDS
            return Admission.PROBE

    def succeeded(self) -> None:
        """It answers: closed."""
        if not self._failures:
            return
        with self._lock:
            self._failures, self._open_until, self._probe_until, self._why = 0, 0.0, 0.0, ""

    def failed(self, why: str) -> None:
        """It does not answer: open, for longer after each failure. Of calls that were under way together one counts."""
        with self._lock:
            now = self._clock()
            self._why = why
            if now >= self._open_until:
                self._open_until = now + self._rests[min(self._failures, len(self._rests) - 1)]
                self._failures += 1
            self._probe_until = 0.0

    def released(self) -> None:
        """The probe ended without an answer to the question; the next call is one."""
        if self._failures:
            with self._lock:
                self._probe_until = 0.0
