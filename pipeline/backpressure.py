"""Backpressure: where too much is on its way, an enqueuer waits until workers catch up, or is refused, as it wants.

The limits bound what Postgres holds of work that is not done. They are looked at before a group is staged, so each
enqueuer may pass them by one group; several at once by one group each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol

from pipeline.errors import BacklogFull, InvalidRequest
from pipeline.ledger import intake
from pipeline.ledger.engine import Connection, Transaction
from pipeline.ledger.intake import Load
from pipeline.settings import IngestSettings
from pipeline.sizes import as_size

WhenFull = Literal["wait", "refuse"]
WHEN_FULL: tuple[WhenFull, ...] = ("wait", "refuse")

# How long an answer of the ledger holds, at least; and in any case so many times as long as it took to get it, so that
# asking costs an enqueuer two per cent of its time at most.
_FRESH_SECONDS = 1.0
_FRESH_TIMES = 50.0
# Where it was full the next look comes sooner: there is somebody who waits.
_FULL_SECONDS = 0.25
_FULL_TIMES = 20.0
# An answer is also stale once this process has used such a share of the room that there was.
_USED_SHARE = 0.25
_LOOK_SECONDS = 0.25
# Between two signs of life of an enqueuer that waits.
_TELL_SECONDS = 1.0


class Backlog:
    """What is on its way, as this process last saw it, and what it has added since. Thread-safe."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._load: Load | None = None
        self._fresh_until = 0.0
        self._added_bytes = 0
        self._added_batches = 0

    def check(self, connection: Connection, share: float = 1.0) -> None:
        """Raises BacklogFull, naming the limit that is reached, or this share of it. Asks the ledger where the last
        answer is stale."""
        with self._lock:
            if self._load is None or self._is_stale(self._load):
                self._ask(connection)
            self._judge(share)

    def check_now(self, connection: Connection) -> None:
        """As `check`; but what is refused is refused by an answer of this moment: its caller does not look again."""
        with self._lock:
            if self._load is None or self._is_stale(self._load) or _over(self._load, self._settings):
                self._ask(connection)
            self._judge(1.0)

    def _judge(self, share: float) -> None:
        assert self._load is not None
        if reason := _over(self._load, self._settings, share):
            raise BacklogFull(reason)

    def add(self, size: int, documents: int) -> None:
        """So many bytes of so many documents have just been staged by this process."""
        with self._lock:
            self._added_bytes += size
            self._added_batches += 1 + max(
                documents // self._settings.prepare_documents, size // self._settings.prepare_bytes
            )

    def _is_stale(self, load: Load) -> bool:
        if time.monotonic() >= self._fresh_until:
            return True
        if _over(load, self._settings):
            return False
        room = self._settings.max_staged_bytes - load.staged_bytes
        batches = self._settings.max_ready_batches - load.ready_batches
        return self._added_bytes > room * _USED_SHARE or self._added_batches > batches * _USED_SHARE

    def _ask(self, connection: Connection) -> None:
        started = time.monotonic()
        self._load = intake.load(connection, self._settings.max_ready_batches)
        took = time.monotonic() - started
        full = bool(_over(self._load, self._settings))
        least, times = (_FULL_SECONDS, _FULL_TIMES) if full else (_FRESH_SECONDS, _FRESH_TIMES)
        self._fresh_until = started + max(least, took * times)
        self._added_bytes = self._added_batches = 0


class Gate(Protocol):
    """What an enqueuer passes with every group."""

    def check(self, connection: Connection) -> None:
        """Raises BacklogFull where nothing may be staged now."""

    def add(self, size: int, documents: int) -> None:
        """So much was staged."""

    def full(self, error: BacklogFull) -> None:
        """Nothing was staged, because of this. Returns where it may be tried again; raises BacklogFull for good."""


class OpenGate:
    """For who looked before it began, and neither waits nor stops in the middle: the application's transaction."""

    def check(self, connection: Connection) -> None:
        """Always open."""

    def add(self, size: int, documents: int) -> None:
        """Counted by nobody."""

    def full(self, error: BacklogFull) -> None:
        raise error


class WaitingGate:
    """Waits while the backlog is full."""

    def __init__(self, backlog: Backlog, transaction: Transaction, on_waiting: Callable[[str], None]) -> None:
        """on_waiting: called about every second with the reason; what it raises ends the waiting."""
        self._backlog = backlog
        self._transaction = transaction
        self._on_waiting = on_waiting
        self.check = backlog.check
        self.add = backlog.add

    def full(self, error: BacklogFull) -> None:
        wait_for_room(self._backlog, self._transaction, self._on_waiting, error)


class RefusingGate:
    """Ends the enqueuing where the backlog is full."""

    def __init__(self, backlog: Backlog, on_refused: Callable[[BacklogFull], BacklogFull]) -> None:
        """on_refused: makes of the reason what is raised."""
        self._on_refused = on_refused
        self.check = backlog.check_now
        self.add = backlog.add

    def full(self, error: BacklogFull) -> None:
        raise self._on_refused(error) from error


def wait_for_room(
    backlog: Backlog, transaction: Transaction, on_waiting: Callable[[str], None], error: BacklogFull
) -> None:
    """Returns when there is room again, however long that takes. `on_waiting` is told the reason meanwhile."""
    told_at = float("-inf")
    while True:
        if time.monotonic() - told_at >= _TELL_SECONDS:
            on_waiting(f"{error}; goes on as workers catch up")
            told_at = time.monotonic()
        time.sleep(_LOOK_SECONDS)
        try:
            with transaction() as connection:
                backlog.check(connection)
            return
        except BacklogFull as still:
            error = still


def check_when_full(when_full: str) -> None:
    """Raises InvalidRequest for anything but `wait` and `refuse`."""
    if when_full not in WHEN_FULL:
        raise InvalidRequest(f"when_full is {' or '.join(WHEN_FULL)}, not {when_full!r}")


def _over(load: Load, settings: IngestSettings, share: float = 1.0) -> str:
    """Which limit (or share of it) is reached, and what keeps it so; "" where there is room."""
    if load.staged_bytes >= settings.max_staged_bytes * share:
        there = f"{as_size(load.staged_bytes)} of {as_size(settings.max_staged_bytes)} staged (ingest.max_staged_bytes)"
    elif load.ready_batches >= settings.max_ready_batches * share:
        there = f"{load.ready_batches:,} of {settings.max_ready_batches:,} ready batches (ingest.max_ready_batches)"
    else:
        return ""
    if load.all_paused:
        there += "; everything is paused: `millrace resume --all` lets it go on"
    elif not load.workers:
        there += "; no worker is alive: start one with `millrace worker`"
    return f"the backlog is full: {there}"
