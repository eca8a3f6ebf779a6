"""Beat's scheduler: its intervals are the ledger's, and it sends no more ticks than somebody may come to take."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from celery.beat import PersistentScheduler
from celery.signals import beat_init

from pipeline.broker import CONTROL_QUEUE
from pipeline.errors import SchemaMismatch, Unavailable
from pipeline.ledger import duties, services
from pipeline.ledger.duties import DutyState
from pipeline.ledger.engine import Ledger
from pipeline.monitoring import process
from pipeline.monitoring.reporting import configure, report_at_first_record
from pipeline.observe import logger
from pipeline.settings import load_settings
from tasks.duties import DEFINITIONS, DUTIES
from workers.schedule import MOST_TICKS, beat_schedule, entry

# Between two looks at the ledger: what an operator sets is in effect within ten seconds, one of beat's own included.
_LOOK_SECONDS = 5.0
# How long beat waits for its last word to the ledger when it ends.
_LAST_SECONDS = 2.0

_log = logger("beat")


@dataclass(frozen=True, slots=True)
class Timing:
    """How often a duty is asked for. due_seconds: until its next run, negative where that should have been."""

    interval_seconds: float
    due_seconds: float


class LedgerWatch:
    """A thread of beat: it reads the duties' rows, and keeps beat's own row fresh. Where Postgres is away, what was
    read last stays."""

    def __init__(self, ledger: Ledger, every_seconds: float = _LOOK_SECONDS) -> None:
        """ledger: closed by it."""
        self._ledger = ledger
        self._every = every_seconds
        self._host, self._pid = socket.gethostname(), os.getpid()
        self._timings: Mapping[str, Timing] | None = None
        self._registered = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-watch", daemon=True)

    @property
    def timings(self) -> Mapping[str, Timing] | None:
        """Of the duties that are enabled, by task; None before they were first read."""
        return self._timings

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, which takes beat's row with it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_LAST_SECONDS)

    def look(self) -> None:
        """One look. Raises LedgerUnavailable, SchemaMismatch."""
        memory = process.sample().to_json()
        with self._ledger.transaction() as connection:
            services.report(connection, services.BEAT, self._host, self._pid, memory)
            if not self._registered:
                duties.register(connection, DEFINITIONS, retire=True)
            states = duties.states(connection)
        # A ledger that was restored, or emptied, is told again.
        self._registered = {duty.name for duty in DUTIES} <= {state.name for state in states}
        if self._registered:
            self._timings = _timings(states)

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except (Unavailable, SchemaMismatch) as error:
                _log.warning("the intervals of duties are not read: %s", error)
            except Exception:  # noqa: BLE001 - beat goes on with what it knows
                _log.exception("a look at the duties failed")
            if self._stop.wait(self._every):
                break
        try:
            with self._ledger.transaction() as connection:
                services.leave(connection, services.BEAT, self._host, self._pid)
        except (Unavailable, SchemaMismatch):
            pass  # its row goes stale by itself
        self._ledger.close()


def _timings(states: Sequence[DutyState]) -> Mapping[str, Timing]:
    tasks = {duty.name: duty.task for duty in DUTIES}
    return {
        tasks[state.name]: Timing(state.interval_seconds, state.due_seconds)
        for state in states
        if state.enabled and state.name in tasks
    }


class BoundedScheduler(PersistentScheduler):  # type: ignore[misc] # celery has no types
    """Follows the ledger, and leaves a tick out while as many wait as may: the next one comes soon enough."""

    watch: LedgerWatch | None = None
    _followed = False

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Sends what is due. Returns the seconds until the next tick."""
        if self.watch is not None and (timings := self.watch.timings) is not None:
            self.follow(timings)
        return float(super().tick(*args, **kwargs))

    def follow(self, timings: Mapping[str, Timing]) -> None:
        """Makes the entries of duties those of the ledger: what has another interval now keeps when it last ran, what
        is disabled is not sent. What was due while no beat lived is sent at once."""
        schedule = self.schedule
        known = beat_schedule()
        for task in known.keys() - timings.keys():
            if schedule.pop(task, None) is not None:
                _log.info("%s is disabled, and not sent", task)
        for task, timing in timings.items():
            current = schedule.get(task)
            wanted = entry(task, timing.interval_seconds)
            if current is None or not self._followed:
                ran = self.app.now() + timedelta(seconds=timing.due_seconds - timing.interval_seconds)
                schedule[task] = self.Entry(**wanted, name=task, app=self.app, last_run_at=ran)
                _log.info("%s is sent every %g s", task, timing.interval_seconds)
            elif current.schedule.run_every.total_seconds() != timing.interval_seconds:
                # A new object: it is by this that Celery sees that its order has changed.
                schedule[task] = self.Entry(
                    **wanted,
                    name=task,
                    app=self.app,
                    last_run_at=current.last_run_at,
                    total_run_count=current.total_run_count,
                )
                _log.info("%s is sent every %g s from now on", task, timing.interval_seconds)
        if not self._followed:
            self._followed = True
            self._heap = None  # Celery compares intervals alone, and these entries are due at other times

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> Any:
        """The result of sending; None for a tick that is left out. Raises SchedulingError where Redis is away."""
        if producer is not None and waiting(producer) >= MOST_TICKS:
            _log.warning("%s is left out: %d ticks wait already, no worker takes them", entry.name, MOST_TICKS)
            return None
        return super().apply_async(entry, producer=producer, advance=advance, **options)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Sends one that is due. What keeps it from that is a line, where Celery writes a page each second."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:  # noqa: BLE001 - as Celery does: the next tick comes soon enough
            _log.warning("%s is not sent: %s", entry.name, error)

    def close(self) -> None:
        if self.watch is not None:
            self.watch.stop()
            self.watch = None
        super().close()


def waiting(producer: Any) -> int:
    """Messages in the control queue. Raises what redis raises; beat logs it, and goes on with the next tick."""
    return int(producer.channel.client.llen(CONTROL_QUEUE))


def _watch_ledger(sender: Any = None, **_: Any) -> None:
    """Beat begins to tick; not before, since it may have forked, and others load this module too."""
    sender.scheduler.watch = watch = LedgerWatch(Ledger(load_settings().postgres))
    watch.start()


def _report_figures(**_: Any) -> None:
    settings = load_settings()
    configure(settings.metrics, settings.logs, settings.alerts)
    report_at_first_record(settings.redis, settings.metrics)


beat_init.connect(_watch_ledger, weak=False)
beat_init.connect(_report_figures, weak=False)
