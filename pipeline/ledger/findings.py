"""What the ledger shows of unfinished jobs, for their diagnosis. Every question is bounded, however long the backlog:
it looks at the claims that run anywhere, and at the first few of what is ready."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from pipeline.ledger import circuits, orders_told
from pipeline.ledger.circuits import OPENAI, VECTORS, Open
from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.jobs import Job
from pipeline.ledger.orders_told import OnOrder
from pipeline.ledger.pauses import Pause

# A worker that has missed its report twice holds its claims no more, and will take no others.
_LOST_SECONDS = 6.5
# Of a job that is backing off, or waits while a circuit is open, so many batches are looked at.
_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class Held:
    """A claim of which there is something to say."""

    batch_id: int
    worker: str
    lease_until: datetime


@dataclass(frozen=True, slots=True)
class Place:
    """ahead: batches that come before the job's first; more: there are more than that."""

    ahead: int
    more: bool


@dataclass(frozen=True, slots=True)
class Fleet:
    """Who lives: each worker's queues, slots and {queue: batches per second}. now: by the database's clock.

    busy_slots, busy_jobs: processes that hold a claim, and jobs of which something is claimed.
    """

    now: datetime
    workers: Sequence[Row]
    busy_slots: int
    busy_jobs: int
    circuits: Mapping[str, Open]

    def consumed(self, queue: str) -> bool:
        return any(queue in row["queues"].split(",") for row in self.workers)

    def slots(self, queue: str) -> int:
        return sum(row["slots"] for row in self.workers if queue in row["queues"].split(","))

    def rate(self, queue: str) -> float:
        return sum(float(row["rates"].get(queue, 0.0)) for row in self.workers)


@dataclass(frozen=True, slots=True)
class Found:
    """About one job. unfinished: it has batches that have not ended; ready: one of them is ready; sendable: now.

    running: claims that are held properly; only_vectors_run: all of them embed. others_ready, unbought_ready: something
    can be sent now that needs no vectors, or is not bought online (looked for where a circuit is open). next_*,
    attempts, error: of what is tried again first, where nothing is sendable. behind: the job that has its documents
    first. ordered: what is told of its texts at the Batch API; None: it waits for none.
    """

    unfinished: bool = False
    ready: bool = False
    sendable: bool = False
    others_ready: bool = False
    unbought_ready: bool = False
    running: int = 0
    only_vectors_run: bool = False
    lost: Held | None = None
    wedged: Held | None = None
    paused: Pause | None = None
    next_id: int | None = None
    next_at: datetime | None = None
    attempts: int = 0
    error: str | None = None
    behind: uuid.UUID | None = None
    ordered: OnOrder | None = None


@dataclass(slots=True)
class _Claims:
    """The running batches of one job, as they are read."""

    proper: int = 0
    embed: int = 0
    lost: Held | None = None
    wedged: Held | None = None


_NO_CLAIMS = _Claims()


def fleet(connection: Connection) -> Fleet:
    """The live workers, and what is away."""
    workers = connection.execute(
        """SELECT id, queues, slots, rates FROM workers
            WHERE seen_at > clock_timestamp() - make_interval(secs => %s) ORDER BY id""",
        (_LOST_SECONDS,),
    ).fetchall()
    row = connection.execute(
        """SELECT clock_timestamp() AS now, count(DISTINCT owner) AS slots, count(DISTINCT job_id) AS jobs
             FROM batches WHERE state = 'running'"""
    ).fetchone()
    assert row is not None
    return Fleet(
        row["now"],
        workers,
        row["slots"],
        row["jobs"],
        {found.dependency: found for found in circuits.listing(connection)},
    )


def about(connection: Connection, jobs: Sequence[Job], fleet: Fleet) -> Mapping[uuid.UUID, Found]:
    """What is found of each of the (unfinished) jobs."""
    claims = _claims(connection, jobs)
    paused = _pauses(connection, jobs)
    waiting = _ready(connection, jobs, look_for_others=bool({VECTORS, OPENAI} & fleet.circuits.keys()))
    waiters = [job.id for job in jobs if waiting[job.id]["waits"]]
    ordered = orders_told.on_order(connection, waiters) if waiters else {}
    found = {}
    for job in jobs:
        held = claims.get(job.id, _NO_CLAIMS)
        row = waiting[job.id]
        found[job.id] = Found(
            unfinished=row["unfinished"],
            ready=row["ready"],
            sendable=row["sendable"],
            others_ready=bool(row["others_ready"]),
            unbought_ready=bool(row["unbought_ready"]),
            running=held.proper,
            only_vectors_run=held.proper == held.embed,
            lost=held.lost,
            wedged=held.wedged,
            paused=paused.get(job.id),
            next_id=row["next_id"],
            next_at=row["next_at"],
            attempts=row["attempts"] or 0,
            error=row["error"],
            behind=row["behind"],
            ordered=ordered.get(job.id),
        )
    return found


