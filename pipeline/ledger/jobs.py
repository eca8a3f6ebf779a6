"""Jobs: what an application asked for, how far it is, how it ended."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

import uuid_utils.compat
from psycopg.types.json import Jsonb

from pipeline.errors import IdempotencyConflict, InvalidRequest, UnknownJob
from pipeline.ledger import webhooks
from pipeline.ledger.engine import Connection, Row
from pipeline.lifecycle import FINISHED_JOBS, UNFINISHED_VERSIONS, JobState, sources

JobKind = Literal["ingest", "delete", "sync", "reembed"]

PRIORITIES = ("high", "normal", "low")

# As the partial index says it: of a parameter Postgres does not know that the index holds all it may be.
# And as a question for one row, which Postgres answers from the first that it finds; for NOT EXISTS it may read all.
_NO_UNFINISHED_VERSION = f"""(
    SELECT v.id FROM versions v WHERE v.job_id = j.id AND v.state IN {tuple(UNFINISHED_VERSIONS)!r} LIMIT 1) IS NULL"""

COUNTERS = (
    "documents_total",
    "documents_indexed",
    "documents_unchanged",
    "documents_deleted",
    "documents_failed",
    "documents_superseded",
    "documents_cancelled",
    "documents_skipped",
    "documents_prepared",
    "chunks_total",
    "chunks_embedded",
    "chunks_indexed",
)


def priority_number(name: str) -> int:
    """0 for high, 1 for normal, 2 for low. Raises InvalidRequest for anything else."""
    if name not in PRIORITIES:
        raise InvalidRequest(f"priority {name!r} is none of {', '.join(PRIORITIES)}")
    return PRIORITIES.index(name)


@dataclass(frozen=True, slots=True)
class Job:
    """A job's row; counters as `COUNTERS` names them, times in UTC.

    seconds: since it was made. indexing_seconds: since its first batch was in the index; indexed_before: chunks of that
    batch. rate, best_rate: chunks per second, as `ledger.rates` measures them. retry_of: the job whose dead
    letters it tries again. correlation_id: what the application calls its request. cost: spent, US dollars; max_cost:
    what may be, None: as the settings say; cost_doubtful: may have been spent besides; cost_reserved: held back for
    work under way. need_by: when its documents shall be found. routed, route_reason, routed_at: who embeds for it, as
    `pipeline.routing` has decided, why, and when. recipe_also: hashes of recipes that count as its own: those of models
    that the collection had before.
    """

    id: uuid.UUID
    kind: JobKind
    collection_id: int
    collection: str
    tenant: str
    priority: int
    provider: str
    state: JobState
    recipe: Mapping[str, Any]
    idempotency_key: str | None
    error: str | None
    created_at: datetime
    seen_at: datetime
    progressed_at: datetime | None
    sealed_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    indexed_before: int
    rate: float | None
    best_rate: float | None
    seconds: float
    indexing_seconds: float | None
    counters: Mapping[str, int]
    retry_of: uuid.UUID | None = None
    correlation_id: str | None = None
    max_cost: float | None = None
    cost: float = 0.0
    cost_doubtful: float = 0.0
    cost_reserved: float = 0.0
    need_by: datetime | None = None
    routed: str | None = None
    route_reason: str | None = None
    routed_at: datetime | None = None
    recipe_also: Sequence[bytes] | None = None

    @property
    def finished(self) -> bool:
        return self.state in FINISHED_JOBS

    @property
    def queue(self) -> str:
        return PRIORITIES[self.priority]


# By name: a column that an older schema has not is then told by Postgres, as any other fault of the schema.
_STORED = [name for name in Job.__slots__ if name not in ("collection", "seconds", "indexing_seconds", "counters")]
_SELECT = f"""
SELECT {", ".join(f"j.{name}" for name in (*_STORED, "request_hash", *COUNTERS))}, c.name AS collection,
       extract(epoch FROM coalesce(j.finished_at, clock_timestamp()) - j.created_at)::float8 AS seconds,
       extract(epoch FROM coalesce(j.finished_at, clock_timestamp()) - j.indexing_since)::float8 AS indexing_seconds
  FROM jobs j JOIN collections c ON c.id = j.collection_id"""


def _job(row: Row) -> Job:
    names = [name for name in Job.__slots__ if name != "counters"]
    return Job(**{name: row[name] for name in names}, counters={name: row[name] for name in COUNTERS})


def planned(
    collection_id: int,
    collection: str,
    tenant: str,
    provider: str,
    recipe: Mapping[str, Any],
    recipe_also: Sequence[bytes] = (),
) -> Job:
    """An ingest that is not in the ledger, and will not be: for what asks about a job before there is one."""
    given: dict[str, Any] = dict.fromkeys(Job.__slots__)
    given |= {
        "id": uuid_utils.compat.uuid7(),
        "kind": "ingest",
        "collection_id": collection_id,
        "collection": collection,
        "tenant": tenant,
        "priority": PRIORITIES.index("normal"),
        "provider": provider,
        "state": "queued",
        "recipe": recipe,
        "recipe_also": recipe_also,
        "counters": dict.fromkeys(COUNTERS, 0),
    }
    return Job(**given)


def create(
    connection: Connection,
    *,
    kind: JobKind,
    collection_id: int,
    tenant: str,
    priority: int,
    provider: str,
    recipe: Mapping[str, Any],
    recipe_also: Sequence[bytes] = (),
    idempotency_key: str | None = None,
    request_hash: bytes | None = None,
    webhook: str | None = None,
    correlation_id: str | None = None,
    need_by: datetime | float | None = None,
    max_cost: float | None = None,
) -> tuple[Job, bool]:
    """A new job and True; or the one that this idempotency key made before, and False. webhook: told when it has ended.
    correlation_id: by which log lines of its work can be found. need_by: a time, or seconds from now. max_cost: US
    dollars.

    Raises IdempotencyConflict where the key came with another request.
    """
    job_id = uuid_utils.compat.uuid7()
    insert = (
        """INSERT INTO jobs (id, kind, collection_id, tenant, priority, provider, state, recipe, idempotency_key,
                             request_hash, webhook, correlation_id, max_cost, recipe_also, need_by)
           VALUES (%s, %s, %s, %s, %s, %s, 'queued', %s, %s, %s, %s, %s, %s, %s::bytea[],
                   coalesce(%s::timestamptz, clock_timestamp() + make_interval(secs => %s::float8)))
           ON CONFLICT (tenant, idempotency_key) DO NOTHING RETURNING id""",
        (
            job_id,
            kind,
            collection_id,
            tenant,
            priority,
            provider,
            Jsonb(dict(recipe)),
            idempotency_key,
            request_hash,
            webhook,
            correlation_id,
            max_cost,
            list(recipe_also) or None,
            need_by if isinstance(need_by, datetime) else None,
            None if isinstance(need_by, datetime) else need_by,
        ),
    )
    row = None
    while row is None:
        if connection.execute(*insert).fetchone():
            return get(connection, job_id), True
        # Locked against garbage collection, which may have taken it between these two statements.
        row = connection.execute(
            f"{_SELECT} WHERE j.tenant = %s AND j.idempotency_key = %s FOR KEY SHARE OF j", (tenant, idempotency_key)
        ).fetchone()
    if row["request_hash"] != request_hash:
        raise IdempotencyConflict(
            f"the idempotency key {idempotency_key!r} was used by job {row['id']} for another request; choose a new key"
        )
    return _job(row), False


def has_key(connection: Connection, tenant: str, idempotency_key: str | None) -> bool:
    """Whether there is a job of this key."""
    if idempotency_key is None:
        return False
    row = connection.execute(
        "SELECT 1 FROM jobs WHERE tenant = %s AND idempotency_key = %s", (tenant, idempotency_key)
    ).fetchone()
    return row is not None


def get(connection: Connection, job_id: uuid.UUID) -> Job:
    """Raises UnknownJob, naming it."""
    row = connection.execute(f"{_SELECT} WHERE j.id = %s", (job_id,)).fetchone()
    if row is None:
        raise UnknownJob(f"there is no job {job_id}; `millrace jobs` lists them")
    return _job(row)


def lock(connection: Connection, job_id: uuid.UUID) -> None:
    """Takes the job's row lock, until the commit."""
    connection.execute("SELECT 1 FROM jobs WHERE id = %s FOR NO KEY UPDATE", (job_id,))


