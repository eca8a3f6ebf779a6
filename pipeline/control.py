"""What is done with work that was asked for: pause and resume it, give it another priority, take it back.

Each begins with one small transaction that decides, and from whose commit on it counts. What follows from it for many
rows is done in steps of a second at most, and reconcile goes on where whoever began it was killed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping

from pipeline.assembly import Services
from pipeline.ledger import backlog, cancelling, collections, dead_letters, jobs, orders, pauses, prioritizing
from pipeline.ledger.engine import Connection, Ledger
from pipeline.ledger.pauses import Pause
from pipeline.submission import top_up

# Rows of one step: as many as take about this long.
_STEP_SECONDS = (0.2, 1.0)
_FIRST_STEP = 500
_LEAST_STEP, _MOST_STEP = 10, 5_000

# Does something to so many rows, at most, and says to how many.
_Step = Callable[[Connection, int], int]


def pause_job(services: Services, job_id: uuid.UUID, reason: str | None = None) -> None:
    """Nothing more of the job is begun; what is at work goes on to its end.

    Raises UnknownJob, InvalidRequest where the job is finished.
    """
    with services.ledger.transaction() as connection:
        pauses.pause_job(connection, job_id, reason)
    _in_steps(services.ledger, _of(job_id, pauses.hold))


def resume_job(services: Services, job_id: uuid.UUID) -> None:
    """Ends the job's own pause. Raises UnknownJob, InvalidRequest where the job is finished."""
    with services.ledger.transaction() as connection:
        pauses.resume_job(connection, job_id)
    _release(services)


def pause_collection(services: Services, name: str, reason: str | None = None) -> None:
    """Nothing more of the collection is begun, and its schedules start no runs. Raises UnknownCollection."""
    with services.ledger.transaction() as connection:
        found = collections.get(connection, name)
        pauses.pause_scope(connection, found.id, reason)
        waiting = pauses.unfinished_jobs(connection, found.id)
    for job_id in waiting:
        _in_steps(services.ledger, _of(job_id, pauses.hold))


def resume_collection(services: Services, name: str) -> None:
    """Ends the collection's own pause. Raises UnknownCollection."""
    with services.ledger.transaction() as connection:
        pauses.resume_scope(connection, collections.get(connection, name).id)
    _release(services)


def pause_everything(services: Services, reason: str | None = None) -> None:
    """Nothing more is begun anywhere; duties (contraction, reconcile) go on. No batch is touched for it."""
    with services.ledger.transaction() as connection:
        pauses.pause_scope(connection, None, reason)


def resume_everything(services: Services) -> None:
    """Ends the pause of everything; jobs and collections keep pauses of their own."""
    with services.ledger.transaction() as connection:
        if pauses.resume_scope(connection, None):
            # The workers have thrown away the messages of those.
            backlog.unstamp_all(connection)
    _release(services)


def paused(services: Services) -> list[Pause]:
    """What is paused now."""
    with services.ledger.transaction() as connection:
        return pauses.listing(connection)


def prioritize(services: Services, job_id: uuid.UUID, priority: str) -> None:
    """Gives an unfinished job another priority: its waiting work goes to that queue at once.

    Raises UnknownJob, InvalidRequest where the job is finished or there is no such priority.
    """
    with services.ledger.transaction() as connection:
        prioritizing.change(connection, job_id, jobs.priority_number(priority))
    for step in _FOLLOWING:
        _in_steps(services.ledger, _of(job_id, step))
    top_up(services)


def cancel(services: Services, job_id: uuid.UUID) -> None:
    """Ends what is unfinished of a job, and the job; one that is finished stays as it is. Raises UnknownJob."""
    with services.ledger.transaction() as connection:
        begun = cancelling.begin(connection, job_id)
    if begun:
        _end_cancelled(services.ledger, job_id)
    top_up(services)


def settle(services: Services, limit: int, seconds: float) -> Mapping[str, int]:
    """Goes on with what was begun and not ended, of up to `limit` jobs and for about so many seconds. Returns counts:
    jobs cancelled, batches that got another priority, batches let go after a pause."""
    deadline = time.monotonic() + seconds
    with services.ledger.transaction() as connection:
        begun = cancelling.unfinished(connection, limit)
        changed = prioritizing.unsettled(connection, limit)
    cancelled = [job_id for job_id in begun if _end_cancelled(services.ledger, job_id, deadline)]
    followed = 0
    for job_id in changed:
        done = [_in_steps(services.ledger, _of(job_id, step), deadline) for step in _FOLLOWING]
        followed += sum(moved for moved, _ in done)
        if all(all_of_them for _, all_of_them in done):
            with services.ledger.transaction() as connection:
                prioritizing.settle(connection, job_id)
    released, _ = _in_steps(services.ledger, pauses.release, deadline)
    return {"cancelled_jobs": len(cancelled), "prioritized": followed, "released": released}


def _release(services: Services) -> None:
    _in_steps(services.ledger, pauses.release)
    top_up(services)


# What takes the priority of its job: batches, and what they have on order.
_FOLLOWING = (prioritizing.follow, orders.follow)


def _end_cancelled(ledger: Ledger, job_id: uuid.UUID, deadline: float | None = None) -> bool:
    """Orders first, while it is known whose they are; then batches, so that whoever works on them stops; again and
    again, since one that was about to commit may have added some. False where the deadline came first."""
    last_look = False
    while True:
        ended = 0
        for step in (orders.leave, cancelling.end_batches, cancelling.end_versions):
            count, all_of_them = _in_steps(ledger, _of(job_id, step), deadline)
            if not all_of_them:
                return False
            ended += count
        if not ended and not last_look:
            last_look = True  # a batch that was split while it was waited for has left halves behind it
        elif not ended:
            break
    with ledger.transaction() as connection:
        dead_letters.reopen(connection, job_id)
        jobs.end_cancelled(connection, job_id)
    return True


def _of(job_id: uuid.UUID, step: Callable[[Connection, uuid.UUID, int], int]) -> _Step:
    return lambda connection, limit: step(connection, job_id, limit)


def _in_steps(ledger: Ledger, step: _Step, deadline: float | None = None) -> tuple[int, bool]:
    """Steps, a transaction each, until one finds nothing to do: how many rows, and True; False where the deadline came
    first. A step that takes long is followed by smaller ones."""
    total, size = 0, _FIRST_STEP
    shortest, longest = _STEP_SECONDS
    while deadline is None or time.monotonic() < deadline:
        started = time.monotonic()
        with ledger.transaction() as connection:
            done = step(connection, size)
        if not done:
            return total, True
        total += done
        took = time.monotonic() - started
        if took < shortest:
            size = min(_MOST_STEP, size * 2)
        elif took > longest:
            size = max(_LEAST_STEP, size // 4)
    return total, False
