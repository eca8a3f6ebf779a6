"""Batches: the unit of work. One claim mechanism for every kind: owner, lease, epoch, by the database's clock alone.

Who lost the lease finds no row under its epoch and drops its result.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.errors import LeaseLost
from pipeline.ledger.circuits import OPEN_TO_CLAIM, SENDABLE_KIND
from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.fleet import ENDED_FOR_GOOD, STEADY_SINCE
from pipeline.ledger.pauses import JOB_PAUSED, paused
from pipeline.settings import WorkSettings

BatchKind = Literal["prepare", "embed", "delete"]

# How the error begins of work whose process is known to have died of something.
DIED = "its process died: "


@dataclass(frozen=True, slots=True)
class Claim:
    """A batch that this process holds under this epoch. correlation_id: of its job. reembedding_id: its chunks get the
    vectors of another model (`ledger.reembeddings`); None: of their collection's."""

    id: int
    kind: BatchKind
    epoch: int
    collection_id: int
    job_id: uuid.UUID
    tenant: str
    priority: int
    provider: str
    size: int
    tokens: int
    attempts: int
    losses: int
    alone: bool
    collection: str
    correlation_id: str | None = None
    reembedding_id: int | None = None


# The claimed rows that are still held, locked in the order of their ids as everywhere: two that lock several rows in
# different orders would wait for each other.
_HELD = """
SELECT b.id FROM batches b JOIN unnest(%(ids)s::bigint[], %(epochs)s::int[]) AS c (id, epoch)
    ON b.id = c.id AND b.epoch = c.epoch
 WHERE b.state = 'running' ORDER BY b.id FOR NO KEY UPDATE OF b"""

# What log lines name the work by comes with it, and needs no question of its own.
_CLAIM_COLUMNS = ", ".join(
    {
        "collection": "(SELECT c.name FROM collections c WHERE c.id = b.collection_id) AS collection",
        "correlation_id": "(SELECT j.correlation_id FROM jobs j WHERE j.id = b.job_id) AS correlation_id",
    }.get(name, f"b.{name}")
    for name in Claim.__slots__
)

_CLAIM = f"""
UPDATE batches b
   SET state = 'running', shared = %(shared)s, owner = %(owner)s, epoch = b.epoch + 1, next_attempt_at = NULL,
       wedged_at = NULL, lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
  FROM (SELECT id FROM picked) AS p
 WHERE b.id = p.id
RETURNING {_CLAIM_COLUMNS}"""


def insert(
    connection: Connection,
    *,
    kind: BatchKind,
    collection_id: int,
    tenant: str,
    job_id: uuid.UUID,
    provider: str,
    sizes: Sequence[tuple[int, int]],
    reembedding_id: int | None = None,
) -> list[int]:
    """One ready batch per (documents or chunks, tokens). Returns their ids, ascending, in the order of `sizes`.

    Their priority is the one that the job has now, and they are held where it or its collection is paused now.
    """
    if not sizes:
        return []
    rows = connection.execute(
        f"""INSERT INTO batches (kind, collection_id, tenant, job_id, priority, provider, size, tokens, held,
                                reembedding_id)
           SELECT %(kind)s, %(collection)s, %(tenant)s, j.id, j.priority, %(provider)s, s.size, s.tokens, {JOB_PAUSED},
                  %(reembedding)s::bigint
             FROM jobs j, unnest(%(sizes)s::int[], %(tokens)s::bigint[]) WITH ORDINALITY AS s (size, tokens, place)
            WHERE j.id = %(job)s ORDER BY s.place RETURNING id""",
        {
            "kind": kind,
            "collection": collection_id,
            "tenant": tenant,
            "job": job_id,
            "provider": provider,
            "sizes": [size for size, _ in sizes],
            "tokens": [tokens for _, tokens in sizes],
            "reembedding": reembedding_id,
        },
    ).fetchall()
    return sorted(row["id"] for row in rows)


# Of batches b and their jobs j: what may be taken now. `held` is asked too: it is read again where the row was locked
# meanwhile, and the others are not. So a claim that waits while its job is paused does not get it.
_TAKEABLE = """b.state = 'ready' AND NOT b.held AND j.state NOT IN ('paused', 'cancelled')
                AND (b.next_attempt_at IS NULL OR b.next_attempt_at <= clock_timestamp())"""


