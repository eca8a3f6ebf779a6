"""Another priority for a job. The job's own is what counts for new batches; those that exist follow in steps."""

from __future__ import annotations

import uuid

from pipeline.errors import InvalidRequest
from pipeline.ledger import jobs
from pipeline.ledger.engine import Connection

# A transaction that read the priority of before has committed its batches after so long, or never will: its statements
# end after half of that.
_SETTLED_SECONDS = 60.0


def change(connection: Connection, job_id: uuid.UUID, priority: int) -> None:
    """Gives the job another priority. Raises UnknownJob, InvalidRequest where it is finished."""
    jobs.lock(connection, job_id)
    job = jobs.get(connection, job_id)
    if job.finished:
        raise InvalidRequest(f"job {job_id} is {job.state}: its priority matters no more")
    connection.execute(
        "UPDATE jobs SET priority = %s, prioritized_at = clock_timestamp() WHERE id = %s", (priority, job_id)
    )


def follow(connection: Connection, job_id: uuid.UUID, limit: int) -> int:
    """Gives up to `limit` unfinished batches of the job its priority. Returns how many.

    Their stamps go, so that they are sent to the other queue; a message that is in the first one claims its batch or
    finds nothing to do. It waits for nobody: what is locked just now follows at reconcile.
    """
    return connection.execute(
        """WITH free AS MATERIALIZED (
             SELECT id FROM batches
              WHERE job_id = %(job)s AND ended_at IS NULL
                AND priority <> (SELECT priority FROM jobs WHERE id = %(job)s)
              LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
           UPDATE batches b SET priority = (SELECT priority FROM jobs WHERE id = %(job)s), sent_at = NULL
             FROM free WHERE b.id = free.id""",
        {"job": job_id, "limit": limit},
    ).rowcount


def unsettled(connection: Connection, limit: int) -> list[uuid.UUID]:
    """Unfinished jobs whose batches may still have the priority of before, the oldest first."""
    rows = connection.execute(
        "SELECT id FROM jobs WHERE finished_at IS NULL AND prioritized_at IS NOT NULL ORDER BY id LIMIT %s", (limit,)
    ).fetchall()
    return [row["id"] for row in rows]


def settle(connection: Connection, job_id: uuid.UUID) -> None:
    """All batches were found to have followed: no later one can have the priority of before."""
    connection.execute(
        """UPDATE jobs SET prioritized_at = NULL
            WHERE id = %s AND prioritized_at < clock_timestamp() - make_interval(secs => %s)""",
        (job_id, _SETTLED_SECONDS),
    )