def _claims(connection: Connection, jobs: Sequence[Job]) -> Mapping[uuid.UUID, _Claims]:
    """Found among the few batches that run anywhere; those of a job are one after another in no index."""
    rows = connection.execute(
        """WITH running AS MATERIALIZED (
             SELECT job_id, id, kind, owner, lease_until, wedged_at FROM batches WHERE state = 'running')
           SELECT r.job_id, r.id, r.kind, split_part(r.owner, '/', 1) AS worker, r.lease_until,
                  r.wedged_at IS NOT NULL AS wedged,
                  r.lease_until < clock_timestamp()
                  OR coalesce(w.seen_at < clock_timestamp() - make_interval(secs => %(lost)s), false) AS lost
             FROM running r LEFT JOIN workers w ON w.id = split_part(r.owner, '/', 1)
            WHERE r.job_id = ANY(%(jobs)s) ORDER BY r.lease_until, r.id""",
        {"jobs": [job.id for job in jobs], "lost": _LOST_SECONDS},
    ).fetchall()
    claims: dict[uuid.UUID, _Claims] = {}
    for row in rows:
        one = claims.setdefault(row["job_id"], _Claims())
        held = Held(row["id"], row["worker"], row["lease_until"])
        if row["wedged"]:
            one.wedged = one.wedged or held
        elif row["lost"]:
            one.lost = one.lost or held
        else:
            one.proper += 1
            one.embed += row["kind"] == "embed"
    return claims


def _pauses(connection: Connection, jobs: Sequence[Job]) -> Mapping[uuid.UUID, Pause]:
    """Job id -> why it is paused, widest first; the table of pauses has a row or two, and mostly none."""
    rows = connection.execute(
        """SELECT DISTINCT ON (j.id) j.id,
                  CASE WHEN p.id IS NULL THEN 'job' WHEN p.collection_id IS NULL THEN 'everything'
                       ELSE 'collection' END AS scope,
                  CASE WHEN p.collection_id IS NOT NULL THEN c.name END AS collection,
                  CASE WHEN p.id IS NULL THEN j.id END AS job_id,
                  CASE WHEN p.id IS NULL THEN j.pause_reason ELSE p.reason END AS reason,
                  coalesce(p.paused_at, j.paused_at, j.created_at) AS since
             FROM jobs j JOIN collections c ON c.id = j.collection_id
             LEFT JOIN pauses p ON p.collection_id IS NULL OR p.collection_id = j.collection_id
            WHERE j.id = ANY(%s) AND (j.state = 'paused' OR p.id IS NOT NULL)
            ORDER BY j.id, p.id IS NULL, p.collection_id IS NOT NULL""",
        ([job.id for job in jobs],),
    ).fetchall()
    return {row.pop("id"): Pause(**row) for row in rows}


