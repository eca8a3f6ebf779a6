"""What embeddings cost: it is reserved before it is spent, and recorded together with the vectors that it bought.

Lock order, after the embeddings and purchases: reservations (by batch), jobs (by id), spending (that of all first, so
that one at a time decides), usage. Of these functions call one in a transaction, or the others could wait for each
other: `record` releases too.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.ledger import accounts, budgets, pauses
from pipeline.ledger.accounts import Change, Held
from pipeline.ledger.batches import Claim
from pipeline.ledger.budgets import ALL, PAUSED, Budget, dollars
from pipeline.ledger.engine import Connection
from pipeline.settings import CostSettings, Price

TOKENS_OF_PRICE = 1_000_000

# Batches of a job that is paused for its cost.
_HELD_AT_ONCE = 500

exhausted = budgets.exhausted


def price(settings: CostSettings, model: str) -> Price:
    """US dollars for a million tokens of a model; nothing for one that is not in the table."""
    return settings.prices.get(model, Price())


def cost_of(settings: CostSettings, model: str, provider: str, tokens: float) -> float:
    """US dollars for so many tokens. What is embedded here costs nothing."""
    rate = price(settings, model)
    usd = {"openai": rate.online, "openai_batch": rate.batch}.get(provider, 0.0)
    return tokens * usd / TOKENS_OF_PRICE


@dataclass(frozen=True, slots=True)
class Used:
    """What one claim (or search) bought and found. job_id: None for what is no job's.

    texts, tokens, cost, requests: bought. cached_*: found stored, and what they would have cost online. batch_saved:
    what the bought ones would have cost more online. doubtful_*: may have been paid for without an answer, besides.
    batch_id: of whose reservation this is spent; it shrinks by the cost.
    """

    job_id: uuid.UUID | None
    tenant: str
    collection: str
    provider: str
    model: str
    texts: int = 0
    tokens: int = 0
    cost: float = 0.0
    requests: int = 0
    cached_texts: int = 0
    cached_tokens: int = 0
    cached_cost: float = 0.0
    batch_saved: float = 0.0
    doubtful_texts: int = 0
    doubtful_cost: float = 0.0
    batch_id: int | None = None


_FIGURES = (
    *("requests", "texts", "tokens", "cost", "cached_texts", "cached_tokens", "cached_cost"),
    *("batch_saved", "doubtful_texts", "doubtful_cost"),
)
_KINDS = {name: float if name.endswith(("cost", "saved")) else int for name in _FIGURES}
_TYPES = {float: "float8", int: "bigint"}


@dataclass(frozen=True, slots=True)
class Refused:
    """A claim that would exceed a budget, and what people are told: what is spent, what the limit is, how to go on."""

    claim: Claim
    message: str


# -- reserving --------------------------------------------------------------------------------------------------------


def reserve(connection: Connection, costs: Mapping[Claim, float], settings: CostSettings) -> list[Refused]:
    """Holds back, for each claim, what it is going to cost at most (US dollars), in place of what was held back for its
    batch before. What costs nothing is never refused. The claims' rows are locked (`batches.hold`).

    Of a claim that would exceed the budget of its job, tenant or month nothing is held back, and its job is paused:
    commit that, and hand the claim back. Then `record` and `settle` give back what is held.
    """
    priced = {claim: float(cost) for claim, cost in costs.items() if cost > 0}
    if not priced:
        return []
    claims = sorted(priced, key=lambda claim: claim.id)
    before = accounts.held(connection, [claim.id for claim in claims])
    job_ids = {claim.job_id for claim in claims}
    tenants = {ALL, *(claim.tenant for claim in claims)}
    month = accounts.lock(connection, job_ids | {item.job_id for item in before if item.job_id}, tenants)
    if before:
        accounts.release(connection, before)
    of_jobs = budgets.of_jobs(connection, job_ids, settings)
    of_month = budgets.of_month(connection, tenants, settings)
    refused, granted = [], []
    for claim in claims:
        cost = priced[claim]
        asked = [of_jobs[claim.job_id], of_month[claim.tenant], of_month[ALL]]
        full = next((budget for budget in asked if not budget.has_room(cost)), None)
        if full is not None:
            refused.append(Refused(claim, _reason(full, claim, cost)))
            continue
        granted.append(Held(claim.id, claim.job_id, claim.tenant, month, cost))
        of_jobs[claim.job_id] = _with(of_jobs[claim.job_id], cost)
        for tenant in {ALL, claim.tenant}:
            of_month[tenant] = _with(of_month[tenant], cost)
    accounts.hold(connection, granted)
    _pause(connection, refused)
    return refused


def stand_in(number: int) -> int:
    """What stands for the batch of something that has none: in reservations, `Used.batch_id` and `settled`."""
    return -number


def reserve_alone(connection: Connection, number: int, tenant: str, cost: float, settings: CostSettings) -> str | None:
    """Holds back what something costs that is no job's: a search, `embed`. number: its own, from 1 on.

    Returns why it may not be spent; None where it may.
    """
    if cost <= 0:
        return None
    before = accounts.held(connection, [stand_in(number)])
    month = accounts.lock(connection, (), {ALL, tenant})
    if before:
        accounts.release(connection, before)
    of_month = budgets.of_month(connection, {ALL, tenant}, settings)
    full = next((of_month[name] for name in (tenant, ALL) if not of_month[name].has_room(cost)), None)
    if full is not None:
        return f"{full}; this would cost {dollars(cost)} more. Raise it with `millrace cost {full.option}`"
    accounts.hold(connection, [Held(stand_in(number), None, tenant, month, cost)])
    return None


def _with(budget: Budget, reserved: float) -> Budget:
    return replace(budget, reserved=budget.reserved + reserved)


def _reason(full: Budget, claim: Claim, cost: float) -> str:
    return (
        f"{PAUSED}{full}; batch {claim.id} would cost {dollars(cost)} more. Raise the budget with "
        f"`millrace cost {full.option}`, then go on with `millrace resume {claim.job_id}`"
    )


def _pause(connection: Connection, refused: Sequence[Refused]) -> None:
    """Of a job with several refused claims the first one's reason."""
    reasons = {item.claim.job_id: item.message for item in reversed(refused)}
    if not reasons:
        return
    connection.execute(
        """UPDATE jobs j SET state = 'paused', paused_at = clock_timestamp(), pause_reason = r.reason
             FROM unnest(%s::uuid[], %s::text[]) AS r (id, reason)
            WHERE j.id = r.id AND j.state IN ('queued', 'running')""",
        (list(reasons), list(reasons.values())),
    )
    for job_id in reasons:
        # It waits for nobody, so that the order of locks is of no matter. Those beyond are held where they are met.
        pauses.hold(connection, job_id, _HELD_AT_ONCE)


