"""Why an unfinished job is not getting on: one state, with its reason, and when it will be otherwise.

One state of those that are true, the first in this order:

1. `paused`: somebody decided so; whatever else is true matters only once it is resumed.
2. `dead_worker`, 3. `wedged`: a claim of the job is held by nobody, or by somebody who is stuck. Told even while other
   batches of it go on, since the job cannot end without that one.

   A job of which something else is running properly is at work: nothing more is said, but for `saturated` (7.).
4. `starved`: no worker would take it, now or when what it waits for is over; that needs a person, and a wait does not.
5. `waiting`: nothing of it may run before a time: a dependency is away, a failed attempt backs off, the Batch API has
   its texts, who embeds for money asks to wait or takes nothing.
6. `staging`, `queued`: its work is still being written, or waits for its turn.
7. `saturated`: it runs, at less than half of its earlier rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from pipeline.ledger import budgets, findings, reembeddings
from pipeline.ledger.circuits import LEDGER_ROOM, OPENAI, VECTORS, Open
from pipeline.ledger.engine import Connection
from pipeline.ledger.findings import Fleet, Found, Place
from pipeline.ledger.jobs import Job
from pipeline.ledger.rates import SATURATED
from pipeline.ledger.routes import WILL_BE_LATE

State = Literal["paused", "dead_worker", "wedged", "starved", "waiting", "staging", "queued", "saturated"]
STATES: tuple[State, ...] = get_args(State)

# Batches ahead are counted up to here, for one job; for many together up to about as many.
MOST_COUNTED = 10_000
_LEAST_COUNTED = 100
# A lease that is over is seen by `reconcile`, which runs so often.
_RECONCILE_SECONDS = 3.0
# An enqueuer that has added nothing for so long is mentioned.
_SILENT_SECONDS = 30.0
# The class of the error where who embeds for money asks to wait.
_LIMITED = "ProviderLimited"
# Those where it takes nothing until a person has done something, which the reason names.
_FOR_A_PERSON = frozenset({"KeyRejected", "QuotaExhausted"})
_GOES_ON = "it is tried every minute, and goes on by itself; workers know a new key when they are started again"
_LOOKED_AFTER = "nothing to do: the provider is asked again and again; `millrace batches` shows the orders"
# A job that got on so lately is between two of its batches, if there is a slot for the next.
_BETWEEN_SECONDS = 3.0

# What a person can do about it.
REMEDIES: Mapping[State, str] = {
    "paused": "`millrace resume` lets it go on",
    "dead_worker": "nothing to do: another worker takes the batch up; see `millrace logs` for why the worker ended",
    "wedged": "nothing to do: the process is interrupted and the attempt counted; the worker's log says what it did",
    "starved": "start a worker that consumes the queue: `millrace up`, or `millrace worker` on another machine",
    "waiting": "nothing to do where the reason is gone by then; `millrace status` shows what does not answer",
    "staging": "nothing to do while the enqueuer runs; one that was stopped goes on by running its command again",
    "queued": "more workers make it start sooner; so does `--priority high`",
    "saturated": "look at the load of the workers' machines, and at what else they do (`millrace jobs`)",
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """reason: for people; until: when it will be tried again, where that is known.

    position: batches ahead in its queue; eta_seconds: until it starts, by the rate of that queue; both None where they
    mean nothing or nothing tells them. worker: which one is meant. own_remedy: where that of the state is not the one.
    over_budget: a budget has paused it.
    """

    reason: str
    until: datetime | None = None
    state: State = "waiting"
    position: int | None = None
    eta_seconds: float | None = None
    worker: str | None = None
    own_remedy: str | None = None
    over_budget: bool = False

    @property
    def remedy(self) -> str:
        """What is to be done; empty where the reason says so itself."""
        return REMEDIES[self.state] if self.own_remedy is None else self.own_remedy

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "reason": self.reason,
            "until": self.until.isoformat() if self.until else None,
            "position": self.position,
            "eta_seconds": round(self.eta_seconds, 1) if self.eta_seconds is not None else None,
            "worker": self.worker,
        }


def diagnose(connection: Connection, jobs: Sequence[Job]) -> list[Waiting | None]:
    """For each of the jobs, in their order; None for one that is finished or at work. Bounded, whatever the backlog."""
    unfinished = [job for job in jobs if not job.finished]
    if not unfinished:
        return [None] * len(jobs)
    fleet = findings.fleet(connection)
    found = findings.about(connection, unfinished, fleet)
    most = max(_LEAST_COUNTED, MOST_COUNTED // len(unfinished))
    return [None if job.finished else _decide(connection, job, found[job.id], fleet, most) for job in jobs]


def waiting(connection: Connection, job: Job) -> Waiting | None:
    """None for a job that is finished or at work."""
    return diagnose(connection, [job])[0]


def _decide(connection: Connection, job: Job, found: Found, fleet: Fleet, most: int) -> Waiting | None:
    told = _paused(found) or _dead_worker(job, found, fleet) or _wedged(found)
    if told is not None:
        return told
    away = fleet.circuits.get(VECTORS)
    if found.running and not (found.only_vectors_run and away):
        return _saturated(job, fleet)
    if not found.unfinished:
        return _reembedding(connection, job) if job.kind == "reembed" else _nothing_to_run(job, found, fleet)
    told = _starved(job, fleet) or _away(found, fleet) or _ordered(job, found, fleet) or _later(found)
    if told is not None or not found.ready:
        return told
    place = findings.place(connection, job, most)
    return _queued(job, place, fleet)


def _paused(found: Found) -> Waiting | None:
    if found.paused is None:
        return None
    told = "paused" + (f": {found.paused.reason}" if found.paused.reason else "")
    # What a budget has paused would be paused again at once: the reason says what comes first.
    over_budget = found.paused.scope == "job" and (found.paused.reason or "").startswith(budgets.PAUSED)
    return Waiting(
        told if found.paused.scope == "job" else str(found.paused),
        state="paused",
        own_remedy="" if over_budget else None,
        over_budget=over_budget,
    )


def _dead_worker(job: Job, found: Found, fleet: Fleet) -> Waiting | None:
    if found.lost is None:
        return None
    seconds = max(0.0, (found.lost.lease_until - fleet.now).total_seconds()) + _RECONCILE_SECONDS
    left = "" if fleet.consumed(job.queue) else f"; no other live worker consumes the queue {job.queue}"
    return Waiting(
        f"worker {found.lost.worker} died with batch {found.lost.batch_id}; to be retaken within {seconds:.0f} s{left}",
        fleet.now + timedelta(seconds=seconds),
        "dead_worker",
        worker=found.lost.worker,
    )


def _wedged(found: Found) -> Waiting | None:
    if found.wedged is None:
        return None
    return Waiting(
        f"batch {found.wedged.batch_id} makes no progress on worker {found.wedged.worker}; it is about to be "
        "interrupted",
        state="wedged",
        worker=found.wedged.worker,
    )


def _saturated(job: Job, fleet: Fleet) -> Waiting | None:
    if job.rate is None or job.best_rate is None or job.rate >= job.best_rate * SATURATED:
        return None
    others = fleet.busy_jobs - 1
    beside = f"; {others} other jobs are at work" if others > 1 else "; another job is at work" if others == 1 else ""
    return Waiting(
        f"{job.rate:.2g} chunks/s, less than half of the {job.best_rate:.2g} that it made before{beside}",
        state="saturated",
    )


def _nothing_to_run(job: Job, found: Found, fleet: Fleet) -> Waiting | None:
    if found.behind is not None:
        return Waiting(f"its documents are being brought by job {found.behind} first", state="queued")
    if job.sealed_at is not None:
        return None
    silent = (fleet.now - job.seen_at).total_seconds()
    heard = f"; last heard of {silent:.0f} s ago" if silent > _SILENT_SECONDS else ""
    return Waiting(f"the enqueuer is still adding documents{heard}", state="staging")


def _reembedding(connection: Connection, job: Job) -> Waiting | None:
    """What keeps a re-embedding from going on; None where the duty `reembed` does so."""
    found = reembeddings.of_job(connection, job.id)
    return Waiting(found.error) if found is not None and found.error is not None else None


def _starved(job: Job, fleet: Fleet) -> Waiting | None:
    if fleet.consumed(job.queue):
        return None
    return Waiting(
        f"no live worker consumes the queue {job.queue}; start one with `millrace worker`",
        state="starved",
    )


def _away(found: Found, fleet: Fleet) -> Waiting | None:
    """Where all that is left needs something that does not answer, or the ledger has no room."""
    circuit = fleet.circuits.get(LEDGER_ROOM) or (None if found.others_ready else fleet.circuits.get(VECTORS))
    if circuit is None and found.ready and not found.unbought_ready:
        circuit = fleet.circuits.get(OPENAI)
    return Waiting(_told_of(circuit), circuit.until, own_remedy=_remedy(circuit)) if circuit else None


def _remedy(circuit: Open) -> str | None:
    return _GOES_ON if circuit.cause in _FOR_A_PERSON else None


def _told_of(circuit: Open) -> str:
    if circuit.cause == _LIMITED:
        if circuit.until is None:
            return f"was rate-limited, may be asked again now: {circuit.error}"
        return f"rate-limited until {circuit.until:%H:%M:%S} UTC: {circuit.error}"
    return circuit.error or f"{circuit.dependency} is away"


def _ordered(job: Job, found: Found, fleet: Fleet) -> Waiting | None:
    """Where what can be done here is done, and the rest is with the Batch API. Where that takes nothing now, that too:
    it is asked how they are all the same when it does."""
    if found.ordered is None or found.sendable:
        return None
    circuit = fleet.circuits.get(OPENAI)
    away = f"; {_told_of(circuit)}" if circuit else ""
    late = f"; {job.route_reason}" if (job.route_reason or "").startswith(WILL_BE_LATE) else ""
    own = _remedy(circuit) if circuit else None if late else _LOOKED_AFTER
    return Waiting(f"{found.ordered}{late}{away}", circuit.until if circuit else None, own_remedy=own)


def _later(found: Found) -> Waiting | None:
    """Where nothing of it may run now: what is tried again first, and when."""
    if found.sendable or found.next_at is None:
        return None
    # What failed says so; what was handed back (a dependency is away) has no attempt to count.
    attempt = f"attempt {found.attempts + 1} of batch {found.next_id}, after: " if found.attempts else ""
    return Waiting(f"{attempt}{found.error or 'to be tried again'}", found.next_at)


def _queued(job: Job, place: Place, fleet: Fleet) -> Waiting | None:
    position = place.ahead
    if not position:
        got_on = job.progressed_at is not None and (fleet.now - job.progressed_at).total_seconds() < _BETWEEN_SECONDS
        if job.state == "running" and got_on and fleet.busy_slots < fleet.slots(job.queue):
            return None
        return Waiting("queued", state="queued", position=0, eta_seconds=None)
    rate = fleet.rate(job.queue)
    eta = position / rate if rate else None
    count = f"more than {position:,}" if place.more else f"{position:,}"
    about = f", about {_told(eta)}" if eta is not None else ""
    return Waiting(
        f"queued behind {count} batch{'' if position == 1 else 'es'}{about}",
        state="queued",
        position=position,
        eta_seconds=eta,
    )


def _told(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