# For each job: the first that is found of what is ready; only where that is nothing, what is tried again first. The
# parts that are not wanted are not carried out.
_READY = """
SELECT w.id,
       (SELECT b.id FROM batches b WHERE b.job_id = w.id AND b.ended_at IS NULL LIMIT 1) IS NOT NULL AS unfinished,
       coalesce(s.found, false) AS sendable,
       coalesce(s.found, false) OR n.id IS NOT NULL AS ready,
       k.others AS others_ready, k.unbought AS unbought_ready,
       (SELECT b.id FROM batches b WHERE b.job_id = w.id AND b.ended_at IS NULL AND b.state = 'waiting' LIMIT 1)
         IS NOT NULL AS waits,
       n.id AS next_id, n.next_attempt_at AS next_at, n.attempts, n.error, o.job_id AS behind
  FROM unnest(%(jobs)s::uuid[]) AS w (id)
  LEFT JOIN LATERAL (
         SELECT true AS found FROM batches b
          WHERE b.job_id = w.id AND b.ended_at IS NULL AND b.state = 'ready'
            AND (b.next_attempt_at IS NULL OR b.next_attempt_at <= clock_timestamp()) LIMIT 1) AS s ON true
  LEFT JOIN LATERAL (
         SELECT bool_or(kind <> 'embed') AS others, bool_or(kind <> 'embed' OR provider <> 'openai') AS unbought FROM (
           SELECT b.kind, b.provider FROM batches b
            WHERE %(others)s AND b.job_id = w.id AND b.ended_at IS NULL AND b.state = 'ready'
              AND (b.next_attempt_at IS NULL OR b.next_attempt_at <= clock_timestamp())
            LIMIT %(most)s) AS r) AS k ON true
  LEFT JOIN LATERAL (
         SELECT * FROM (
           SELECT b.id, b.next_attempt_at, b.attempts, b.error FROM batches b
            WHERE s.found IS NULL AND b.job_id = w.id AND b.ended_at IS NULL AND b.state = 'ready'
            LIMIT %(most)s) AS l
          ORDER BY l.next_attempt_at, l.id LIMIT 1) AS n ON true
  LEFT JOIN LATERAL (
         SELECT v2.job_id FROM versions v
           JOIN versions v2 ON v2.document_id = v.document_id AND v2.state = 'open' AND v2.job_id <> v.job_id
          WHERE s.found IS NULL AND n.id IS NULL AND v.job_id = w.id AND v.state = 'staged' LIMIT 1) AS o ON true"""


def _ready(connection: Connection, jobs: Sequence[Job], *, look_for_others: bool) -> Mapping[uuid.UUID, Row]:
    rows = connection.execute(
        _READY, {"jobs": [job.id for job in jobs], "most": _LOOKED_AT, "others": look_for_others}
    ).fetchall()
    return {cast(uuid.UUID, row["id"]): row for row in rows}


def place(connection: Connection, job: Job, most: int) -> Place:
    """Where the job's first ready batch stands in its queue: tenants take turns, each of them in the order of its ids;
    and what is in the broker already comes first. Counted up to `most`."""
    row = connection.execute(
        """WITH RECURSIVE own AS (
             SELECT id, job_id, sent_at, row_number() OVER (ORDER BY id) AS turn FROM (
               SELECT id, job_id, sent_at FROM batches
                WHERE state = 'ready' AND NOT held AND priority = %(priority)s AND tenant = %(tenant)s
                ORDER BY id LIMIT %(most)s + 1) AS line),
           first AS (
             SELECT turn, sent_at FROM own WHERE job_id = %(job)s
             UNION ALL (SELECT %(most)s + 2, NULL) LIMIT 1),
           tenants AS (
             (SELECT tenant FROM batches WHERE state = 'ready' AND NOT held AND priority = %(priority)s
               ORDER BY tenant LIMIT 1)
             UNION ALL
             SELECT (SELECT b.tenant FROM batches b
                      WHERE b.state = 'ready' AND NOT b.held AND b.priority = %(priority)s AND b.tenant > t.tenant
                      ORDER BY b.tenant LIMIT 1)
               FROM tenants t WHERE t.tenant IS NOT NULL),
           others AS (
             SELECT count(*) AS n FROM (
               SELECT 1 FROM tenants t CROSS JOIN LATERAL (
                        SELECT 1 FROM batches b
                         WHERE b.state = 'ready' AND NOT b.held AND b.priority = %(priority)s AND b.tenant = t.tenant
                         ORDER BY b.id
                         LIMIT (SELECT turn FROM first) - (t.tenant > %(tenant)s)::int) AS before
                WHERE t.tenant <> %(tenant)s LIMIT %(most)s + 1) AS counted),
           sent AS (
             SELECT count(*) AS n FROM (
               SELECT 1 FROM batches b, first f
                WHERE b.state = 'ready' AND b.sent_at IS NOT NULL AND NOT b.held AND b.priority = %(priority)s
                  AND b.job_id <> %(job)s AND b.sent_at < coalesce(f.sent_at, clock_timestamp())
                LIMIT %(most)s + 1) AS counted)
           SELECT greatest(f.turn - 1 + o.n, s.n) AS ahead FROM first f, others o, sent s""",
        {"job": job.id, "priority": job.priority, "tenant": job.tenant, "most": most},
    ).fetchone()
    assert row is not None
    return Place(min(row["ahead"], most), row["ahead"] > most)