# -- recording --------------------------------------------------------------------------------------------------------


def record(connection: Connection, entries: Iterable[Used], settled: Collection[int] = ()) -> None:
    """Adds what was bought and found to the usage of the day, the sums of the month and the cost of the jobs. What it
    cost is taken from the reservations of its batches; those of the `settled` batches are released altogether.

    Call it in the transaction that stores the vectors.
    """
    entries = list(entries)
    change = Change()
    drawn: dict[int, float] = defaultdict(float)
    for entry in entries:
        cost, doubtful = float(entry.cost), float(entry.doubtful_cost)
        change.spend(entry.job_id, entry.tenant, cost, doubtful)
        if entry.batch_id is not None and entry.batch_id not in settled:
            drawn[entry.batch_id] += cost + doubtful
    drawn = {batch_id: cost for batch_id, cost in drawn.items() if cost > 0}
    left: dict[int, float] = {}
    for item in accounts.held(connection, drawn.keys() | set(settled)):
        taken = min(item.cost, drawn.get(item.batch_id, item.cost))
        change.hold(item, -taken)
        left[item.batch_id] = item.cost - taken
    change.apply(connection)
    _keep(connection, {batch_id: cost for batch_id, cost in left.items() if batch_id in drawn})
    # Not one that another transaction has made meanwhile: it is in no sum of this one, and may be locked.
    gone = sorted(batch_id for batch_id in left if batch_id in settled)
    if gone:
        connection.execute("DELETE FROM reservations WHERE batch_id = ANY(%s)", (gone,))
    _add_usage(connection, entries)


