"""Keeping claims while work makes progress: a long embedding keeps its lease, a hung one loses it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pipeline.errors import LeaseLost, Unavailable
from pipeline.ledger import batches
from pipeline.ledger.batches import Claim
from pipeline.ledger.engine import Ledger
from pipeline.observe import logger
from pipeline.settings import WorkSettings

_log = logger("heartbeat")


class Heartbeat:
    """Extends the leases of some claims from a thread of its own, while `progress` is called often enough."""

    def __init__(self, ledger: Ledger, claims: Sequence[Claim], work: WorkSettings) -> None:
        self._ledger = ledger
        self._claims = claims
        self._work = work
        self._progressed = time.monotonic()
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def progress(self) -> None:
        """The work has got on. Raises LeaseLost where another worker has taken it over: it is not worth going on."""
        self._progressed = time.monotonic()
        if self._lost:
            raise LeaseLost(f"batch {', '.join(str(claim.id) for claim in self._claims)} was taken over")

    def _run(self) -> None:
        while not self._stop.wait(self._work.heartbeat_seconds):
            if time.monotonic() - self._progressed > self._work.stall_seconds:
                _log.warning("no progress for %g s: the lease is let go", self._work.stall_seconds)
                return
            try:
                with self._ledger.transaction() as connection:
                    held = batches.heartbeat(connection, self._claims, self._work.lease_seconds)
            except Unavailable as error:
                _log.warning("no heartbeat: %s", error)
                continue
            if len(held) < len(self._claims):
                self._lost = True
                return
