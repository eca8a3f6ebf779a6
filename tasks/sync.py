"""`sync.run`: a schedule's source is listed, and its collection made like it.

A run may take hours. It keeps its schedule's row claimed while it gets on; the worker after a killed one goes on with
the same job.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from celery import shared_task

from pipeline.assembly import Services
from pipeline.broker import SYNC_TASK
from pipeline.client import Client
from pipeline.document import Document
from pipeline.errors import BacklogFull, LeaseLost, LedgerUnavailable, MillraceError, Unavailable
from pipeline.ledger import schedules, writing
from pipeline.ledger.engine import Connection
from pipeline.ledger.schedules import RunClaim
from pipeline.observe import bound, logger, operation
from pipeline.scheduling import general_slots, send_due
from pipeline.sources import Rows
from pipeline.sources.base import Item, Known, Rejected, Source, documents_since
from pipeline.status import JobStatus
from pipeline.sync import open_to_sync
from tasks import base
from tasks.base import Done, Failed, Outcome, Skipped, Waiting
from tasks.heartbeat import Heartbeat
from tasks.leaving import Leaving, leaving

_DISPATCH_LIMIT = 100
# A run waits in its slot for a full backlog to be worked off, where there is another slot. Else it begins again, which
# is worth it when there is room for half of what may be on its way.
_SLOTS_TO_WAIT_IN = 2
_SHARE_TO_BEGIN = 0.5

_log = logger("sync")


class Progressing:
    """A source whose iteration is progress: item by item, and (`skipped`) by what it looks at and leaves out."""

    def __init__(self, source: Source, progress: Callable[[], None]) -> None:
        self._source = source
        self._progress = progress

    def __iter__(self) -> Iterator[Document | Rejected]:
        return self._counted(iter(self._source))

    def since(self, known: Known) -> Iterator[Item]:
        return self._counted(documents_since(self._source, known))

    def _counted(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self._progress()
            yield item

    @property
    def scope(self) -> str | None:
        return self._source.scope

    @property
    def complete(self) -> bool:
        return self._source.complete

    @property
    def unreadable(self) -> tuple[str, ...]:
        return self._source.unreadable

    @property
    def skipped(self) -> int:
        return int(getattr(self._source, "skipped", 0))


class _Run:
    """One claimed run: its lease is extended while it gets on."""

    def __init__(self, opened: Services, claim: RunClaim, on_stall: Callable[[], None] | None) -> None:
        self._opened = opened
        self._claim = claim
        self._source: Progressing | None = None
        self._skipped = 0
        self._noted = False
        self._heartbeat = Heartbeat(
            opened.ledger, f"the run of schedule {claim.id}", self._extend, opened.settings.work, on_stall
        )

    def perform(self) -> None:
        """Does what `Client.sync` does, and waits where the backlog is full: half of the slots go on working on it.

        Raises what that raises, LeaseLost and Leaving; BacklogFull where there is no other slot that would make room.
        """
        options = self._claim.options
        with self._heartbeat:
            source = open_to_sync(
                self._claim.source,
                self._opened.settings.sources,
                include=options.include,
                exclude=options.exclude,
                rows=Rows.from_json(options.rows) if options.rows is not None else None,
            )
            self._source = Progressing(source, self._progress)
            Client(services=self._opened, tenant=self._claim.tenant).sync(
                self._source,
                collection=self._claim.collection,
                priority=options.priority,
                provider=options.provider,
                need_by=options.need_by,
                max_cost=options.max_cost,
                model=options.model,
                dimensions=options.dimensions,
                metadata=options.metadata,
                force=options.force,
                idempotency_key=self._claim.key,
                correlation_id=options.correlation_id,
                on_staged=self._on_staged,
            )

    def _progress(self) -> None:
        self._heartbeat.progress()
        if leaving():
            raise Leaving

    def _on_staged(self, status: JobStatus) -> None:
        self._progress()
        if status.waiting is not None:
            self._leave_the_only_slot()
        if not self._noted:
            with self._opened.ledger.transaction() as connection:
                schedules.note_job(connection, self._claim)
            self._noted = True

    def _leave_the_only_slot(self) -> None:
        """Who waits in the only slot that there is waits for himself."""
        with self._opened.ledger.transaction() as connection:
            if general_slots(connection) < _SLOTS_TO_WAIT_IN:
                self._opened.backlog.check(connection)

    def _extend(self, connection: Connection, lease_seconds: float) -> bool:
        # Files that are left out come to nobody's ears; walking over millions of them is progress all the same.
        skipped = self._source.skipped if self._source is not None else 0
        if skipped != self._skipped:
            self._skipped = skipped
            self._heartbeat.alive()
        return schedules.heartbeat(connection, self._claim, lease_seconds)


def perform(opened: Services, schedule_id: object, on_stall: Callable[[], None] | None = None) -> Outcome:
    """Claims a schedule that is due, runs it, and answers for the outcome. on_stall: called where it stops getting on,
    from another thread, when its lease has been let go."""
    try:
        outcome = _perform(opened, base.parse_id(schedule_id), on_stall)
    except (Unavailable, BacklogFull) as error:
        # The ledger itself: the lease runs out. Or nothing was claimed. The duty sends the run again.
        outcome = Waiting(str(error))
    try:
        send_due(opened.ledger, opened.broker, _DISPATCH_LIMIT)
    except Unavailable as error:
        _log.warning("runs that are due are not sent: %s", error)
    return outcome


def _perform(opened: Services, schedule_id: int, on_stall: Callable[[], None] | None) -> Outcome:
    claim = _claim(opened, schedule_id)
    if claim is None:
        return Skipped("not due, held by another, or removed")
    with bound(
        schedule_id=claim.id,
        correlation_id=claim.options.correlation_id,
        collection=claim.collection,
        tenant=claim.tenant,
        task_id=base.task_id(),
    ):
        return _carry_out(opened, claim, on_stall)


def _carry_out(opened: Services, claim: RunClaim, on_stall: Callable[[], None] | None) -> Outcome:
    try:
        with operation("sync.run"):
            _Run(opened, claim, on_stall).perform()
    except LeaseLost as error:
        _log.warning("%s", error)
        with opened.ledger.transaction() as connection:
            if not schedules.listing(connection, schedule_id=claim.id):
                writing.close(
                    connection, claim.tenant, claim.key, "its schedule was removed while its source was listed"
                )
        return Skipped(str(error))
    except Leaving as error:
        reason = str(error)
        base.hand_back(opened, lambda connection: schedules.release(connection, claim, reason))
        return Waiting(reason)
    except (LedgerUnavailable, BacklogFull) as error:
        told = str(error)
        base.hand_back(opened, lambda connection: schedules.release(connection, claim, told))
        return Waiting(told)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is written down and counted
        told = str(error) if isinstance(error, MillraceError) else f"{type(error).__name__}: {error}"
        if isinstance(error, MillraceError):
            _log.warning("schedule %s: %s", claim.id, told)
        else:
            _log.exception("schedule %s failed", claim.id)
        with opened.ledger.transaction() as connection:
            writing.close(connection, claim.tenant, claim.key, told)
            schedules.finish(connection, claim, told)
        return Failed(told)
    with opened.ledger.transaction() as connection:
        schedules.finish(connection, claim, None)
    return Done(1)


def _claim(opened: Services, schedule_id: int) -> RunClaim | None:
    """Raises BacklogFull where this is the only slot, and has enough to do: unclaimed, the run is sent again later."""
    with opened.ledger.transaction() as connection:
        if general_slots(connection) < _SLOTS_TO_WAIT_IN:
            opened.backlog.check(connection, _SHARE_TO_BEGIN)
        return schedules.claim(connection, schedule_id, base.owner(), opened.settings.work.lease_seconds)


def _end_process() -> None:
    """A run that hangs (a dead file system, a source without a timeout) must not keep a slot of the pool for good."""
    _log.error("a run stopped making progress: its process ends, and is replaced")
    os._exit(1)


@shared_task(name=SYNC_TASK)
def run_schedule(schedule_id: int) -> None:
    """Runs a schedule that is due."""
    perform(base.services(), schedule_id, _end_process)
