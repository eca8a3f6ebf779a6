"""Jobs that the Batch API would make late: what it has finished is harvested, and the rest goes online.

A job with `need_by` is looked at `margin_seconds`, and the time that online takes, before that moment. Where the rest
can be bought online within its budgets,

1. its work is online from now on, in the ledger: what is embedded already stays, what is not is not ordered again;
2. its orders are withdrawn: those that are packed nowhere are bought by whoever comes first, and the remote batches
   that hold the others are cancelled, each as a whole. Nothing is bought while a remote batch holds it, so that nothing
   is paid twice: what is finished comes with the harvest, and what belongs to other jobs is packed anew;
3. what waits for none of them any more is made ready; `embed` finds what was harvested, and buys what was not.

Where it cannot, it stays where it is, and the job says that it will be late. Every step is found and done again by the
next look: whoever dies between two of them leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.embedding.base import ModelSpec
from pipeline.ledger import remote, routes, spending
from pipeline.ledger.budgets import TOLERANCE, dollars
from pipeline.ledger.engine import Ledger
from pipeline.ledger.routes import WILL_BE_LATE, LateJob, Rest
from pipeline.observe import count, logger
from pipeline.routing.capability import served_name
from pipeline.routing.jobs import Means, cost_left, online_seconds
from pipeline.routing.rule import duration

# Jobs that are needed so much later than the margin are looked at: so long the largest of them take online, at most.
_MOST_ONLINE_SECONDS = 86_400.0
# Batches whose orders are withdrawn in one transaction: some ten thousand texts.
_PAGE = 50
# Withdrawn orders that one look gives back to the Batch API.
_MOST_RESTORED = 5000
# What a job that stays was told counts for so long: its chunks are not counted again by every look.
_TOLD_SECONDS = 300.0

_log = logger("routing")


def reroute_late(ledger: Ledger, means: Means, limit: int, over: Callable[[], bool] = lambda: False) -> dict[str, int]:
    """One look at up to `limit` jobs, the soonest needed first; ends early when `over` says so.

    Returns how many jobs were moved online, how many cannot be and will be late, how many remote batches were
    cancelled for it, how many of their batches were made ready, and how many orders that were withdrawn are packed
    after all, since nobody buys them online any more. Raises LedgerUnavailable.
    """
    counts = {"moved_online": 0, "late": 0, "batches_cancelled": 0, "released": 0}
    with ledger.transaction() as connection:
        found = routes.near(connection, means.batch.margin_seconds + _MOST_ONLINE_SECONDS, limit)
    for job in found:
        for name, number in _look_at(ledger, means, job).items():
            counts[name] += number
        if over():
            break
    with ledger.transaction() as connection:
        counts["restored"] = routes.restore(connection, _MOST_RESTORED)
    return counts


def _look_at(ledger: Ledger, means: Means, job: LateJob) -> dict[str, int]:
    if not job.moved and (job.told or "").startswith(WILL_BE_LATE) and (job.told_seconds or 0.0) < _TOLD_SECONDS:
        return {"late": 1}
    if job.seconds_left > means.batch.margin_seconds + online_seconds(job.tokens, means.openai):
        return {}  # however much of it is stored: its texts are counted when it matters
    with ledger.transaction() as connection:
        rest = routes.rest(connection, job.id)
        ahead = means.batch.margin_seconds + online_seconds(rest.tokens, means.openai)
        if job.seconds_left > ahead:
            return {}
        moved = 0
        if not job.moved:
            left = cost_left(connection, job.id, job.tenant, means.cost) + rest.reserved
            if (why := _why_not(means, job, rest, left)) is not None:
                _stay(job, why)
                routes.tell(connection, job.id, f"{WILL_BE_LATE}{why}")
                return {"late": 1}
            routes.move_online(connection, job.id, _told(job, rest, means))
            moved = 1
    if moved:
        _log.warning("job %s would be late: the rest of it goes online", job.id, extra={"job_id": job.id})
        count("reroutes", 1, "online")
    cancelled = released = 0
    reason = f"job {job.id} needs what it holds by {job.need_by:%Y-%m-%d %H:%M} UTC"
    for first in range(0, len(rest.batch_ids), _PAGE):
        page = rest.batch_ids[first : first + _PAGE]
        with ledger.transaction() as connection:
            holding = routes.withdraw(connection, page)
        with ledger.transaction() as connection:
            cancelled += sum(remote.cancel(connection, batch_id, reason) for batch_id in holding)
        with ledger.transaction() as connection:
            released += routes.release(connection, page)
    return {"moved_online": moved, "batches_cancelled": cancelled, "released": released}


def _why_not(means: Means, job: LateJob, rest: Rest, left: float) -> str | None:
    """Why the rest cannot be bought online; None where it can."""
    spec = ModelSpec.from_json(dict(job.model))
    if (served := served_name(spec, means.openai)) is None:
        return f"{spec.name} is not served online"
    cost = spending.cost_of(means.cost, served, "openai", rest.tokens)
    if cost > left + TOLERANCE:
        return f"online the rest would cost {dollars(cost)}, and {dollars(max(0.0, left))} may still be spent"
    return None


def _told(job: LateJob, rest: Rest, means: Means) -> str:
    spec = ModelSpec.from_json(dict(job.model))
    cost = spending.cost_of(means.cost, served_name(spec, means.openai) or spec.name, "openai", rest.tokens)
    when = f"{duration(job.seconds_left)} before" if job.seconds_left > 0 else f"{duration(-job.seconds_left)} after"
    return (
        f"online: the Batch API had not delivered it {when} it is needed; the rest ({rest.tokens:,} tokens, at most "
        f"{dollars(cost)}) is bought online"
    )


def _stay(job: LateJob, why: str) -> None:
    _log.warning("job %s will be late: %s", job.id, why, extra={"job_id": job.id})
    if not (job.told or "").startswith(WILL_BE_LATE):
        count("reroutes", 1, "late")
