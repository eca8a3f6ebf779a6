"""Ending what is unfinished of a job, in steps: a job of any size is cancelled without a long transaction.

The job is marked first: from then on nothing of it is claimed, and nothing is added. It counts as finished when the
last step is done; one whose canceller died in between is cancelled and not finished, and reconcile goes on with it.
"""

from __future__ import annotations

import uuid

from pipeline.ledger import jobs, versions
from pipeline.ledger.engine import Connection

# Chunks of the versions that one step ends: their rows are written, and take about half a second.
_MOST_CHUNKS = 10_000


def begin(connection: Connection, job_id: uuid.UUID) -> bool:
    """Marks the job cancelled. False where it has ended already. Raises UnknownJob."""
    jobs.lock(connection, job_id)
    job = jobs.get(connection, job_id)
    if job.finished_at is not None:
        return False
    connection.execute(
        """UPDATE jobs SET state = 'cancelled', sealed_at = coalesce(sealed_at, now()), paused_at = NULL,
                           pause_reason = NULL
            WHERE id = %s""",
        (job_id,),
    )
    return True


def unfinished(connection: Connection, limit: int) -> list[uuid.UUID]:
    """Jobs whose cancelling was begun and not ended, the oldest first."""
    rows = connection.execute(
        "SELECT id FROM jobs WHERE finished_at IS NULL AND state = 'cancelled' ORDER BY id LIMIT %s", (limit,)
    ).fetchall()
    return [row["id"] for row in rows]


def end_batches(connection: Connection, job_id: uuid.UUID, limit: int) -> int:
    """Ends the batches of the job that are at work, and up to `limit` others. Returns how many.

    Who holds one finds its epoch gone at the next heartbeat, and stops.
    """
    return connection.execute(
        """WITH found AS MATERIALIZED (
             (SELECT id FROM batches WHERE state = 'running' AND job_id = %(job)s)
             UNION ALL
             (SELECT id FROM batches
               WHERE job_id = %(job)s AND ended_at IS NULL AND state <> 'running' LIMIT %(limit)s)),
           locked AS (
             SELECT id FROM batches WHERE id = ANY (ARRAY(SELECT id FROM found)) ORDER BY id FOR NO KEY UPDATE)
           UPDATE batches b SET state = 'cancelled', epoch = epoch + 1, lease_until = NULL, held = false,
                                ended_at = clock_timestamp()
             FROM locked WHERE b.id = locked.id AND b.ended_at IS NULL""",
        {"job": job_id, "limit": limit},
    ).rowcount


def end_versions(connection: Connection, job_id: uuid.UUID, limit: int) -> int:
    """Ends up to `limit` unfinished versions of the job, and counts them; fewer where they have many chunks. Returns
    how many it looked at.

    What they added is abandoned, and contraction takes its points out of the index; what they removed lives on.
    """
    rows = connection.execute(
        """WITH found AS MATERIALIZED (
             SELECT id FROM versions WHERE job_id = %(job)s AND state IN ('staged', 'open') LIMIT %(limit)s),
           summed AS (
             SELECT f.id, sum(k.n) OVER (ORDER BY f.id) - k.n AS before
               FROM found f CROSS JOIN LATERAL (
                 SELECT count(*) AS n FROM (
                   SELECT 1 FROM chunks WHERE born_version = f.id LIMIT %(most)s) AS c) AS k)
           SELECT id FROM summed WHERE before < %(most)s""",
        {"job": job_id, "limit": limit, "most": _MOST_CHUNKS},
    ).fetchall()
    changes = versions.no_changes()
    found = versions.lock_unfinished(connection, [row["id"] for row in rows])
    versions.end_unpublished(connection, sorted(found), "cancelled", changes)
    jobs.count(connection, changes)
    return len(rows)
