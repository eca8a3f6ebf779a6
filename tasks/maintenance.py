"""Duties: one function each, with its interval, its limit and the counts it reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from celery import shared_task

from pipeline import control, ingest, outages
from pipeline.assembly import Services
from pipeline.dispatch import dispatch, find_lost_messages, rise
from pipeline.errors import LeaseLost, MillraceError, Unavailable
from pipeline.ledger import (
    batches,
    blame,
    circuits,
    dead_letters,
    duties,
    fleet,
    jobs,
    rates,
    schedules,
    versions,
    webhooks,
    writing,
)
from pipeline.observe import logger
from pipeline.scheduling import find_lost_messages as find_lost_runs
from pipeline.scheduling import send_due
from tasks import base, leaving
from tasks.heartbeat import Heartbeat

Counts = Mapping[str, int]

_log = logger("duty")


@dataclass(frozen=True, slots=True)
class Duty:
    """name: of its row; interval_seconds: between runs; limit: rows of one run, at most."""

    name: str
    interval_seconds: float
    limit: int
    run: Callable[[Services, int], Counts]

    @property
    def task(self) -> str:
        return f"duty.{self.name}"


# One run of `reconcile` goes on for so long, at most, with what somebody began in many steps and did not end.
_SETTLE_SECONDS = 2.0
# One run of `contract` takes so long, at most: an update of everything leaves more than one page behind.
_CONTRACT_SECONDS = 20.0
# A day of runs that changed nothing shows that a schedule works; more of them would only hide the others.
_IDLE_JOB_SECONDS = 86_400.0
# Dead letters that were resolved are kept for whoever asks what became of them.
_RESOLVED_LETTER_SECONDS = 7 * 86_400.0
# Deliveries are kept for whoever asks why nothing arrived.
_DELIVERED_SECONDS = 86_400.0
_DEAD_WEBHOOK_SECONDS = 30 * 86_400.0


def reconcile(opened: Services, limit: int) -> Counts:
    """Finds what was left behind: expired claims, lost messages, silent enqueuers, jobs that nobody ended.

    A step that fails does not keep the others from their work; what it raised first is raised in the end.
    """
    counts: dict[str, int] = {}
    failed: list[MillraceError] = []
    for step in (_expire, _end_jobs, _settle, _measure, _look_after, _send):
        try:
            counts.update(step(opened, limit))
        except MillraceError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return counts


def _expire(opened: Services, limit: int) -> Counts:
    with opened.ledger.transaction() as connection:
        expired, exhausted = batches.expire(connection, opened.settings.work, limit)
        fleet.note_steadiness(connection)
    given_up = sum(_give_up(opened, row["id"], row["error"]) for row in exhausted)
    return {"expired": expired, "given_up": given_up}


def _end_jobs(opened: Services, limit: int) -> Counts:
    with opened.ledger.transaction() as connection:
        silent = writing.seal_silent(connection, opened.settings.work.unsealed_seconds, limit)
        fleet.forget_dead(connection)
    with opened.ledger.transaction() as connection:
        done = jobs.done_but_open(connection, limit)
        versions.lock_jobs(connection, done)
        finished = jobs.finish_done(connection, done)
    return {"silent_jobs": len(silent), "finished_jobs": len(finished)}


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


def contract(opened: Services, limit: int) -> Counts:
    """Takes the points of replaced and abandoned chunks out of the index, `limit` versions at a time.

    Waits while Qdrant is away.
    """
    with opened.ledger.transaction() as connection:
        if circuits.find(connection, circuits.VECTORS) is not None:
            return {"points": 0, "waiting": 1}
    work = opened.settings.work
    deadline = time.monotonic() + _CONTRACT_SECONDS
    deleted = 0
    while found := ingest.contract(opened.tools, work.contract_seconds, work.recontract_seconds, limit):
        deleted += found
        if time.monotonic() > deadline or leaving.leaving():
            break
    return {"points": deleted}


def sync(opened: Services, limit: int) -> Counts:
    """Sends runs of schedules that are due, those of lost workers and lost messages again."""
    with opened.ledger.transaction() as connection:
        expired = schedules.expire(connection, limit, opened.settings.work.lease_seconds)
    lost = find_lost_runs(opened.ledger, opened.broker)
    return {"expired": expired, "lost_messages": lost, "sent": send_due(opened.ledger, opened.broker, limit)}


def forget(opened: Services, limit: int) -> Counts:
    """Drops old jobs of schedules that changed nothing, old deliveries of webhooks, and resolved dead letters."""
    with opened.ledger.transaction() as connection:
        return {
            "idle_jobs": schedules.forget_idle_jobs(connection, _IDLE_JOB_SECONDS, limit),
            "superseded_letters": dead_letters.supersede_outdated(connection, limit),
            "letter_contents": dead_letters.drop_contents(connection, limit),
            "dead_letters": dead_letters.forget(connection, _RESOLVED_LETTER_SECONDS, limit),
            "webhooks": webhooks.forget(connection, _DELIVERED_SECONDS, _DEAD_WEBHOOK_SECONDS, limit),
        }


def deliver_webhooks(opened: Services, limit: int) -> Counts:
    """Tells applications that their jobs have ended. Returns soon: slow endpoints are waited for in other threads."""
    return opened.deliverer.run(limit)


DUTIES = (
    Duty("reconcile", 3.0, 500, reconcile),
    Duty("contract", 60.0, 500, contract),
    Duty("sync", 5.0, 100, sync),
    Duty("forget", 600.0, 500, forget),
    Duty("webhooks", 5.0, 100, deliver_webhooks),
)


def run_duty(opened: Services, duty: Duty) -> Counts | None:
    """Runs the duty if it is due and nobody else has it; None otherwise. Its counts, or its error, go into its row."""
    work = opened.settings.work
    with opened.ledger.transaction() as connection:
        claim = duties.claim(connection, duty.name, base.owner(), duty.interval_seconds, work.lease_seconds)
    if claim is None:
        return None
    started = time.monotonic()
    counts: Counts = {}
    error = ""
    try:
        # Should its worker be killed, another one has the duty as soon as it would have a batch.
        with Heartbeat(opened.ledger, f"duty {duty.name}", partial(duties.heartbeat, claim), work):
            counts = duty.run(opened, duty.limit)
    except MillraceError as failure:
        error = str(failure)
        _log.warning("duty %s: %s", duty.name, error)
    with opened.ledger.transaction() as connection:
        result = {"error": error} if error else counts
        duties.finish(connection, claim, result, time.monotonic() - started, failed=bool(error))
    return counts


def _register(duty: Duty) -> None:
    @shared_task(name=duty.task)
    def run() -> None:
        try:
            run_duty(base.services(), duty)
        except Unavailable as error:
            _log.warning("duty %s: %s", duty.name, error)


for _duty in DUTIES:
    _register(_duty)
