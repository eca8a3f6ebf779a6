"""`openai.batch`: what there is to do now for a remote batch. `openai.poll`: the duty that packs, and asks for it.

No process waits for the provider: a task does what can be done, hands the row back, and the duty sends it again when
its time has come.
"""

from __future__ import annotations

from functools import partial

from celery import shared_task

from pipeline.assembly import Services
from pipeline.broker import REMOTE_TASK
from pipeline.dispatch import dispatch
from pipeline.duties import Bounds
from pipeline.errors import LeaseLost, LedgerUnavailable, Unavailable
from pipeline.ledger import remote
from pipeline.ledger.engine import Connection
from pipeline.ledger.remote import RemoteBatch
from pipeline.observe import bound, logger, operation
from pipeline.openai_batch.packing import pack
from pipeline.openai_batch.sending import find_lost_messages, send_due
from pipeline.openai_batch.service import BatchService
from pipeline.routing import Means, reroute_late
from tasks import base, leaving
from tasks.base import Done, Failed, Outcome, Skipped, Waiting
from tasks.duty import Counts, Duty
from tasks.failures import tell
from tasks.heartbeat import Heartbeat

_SEND_LIMIT = 100
# After a fault of our own, or settings with which nothing can be asked for: somebody has to look at it.
_FAULT_REST_SECONDS = 60.0

_log = logger("openai_batch")


def perform(opened: Services, remote_id: object, service: BatchService | None = None) -> Outcome:
    """Claims a remote batch for which something is to be done, does it, and answers for the outcome. service: instead
    of that of the process."""
    with bound(task_id=base.task_id()):
        try:
            outcome = _perform(opened, base.parse_id(remote_id), service)
        except Unavailable as error:
            # The ledger itself: the lease runs out, and the duty sends it again.
            outcome = Waiting(str(error))
        try:
            dispatch(opened.ledger, opened.broker, opened.settings.work)
            send_due(opened.ledger, opened.broker, _SEND_LIMIT)
        except Unavailable as error:
            _log.warning("queues not topped up: %s", error)
    return outcome


def _perform(opened: Services, remote_id: int, service: BatchService | None) -> Outcome:
    work = opened.settings.work
    with opened.ledger.transaction() as connection:
        held = None if leaving.leaving() else remote.claim(connection, remote_id, base.owner(), work.lease_seconds)
    if held is None:
        return Skipped("nothing to do now, or held by another")
    with bound(remote_batch_id=held.id):
        return _carry_out(opened, held, service or opened.batch_service)


def _carry_out(opened: Services, held: RemoteBatch, service: BatchService) -> Outcome:
    extend = partial(_extend, held)
    try:
        with (
            operation("openai.batch"),
            Heartbeat(opened.ledger, f"remote batch {held.id}", extend, opened.settings.work) as heartbeat,
        ):

            def progress() -> None:
                heartbeat.progress()
                leaving.check()

            service.carry_on(held, progress)
    except leaving.Leaving as error:
        _release(opened, held, 0.0, None)
        return Waiting(str(error))
    except LeaseLost as error:
        _log.warning("%s", error)
        return Skipped(str(error))
    except LedgerUnavailable as error:
        _release(opened, held, 0.0, None)
        return Waiting(str(error))
    except Exception as error:  # noqa: BLE001 - whatever it was, it is written down, and nothing is lost
        _log.exception("remote batch %d failed", held.id)
        told = tell(error)
        _release(opened, held, _FAULT_REST_SECONDS, told)
        return Failed(told)
    return Done(1, "remote")


def _extend(held: RemoteBatch, connection: Connection, lease_seconds: float) -> bool:
    return remote.heartbeat(connection, held, lease_seconds)


def _release(opened: Services, held: RemoteBatch, seconds: float, error: str | None) -> None:
    base.hand_back(opened, lambda connection: remote.release(connection, held, seconds, error))


@shared_task(name=REMOTE_TASK)
def carry_on(remote_id: int) -> None:
    """Does what there is to do now for a remote batch."""
    perform(base.services(), remote_id)


def poll(opened: Services, bounds: Bounds) -> Counts:
    """Packs texts that wait for the Batch API, and sends remote batches for which something is to be done.

    Before that, what would be late is moved online.
    """
    settings = opened.settings
    means = Means(settings.openai, settings.openai_batch, settings.cost)
    with opened.ledger.transaction() as connection:
        expired = remote.expire(connection, bounds.rows, settings.work.lease_seconds)
    late = reroute_late(opened.ledger, means, bounds.rows, lambda: bounds.over)
    packed = pack(opened.ledger, settings.openai, settings.openai_batch, bounds.rows, lambda: bounds.over)
    lost = find_lost_messages(opened.ledger, opened.broker)
    sent = send_due(opened.ledger, opened.broker, bounds.rows)
    return {"expired": expired, "packed": len(packed), "lost_messages": lost, "sent": sent, **late}


DUTIES = (Duty("openai.poll", 5.0, 100, poll, budget_seconds=10.0),)
