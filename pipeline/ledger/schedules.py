"""Schedules: a source that is synchronised again and again. Each run is claimed on its row, as a duty is.

A run begins when it is due (`run_due`) and keeps that time until it has ended, whoever works on it: the time is part of
the idempotency key of the run's job, so that the worker after a killed one goes on with the same job.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Self

from psycopg.types.json import Jsonb

from pipeline.document import canonical, digest
from pipeline.ledger import writing
from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.fleet import STEADY_SINCE

# A run whose workers were lost this often is given up until the next one is due.
MAX_LOSSES = 3

# A message younger than this may be on its way between the broker and a worker's claim.
_IN_TRANSIT_SECONDS = 5.0
_SENDING_LOCK = 7_310_912

LOST = "its worker was lost, or stopped making progress"
KEY_PREFIX = "schedule:"


_LATER = ("need_by", "max_cost", "model", "dimensions")


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """How a schedule's source is synchronised: as `Client.sync` takes it. rows: the JSON form of `Rows`, or None.
    correlation_id: of the jobs of its runs. need_by: of each run, from its beginning, such as `2h`."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rows: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    priority: str = "normal"
    provider: str | None = None
    force: bool = False
    correlation_id: str | None = None
    need_by: str | None = None
    max_cost: float | None = None
    model: str | None = None
    dimensions: int | None = None

    def to_json(self) -> dict[str, Any]:
        """What is not asked for is left out where it did not use to be there: a run that is under way keeps its key."""
        told = asdict(self) | {"include": list(self.include), "exclude": list(self.exclude)}
        return {name: value for name, value in told.items() if value is not None or name not in _LATER}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        return cls(**{**stored, "include": tuple(stored["include"]), "exclude": tuple(stored["exclude"])})


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule's row; times in UTC. job_state: of its newest job. running: whether a worker holds it now.

    due: whether it waits for a worker. stopped: whether its collection, or everything, is paused.
    """

    id: int
    collection: str
    tenant: str
    source: str
    options: SyncOptions
    every_seconds: float
    next_due: datetime
    paused: bool
    running: bool
    due: bool
    stopped: bool
    last_job: uuid.UUID | None
    job_state: str | None
    last_started: datetime | None
    last_finished: datetime | None
    last_error: str | None
    consecutive_failures: int
    created_at: datetime

    @property
    def state(self) -> str:
        """running, due (it waits for a worker), paused, failing (the newest run did not succeed) or waiting."""
        if self.running:
            return "running"
        if self.due:
            return "due"
        if self.paused or self.stopped:
            return "paused"
        return "failing" if self.last_error else "waiting"

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form (docs/schedules.md)."""
        return {
            "schedule_id": self.id,
            "source": self.source,
            "collection": self.collection,
            "tenant": self.tenant,
            "every_seconds": self.every_seconds,
            "state": self.state,
            "next_due": None if self.paused else self.next_due.isoformat(),
            "last_job": {"job_id": str(self.last_job), "state": self.job_state} if self.last_job else None,
            "last_started": self.last_started.isoformat() if self.last_started else None,
            "last_finished": self.last_finished.isoformat() if self.last_finished else None,
            "error": self.last_error,
            "consecutive_failures": self.consecutive_failures,
            "created_at": self.created_at.isoformat(),
            **self.options.to_json(),
        }


@dataclass(frozen=True, slots=True)
class RunClaim:
    """A run of a schedule, held by one worker under its epoch."""

    id: int
    epoch: int
    run_due: datetime
    collection: str
    tenant: str
    source: str
    options: SyncOptions

    @property
    def key(self) -> str:
        """The idempotency key of the run's job: another one where the schedule was changed meanwhile."""
        asked = digest(self.source, canonical(self.options.to_json())).hex()[:16]
        return f"{KEY_PREFIX}{self.id}:{self.run_due.isoformat()}:{asked}"


# Whoever pauses a schedule may still ask for one run of it; who pauses its collection, or everything, wants none.
_STOPPED = """EXISTS (
    SELECT 1 FROM pauses p LEFT JOIN collections c ON c.id = p.collection_id
     WHERE p.collection_id IS NULL OR c.name = s.collection)"""
_DUE = f"s.next_due <= clock_timestamp() AND (NOT s.paused OR s.asked) AND NOT {_STOPPED}"

_SELECT = f"""
SELECT s.id, s.collection, s.tenant, s.source, s.options, s.every_seconds, s.next_due, s.paused,
       s.lease_until IS NOT NULL AND s.lease_until > clock_timestamp() AS running,
       {_DUE} AS due, {_STOPPED} AS stopped, s.last_job, j.state AS job_state,
       s.last_started, s.last_finished, s.last_error, s.consecutive_failures, s.created_at
  FROM schedules s LEFT JOIN jobs j ON j.id = s.last_job"""


