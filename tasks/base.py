"""What every task shares: this process's services, claiming, blame, and topping up the queues afterwards."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from celery import current_task

from pipeline.assembly import Services
from pipeline.dispatch import dispatch
from pipeline.errors import (
    BoughtElsewhere,
    BudgetExhausted,
    InvalidRequest,
    KeyRejected,
    LeaseLost,
    MillraceError,
    ModelUnavailable,
    ProviderLimited,
    ProviderUnavailable,
    QuotaExhausted,
    SchemaMismatch,
    Unavailable,
    VectorsUnavailable,
)
from pipeline.ledger import backlog, batches, blame, circuits, jobs
from pipeline.ledger.batches import Claim
from pipeline.ledger.engine import Connection
from pipeline.observe import bound, count, logger, observe, operation
from pipeline.routing import may_ask
from pipeline.settings import Settings, load_settings
from pipeline.tools import Progress, Tools, Waits
from tasks import leaving, vitals
from tasks.failures import tell, trace
from tasks.heartbeat import Heartbeat

# Set by the worker's main process before it forks: `worker name@host#start`.
WORKER_ID_VARIABLE = "MILLRACE_WORKER_ID"
# And into how many pool children it forks.
WORKER_SLOTS_VARIABLE = "MILLRACE_WORKER_SLOTS"

# How long work rests when a dependency was away: short, since nobody is blamed and nothing is counted.
_OUTAGE_REST_SECONDS = 2.0
# How long work rests whose texts another claim is buying: about as long as a request takes.
_BOUGHT_REST_SECONDS = 1.0
# How long nobody asks a provider that rejects the key, or an account without money; and one that asks to wait, and
# says not for how long.
_REFUSED_REST_SECONDS = 60.0
_LIMITED_REST_SECONDS = 5.0
# How long a worker waits for the ledger to hand work back to, and how often it tries.
_RELEASE_PATIENCE_SECONDS = 120.0
_RELEASE_RETRY_SECONDS = 0.5
_MAX_ID = 2**63 - 1

_log = logger("task")

# What is said of work that is done; the number is the size of its batches.
_DONE = {
    "prepare": "prepared %d documents",
    "embed": "embedded and upserted %d chunks",
    "delete": "deleted %d documents",
}

# Returns what claims of it wait for in the ledger; None: all are done.
Story = Callable[[Tools, Sequence[Claim], Progress], Waits | None]
# How many tokens may be coalesced with a claim; asks the ledger in the claim's own transaction.
TokenBudget = Callable[[Connection, Claim], int]


@dataclass(frozen=True, slots=True)
class Done:
    """The work is in the index. kind: of the batches."""

    claims: int
    kind: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """There was nothing to do, or somebody else has it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A dependency is away; the work is handed back and blamed on nobody."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The work failed; it is tried again, split, or given up."""

    error: str


Outcome = Done | Skipped | Waiting | Failed

_services: list[Services] = []


def services() -> Services:
    """This process's services, opened at the first task: nothing of it may be inherited through a fork."""
    if not _services:
        _services.append(Services(own_share(load_settings())))
    return _services[0]


