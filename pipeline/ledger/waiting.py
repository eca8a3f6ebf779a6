"""Why an unfinished job is not moving, as far as the ledger can say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pipeline.ledger.engine import Connection
from pipeline.ledger.fleet import ALIVE_SECONDS
from pipeline.ledger.jobs import Job


@dataclass(frozen=True, slots=True)
class Waiting:
    """reason: for people; until: when it will be tried again, where that is known."""

    reason: str
    until: datetime | None = None

    def to_json(self) -> dict[str, str | None]:
        return {"reason": self.reason, "until": self.until.isoformat() if self.until else None}


def waiting(connection: Connection, job: Job) -> Waiting | None:
    """None for a job that is finished or at work."""
    if job.finished or (job.state != "paused" and _is_at_work(connection, job)):
        return None
    if job.state == "paused":
        return Waiting("paused")
    row = connection.execute(
        """SELECT count(*) FILTER (WHERE state = 'ready') AS ready,
                  min(next_attempt_at) FILTER (WHERE state = 'ready' AND next_attempt_at > clock_timestamp()) AS next,
                  min(id) FILTER (WHERE state = 'ready') AS first,
                  max(error) FILTER (WHERE state = 'ready' AND next_attempt_at > clock_timestamp()) AS error
             FROM batches WHERE job_id = %s AND ended_at IS NULL""",
        (job.id,),
    ).fetchone()
    if row is None or not row["ready"]:
        return None
    consumers = connection.execute(
        """SELECT count(*) AS n FROM workers
            WHERE %s = ANY(string_to_array(queues, ',')) AND seen_at > clock_timestamp() - make_interval(secs => %s)""",
        (job.queue, ALIVE_SECONDS),
    ).fetchone()
    if consumers is None or not consumers["n"]:
        return Waiting(f"no live worker consumes the queue {job.queue}; start one with `millrace worker`")
    if row["next"] is not None:
        return Waiting(row["error"] or "to be tried again", row["next"])
    ahead = connection.execute(
        """SELECT count(*) AS n FROM batches
            WHERE state = 'ready' AND job_id <> %(job)s
              AND (priority < %(priority)s OR (priority = %(priority)s AND id < %(first)s))""",
        {"job": job.id, "priority": job.priority, "first": row["first"]},
    ).fetchone()
    behind = ahead["n"] if ahead else 0
    return Waiting(f"queued behind {behind} batches") if behind else Waiting("queued")


def _is_at_work(connection: Connection, job: Job) -> bool:
    """The usual answer, found among the few batches that run anywhere: a long backlog is only counted without it."""
    row = connection.execute(
        "SELECT 1 FROM batches WHERE state = 'running' AND job_id = %s LIMIT 1", (job.id,)
    ).fetchone()
    return row is not None