def _schedule(row: Row) -> Schedule:
    return Schedule(**{**row, "options": SyncOptions.from_json(row["options"])})


def put(
    connection: Connection, *, collection: str, tenant: str, source: str, options: SyncOptions, every_seconds: float
) -> Schedule:
    """Makes the schedule, or changes the one that this collection, tenant and source have; due at once either way.

    A run that is under way goes on as it began.
    """
    row = connection.execute(
        """INSERT INTO schedules AS s (collection, tenant, source, options, every_seconds)
           VALUES (%s, %s, %s, %s, %s)
           ON CONFLICT (collection, tenant, source) DO UPDATE
              SET options = excluded.options, every_seconds = excluded.every_seconds, next_due = clock_timestamp(),
                  paused = false
           RETURNING id""",
        (collection, tenant, source, Jsonb(options.to_json()), every_seconds),
    ).fetchone()
    assert row is not None, "an insert that updates on conflict returns its row"
    return _schedule(connection.execute(f"{_SELECT} WHERE s.id = %s", (row["id"],)).fetchall()[0])


def listing(connection: Connection, *, schedule_id: int | None = None, source: str | None = None) -> list[Schedule]:
    """Every schedule, or that one, or those of that source, oldest first."""
    rows = connection.execute(
        f"""{_SELECT} WHERE (%(id)s::bigint IS NULL OR s.id = %(id)s)
                        AND (%(source)s::text IS NULL OR s.source = %(source)s) ORDER BY s.id""",
        {"id": schedule_id, "source": source},
    ).fetchall()
    return [_schedule(row) for row in rows]


def failing(connection: Connection, limit: int = 20) -> list[Row]:
    """Schedules whose newest run failed: id, source, last_error, consecutive_failures; the worst first."""
    return connection.execute(
        """SELECT id, source, last_error, consecutive_failures FROM schedules
            WHERE consecutive_failures > 0 AND NOT paused ORDER BY consecutive_failures DESC, id LIMIT %s""",
        (limit,),
    ).fetchall()


def remove(connection: Connection, schedule_id: int) -> bool:
    """Forgets the schedule; a run that is under way stops at its next step."""
    return connection.execute("DELETE FROM schedules WHERE id = %s", (schedule_id,)).rowcount > 0


def pause(connection: Connection, schedule_id: int) -> None:
    """No further run begins; one that is under way goes on."""
    connection.execute("UPDATE schedules SET paused = true WHERE id = %s", (schedule_id,))


def resume(connection: Connection, schedule_id: int) -> None:
    """Ends a pause; a run that became due meanwhile begins at once."""
    connection.execute("UPDATE schedules SET paused = false, sent_at = NULL WHERE id = %s", (schedule_id,))


def make_due(connection: Connection, schedule_id: int) -> None:
    """Due now, also where it is paused: for one run."""
    connection.execute("UPDATE schedules SET next_due = clock_timestamp(), asked = true WHERE id = %s", (schedule_id,))