def _keep(connection: Connection, left: Mapping[int, float]) -> None:
    """What is left of (locked) reservations."""
    if left:
        connection.execute(
            """UPDATE reservations r SET cost = l.cost FROM unnest(%s::bigint[], %s::float8[]) AS l (id, cost)
                WHERE r.batch_id = l.id""",
            (list(left), list(left.values())),
        )


def settle(connection: Connection, batch_ids: Collection[int]) -> None:
    """Gives back what is still held for these batches: they have what they needed, or will not be worked on."""
    record(connection, (), settled=batch_ids)


# A search or `embed` that is not at it any more is one that has no purchases (which have a lease); and a new one has a
# moment to make them.
_LONE_SECONDS = 60


def sweep(connection: Connection, limit: int) -> int:
    """Gives back what is held for up to `limit` batches that nobody is at: ended, handed back, or gone. Returns how
    many."""
    # One that is claimed meanwhile gets a new row, which this snapshot does not see. What was asked for, and is not
    # known to be paid or not, stays reserved: another claim takes it over, or its remote batch is harvested.
    rows = connection.execute(
        f"""SELECT r.batch_id FROM reservations r
            WHERE CASE WHEN r.batch_id < 0 THEN
                    r.created_at < now() - interval '{_LONE_SECONDS} s'
                    AND NOT EXISTS (SELECT 1 FROM purchases p WHERE p.batch_id = 0 AND p.epoch = -r.batch_id
                                       AND p.lease_until > clock_timestamp())
                  ELSE
                    NOT EXISTS (SELECT 1 FROM batches b WHERE b.id = r.batch_id AND b.state IN ('running', 'waiting'))
                    AND NOT EXISTS (SELECT 1 FROM purchases p WHERE p.batch_id = r.batch_id
                                       AND (p.epoch IS NOT NULL OR p.remote_batch_id IS NOT NULL)) END
            ORDER BY r.batch_id LIMIT %s FOR UPDATE SKIP LOCKED""",
        (limit,),
    ).fetchall()
    if rows:
        settle(connection, [row["batch_id"] for row in rows])
    return len(rows)


def _add_usage(connection: Connection, entries: Sequence[Used]) -> None:
    rows: dict[tuple[str, str, uuid.UUID | None, str, str], list[float]] = {}
    for entry in entries:
        figures = [_KINDS[name](getattr(entry, name)) for name in _FIGURES]
        if any(figures):
            key = (entry.tenant, entry.collection, entry.job_id, entry.provider, entry.model)
            before = rows.get(key, [kind() for kind in _KINDS.values()])
            rows[key] = [had + more for had, more in zip(before, figures, strict=True)]
    if not rows:
        return
    keys = sorted(rows, key=str)
    connection.execute(
        f"""INSERT INTO usage AS u (day, tenant, collection, job_id, provider, model, {", ".join(_FIGURES)})
            SELECT (now() AT TIME ZONE 'UTC')::date, a.*
              FROM unnest(%s::text[], %s::text[], %s::uuid[], %s::text[], %s::text[],
                          {", ".join(f"%s::{_TYPES[kind]}[]" for kind in _KINDS.values())}) AS a
            ON CONFLICT (day, tenant, collection, job_id, provider, model) DO UPDATE
               SET {", ".join(f"{name} = u.{name} + excluded.{name}" for name in _FIGURES)}""",
        (
            *([key[place] for key in keys] for place in range(5)),
            *([rows[key][place] for key in keys] for place in range(len(_FIGURES))),
        ),
    )