def claim(connection: Connection, batch_id: int, owner: str, lease_seconds: float) -> Claim | None:
    """Takes the batch; None where it is not ready now (taken, done, paused, waiting for its next attempt). One that
    waits for what is away loses its stamp with its message: it is sent again as soon as it may go.

    Waits for whoever has the row locked: it may be looked at by `coalesce` and not taken, and this message is its only
    one. Call it first in a transaction, so that nobody waits for what this one holds.
    """
    row = connection.execute(
        f"""WITH picked AS (
              SELECT b.id FROM batches b JOIN jobs j ON j.id = b.job_id
               WHERE b.id = %(id)s AND {_TAKEABLE} AND {OPEN_TO_CLAIM} AND NOT {paused("b.collection_id")}
                 FOR NO KEY UPDATE OF b),
            refused AS (
              UPDATE batches b SET sent_at = NULL
               WHERE b.id = %(id)s AND b.state = 'ready' AND b.sent_at IS NOT NULL AND NOT {OPEN_TO_CLAIM})
            {_CLAIM}""",
        {"id": batch_id, "owner": owner, "lease": lease_seconds, "shared": False},
    ).fetchone()
    return Claim(**row) if row else None


# A part of a second on one slow core: so much may go together whatever else there is.
_LITTLE_TOKENS = 1024
# Documents or chunks that go together, however little each is: their vectors and points are in memory at once.
_MOST_MEMBERS = 4096


def coalesce(
    connection: Connection, first: Claim, owner: str, lease_seconds: float, token_budget: int, most: int = 64
) -> list[Claim]:
    """Takes further ready batches of the same collection, provider and priority, up to the budget of tokens: those
    behind the first one of the same tenant, then of the tenants behind it.

    No more than a fourth of what is found, unless that is little: at the end of a job the others shall have work too.
    Only work that never failed is coalesced; should it fail in company, nobody is blamed, and each runs alone.
    """
    if first.alone or first.attempts or first.losses or first.tokens >= token_budget:
        return []
    rows = connection.execute(
        f"""WITH near AS MATERIALIZED (
              (SELECT b.id FROM batches b
                WHERE b.state = 'ready' AND NOT b.held AND b.priority = %(priority)s
                  AND b.tenant BETWEEN %(tenant)s AND %(tenant)s AND b.id > %(first)s
                ORDER BY b.tenant, b.id LIMIT %(most)s)
              UNION ALL
              (SELECT b.id FROM batches b
                WHERE b.state = 'ready' AND NOT b.held AND b.priority = %(priority)s AND b.tenant > %(tenant)s
                ORDER BY b.tenant, b.id LIMIT %(most)s)
              LIMIT %(most)s),
            candidates AS (
              SELECT b.id, b.size, b.tokens, b.tenant FROM batches b JOIN jobs j ON j.id = b.job_id
               WHERE b.id = ANY (ARRAY(SELECT id FROM near)) AND {_TAKEABLE} AND {SENDABLE_KIND}
                 AND NOT {paused("%(collection)s")}
                 AND b.kind = %(kind)s AND b.collection_id = %(collection)s
                 AND b.provider = %(provider)s AND b.priority = %(priority)s
                 AND b.reembedding_id IS NOT DISTINCT FROM %(reembedding)s
                 AND b.attempts = 0 AND b.losses = 0 AND NOT b.alone
               ORDER BY b.tenant, b.id FOR NO KEY UPDATE OF b SKIP LOCKED),
            picked AS (
              SELECT id FROM (SELECT id, sum(tokens) OVER (ORDER BY tenant, id) AS total,
                                     sum(size) OVER (ORDER BY tenant, id) AS members FROM candidates) AS c
               WHERE members <= %(members)s
                 AND total <= least(%(budget)s,
                                    greatest(%(little)s, (SELECT sum(tokens) FROM candidates) / 4)))
            {_CLAIM}""",
        {
            "kind": first.kind,
            "collection": first.collection_id,
            "provider": first.provider,
            "reembedding": first.reembedding_id,
            "priority": first.priority,
            "tenant": first.tenant,
            "first": first.id,
            "most": most,
            "budget": token_budget - first.tokens,
            "members": _MOST_MEMBERS - first.size,
            "little": _LITTLE_TOKENS,
            "owner": owner,
            "lease": lease_seconds,
            "shared": True,
        },
    ).fetchall()
    if rows:
        connection.execute("UPDATE batches SET shared = true WHERE id = %s", (first.id,))
    return sorted((Claim(**row) for row in rows), key=lambda claim: claim.id)


