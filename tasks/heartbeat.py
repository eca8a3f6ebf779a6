"""Keeping claims while work makes progress: a long embedding keeps its lease, a hung one loses it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from types import TracebackType
from typing import Self

from pipeline.errors import LeaseLost, Unavailable
from pipeline.ledger.engine import Connection, Ledger
from pipeline.observe import logger
from pipeline.settings import WorkSettings
from tasks import vitals

_log = logger("heartbeat")


# Extends the lease of a claim by so many seconds; False where it is no longer held.
Extend = Callable[[Connection, float], bool]


class Heartbeat:
    """Extends the lease of a claim from a thread of its own, while `progress` is called often enough."""

    def __init__(
        self,
        ledger: Ledger,
        what: str,
        extend: Extend,
        work: WorkSettings,
        on_stall: Callable[[], None] | None = None,
    ) -> None:
        """what: is claimed, for messages. on_stall: called, in the heartbeat's thread, when the claim is let go."""
        self._ledger = ledger
        self._what = what
        self._extend = extend
        self._work = work
        self._on_stall = on_stall
        self._progressed = self._beat = time.monotonic()
        self._lost = False
        self._stop = threading.Event()
        # Its lines are about the same work as those of the thread that does it.
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        vitals.beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        vitals.quiet()

    def alive(self) -> None:
        """The work has got on; for another thread to say."""
        self._progressed = time.monotonic()
        vitals.progress()

    def progress(self) -> None:
        """The work has got on. Raises LeaseLost where another worker has taken it over: it is not worth going on.

        After a time in which there was no heartbeat at all (this process was stopped, or C code let no other thread
        run) the ledger is asked at once.
        """
        silent = time.monotonic() - self._beat > self._work.lease_seconds
        self.alive()
        if silent and not self._lost:
            self._extend_lease()
        if self._lost:
            raise LeaseLost(f"{self._what} was taken over")

    def _run(self) -> None:
        while not self._stop.wait(self._work.heartbeat_seconds):
            if time.monotonic() - self._progressed > self._work.stall_seconds:
                # Its worker's main process sees it too, and ends it.
                _log.warning("%s: no progress for %g s, the lease is let go", self._what, self._work.stall_seconds)
                if self._on_stall is not None:
                    self._on_stall()
                return
            self._extend_lease()
            if self._lost:
                return

    def _extend_lease(self) -> None:
        self._beat = time.monotonic()
        vitals.beat()
        try:
            with self._ledger.transaction() as connection:
                held = self._extend(connection, self._work.lease_seconds)
        except Unavailable as error:
            _log.warning("no heartbeat: %s", error)
            return
        if not held:
            self._lost = True