def recent(connection: Connection, limit: int, state: str | None = None) -> list[Job]:
    rows = connection.execute(
        f"{_SELECT} WHERE %(state)s::text IS NULL OR j.state = %(state)s ORDER BY j.id DESC LIMIT %(limit)s",
        {"state": state, "limit": limit},
    ).fetchall()
    return [_job(row) for row in rows]


def unfinished(connection: Connection, limit: int) -> list[Job]:
    """The oldest first: those that are at work, or should be."""
    rows = connection.execute(f"{_SELECT} WHERE j.finished_at IS NULL ORDER BY j.id LIMIT %s", (limit,)).fetchall()
    return [_job(row) for row in rows]


def errors(connection: Connection, job_id: uuid.UUID, limit: int = 100) -> list[dict[str, str]]:
    """The documents of the job that failed, and why, oldest first."""
    rows = connection.execute(
        """SELECT d.uri, coalesce(v.error, 'failed') AS error
             FROM versions v JOIN documents d ON d.id = v.document_id
            WHERE v.job_id = %s AND v.state = 'failed' ORDER BY v.id LIMIT %s""",
        (job_id, limit),
    ).fetchall()
    return [{"uri": row["uri"], "error": row["error"]} for row in rows]


def count(connection: Connection, changes: Mapping[uuid.UUID, Mapping[str, int]]) -> None:
    """Adds to the counters of jobs, in the order of their ids; takes the rows' locks until the commit."""
    for job_id in sorted(changes):
        added = {name: value for name, value in changes[job_id].items() if value}
        unknown = set(added) - set(COUNTERS)
        if unknown:
            raise KeyError(f"no such counter of a job: {sorted(unknown)}")
        counted = [*(f"{name} = {name} + %({name})s" for name in sorted(added)), "progressed_at = clock_timestamp()"]
        connection.execute(
            f"UPDATE jobs SET {', '.join(counted)} WHERE id = %(job_id)s",
            {**added, "job_id": job_id},
        )


