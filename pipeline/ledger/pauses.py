"""What is paused: a job (by its state), a collection or everything (by a row in `pauses`); and the batches held for it.

What is paused is decided there alone, and `batches.claim` asks there. That a ready batch of something paused is `held`
only keeps it out of the index of what can be sent, so that a long paused backlog costs nothing: it is brought about in
steps, and where a race left it wrong, dispatching or reconcile put it right.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pipeline.errors import InvalidRequest
from pipeline.ledger import jobs
from pipeline.ledger.engine import Connection

Scope = Literal["everything", "collection", "job"]

# Whether a job j or its collection is paused: what its batches are held for. While everything is paused nothing is sent
# at all, and so nothing has to be held.
JOB_PAUSED = """(
    j.state = 'paused' OR EXISTS (SELECT 1 FROM pauses p WHERE p.collection_id = j.collection_id))"""


def paused(collection_id: str) -> str:
    """SQL: whether the collection of this id (an expression), or everything, is paused. The table has a row or two, and
    mostly none."""
    return f"EXISTS (SELECT 1 FROM pauses p WHERE p.collection_id IS NULL OR p.collection_id = {collection_id})"


@dataclass(frozen=True, slots=True)
class Pause:
    """Something that is paused. collection: its name, None for everything. job_id: of a paused job."""

    scope: Scope
    collection: str | None
    job_id: uuid.UUID | None
    reason: str | None
    since: datetime

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form (docs/control.md)."""
        return {
            "what": self.what,
            "scope": self.scope,
            "collection": self.collection,
            "job_id": str(self.job_id) if self.job_id else None,
            "reason": self.reason,
            "since": self.since.isoformat(),
        }

    @property
    def what(self) -> str:
        """For people."""
        match self.scope:
            case "everything":
                return "everything"
            case "collection":
                return f"collection {self.collection}"
            case "job":
                return f"job {self.job_id}"

    def __str__(self) -> str:
        return f"{self.what} is paused" + (f": {self.reason}" if self.reason else "")


def listing(connection: Connection, limit: int = 100) -> list[Pause]:
    """What is paused now: everything first, then collections, then jobs, the newest of each first."""
    rows = connection.execute(
        """(SELECT CASE WHEN p.collection_id IS NULL THEN 'everything' ELSE 'collection' END AS scope,
                   c.name AS collection, NULL::uuid AS job_id, p.reason, p.paused_at AS since
              FROM pauses p LEFT JOIN collections c ON c.id = p.collection_id
             ORDER BY p.collection_id IS NOT NULL, p.paused_at DESC LIMIT %(limit)s)
           UNION ALL
           (SELECT 'job', c.name, j.id, j.pause_reason, coalesce(j.paused_at, j.created_at)
              FROM jobs j JOIN collections c ON c.id = j.collection_id
             WHERE j.finished_at IS NULL AND j.state = 'paused' ORDER BY j.paused_at DESC LIMIT %(limit)s)""",
        {"limit": limit},
    ).fetchall()
    return [Pause(**row) for row in rows]


# -- pausing and resuming ----------------------------------------------------------------------------------------------


def pause_job(connection: Connection, job_id: uuid.UUID, reason: str | None) -> None:
    """From its commit on, no batch of the job is claimed. Raises UnknownJob, InvalidRequest where it is finished."""
    _lock_unfinished(connection, job_id, "pause")
    connection.execute(
        """UPDATE jobs SET state = 'paused', pause_reason = coalesce(%s, pause_reason),
                           paused_at = CASE WHEN state = 'paused' THEN paused_at ELSE clock_timestamp() END
            WHERE id = %s""",
        (reason, job_id),
    )


def resume_job(connection: Connection, job_id: uuid.UUID) -> None:
    """Ends the job's own pause, if it has one. Raises UnknownJob, InvalidRequest where it is finished."""
    _lock_unfinished(connection, job_id, "resume")
    connection.execute(
        """UPDATE jobs SET state = CASE WHEN started_at IS NULL THEN 'queued' ELSE 'running' END, paused_at = NULL,
                           pause_reason = NULL
            WHERE id = %s AND state = 'paused'""",
        (job_id,),
    )