def own_share(settings: Settings) -> Settings:
    """The settings for one of this worker's pool children: what is of a worker is divided among them."""
    openai, slots = settings.openai, int(os.environ.get(WORKER_SLOTS_VARIABLE) or 1)
    in_flight = max(1, openai.in_flight // max(1, slots))
    return settings.model_copy(update={"openai": openai.model_copy(update={"in_flight": in_flight})})


def use_services(opened: Services) -> None:
    """Services that somebody else has assembled for this process, instead of those of the settings."""
    close_services()
    _services.append(opened)


def forget_services() -> None:
    """In a fresh child: what the parent had opened is not ours to use or to close."""
    _services.clear()


def close_services() -> None:
    while _services:
        _services.pop().close()


def worker_id() -> str:
    """The name of this worker, the same in all its children."""
    return os.environ.get(WORKER_ID_VARIABLE) or f"{socket.gethostname()}#{os.getpid()}"


def owner() -> str:
    """Under which claims of this process are held: worker/pid."""
    return f"{worker_id()}/{os.getpid()}"


def task_id() -> str | None:
    """Celery's id of the task that this thread is in; None outside of one."""
    return current_task.request.id if current_task else None


def parse_id(value: object) -> int:
    """The id that a message carries. Raises InvalidRequest for anything that is not a positive 64-bit integer."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_ID:
        raise InvalidRequest(f"a message must carry the id of a row, not {value!r}")
    return value


def perform(opened: Services, batch_id: object, story: Story, token_budget: TokenBudget | None = None) -> Outcome:
    """Claims a batch (and what can be coalesced with it), tells its story, and answers for the outcome.

    token_budget: how much may be coalesced with a claim; None: nothing. Tops up the queues afterwards.
    """
    with bound(task_id=task_id()):
        return _claim_and_perform(opened, batch_id, story, token_budget)


def _claim_and_perform(opened: Services, batch_id: object, story: Story, token_budget: TokenBudget | None) -> Outcome:
    try:
        outcome = _perform(opened, parse_id(batch_id), story, token_budget)
    except leaving.Leaving as error:
        # Before anything was claimed: the message is gone with this, so another one has to go out.
        outcome = Skipped(str(error))
        _send_again(opened, parse_id(batch_id))
    except Unavailable as error:
        # The ledger itself: the lease runs out, and reconcile brings the work back.
        outcome = Waiting(str(error))
    except LeaseLost as error:
        # It failed, and was cancelled or taken over before that was written down.
        outcome = Skipped(str(error))
    try:
        embedded = isinstance(outcome, Done) and outcome.kind == "embed"
        dispatch(opened.ledger, opened.broker, opened.settings.work, vectors_answered=embedded)
    except Unavailable as error:
        _log.warning("queues not topped up: %s", error)
    return outcome


def _perform(opened: Services, batch_id: int, story: Story, token_budget: TokenBudget | None) -> Outcome:
    work = opened.settings.work
    leaving.check()
    with operation("claim"), opened.ledger.transaction() as connection:
        first = batches.claim(connection, batch_id, owner(), work.lease_seconds)
        if first is None:
            return Skipped("not ready: done, held by another, or waiting")
        claims = [first]
        if token_budget is not None:
            claims += batches.coalesce(connection, first, owner(), work.lease_seconds, token_budget(connection, first))
        jobs.start(connection, {claim.job_id for claim in claims})
    _measure(claims)
    with bound(**_told_by(claims)):
        outcome = _carry_out(opened, claims, story)
    count("work", len(claims), first.kind, type(outcome).__name__.lower())
    return outcome


def _measure(claims: Sequence[Claim]) -> None:
    """What was claimed together: one batch, or several."""
    kind = claims[0].kind
    count("claims", len(claims), kind)
    observe("claim_size", sum(claim.size for claim in claims), kind)
    if tokens := sum(claim.tokens for claim in claims):
        observe("claim_tokens", tokens, kind)


def _told_by(claims: Sequence[Claim]) -> dict[str, object]:
    """What log lines name the work by: the first claim's ids, and those of all where several were taken together."""
    first = claims[0]
    told: dict[str, object] = {
        "job_id": first.job_id,
        "batch_id": first.id,
        "correlation_id": first.correlation_id,
        "collection": first.collection,
        "tenant": first.tenant if all(claim.tenant == first.tenant for claim in claims) else None,
    }
    if len(claims) > 1:
        told["batches"] = " ".join(str(claim.id) for claim in claims)
    if len(members := sorted({str(claim.job_id) for claim in claims})) > 1:
        told["jobs"] = " ".join(members)
    if len(asked := sorted({claim.correlation_id for claim in claims if claim.correlation_id})) > 1:
        told["correlation_ids"] = " ".join(asked)
    return told


def _carry_out(opened: Services, claims: Sequence[Claim], story: Story) -> Outcome:
    work = opened.settings.work
    first = claims[0]
    started = time.monotonic()
    try:
        named = f"batch {', '.join(str(claim.id) for claim in claims)}"
        with operation(first.kind), Heartbeat(opened.ledger, named, _Extend(claims), work) as heartbeat:

            def progress() -> None:
                heartbeat.progress()
                leaving.check()

            waits = story(opened.tools, claims, progress)
    except leaving.Leaving as error:
        _release(opened, claims, 0.0, str(error))
        return Waiting(str(error))
    except LeaseLost as error:
        # What was coalesced with a claim that is lost (a job that was cancelled, say) is still ours to hand back.
        _log.warning("%s", error)
        _release(opened, claims, 0.0, str(error))
        return Skipped(str(error))
    except (Unavailable, ModelUnavailable, SchemaMismatch, BoughtElsewhere, BudgetExhausted) as error:
        # The second and third are this worker's own: it would make dead letters of everything there is, one by one. Of
        # a job over its budget nothing is sent: it is paused.
        _log.warning("batches %s wait: %s", [claim.id for claim in claims], error)
        rest = _BOUGHT_REST_SECONDS if isinstance(error, BoughtElsewhere) else _OUTAGE_REST_SECONDS
        _release(opened, claims, rest, str(error), error)
        return Waiting(str(error))
    except Exception as error:  # noqa: BLE001 - whatever it was, it is written down and counted
        _log.exception("batches %s failed", [claim.id for claim in claims])
        told = tell(error)
        _blame(opened, claims, told, trace(error))
        return Failed(told)
    if waits is not None:
        return Waiting(waits.reason)
    vitals.count(first.priority, len(claims))
    size, tokens = sum(claim.size for claim in claims), sum(claim.tokens for claim in claims)
    seconds = round(time.monotonic() - started, 3)
    # One line for what was done together, instead of the two that Celery has for every message.
    _log.info(
        _DONE[first.kind],
        size,
        extra={"kind": first.kind, "size": size, "tokens": tokens, "seconds": seconds},
    )
    return Done(len(claims), first.kind)


class _Extend:
    """Keeps the leases of claims. Where the worker is leaving and the work does not get to its next step meanwhile, as
    with a server that does not answer, the claims are handed back from here: what still comes of it finds them gone."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self._claims = claims
        self._left = False

    def __call__(self, connection: Connection, lease_seconds: float) -> bool:
        if self._left:
            batches.release(connection, self._claims, 0.0, str(leaving.Leaving()))
            return False
        self._left = leaving.leaving()
        return len(batches.heartbeat(connection, self._claims, lease_seconds)) == len(self._claims)


def _send_again(opened: Services, batch_id: int) -> None:
    """The batch's message was taken and nothing came of it. Where the ledger is away, `reconcile` finds that out."""
    try:
        with opened.ledger.transaction() as connection:
            backlog.unstamp(connection, [batch_id])
    except Unavailable as error:
        _log.warning("batch %d is sent again later: %s", batch_id, error)


def _release(
    opened: Services, claims: Sequence[Claim], rest_seconds: float, reason: str, error: MillraceError | None = None
) -> None:
    """Hands the claims back without blame. Where it is the ledger that is away, waits for it: the work goes on sooner
    than when its lease runs out. error: what is away, and all workers are told of."""

    def release(connection: Connection) -> None:
        batches.release(connection, claims, rest_seconds, reason)
        if isinstance(error, VectorsUnavailable):
            circuits.trip(connection, circuits.VECTORS, reason, [claim.id for claim in claims])
        elif isinstance(error, ProviderUnavailable) and may_ask(opened.settings.openai):
            # One that has no key at all says nothing about the keys of the others.
            circuits.rest(connection, circuits.OPENAI, reason, _provider_rest(error), type(error).__name__)

    hand_back(opened, release)


def _provider_rest(error: ProviderUnavailable) -> float | None:
    """Seconds for which nobody asks it; None: as for whoever does not answer."""
    if isinstance(error, ProviderLimited):
        return error.seconds if error.seconds is not None else _LIMITED_REST_SECONDS
    return _REFUSED_REST_SECONDS if isinstance(error, KeyRejected | QuotaExhausted) else None


def hand_back(opened: Services, release: Callable[[Connection], None]) -> None:
    """Gives up a claim in the ledger, and waits for it where it is away. Raises LedgerUnavailable in the end."""
    deadline = time.monotonic() + _RELEASE_PATIENCE_SECONDS
    while True:
        try:
            with opened.ledger.transaction() as connection:
                release(connection)
            return
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            vitals.progress()  # it waits for what is away, and is not stuck
            time.sleep(_RELEASE_RETRY_SECONDS)


def _blame(opened: Services, claims: Sequence[Claim], error: str, traceback: str) -> None:
    work = opened.settings.work
    with opened.ledger.transaction() as connection:
        exhausted = {row["id"] for row in batches.fail(connection, claims, error, work)}
    count("attempts_failed", len(claims), claims[0].kind)
    for claim in claims:
        if claim.id in exhausted:
            with opened.ledger.transaction() as connection:
                blame.give_up(connection, claim, error, work, traceback)
