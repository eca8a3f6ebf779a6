"""Which ready batches are sent next, and how deep the queues are: the backlog stays in Postgres.

Within a queue tenants take turns: whoever has fewest batches on their way is next, and of equals whoever comes behind
the one that was served last. So a million documents of one tenant delay another's ten by a turn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipeline.ledger import circuits
from pipeline.ledger.circuits import COULD_TRY, PROBE_DUE, SENDABLE_KIND, VECTORS
from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.fleet import ALIVE_SECONDS
from pipeline.ledger.jobs import PRIORITIES
from pipeline.ledger.pauses import JOB_PAUSED
from pipeline.settings import WorkSettings

# A message younger than this may be on its way between the broker and a worker's claim.
_IN_TRANSIT_SECONDS = 5.0

_DISPATCH_LOCK = 7_310_900

# A message in a queue is ahead of whoever comes later, and one too few leaves a slot without work. Half of so many a
# slot (a queue is topped up when half of it is free) are 10 ms ahead of batches of 5 ms each: longer than that takes.
_MESSAGES_PER_SLOT = 4
_LEAST_WINDOW = 16

# Tenants that one dispatch looks at beyond those that it has room for: with ten thousand of them it stays as cheap.
_TENANTS = 16
# Those that one look for old work looks at: it comes every few seconds, not after each task.
_OLD_TENANTS = 64
# The turns of old work are kept beside those of the queues.
_OLD_TURNS = 100

# Of ready batches b: those whose time has come, and that are in no message as far as the ledger knows.
_SENDABLE = f"""(b.next_attempt_at IS NULL OR b.next_attempt_at <= clock_timestamp()) AND {SENDABLE_KIND}
    AND (b.sent_at IS NULL OR b.sent_at < clock_timestamp() - make_interval(secs => %(resend)s))"""


@dataclass(frozen=True, slots=True)
class Sending:
    """A batch to be sent: its id and its kind, which names the task."""

    id: int
    kind: str


@dataclass(frozen=True, slots=True)
class Picked:
    """What is stamped and to be sent; and how many were found to be paused, and are held from now on."""

    sendings: list[Sending]
    held: int


@dataclass(frozen=True, slots=True)
class ToDo:
    """What dispatching has to do. blocked: whether staged versions wait for their turn. windows: of each priority with
    work to send, how many messages its queue may hold. vectors_away: whether their circuit is open, so that nothing is
    embedded; probe_due: whether it is time to try one batch."""

    blocked: bool
    windows: Mapping[int, int]
    vectors_away: bool = False
    probe_due: bool = False


def _windows(condition: str, queues: Mapping[int, str]) -> str:
    """Columns p0, p1, ...: of each priority with ready work like that, the live slots that consume the queue; else
    null."""
    return ", ".join(
        f"""CASE WHEN (SELECT b.id FROM batches b
                        WHERE b.state = 'ready' AND NOT b.held AND b.priority = {priority} AND {condition}
                        ORDER BY b.tenant, b.id LIMIT 1) IS NOT NULL
                 THEN (SELECT coalesce(sum(w.slots), 0) FROM workers w
                        WHERE '{queue}' = ANY(string_to_array(w.queues, ','))
                          AND w.seen_at > clock_timestamp() - make_interval(secs => %(alive)s)) END AS p{priority}"""
        for priority, queue in queues.items()
    )


_OWN = dict(enumerate(PRIORITIES))
_HIGHER = {priority: PRIORITIES[priority - 1] for priority in range(1, len(PRIORITIES))}

_EVERYTHING_PAUSED = "EXISTS (SELECT 1 FROM pauses WHERE collection_id IS NULL)"

_TO_DO = f"""
SELECT {_EVERYTHING_PAUSED} AS paused,
       (SELECT version_id FROM staged WHERE batch_id IS NULL ORDER BY batch_id LIMIT 1) IS NOT NULL AS blocked,
       (SELECT {PROBE_DUE} FROM circuits c WHERE c.dependency = '{VECTORS}' AND c.opened_at IS NOT NULL) AS probe_due,
       {_windows(_SENDABLE, _OWN)}"""


def to_do(connection: Connection, work: WorkSettings) -> ToDo:
    """One question that costs next to nothing, since it is asked after every task and mostly answered no.

    The order lets each of its parts stop at the first row of the index. While everything is paused the answer is no.
    """
    row = connection.execute(_TO_DO, {"resend": work.resend_seconds, "alive": ALIVE_SECONDS}).fetchone()
    assert row is not None
    away = row["probe_due"] is not None
    if row["paused"]:
        return ToDo(False, {}, vectors_away=away)
    return ToDo(row["blocked"], _as_windows(row, work), vectors_away=away, probe_due=bool(row["probe_due"]))


def rising(connection: Connection, work: WorkSettings) -> dict[int, int]:
    """Of each priority with ready work, but the highest: how many messages the next higher queue may hold. Nothing
    while everything is paused."""
    row = connection.execute(
        f"SELECT {_EVERYTHING_PAUSED} AS paused, {_windows('true', _HIGHER)}", {"alive": ALIVE_SECONDS}
    ).fetchone()
    assert row is not None
    return {} if row["paused"] else _as_windows(row, work)


def _as_windows(row: Row, work: WorkSettings) -> dict[int, int]:
    found = {priority: row.get(f"p{priority}") for priority in _OWN}
    return {priority: window(slots, work) for priority, slots in found.items() if slots is not None}


def window(slots: int, work: WorkSettings) -> int:
    """How many messages a queue may hold that so many live slots consume."""
    return work.window or max(_LEAST_WINDOW, _MESSAGES_PER_SLOT * slots)


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


def _ring(condition: str) -> str:
    """CTEs that end in `ring` (tenant, place): up to %(tenants)s tenants with ready batches b like that, of the queue's
    priority, from behind the one that was served last, and around.

    They are found by skipping through the index, so a long backlog of one of them costs nothing. (What asks for the
    batches of a tenant says BETWEEN, and sorts by tenant too: for one tenant by id Postgres might go through the
    primary key, over everything that was ever done.)
    """
    first = """SELECT b.tenant FROM batches b
                WHERE b.state = 'ready' AND NOT b.held AND b.priority = %(priority)s"""
    return f"""
        served AS MATERIALIZED (
          SELECT coalesce((SELECT tenant FROM turns WHERE priority = %(turns)s), '') AS tenant),
        behind AS (
          SELECT ({first} AND b.tenant > (SELECT tenant FROM served) AND {condition}
                   ORDER BY b.tenant LIMIT 1) AS tenant, 1 AS place
          UNION ALL
          SELECT ({first} AND b.tenant > t.tenant AND {condition} ORDER BY b.tenant LIMIT 1), t.place + 1
            FROM behind t WHERE t.tenant IS NOT NULL AND t.place < %(tenants)s),
        around AS (
          SELECT ({first} AND b.tenant <= (SELECT tenant FROM served) AND {condition}
                   ORDER BY b.tenant LIMIT 1) AS tenant, %(tenants)s + 1 AS place
          UNION ALL
          SELECT ({first} AND b.tenant > t.tenant AND b.tenant <= (SELECT tenant FROM served) AND {condition}
                   ORDER BY b.tenant LIMIT 1), t.place + 1
            FROM around t WHERE t.tenant IS NOT NULL AND t.place < 2 * %(tenants)s),
        ring AS MATERIALIZED (
          SELECT tenant, place
            FROM (SELECT * FROM behind UNION ALL SELECT * FROM around) AS t
           WHERE tenant IS NOT NULL LIMIT %(tenants)s)"""


# Of `picked` (id, turn, place): locks those that are free, stamps them as sent, or holds them where they are paused.
_STAMP = f"""
        free AS (
          SELECT b.id, p.turn, p.place, {JOB_PAUSED} AS held
            FROM batches b JOIN picked p ON p.id = b.id JOIN jobs j ON j.id = b.job_id
           WHERE b.state = 'ready' AND b.id = ANY (ARRAY(SELECT id FROM picked))
           ORDER BY b.id FOR NO KEY UPDATE OF b SKIP LOCKED),
        stamped AS (
          UPDATE batches b SET sent_at = CASE WHEN NOT f.held THEN clock_timestamp() END, held = f.held FROM free f
           WHERE b.id = f.id RETURNING b.id, b.kind, b.held, f.turn, f.place)
        SELECT id, kind, held FROM stamped ORDER BY turn, place"""


def pick(connection: Connection, priority: int, room: int, work: WorkSettings) -> Picked:
    """Up to `room` ready batches in fair order (tenants in turns, oldest first), stamped as sent.

    Those of what was paused a moment ago, and was not held yet, are held now.
    """
    if room <= 0:
        return Picked([], 0)
    return _picked(
        connection,
        f"""WITH RECURSIVE {_ring(_SENDABLE)},
            underway AS (
              SELECT tenant, count(*) AS n FROM (
                SELECT tenant FROM batches WHERE state = 'ready' AND priority = %(priority)s
                   AND sent_at >= clock_timestamp() - make_interval(secs => %(resend)s)
                UNION ALL
                SELECT tenant FROM batches WHERE state = 'running' AND priority = %(priority)s) AS b GROUP BY tenant),
            waiting AS (
              SELECT c.id, r.tenant, r.place,
                     coalesce(u.n, 0) + row_number() OVER (PARTITION BY r.tenant ORDER BY c.id) AS turn
                FROM ring r LEFT JOIN underway u USING (tenant) CROSS JOIN LATERAL (
                  SELECT b.id FROM batches b
                   WHERE b.state = 'ready' AND NOT b.held AND b.priority = %(priority)s
                     AND b.tenant BETWEEN r.tenant AND r.tenant AND {_SENDABLE}
                   ORDER BY b.tenant, b.id LIMIT %(room)s) AS c),
            picked AS (SELECT * FROM waiting ORDER BY turn, place LIMIT %(room)s),
            next_turn AS (
              INSERT INTO turns (priority, tenant)
              SELECT %(turns)s, tenant FROM picked ORDER BY turn DESC, place DESC LIMIT 1
              ON CONFLICT (priority) DO UPDATE SET tenant = excluded.tenant WHERE turns.tenant <> excluded.tenant),
            {_STAMP}""",
        {
            "priority": priority,
            "turns": priority,
            "tenants": _TENANTS + room,
            "room": room,
            "resend": work.resend_seconds,
        },
    )


def pick_old(
    connection: Connection, priority: int, room: int, carried: Collection[int], work: WorkSettings
) -> list[Sending]:
    """Up to `room` ready batches that have waited for `rise_seconds`, the oldest of the tenants looked at first,
    stamped as sent. carried: batches in the messages of the next higher queue; those of this priority take room."""
    return _picked(
        connection,
        f"""WITH RECURSIVE {_ring("true")},
            waiting AS (
              SELECT c.id, c.created_at AS turn, r.place FROM ring r CROSS JOIN LATERAL (
                SELECT b.id, b.created_at, b.next_attempt_at FROM batches b
                 WHERE b.state = 'ready' AND NOT b.held AND b.priority = %(priority)s
                   AND b.tenant BETWEEN r.tenant AND r.tenant AND NOT b.id = ANY (%(carried)s::bigint[])
                   AND {SENDABLE_KIND}
                 ORDER BY b.tenant, b.id LIMIT %(room)s) AS c
               WHERE c.created_at < clock_timestamp() - make_interval(secs => %(rise)s)
                 AND (c.next_attempt_at IS NULL OR c.next_attempt_at <= clock_timestamp())),
            picked AS (
              SELECT * FROM waiting ORDER BY turn, place
               LIMIT greatest(0, %(room)s - (SELECT count(*) FROM batches WHERE id = ANY (%(carried)s::bigint[])
                                                AND state = 'ready' AND priority = %(priority)s))),
            next_turn AS (
              INSERT INTO turns (priority, tenant)
              SELECT %(turns)s, tenant FROM ring ORDER BY place DESC LIMIT 1
              ON CONFLICT (priority) DO UPDATE SET tenant = excluded.tenant WHERE turns.tenant <> excluded.tenant),
            {_STAMP}""",
        {
            "priority": priority,
            "turns": _OLD_TURNS + priority,
            "tenants": _OLD_TENANTS,
            "room": room,
            "carried": list(carried),
            "rise": work.rise_seconds,
        },
    ).sendings


def _picked(connection: Connection, statement: str, given: Mapping[str, object]) -> Picked:
    rows = connection.execute(statement, given).fetchall()
    sendings = [Sending(row["id"], row["kind"]) for row in rows if not row["held"]]
    return Picked(sendings, len(rows) - len(sendings))


def pick_probe(connection: Connection, priority: int) -> int | None:
    """Stamps one embed batch of this priority as sent: the one that tries whether Qdrant is back. None where there is
    none, or another one tries."""
    row = connection.execute(
        f"""SELECT b.id FROM batches b JOIN jobs j ON j.id = b.job_id
            WHERE {COULD_TRY} AND b.priority = %s
              AND (b.next_attempt_at IS NULL OR b.next_attempt_at <= clock_timestamp())
            ORDER BY b.tenant, b.id LIMIT 1 FOR NO KEY UPDATE OF b SKIP LOCKED""",
        (priority,),
    ).fetchone()
    if row is None or not circuits.take_probe(connection, VECTORS, row["id"]):
        return None
    connection.execute("UPDATE batches SET sent_at = clock_timestamp() WHERE id = %s", (row["id"],))
    return int(row["id"])


def unstamp(connection: Connection, batch_ids: list[int]) -> None:
    """Takes the stamps back of what could not be sent."""
    connection.execute(
        """UPDATE batches SET sent_at = NULL
            WHERE id IN (SELECT id FROM batches WHERE id = ANY(%s) AND state = 'ready'
                          ORDER BY id FOR NO KEY UPDATE)""",
        (batch_ids,),
    )


def unstamp_all(connection: Connection) -> None:
    """Takes all stamps back: what is still in a message is sent twice, which does no harm."""
    connection.execute(
        """UPDATE batches SET sent_at = NULL
            WHERE id IN (SELECT id FROM batches WHERE state = 'ready' AND sent_at IS NOT NULL
                          ORDER BY id FOR NO KEY UPDATE)"""
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
