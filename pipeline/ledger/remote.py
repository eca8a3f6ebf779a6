"""Remote batches: what the Batch API is asked to do, one row each, and who is at it now.

A row is claimed as a batch is: owner, lease, epoch, by the database's clock alone. Every later write of the claim asks
for the epoch: who lost the lease raises LeaseLost and changes nothing. `next_at` says when there is something to do; no
process waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from pipeline.errors import LeaseLost, UnknownBatch
from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.fleet import ENDED_FOR_GOOD, STEADY_SINCE
from pipeline.lifecycle import TOKEN_LIMIT, check

# One whose workers die again and again rests before the next try: a hundred workers must not die of it one by one.
_MOST_LOSSES = 10
_LOST_REST_SECONDS = 300.0
_MOST_COUNTED = 30_000

# Packing decides what may still be begun: one at a time.
_PACKING_LOCK = 0x6D6C_7061  # "mlpa"


Hash = bytes

LOST = "its worker was lost"


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """A row; times in UTC, times to wait in seconds, costs in US dollars. What each column means: tables/buying.py.

    age_seconds: since it was planned; due_seconds: until something is to be done (negative: overdue), None: nothing is;
    held: whether a worker is at it now.
    """

    id: int
    key: str
    attempt: int
    spec_hash: Hash
    spec: Mapping[str, Any]
    state: str
    status: str | None
    inputs: int
    tokens: int
    bytes: int | None
    sha256: Hash | None
    priority: int
    need_by: datetime | None
    jobs: Sequence[str]
    file_id: str | None
    remote_id: str | None
    remote: Mapping[str, Any]
    others: Sequence[Mapping[str, Any]]
    output_file_id: str | None
    error_file_id: str | None
    harvested: Mapping[str, int]
    done: int
    failed: int
    missing: int
    cost: float
    epoch: int
    owner: str | None
    losses: int
    tries: int
    next_at: datetime | None
    poll_seconds: float | None
    intent_at: datetime | None
    listings: int
    fenced_at: datetime | None
    cancel_reason: str | None
    doubtful: bool
    error: str | None
    created_at: datetime
    submitted_at: datetime | None
    ended_at: datetime | None
    harvested_at: datetime | None
    closed_at: datetime | None
    now: datetime
    age_seconds: float
    due_seconds: float | None
    held: bool


_COMPUTED = {
    "now": "clock_timestamp()",
    "age_seconds": "extract(epoch FROM clock_timestamp() - r.created_at)::float8",
    "due_seconds": "extract(epoch FROM r.next_at - clock_timestamp())::float8",
    "held": "(r.lease_until IS NOT NULL AND r.lease_until > clock_timestamp())",
}
_COLUMNS = ", ".join(
    f"{_COMPUTED[field.name]} AS {field.name}" if field.name in _COMPUTED else f"r.{field.name}"
    for field in fields(RemoteBatch)
)
_SELECT = f"SELECT {_COLUMNS} FROM remote_batches r"


def _remote(row: Row) -> RemoteBatch:
    sha256 = row["sha256"]
    return RemoteBatch(
        **{**row, "spec_hash": bytes(row["spec_hash"]), "sha256": bytes(sha256) if sha256 is not None else None}
    )


# -- looking ---------------------------------------------------------------------------------------------------------


def find(connection: Connection, batch_id: int) -> RemoteBatch:
    """Raises UnknownBatch."""
    row = connection.execute(f"{_SELECT} WHERE r.id = %s", (batch_id,)).fetchone()
    if row is None:
        raise UnknownBatch(f"there is no batch {batch_id} of the Batch API; `millrace batches` lists them")
    return _remote(row)


def listing(connection: Connection, *, closed: int | None = None) -> list[RemoteBatch]:
    """Those that are not closed, and the newest `closed` that are (None: all), newest first."""
    rows = connection.execute(
        f"""{_SELECT} WHERE r.closed_at IS NULL OR r.id IN (
                SELECT id FROM remote_batches WHERE closed_at IS NOT NULL ORDER BY id DESC LIMIT %s)
             ORDER BY r.id DESC""",
        (closed,),
    ).fetchall()
    return [_remote(row) for row in rows]


# Of these the server may have, or may get, the tokens enqueued.
_ENQUEUED = "state IN ('planned', 'uploading', 'uploaded', 'creating', 'submitted')"


@dataclass(frozen=True, slots=True)
class Load:
    """What is unfinished. tokens: reserved of the account's limit; begun: batches begun in the last hour. refusals: the
    server's words where it refused batches for having too many tokens enqueued, on the last day and since one ended
    otherwise; refused_seconds: since the last of them."""

    batches: int
    tokens: int
    begun: int
    refusals: Sequence[str]
    refused_seconds: float | None


def load(connection: Connection) -> Load:
    """Call it after `begin_packing`, where it is to be relied on."""
    row = connection.execute(
        f"""WITH recent AS MATERIALIZED (
             SELECT state, tokens, ended_at, error, greatest(created_at, intent_at) AS begun_at,
                    ended_at IS NOT NULL AND starts_with(coalesce(error, ''), %s) AS refused
               FROM remote_batches WHERE closed_at IS NULL OR closed_at > clock_timestamp() - interval '1 day'),
           row_of AS (SELECT max(ended_at) FILTER (WHERE NOT refused) AS went_at FROM recent)
           SELECT count(*) FILTER (WHERE {_ENQUEUED}) AS batches,
                  coalesce(sum(tokens) FILTER (WHERE {_ENQUEUED}), 0)::bigint AS tokens,
                  count(*) FILTER (WHERE begun_at > clock_timestamp() - interval '1 hour') AS begun,
                  coalesce(array_agg(error) FILTER (
                    WHERE refused AND ended_at > coalesce(row_of.went_at, '-infinity')), '{{}}') AS refusals,
                  extract(epoch FROM clock_timestamp() - max(ended_at) FILTER (WHERE refused))::float8
                    AS refused_seconds
             FROM recent CROSS JOIN row_of""",
        (TOKEN_LIMIT,),
    ).fetchone()
    assert row is not None
    return Load(**row)


# -- beginning -------------------------------------------------------------------------------------------------------


def begin_packing(connection: Connection) -> bool:
    """Whether this transaction is the one that packs now; until its end."""
    row = connection.execute("SELECT pg_try_advisory_xact_lock(%s) AS mine", (_PACKING_LOCK,)).fetchone()
    return bool(row and row["mine"])


def plan(
    connection: Connection,
    *,
    key: str,
    spec_hash: bytes,
    spec: Mapping[str, Any],
    inputs: int,
    tokens: int,
    priority: int,
    need_by: datetime | None,
    jobs: Sequence[str],
) -> int:
    """A new row, due at once. Returns its id."""
    row = connection.execute(
        """INSERT INTO remote_batches (key, spec_hash, spec, inputs, tokens, priority, need_by, jobs, next_at)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s, clock_timestamp()) RETURNING id""",
        (key, spec_hash, Jsonb(dict(spec)), inputs, tokens, priority, need_by, Jsonb(list(jobs))),
    ).fetchone()
    assert row is not None, "an insert returns its row"
    return int(row["id"])


# -- claims ----------------------------------------------------------------------------------------------------------


def claim(connection: Connection, batch_id: int, owner: str, lease_seconds: float) -> RemoteBatch | None:
    """Takes the batch if something is to be done for it and nobody is at it; None otherwise."""
    row = connection.execute(
        f"""UPDATE remote_batches r
               SET owner = %(owner)s, epoch = epoch + 1, sent_at = NULL,
                   lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
             WHERE id = %(id)s AND closed_at IS NULL AND next_at <= clock_timestamp() AND owner IS NULL
         RETURNING {_COLUMNS}""",
        {"id": batch_id, "owner": owner, "lease": lease_seconds},
    ).fetchone()
    return _remote(row) if row else None


def heartbeat(connection: Connection, held: RemoteBatch, lease_seconds: float) -> bool:
    """Extends the lease. False where it was taken over."""
    return (
        connection.execute(
            """UPDATE remote_batches SET lease_until = clock_timestamp() + make_interval(secs => %s)
                WHERE id = %s AND epoch = %s AND owner IS NOT NULL""",
            (lease_seconds, held.id, held.epoch),
        ).rowcount
        > 0
    )


def hold(connection: Connection, held: RemoteBatch) -> RemoteBatch:
    """Locks the row until the commit; as it is now. Raises LeaseLost where it is no longer held under its epoch."""
    row = connection.execute(
        f"{_SELECT} WHERE r.id = %s AND r.epoch = %s AND r.owner IS NOT NULL FOR NO KEY UPDATE", (held.id, held.epoch)
    ).fetchone()
    if row is None:
        raise LeaseLost(f"remote batch {held.id} was taken over; its result here is dropped")
    return _remote(row)


def change(connection: Connection, held: RemoteBatch, **columns: Any) -> RemoteBatch:
    """Sets columns of a claimed row. A new `state` must be a step of `lifecycle.REMOTE`.

    Returns the row as it is then. Raises LeaseLost where it is not held under its epoch any more, IllegalTransition.
    """
    state = columns.get("state")
    if state is not None and state != held.state:
        check("remote", held.state, state)
    if not columns:
        return hold(connection, held)
    sets = ", ".join(f"{name} = %({name})s" for name in columns)
    values = {name: Jsonb(value) if isinstance(value, dict | list) else value for name, value in columns.items()}
    row = connection.execute(
        f"""UPDATE remote_batches r SET {sets}
             WHERE id = %(held_id)s AND epoch = %(held_epoch)s AND owner IS NOT NULL RETURNING {_COLUMNS}""",
        {**values, "held_id": held.id, "held_epoch": held.epoch},
    ).fetchone()
    if row is None:
        raise LeaseLost(f"remote batch {held.id} was taken over; its result here is dropped")
    return _remote(row)


def release(connection: Connection, held: RemoteBatch, seconds: float, error: str | None = None) -> None:
    """Hands the claim back; something is to be done again after so many seconds, or at once where a cancellation came
    meanwhile. error: what is told of it; None: what was told stays."""
    connection.execute(
        """UPDATE remote_batches
              SET owner = NULL, lease_until = NULL, sent_at = NULL, losses = 0, error = coalesce(%(error)s, error),
                  next_at = CASE WHEN closed_at IS NOT NULL THEN NULL
                                 WHEN cancel_reason IS DISTINCT FROM %(known)s THEN clock_timestamp()
                                 ELSE clock_timestamp() + make_interval(secs => %(seconds)s) END
            WHERE id = %(id)s AND epoch = %(epoch)s AND owner IS NOT NULL""",
        {"id": held.id, "epoch": held.epoch, "seconds": seconds, "error": error, "known": held.cancel_reason},
    )


def expire(connection: Connection, limit: int, lease_seconds: float) -> int:
    """Takes back claims whose lease ran out, to go on at once; after the ledger itself was away every claim gets a
    whole lease. Returns how many."""
    return connection.execute(
        f"""WITH late AS (
             SELECT id FROM remote_batches
              WHERE owner IS NOT NULL AND closed_at IS NULL AND lease_until < clock_timestamp()
                AND (lease_until = {ENDED_FOR_GOOD} OR coalesce(greatest(lease_until,
                       {STEADY_SINCE} + make_interval(secs => %(lease)s)), lease_until) < clock_timestamp())
              ORDER BY id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
           UPDATE remote_batches r
              SET owner = NULL, lease_until = NULL, sent_at = NULL, epoch = epoch + 1, error = %(lost)s,
                  losses = least(losses + 1, %(counted)s),
                  next_at = clock_timestamp()
                    + make_interval(secs => CASE WHEN losses + 1 < %(most)s THEN 0 ELSE %(rest)s END)
             FROM late WHERE r.id = late.id""",
        {
            "lost": LOST,
            "limit": limit,
            "lease": lease_seconds,
            "most": _MOST_LOSSES,
            "rest": _LOST_REST_SECONDS,
            "counted": _MOST_COUNTED,
        },
    ).rowcount


# -- from outside ----------------------------------------------------------------------------------------------------


def cancel(connection: Connection, batch_id: int, reason: str) -> bool:
    """Asks for the batch to be cancelled: what it has finished is harvested, and what is still wanted of the rest is
    packed anew. False where it has ended, or that was asked for already. Raises UnknownBatch."""
    changed = connection.execute(
        """UPDATE remote_batches SET cancel_reason = %s, next_at = clock_timestamp(), sent_at = NULL
            WHERE id = %s AND ended_at IS NULL AND closed_at IS NULL AND cancel_reason IS NULL""",
        (reason, batch_id),
    ).rowcount
    if not changed:
        find(connection, batch_id)
    return changed > 0


def by_key(connection: Connection, key: str) -> RemoteBatch | None:
    """The row of this key, if nobody is at it; locked until the commit. One that was closed by a worker that died of it
    is nobody's: nothing else takes it back."""
    row = connection.execute(
        f"""{_SELECT} WHERE r.key = %s
             AND (r.owner IS NULL OR (r.closed_at IS NOT NULL AND r.lease_until < clock_timestamp()))
             FOR NO KEY UPDATE""",
        (key,),
    ).fetchone()
    return _remote(row) if row else None


def reopen(connection: Connection, row: RemoteBatch, **columns: Any) -> None:
    """Something turned up of a row that `by_key` has locked: it is due at once."""
    epoch = row.epoch + 1
    connection.execute(
        "UPDATE remote_batches SET epoch = %s, owner = 'nobody', next_at = clock_timestamp() WHERE id = %s",
        (epoch, row.id),
    )
    changed = change(connection, replace(row, epoch=epoch), **columns)
    release(connection, changed, 0.0)


def make_due(connection: Connection, remote_id: str) -> bool:
    """There may be news of the batch that the server calls so. False where none is waited for under this name."""
    return (
        connection.execute(
            """UPDATE remote_batches SET next_at = least(next_at, clock_timestamp())
                WHERE remote_id = %s AND ended_at IS NULL AND closed_at IS NULL AND next_at IS NOT NULL""",
            (remote_id,),
        ).rowcount
        > 0
    )
