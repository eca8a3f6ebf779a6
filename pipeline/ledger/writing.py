"""A job while it is being written: its enqueuer adds to it, falls silent, is cut off or refused, and seals it."""

from __future__ import annotations

import uuid

from pipeline.errors import InvalidRequest
from pipeline.ledger import jobs
from pipeline.ledger.engine import Connection
from pipeline.ledger.jobs import Job

_SILENT = "the enqueuer went silent before it had named every document; ingest again with the same key"
_REFUSED = "the backlog was full before every document was named; ingest again with the same key"
_CUT_OFF = (_SILENT, _REFUSED)


def note_skipped(connection: Connection, job_id: uuid.UUID, skipped: int) -> None:
    """Writes down how many files the job's source left out. A source that is read again has counted all of them."""
    connection.execute("UPDATE jobs SET documents_skipped = %s WHERE id = %s", (skipped, job_id))


def touch(connection: Connection, job_id: uuid.UUID) -> None:
    """Says that the enqueuer is alive and still adding; a job that was closed for its silence is open again.

    Raises InvalidRequest where the job was cancelled meanwhile. Call it last in the transaction that adds something: it
    holds the job's row, so that `cancel` finds either all of what was added or nothing.
    """
    row = connection.execute(
        """UPDATE jobs SET seen_at = clock_timestamp(),
                           sealed_at = CASE WHEN error = %(silent)s THEN NULL ELSE sealed_at END,
                           finished_at = CASE WHEN error = %(silent)s THEN NULL ELSE finished_at END,
                           state = CASE WHEN error = %(silent)s AND state = 'partial' THEN 'running' ELSE state END,
                           error = nullif(error, %(silent)s)
            WHERE id = %(job)s AND state <> 'cancelled' RETURNING id""",
        {"job": job_id, "silent": _SILENT},
    ).fetchone()
    if row is None:
        raise InvalidRequest(f"job {job_id} was cancelled while it was written; nothing more is added to it")


def seal(connection: Connection, job_id: uuid.UUID) -> None:
    """Nothing more will be added; the job ends when its last version does."""
    connection.execute("UPDATE jobs SET sealed_at = coalesce(sealed_at, now()) WHERE id = %s", (job_id,))
    jobs.finish_done(connection, [job_id])


def close(connection: Connection, tenant: str, idempotency_key: str, error: str) -> None:
    """Ends the writing of the job of this key, if there is one and nobody has sealed it: what is in it is carried out,
    and it ends partial."""
    row = connection.execute(
        """UPDATE jobs SET sealed_at = now(), error = %s WHERE tenant = %s AND idempotency_key = %s
              AND sealed_at IS NULL RETURNING id""",
        (error, tenant, idempotency_key),
    ).fetchone()
    if row is not None:
        jobs.finish_done(connection, [row["id"]])


def reopen(connection: Connection, job_id: uuid.UUID) -> None:
    """Lets an enqueuer that was cut off go on with its job.

    It will name every document again: `staging.staged_before` knows those that have a version. What it had found
    unchanged or unreadable left nothing to go by, so the counters begin again from the versions that there are.
    """
    # First: an enqueuer that is only slow may be committing versions, and what is counted below has to see them.
    jobs.lock(connection, job_id)
    connection.execute(
        """UPDATE jobs SET sealed_at = NULL, finished_at = NULL, error = NULL, seen_at = clock_timestamp(),
                           state = CASE state WHEN 'partial' THEN 'running' ELSE state END
            WHERE id = %s AND (finished_at IS NULL OR error = ANY(%s))""",
        (job_id, list(_CUT_OFF)),
    )
    connection.execute("DELETE FROM versions WHERE job_id = %s AND state = 'failed' AND recipe_hash IS NULL", (job_id,))
    connection.execute(
        """UPDATE jobs j
              SET (documents_total, documents_indexed, documents_deleted, documents_unchanged, documents_failed,
                   documents_superseded, documents_cancelled, documents_prepared) = (
                  SELECT count(*), count(*) FILTER (WHERE v.state = 'published' AND v.kind = 'ingest'),
                         count(*) FILTER (WHERE v.state = 'published' AND v.kind = 'delete'),
                         count(*) FILTER (WHERE v.state = 'unchanged'), count(*) FILTER (WHERE v.state = 'failed'),
                         count(*) FILTER (WHERE v.state = 'superseded'),
                         count(*) FILTER (WHERE v.state = 'cancelled'),
                         count(*) FILTER (WHERE v.state NOT IN ('staged', 'superseded', 'cancelled'))
                    FROM versions v WHERE v.job_id = j.id)
            WHERE j.id = %s""",
        (job_id,),
    )


def was_cut_off(job: Job) -> bool:
    """Whether the job's enqueuer never finished: unsealed, or closed by `seal_silent` or `refuse`."""
    return job.sealed_at is None or job.error in _CUT_OFF


def refuse(connection: Connection, job_id: uuid.UUID) -> None:
    """Closes a job whose enqueuer gives up because the backlog is full: what is in it is carried out, it ends partial,
    and goes on under its key. Nobody has to wait until its enqueuer counts as silent."""
    connection.execute(
        "UPDATE jobs SET sealed_at = coalesce(sealed_at, now()), error = %s WHERE id = %s AND finished_at IS NULL",
        (_REFUSED, job_id),
    )
    jobs.finish_done(connection, [job_id])


def seal_silent(connection: Connection, silent_seconds: float, limit: int) -> list[uuid.UUID]:
    """Closes jobs whose enqueuer has been silent for so long; they end partial and can be resumed by their key."""
    rows = connection.execute(
        """UPDATE jobs SET sealed_at = now(), error = %s
            WHERE id IN (SELECT id FROM jobs
                          WHERE finished_at IS NULL AND sealed_at IS NULL AND kind <> 'reembed'
                            AND seen_at < now() - make_interval(secs => %s)
                          ORDER BY id LIMIT %s FOR NO KEY UPDATE SKIP LOCKED)
            RETURNING id""",
        (_SILENT, silent_seconds, limit),
    ).fetchall()
    return [row["id"] for row in rows]