def _keys(claims: Sequence[Claim]) -> dict[str, list[int]]:
    return {"ids": [claim.id for claim in claims], "epochs": [claim.epoch for claim in claims]}


def heartbeat(connection: Connection, claims: Sequence[Claim], lease_seconds: float) -> set[int]:
    """Extends the leases. Returns the ids that are still held; the others were lost."""
    rows = connection.execute(
        f"""WITH held AS ({_HELD})
            UPDATE batches b SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
              FROM held WHERE b.id = held.id RETURNING b.id""",
        {**_keys(claims), "lease": lease_seconds},
    ).fetchall()
    return {row["id"] for row in rows}


def hold(connection: Connection, claims: Sequence[Claim]) -> None:
    """Locks the claimed rows until the commit. Raises LeaseLost where one is no longer held under its epoch."""
    rows = connection.execute(_HELD, _keys(claims)).fetchall()
    lost = sorted({claim.id for claim in claims} - {row["id"] for row in rows})
    if lost:
        raise LeaseLost(f"batch {', '.join(map(str, lost))} was taken over or cancelled; its result here is dropped")


def give(connection: Connection, claims: Sequence[Claim], provider: str) -> list[Claim]:
    """Has somebody else embed what is claimed. Raises LeaseLost."""
    hold(connection, claims)
    connection.execute(
        "UPDATE batches SET provider = %s WHERE id = ANY(%s)", (provider, [claim.id for claim in claims])
    )
    return [replace(claim, provider=provider) for claim in claims]


def finish(connection: Connection, claims: Sequence[Claim]) -> None:
    """Ends claims that `hold` has locked: their work is in the index."""
    connection.execute(
        "UPDATE batches SET state = 'indexed', lease_until = NULL, error = NULL, ended_at = now() WHERE id = ANY(%s)",
        ([claim.id for claim in claims],),
    )


def release(connection: Connection, claims: Sequence[Claim], delay_seconds: float, reason: str) -> None:
    """Hands claims back without blame: a dependency is away, or this worker is leaving."""
    connection.execute(
        f"""WITH held AS ({_HELD})
            UPDATE batches b
               SET state = 'ready', lease_until = NULL, sent_at = NULL, error = %(reason)s,
                   next_attempt_at = clock_timestamp() + make_interval(secs => %(delay)s)
              FROM held WHERE b.id = held.id""",
        {**_keys(claims), "reason": reason, "delay": delay_seconds},
    )


def fail(connection: Connection, claims: Sequence[Claim], error: str, work: WorkSettings) -> list[Row]:
    """Counts an attempt on a claim and hands it back with backoff; of coalesced ones nobody is blamed, and each runs
    alone next.

    Returns the rows that are out of attempts (id, kind, epoch, error): they stay claimed, for `blame.give_up` to end in
    a transaction of its own.
    """
    rows = connection.execute(
        f"""WITH held AS ({_HELD})
            UPDATE batches b
               SET attempts = attempts + (NOT shared)::int, alone = alone OR shared, error = %(error)s, sent_at = NULL,
                   state = CASE WHEN attempts + (NOT shared)::int < %(most)s THEN 'ready' ELSE 'running' END,
                   next_attempt_at = clock_timestamp()
                     + make_interval(secs => CASE WHEN shared THEN 0 ELSE %(backoff)s * power(2, attempts) END)
              FROM held WHERE b.id = held.id
         RETURNING b.id, b.kind, b.epoch, b.error, b.state""",
        {**_keys(claims), "error": error, "most": work.max_attempts, "backoff": work.backoff_seconds},
    ).fetchall()
    return [row for row in rows if row["state"] == "running"]


# More would not fit into the column, should one that cannot be given up come round for a day.
_MOST_COUNTED = 30_000


