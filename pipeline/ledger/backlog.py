"""Which ready batches are sent next, and how deep the queues are: the backlog stays in Postgres."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pipeline.ledger.engine import Connection
from pipeline.ledger.jobs import PRIORITIES
from pipeline.settings import WorkSettings

# A message younger than this may be on its way between the broker and a worker's claim.
_IN_TRANSIT_SECONDS = 5.0

_DISPATCH_LOCK = 7_310_900

# Of ready batches b: those whose time has come, and that are in no message as far as the ledger knows.
_SENDABLE = """(b.next_attempt_at IS NULL OR b.next_attempt_at <= clock_timestamp())
    AND (b.sent_at IS NULL OR b.sent_at < clock_timestamp() - make_interval(secs => %(resend)s))"""


@dataclass(frozen=True, slots=True)
class Sending:
    """A batch to be sent: its id and its kind, which names the task."""

    id: int
    kind: str


@dataclass(frozen=True, slots=True)
class ToDo:
    """What dispatching has to do: whether staged versions wait for their turn, and the priorities with work to send."""

    blocked: bool
    priorities: tuple[int, ...]


def to_do(connection: Connection, work: WorkSettings) -> ToDo:
    """One question that costs next to nothing, since it is asked after every task and mostly answered no.

    The order lets each of its parts stop at the first row of the index.
    """
    awaiting = ", ".join(
        f"""(SELECT b.id FROM batches b WHERE b.state = 'ready' AND b.priority = {priority} AND {_SENDABLE}
              ORDER BY b.tenant, b.id LIMIT 1) IS NOT NULL AS p{priority}"""
        for priority in range(len(PRIORITIES))
    )
    row = connection.execute(
        f"""SELECT (SELECT version_id FROM staged WHERE batch_id IS NULL ORDER BY batch_id LIMIT 1) IS NOT NULL
                   AS blocked, {awaiting}""",
        {"resend": work.resend_seconds},
    ).fetchone()
    assert row is not None
    return ToDo(row["blocked"], tuple(priority for priority in range(len(PRIORITIES)) if row[f"p{priority}"]))


def lock_queue(connection: Connection, priority: int) -> None:
    """One dispatcher a queue at a time, until the commit: two would send the same. The window may be overfilled by as
    many as send at the same moment; it bounds how much a flush loses, and need not be exact."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_DISPATCH_LOCK + priority,))


def forget_lost_messages(connection: Connection, carried: Collection[int]) -> int:
    """Clears the stamps of what was sent, is not taken, and is in no message any more, so that it is sent again.

    One that is sent twice is harmless: the second message finds nothing to claim. Returns how many.
    """
    return connection.execute(
        """UPDATE batches SET sent_at = NULL
            WHERE id IN (SELECT id FROM batches
                          WHERE state = 'ready' AND sent_at IS NOT NULL AND NOT id = ANY(%s)
                            AND sent_at < clock_timestamp() - make_interval(secs => %s)
                          ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)""",
        (list(carried), _IN_TRANSIT_SECONDS),
    ).rowcount


def pick(connection: Connection, priority: int, room: int, work: WorkSettings) -> list[Sending]:
    """Up to `room` ready batches in fair order (tenants in turns, oldest first), stamped as sent.

    The tenants are found by skipping through the index, so a long backlog of one of them costs nothing.
    """
    if room <= 0:
        return []
    rows = connection.execute(
        f"""WITH RECURSIVE tenants AS (
             (SELECT tenant FROM batches WHERE state = 'ready' AND priority = %(priority)s ORDER BY tenant LIMIT 1)
             UNION ALL
             SELECT (SELECT b.tenant FROM batches b
                      WHERE b.state = 'ready' AND b.priority = %(priority)s AND b.tenant > t.tenant
                      ORDER BY b.tenant LIMIT 1)
               FROM tenants t WHERE t.tenant IS NOT NULL),
           turns AS (
             SELECT c.id, row_number() OVER (PARTITION BY t.tenant ORDER BY c.id) AS turn, t.tenant
               FROM tenants t CROSS JOIN LATERAL (
                 SELECT b.id FROM batches b JOIN jobs j ON j.id = b.job_id
                  WHERE b.state = 'ready' AND b.priority = %(priority)s AND b.tenant = t.tenant
                    AND j.state <> 'paused'
                    AND {_SENDABLE}
                  ORDER BY b.id LIMIT %(room)s) AS c
              WHERE t.tenant IS NOT NULL),
           picked AS (SELECT id, turn, tenant FROM turns ORDER BY turn, tenant LIMIT %(room)s),
           free AS (
             SELECT b.id, p.turn, p.tenant FROM batches b JOIN picked p ON p.id = b.id
              WHERE b.state = 'ready' AND b.id = ANY (ARRAY(SELECT id FROM picked))
              ORDER BY b.id FOR NO KEY UPDATE OF b SKIP LOCKED),
           stamped AS (
             UPDATE batches b SET sent_at = clock_timestamp() FROM free f
              WHERE b.id = f.id RETURNING b.id, b.kind, f.turn, f.tenant)
           SELECT id, kind FROM stamped ORDER BY turn, tenant""",
        {"priority": priority, "room": room, "resend": work.resend_seconds},
    ).fetchall()
    return [Sending(row["id"], row["kind"]) for row in rows]


def unstamp(connection: Connection, batch_ids: list[int]) -> None:
    """Takes the stamps back of what could not be sent."""
    connection.execute(
        """UPDATE batches SET sent_at = NULL
            WHERE id IN (SELECT id FROM batches WHERE id = ANY(%s) AND state = 'ready'
                          ORDER BY id FOR NO KEY UPDATE)""",
        (batch_ids,),
    )


def depth(connection: Connection) -> dict[str, dict[str, float]]:
    """Queue name -> ready batches and the age in seconds of the oldest."""
    rows = connection.execute(
        """SELECT priority, count(*) AS n, extract(epoch FROM clock_timestamp() - min(created_at))::float8 AS oldest
             FROM batches WHERE state = 'ready' GROUP BY priority"""
    ).fetchall()
    found = {PRIORITIES[row["priority"]]: row for row in rows}
    return {
        name: {
            "ready_batches": found[name]["n"] if name in found else 0,
            "oldest_seconds": round(found[name]["oldest"], 1) if name in found else 0.0,
        }
        for name in PRIORITIES
    }
