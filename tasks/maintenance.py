"""The duties that keep the work going. Each is one function that reports counts."""

from __future__ import annotations

from pipeline import control, ingest, outages
from pipeline.assembly import Services
from pipeline.dispatch import dispatch, find_lost_messages, rise
from pipeline.duties import Bounds
from pipeline.errors import LeaseLost, Unavailable
from pipeline.ledger import (
    batches,
    blame,
    circuits,
    fleet,
    garbage,
    jobs,
    purchases,
    rates,
    schedules,
    spending,
    versions,
    writing,
)
from pipeline.observe import count, logger
from pipeline.scheduling import find_lost_messages as find_lost_runs
from pipeline.scheduling import send_due
from tasks.duty import Counts, Duty

_log = logger("duty")


# One run of `reconcile` goes on for so long, at most, with what somebody began in many steps and did not end.
_SETTLE_SECONDS = 2.0


def reconcile(opened: Services, bounds: Bounds) -> Counts:
    """Finds what was left behind: expired claims, lost messages, silent enqueuers, jobs that nobody ended.

    A step that fails does not keep the others from their work; what it raised first is raised in the end. All of them
    are done, also when time is up: each is bounded, and the last one sends work.
    """
    counts: dict[str, int] = {}
    failed: list[Exception] = []
    for step in (_expire, _end_jobs, _wake, _give_back, _settle, _measure, _look_after, _send):
        try:
            counts.update(step(opened, bounds.rows))
        except Exception as error:  # noqa: BLE001 - raised again when the others have had their turn
            failed.append(error)
    if failed:
        raise failed[0]
    return counts


def _expire(opened: Services, limit: int) -> Counts:
    with opened.ledger.transaction() as connection:
        expired, exhausted = batches.expire(connection, opened.settings.work, limit)
        fleet.note_steadiness(connection)
    count("leases_expired", expired)
    count("batches_exhausted", len(exhausted))
    given_up = sum(_give_up(opened, row["id"], row["error"]) for row in exhausted)
    return {"expired": expired, "given_up": given_up}


def _end_jobs(opened: Services, limit: int) -> Counts:
    with opened.ledger.transaction() as connection:
        silent = writing.seal_silent(connection, opened.settings.work.unsealed_seconds, limit)
    with opened.ledger.transaction() as connection:
        done = jobs.done_but_open(connection, limit)
        versions.lock_jobs(connection, done)
        finished = jobs.finish_done(connection, done)
    return {"silent_jobs": len(silent), "finished_jobs": len(finished)}


def _wake(opened: Services, limit: int) -> Counts:
    """Batches that wait for what nobody is bringing any more go on; so many are looked at each time, in turns."""
    with opened.ledger.transaction() as connection:
        place = garbage.place(connection, "waiting")
        woken, after = purchases.wake_forgotten(connection, int(place[0]) if place else 0, limit)
        if place or after is not None:
            garbage.note_place(connection, "waiting", None if after is None else (str(after),))
    return {"woken": woken}


def _give_back(opened: Services, limit: int) -> Counts:
    """What was reserved for batches that nobody is at any more may be spent on others."""
    with opened.ledger.transaction() as connection:
        return {"reservations_released": spending.sweep(connection, limit)}


def _settle(opened: Services, limit: int) -> Counts:
    return control.settle(opened, limit, _SETTLE_SECONDS)


def _measure(opened: Services, limit: int) -> Counts:
    with opened.ledger.transaction() as connection:
        return {"measured_jobs": rates.sample(connection, opened.settings.work.sample_seconds, limit)}


def _look_after(opened: Services, limit: int) -> Counts:
    outages.look_after(opened.ledger, opened.vectors)
    return {}


def _send(opened: Services, limit: int) -> Counts:
    work = opened.settings.work
    lost = find_lost_messages(opened.ledger, opened.broker)
    sent = dispatch(opened.ledger, opened.broker, work) + rise(opened.ledger, opened.broker, work)
    return {"lost_messages": lost, "sent": sent}


def _give_up(opened: Services, batch_id: int, error: str) -> bool:
    """Whether it was given up or split. One that cannot be, for whatever reason, holds up nothing beside it."""
    try:
        with opened.ledger.transaction() as connection:
            claim = batches.expired_claim(connection, batch_id)
            if claim is not None:
                blame.give_up(connection, claim, error, opened.settings.work)
            return claim is not None
    except Unavailable:
        raise
    except LeaseLost:
        return False  # cancelled meanwhile
    except Exception:  # noqa: BLE001 - found again by the next run, and in the log until then
        _log.exception("batch %d cannot be given up", batch_id)
        return False


def contract(opened: Services, bounds: Bounds) -> Counts:
    """Takes the points of replaced and abandoned chunks out of the index, so many versions at a time.

    Waits while Qdrant is away.
    """
    with opened.ledger.transaction() as connection:
        if circuits.find(connection, circuits.VECTORS) is not None:
            return {"points": 0, "waiting": 1}
    work = opened.settings.work
    deleted = 0
    # More than one page: an update of everything leaves that much behind.
    while found := ingest.contract(opened.tools, work.contract_seconds, work.recontract_seconds, bounds.rows):
        deleted += found
        if bounds.over:
            break
    return {"points": deleted}


def sync(opened: Services, bounds: Bounds) -> Counts:
    """Sends runs of schedules that are due, those of lost workers and lost messages again."""
    with opened.ledger.transaction() as connection:
        expired = schedules.expire(connection, bounds.rows, opened.settings.work.lease_seconds)
    lost = find_lost_runs(opened.ledger, opened.broker)
    return {"expired": expired, "lost_messages": lost, "sent": send_due(opened.ledger, opened.broker, bounds.rows)}


def deliver_webhooks(opened: Services, bounds: Bounds) -> Counts:
    """Tells applications that their jobs have ended. Returns soon: slow endpoints are waited for in other threads."""
    return opened.deliverer.run(bounds.rows)


DUTIES = (
    Duty("reconcile", 3.0, 500, reconcile, budget_seconds=10.0),
    Duty("contract", 60.0, 500, contract, budget_seconds=20.0),
    Duty("sync", 5.0, 100, sync, budget_seconds=10.0),
    Duty("webhooks", 5.0, 100, deliver_webhooks, budget_seconds=10.0),
)