def set_retry_of(connection: Connection, job_id: uuid.UUID, origins: Collection[uuid.UUID]) -> None:
    """Says whose dead letters the job tries again; nothing where they are of several jobs."""
    (origin,) = origins if len(origins) == 1 else (None,)
    connection.execute("UPDATE jobs SET retry_of = %s WHERE id = %s", (origin, job_id))


def start(connection: Connection, job_ids: Iterable[uuid.UUID]) -> None:
    """The first claim of its work makes a queued job running."""
    connection.execute(
        """UPDATE jobs SET state = 'running', started_at = coalesce(started_at, now())
            WHERE id IN (SELECT id FROM jobs WHERE id = ANY(%s) AND state = 'queued' ORDER BY id FOR NO KEY UPDATE)""",
        (sorted(job_ids),),
    )


def note_indexing(connection: Connection, job_ids: Iterable[uuid.UUID]) -> None:
    """Remembers when the first chunks of the (locked) jobs were in the index: from there on the rate says something,
    since the model is loaded and the queue is passed."""
    connection.execute(
        """UPDATE jobs SET indexing_since = clock_timestamp(), indexed_before = chunks_indexed
            WHERE id = ANY(%s) AND indexing_since IS NULL""",
        (sorted(job_ids),),
    )


def finish_done(connection: Connection, job_ids: Iterable[uuid.UUID]) -> list[uuid.UUID]:
    """Ends those of the jobs that are sealed and have no unfinished version.

    Finished is this question and never a counter. Take the jobs' row locks first (`count` does), so that of two
    transactions that end the last two versions the second one sees the first.
    """
    rows = connection.execute(
        f"""UPDATE jobs j
              SET state = CASE
                    WHEN j.error IS NOT NULL THEN 'partial'
                    WHEN j.documents_failed = 0 THEN 'succeeded'
                    WHEN j.documents_failed >= j.documents_total THEN 'failed'
                    ELSE 'partial' END,
                  finished_at = clock_timestamp(), paused_at = NULL, pause_reason = NULL
            WHERE j.id = ANY(%(ids)s) AND j.sealed_at IS NOT NULL AND j.state = ANY(%(sources)s)
              AND j.finished_at IS NULL
              AND {_NO_UNFINISHED_VERSION}
            RETURNING j.id, j.webhook""",
        {"ids": sorted(job_ids), "sources": sources("job", "succeeded")},
    ).fetchall()
    webhooks.owe(connection, rows)
    return [row["id"] for row in rows]


def done_but_open(connection: Connection, limit: int) -> list[uuid.UUID]:
    """Sealed jobs that nobody ended although no version of theirs is unfinished."""
    rows = connection.execute(
        f"""SELECT j.id FROM jobs j
            WHERE j.finished_at IS NULL AND j.sealed_at IS NOT NULL AND j.state <> 'cancelled'
              AND {_NO_UNFINISHED_VERSION}
            ORDER BY j.id LIMIT %s""",
        (limit,),
    ).fetchall()
    return [row["id"] for row in rows]


def end_cancelled(connection: Connection, job_id: uuid.UUID) -> bool:
    """Marks the job cancelled; False where it had ended already."""
    row = connection.execute(
        """UPDATE jobs SET state = 'cancelled', sealed_at = coalesce(sealed_at, now()), finished_at = clock_timestamp()
            WHERE id = %s AND finished_at IS NULL RETURNING id, webhook""",
        (job_id,),
    ).fetchone()
    webhooks.owe(connection, [row] if row else [])
    return row is not None


def by_state(connection: Connection) -> dict[str, int]:
    """How many jobs are in each state."""
    rows = connection.execute("SELECT state, count(*) AS n FROM jobs GROUP BY state").fetchall()
    return {cast(str, row["state"]): row["n"] for row in rows}