def _lock_unfinished(connection: Connection, job_id: uuid.UUID, what: str) -> None:
    jobs.lock(connection, job_id)
    job = jobs.get(connection, job_id)
    if job.finished:
        raise InvalidRequest(f"job {job_id} is {job.state}: there is nothing left to {what}")


def pause_scope(connection: Connection, collection_id: int | None, reason: str | None) -> None:
    """Pauses a collection, or (None) everything."""
    connection.execute(
        """INSERT INTO pauses AS p (collection_id, reason) VALUES (%s, %s)
           ON CONFLICT (collection_id) DO UPDATE SET reason = coalesce(excluded.reason, p.reason)""",
        (collection_id, reason),
    )


def resume_scope(connection: Connection, collection_id: int | None) -> bool:
    """Ends the pause of a collection, or (None) of everything. Jobs and collections keep pauses of their own.

    False where it was not paused.
    """
    return (
        connection.execute("DELETE FROM pauses WHERE collection_id IS NOT DISTINCT FROM %s", (collection_id,)).rowcount
        > 0
    )


# -- holding -----------------------------------------------------------------------------------------------------------


def unfinished_jobs(connection: Connection, collection_id: int) -> list[uuid.UUID]:
    """The unfinished jobs of a collection, the oldest first."""
    rows = connection.execute(
        "SELECT id FROM jobs WHERE finished_at IS NULL AND collection_id = %s ORDER BY id", (collection_id,)
    ).fetchall()
    return [row["id"] for row in rows]


def hold(connection: Connection, job_id: uuid.UUID, limit: int) -> int:
    """Holds up to `limit` ready batches of a job, if it or its collection is paused. Returns how many.

    Their stamps go: a message that comes for one finds nothing to claim, and after the pause it is sent again at once.
    It waits for nobody: what is locked just now is being claimed, or is held by the dispatch that meets it.
    """
    return connection.execute(
        f"""WITH free AS MATERIALIZED (
             SELECT b.id FROM batches b
              WHERE b.job_id = %(job)s AND b.ended_at IS NULL AND NOT b.held AND b.state = 'ready'
                AND EXISTS (SELECT 1 FROM jobs j WHERE j.id = %(job)s AND {JOB_PAUSED})
              LIMIT %(limit)s FOR NO KEY UPDATE OF b SKIP LOCKED)
           UPDATE batches b SET held = true, sent_at = NULL FROM free WHERE b.id = free.id""",
        {"job": job_id, "limit": limit},
    ).rowcount


def release(connection: Connection, limit: int) -> int:
    """Lets go up to `limit` held batches of jobs that nothing pauses any more. Returns how many.

    The jobs are found by skipping through the index, so a long paused backlog costs nothing.
    """
    row = connection.execute(
        f"""WITH RECURSIVE holding AS (
             (SELECT job_id FROM batches WHERE held ORDER BY job_id LIMIT 1)
             UNION ALL
             SELECT (SELECT b.job_id FROM batches b WHERE b.held AND b.job_id > h.job_id ORDER BY b.job_id LIMIT 1)
               FROM holding h WHERE h.job_id IS NOT NULL)
           SELECT j.id FROM holding h JOIN jobs j ON j.id = h.job_id WHERE NOT {JOB_PAUSED} LIMIT 1"""
    ).fetchone()
    return _release(connection, row["id"], limit) if row else 0


def _release(connection: Connection, job_id: uuid.UUID, limit: int) -> int:
    return connection.execute(
        f"""WITH free AS MATERIALIZED (
             SELECT b.id FROM batches b
              WHERE b.job_id = %(job)s AND b.held
                AND EXISTS (SELECT 1 FROM jobs j WHERE j.id = %(job)s AND NOT {JOB_PAUSED})
              LIMIT %(limit)s FOR NO KEY UPDATE OF b SKIP LOCKED)
           UPDATE batches b SET held = false, sent_at = NULL FROM free WHERE b.id = free.id""",
        {"job": job_id, "limit": limit},
    ).rowcount