def pick_due(connection: Connection, limit: int, most: int) -> list[tuple[int, str]]:
    """Stamps due schedules as sent and returns (id, priority): for nobody else to send meanwhile.

    limit: how many, at most; most: of those that are sent or held at one time.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SENDING_LOCK,))
    rows = connection.execute(
        f"""UPDATE schedules SET sent_at = clock_timestamp()
             WHERE id IN (SELECT s.id FROM schedules s WHERE {_DUE} AND s.owner IS NULL AND s.sent_at IS NULL
                           ORDER BY s.next_due
                           LIMIT least(%(limit)s, greatest(0, %(most)s - (
                             SELECT count(*) FROM schedules WHERE owner IS NOT NULL OR sent_at IS NOT NULL)))
                             FOR NO KEY UPDATE SKIP LOCKED)
         RETURNING id, options ->> 'priority' AS priority""",
        {"limit": limit, "most": most},
    ).fetchall()
    return [(row["id"], row["priority"]) for row in rows]


def unstamp(connection: Connection, schedule_ids: Iterable[int]) -> None:
    """Takes the stamps back: the messages may not have arrived."""
    connection.execute(
        "UPDATE schedules SET sent_at = NULL WHERE id = ANY(%s) AND owner IS NULL", (sorted(schedule_ids),)
    )


def forget_lost_messages(connection: Connection, carried: Collection[int]) -> int:
    """Clears the stamps of schedules that nobody took and no message carries. Returns how many."""
    return connection.execute(
        """UPDATE schedules SET sent_at = NULL
            WHERE owner IS NULL AND sent_at < clock_timestamp() - make_interval(secs => %s) AND NOT id = ANY(%s)""",
        (_IN_TRANSIT_SECONDS, sorted(carried)),
    ).rowcount


def claim(connection: Connection, schedule_id: int, owner: str, lease_seconds: float) -> RunClaim | None:
    """Takes the schedule if it is due and nobody holds it; None otherwise."""
    row = connection.execute(
        f"""UPDATE schedules s
               SET owner = %(owner)s, epoch = epoch + 1, run_due = coalesce(run_due, next_due),
                   lease_until = clock_timestamp() + make_interval(secs => %(lease)s), last_started = clock_timestamp()
             WHERE s.id = %(id)s AND s.owner IS NULL AND {_DUE}
         RETURNING id, epoch, run_due, collection, tenant, source, options""",
        {"id": schedule_id, "owner": owner, "lease": lease_seconds},
    ).fetchone()
    return _claim(row) if row else None


def _claim(row: Row) -> RunClaim:
    return RunClaim(**{**row, "options": SyncOptions.from_json(row["options"])})


def heartbeat(connection: Connection, claim: RunClaim, lease_seconds: float) -> bool:
    """Extends the lease. False where the run was taken over, or its schedule removed."""
    return (
        connection.execute(
            """UPDATE schedules SET lease_until = clock_timestamp() + make_interval(secs => %s)
                WHERE id = %s AND epoch = %s AND owner IS NOT NULL""",
            (lease_seconds, claim.id, claim.epoch),
        ).rowcount
        > 0
    )


_JOB = "coalesce((SELECT j.id FROM jobs j WHERE j.tenant = %(tenant)s AND j.idempotency_key = %(key)s), last_job)"


def note_job(connection: Connection, claim: RunClaim) -> None:
    """The run has a job now."""
    connection.execute(
        f"UPDATE schedules SET last_job = {_JOB} WHERE id = %(id)s AND epoch = %(epoch)s",
        {"tenant": claim.tenant, "key": claim.key, "id": claim.id, "epoch": claim.epoch},
    )


def finish(connection: Connection, claim: RunClaim, error: str | None) -> bool:
    """The run has ended; error: why it failed. The next one is due an interval after this one was, and not before now.

    False where the run was taken over, or its schedule removed.
    """
    return (
        connection.execute(
            f"""UPDATE schedules
                  SET owner = NULL, lease_until = NULL, sent_at = NULL, run_due = NULL, losses = 0, last_job = {_JOB},
                      asked = asked AND next_due > run_due,
                      last_finished = clock_timestamp(), last_error = %(error)s,
                      consecutive_failures = CASE WHEN %(error)s::text IS NULL THEN 0
                                                  ELSE consecutive_failures + 1 END,
                      next_due = CASE WHEN next_due > run_due THEN next_due  -- asked for, or changed, meanwhile
                                      ELSE greatest(run_due + make_interval(secs => every_seconds),
                                                    clock_timestamp()) END
                WHERE id = %(id)s AND epoch = %(epoch)s AND owner IS NOT NULL""",
            {"error": error, "tenant": claim.tenant, "key": claim.key, "id": claim.id, "epoch": claim.epoch},
        ).rowcount
        > 0
    )


def release(connection: Connection, claim: RunClaim, reason: str) -> None:
    """Hands the run back without blame: a dependency is away, or this worker is leaving."""
    connection.execute(
        """UPDATE schedules SET owner = NULL, lease_until = NULL, sent_at = NULL, last_error = %s
            WHERE id = %s AND epoch = %s AND owner IS NOT NULL""",
        (reason, claim.id, claim.epoch),
    )


def expire(connection: Connection, limit: int, lease_seconds: float) -> int:
    """Takes back runs whose lease ran out, to be sent again; one that was lost too often is given up until the next.

    After the ledger itself was away every run gets a whole lease to go on. Returns how many.
    """
    rows = connection.execute(
        f"""WITH late AS (
             SELECT id, epoch, run_due, collection, tenant, source, options, losses + 1 >= %(most)s AS over
               FROM schedules
              WHERE lease_until < clock_timestamp()
                AND greatest(lease_until, {STEADY_SINCE} + make_interval(secs => %(lease)s)) < clock_timestamp()
              ORDER BY id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
           UPDATE schedules s
              SET owner = NULL, lease_until = NULL, sent_at = NULL, epoch = s.epoch + 1, last_error = %(lost)s,
                  losses = CASE WHEN over THEN 0 ELSE losses + 1 END,
                  consecutive_failures = consecutive_failures + over::int,
                  last_finished = CASE WHEN over THEN clock_timestamp() ELSE last_finished END,
                  asked = asked AND NOT over,
                  next_due = CASE WHEN over THEN clock_timestamp() + make_interval(secs => every_seconds)
                                  ELSE next_due END,
                  run_due = CASE WHEN NOT over THEN s.run_due END
             FROM late WHERE s.id = late.id
        RETURNING late.*""",
        {"most": MAX_LOSSES, "lost": LOST, "limit": limit, "lease": lease_seconds},
    ).fetchall()
    for row in rows:
        if row.pop("over"):
            claim = _claim(row)
            writing.close(connection, claim.tenant, claim.key, LOST)
    return len(rows)