def expire(connection: Connection, work: WorkSettings, limit: int) -> tuple[int, list[Row]]:
    """Takes back claims whose lease ran out: an attempt where the worker lives, else a loss. Of coalesced ones nobody
    is blamed, and each runs alone next. One of several members, alone, whose process died is to be split at once: it
    would take most of its attempts to learn what its halves tell.

    A worker that died took its last breath before the heartbeat that was missed; one that was seen in the second half
    of the lease lives, and has lost a pool child or stopped making progress.

    After the ledger itself was away every lease is as good as new from the moment it was back: a worker that lives
    extends it. One that ran out meanwhile, and whose worker lives, is blamed on nobody.

    Returns how many, and the rows that are out of attempts or losses, or to be split, as `fail` does. Those keep their
    expired lease: should nobody come to `give_up` on them, the next call finds them again.
    """
    rows = connection.execute(
        f"""WITH late AS (
             SELECT b.id, b.shared AND NOT (f.lives AND f.cut_off) AS together, f.lives AS worker_lives,
                    f.lives AND f.cut_off AS cut_off, NOT b.shared AND NOT (f.lives AND f.cut_off) AS blamed
               FROM (SELECT {STEADY_SINCE} AS since) AS s
               CROSS JOIN batches b
               CROSS JOIN LATERAL (
                 SELECT CASE WHEN b.lease_until = {ENDED_FOR_GOOD} THEN b.lease_until
                             ELSE greatest(b.lease_until, s.since + make_interval(secs => %(lease)s)) END AS ends) AS e
               CROSS JOIN LATERAL (
                 SELECT coalesce(b.lease_until < s.since AND b.lease_until <> {ENDED_FOR_GOOD}, false) AS cut_off,
                        EXISTS (SELECT 1 FROM workers w WHERE w.id = split_part(b.owner, '/', 1)
                                 AND w.seen_at > e.ends - make_interval(secs => %(half)s)) AS lives) AS f
              WHERE b.state = 'running' AND b.lease_until < clock_timestamp() AND e.ends < clock_timestamp()
              ORDER BY b.id LIMIT %(limit)s FOR NO KEY UPDATE OF b SKIP LOCKED)
           UPDATE batches b
              SET attempts = least(attempts + (blamed AND worker_lives)::int, {_MOST_COUNTED}),
                  losses = least(losses + (blamed AND NOT worker_lives)::int, {_MOST_COUNTED}),
                  alone = alone OR together, shared = false, epoch = epoch + 1,
                  sent_at = NULL, next_attempt_at = clock_timestamp(),
                  wedged_at = NULL,
                  error = CASE WHEN cut_off THEN 'the ledger was away when its lease ran out'
                               WHEN wedged_at IS NOT NULL THEN %(wedged)s
                               WHEN worker_lives AND starts_with(error, %(died)s) THEN error
                               WHEN worker_lives THEN 'its process died or stopped making progress'
                               ELSE 'its worker was lost' END,
                  state = CASE WHEN attempts + (blamed AND worker_lives)::int >= %(attempts)s
                                 OR losses + (blamed AND NOT worker_lives)::int >= %(losses)s
                                 OR (blamed AND worker_lives AND size > 1)
                               THEN 'running' ELSE 'ready' END
             FROM late WHERE b.id = late.id
        RETURNING b.id, b.kind, b.epoch, b.error, b.state""",
        {
            "died": DIED,
            "wedged": f"no progress for {work.stall_seconds:g} s; interrupted",
            "lease": work.lease_seconds,
            "half": work.lease_seconds / 2,
            "limit": limit,
            "attempts": work.max_attempts,
            "losses": work.max_losses,
        },
    ).fetchall()
    return len(rows), [row for row in rows if row["state"] == "running"]


def expired_claim(connection: Connection, batch_id: int) -> Claim | None:
    """What `expire` left without an owner, as a claim under its newest epoch; None where it has one again."""
    row = connection.execute(
        f"""SELECT {_CLAIM_COLUMNS} FROM batches b
             WHERE b.id = %s AND b.state = 'running' AND b.lease_until < clock_timestamp()""",
        (batch_id,),
    ).fetchone()
    return Claim(**row) if row else None


def put_back(connection: Connection, batch_id: int, size: int) -> None:
    """Makes a (locked) claim ready again, at once, with so many members left."""
    connection.execute(
        """UPDATE batches SET state = 'ready', lease_until = NULL, sent_at = NULL, next_attempt_at = clock_timestamp(),
                              size = %s WHERE id = %s""",
        (size, batch_id),
    )


def end(connection: Connection, batch_ids: Sequence[int], state: Literal["dead", "cancelled"]) -> None:
    """Ends batches whose work is given up or not wanted any more."""
    connection.execute(
        "UPDATE batches SET state = %s, lease_until = NULL, ended_at = now() WHERE id = ANY(%s) AND ended_at IS NULL",
        (state, list(batch_ids)),
    )
