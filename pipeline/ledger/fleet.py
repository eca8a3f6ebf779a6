"""The worker processes that are alive: each writes a row of its own and keeps it fresh."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from pipeline.ledger.engine import Connection, Row

ALIVE_SECONDS = 10.0

# Workers report, and `reconcile` looks, every three seconds. Who could not for this long was cut off from the ledger.
_GAP_SECONDS = 6.0
# Of `reconcile`, which an operator may have made rarer.
_GAP = f"make_interval(secs => greatest({_GAP_SECONDS}, 2 * interval_seconds))"

# Since when somebody has reached the ledger without a gap; null where `reconcile` never had one. A lease that ran out
# before that may have a worker that lives and could not extend it; it gets a whole lease to do so. That all were cut
# off at one time means that the ledger was away; one that was cut off alone, or died, is found out by the others.
STEADY_SINCE = f"""(
    SELECT least(d.since, (SELECT min(coalesce(w.steady_since, w.started_at)) FROM workers w
                            WHERE w.seen_at > clock_timestamp() - interval '{ALIVE_SECONDS} seconds'))
      FROM (SELECT CASE WHEN seen_at < clock_timestamp() - {_GAP} THEN clock_timestamp()
                        ELSE steady_since END AS since FROM duties WHERE name = 'reconcile') AS d
     WHERE d.since IS NOT NULL)"""


# The end of a lease whose worker is known to be dead: whether the ledger was away meanwhile does not matter.
ENDED_FOR_GOOD = "to_timestamp(0)"


def report(
    connection: Connection,
    worker_id: str,
    host: str,
    pid: int,
    queues: str,
    slots: int,
    rates: Mapping[str, float] | None = None,
    processes: Sequence[Mapping[str, Any]] = (),
    metrics_url: str | None = None,
) -> datetime | None:
    """A sign of life. Returns when somebody last asked its processes to collect garbage; None: nobody has.

    rates: batches per second that it has done of each queue lately. processes: how each measured itself last.
    metrics_url: where it serves Prometheus.
    """
    row = connection.execute(
        """INSERT INTO workers (id, host, pid, queues, slots, rates, processes, metrics_url)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
           ON CONFLICT (id) DO UPDATE
              SET seen_at = clock_timestamp(), rates = EXCLUDED.rates, processes = EXCLUDED.processes,
                  metrics_url = EXCLUDED.metrics_url,
                  steady_since = CASE WHEN workers.seen_at < clock_timestamp() - make_interval(secs => %s)
                                      THEN clock_timestamp() ELSE workers.steady_since END
           RETURNING collect_asked_at""",
        (
            *(worker_id, host, pid, queues, slots, Jsonb(dict(rates or {}))),
            *(Jsonb([dict(process) for process in processes]), metrics_url, _GAP_SECONDS),
        ),
    ).fetchone()
    assert row is not None
    asked: datetime | None = row["collect_asked_at"]
    return asked


def ask_to_collect(connection: Connection, worker_ids: Sequence[str] | None = None) -> list[str]:
    """Asks all processes of these workers (None: of all that are alive) to collect garbage when they are next idle.
    Returns the ids of those that were asked."""
    rows = connection.execute(
        """UPDATE workers SET collect_asked_at = clock_timestamp()
            WHERE id IN (SELECT id FROM workers
                          WHERE seen_at > clock_timestamp() - make_interval(secs => %s)
                            AND (%s::text[] IS NULL OR id = ANY(%s)) ORDER BY id FOR NO KEY UPDATE)
            RETURNING id""",
        (ALIVE_SECONDS, worker_ids, worker_ids),
    ).fetchall()
    return sorted(row["id"] for row in rows)


def asked_lately(connection: Connection, seconds: float) -> set[str]:
    """The ids of workers that were asked to collect within these seconds."""
    rows = connection.execute(
        "SELECT id FROM workers WHERE collect_asked_at > clock_timestamp() - make_interval(secs => %s)", (seconds,)
    ).fetchall()
    return {row["id"] for row in rows}


def note_steadiness(connection: Connection) -> None:
    """`reconcile` looks again; after a gap it begins to count anew."""
    connection.execute(
        f"""UPDATE duties
              SET seen_at = clock_timestamp(),
                  steady_since = CASE WHEN seen_at < clock_timestamp() - {_GAP}
                                      THEN clock_timestamp() ELSE steady_since END
            WHERE name = 'reconcile'"""
    )


def succeed(connection: Connection, worker_id: str, host: str, is_running: Callable[[int], bool]) -> list[str]:
    """A worker takes the place of those of the same name and host that are dead: what they held may be taken back at
    once. Returns their ids. is_running: asked for their pids.

    Children that outlived such a worker may still be at work; they extend their leases, and finish or lose them.
    """
    rows = connection.execute(
        """SELECT id, pid FROM workers
            WHERE host = %(host)s AND id <> %(id)s AND split_part(id, '#', 1) = split_part(%(id)s, '#', 1)
            ORDER BY id""",
        {"host": host, "id": worker_id},
    ).fetchall()
    dead = [row["id"] for row in rows if not is_running(row["pid"])]
    if dead:
        connection.execute(
            f"""UPDATE batches SET lease_until = {ENDED_FOR_GOOD}
                 WHERE id IN (SELECT id FROM batches WHERE state = 'running' AND split_part(owner, '/', 1) = ANY(%s)
                               ORDER BY id FOR NO KEY UPDATE)""",
            (dead,),
        )
        connection.execute(
            f"""UPDATE remote_batches SET lease_until = {ENDED_FOR_GOOD}
                 WHERE id IN (SELECT id FROM remote_batches
                               WHERE closed_at IS NULL AND split_part(owner, '/', 1) = ANY(%s)
                               ORDER BY id FOR NO KEY UPDATE)""",
            (dead,),
        )
        _end_runs(connection, "split_part(owner, '/', 1)", dead)
        connection.execute("DELETE FROM workers WHERE id = ANY(%s)", (dead,))
    return dead


def leave(connection: Connection, worker_id: str) -> None:
    """A worker that ends in good order takes its row with it."""
    connection.execute("DELETE FROM workers WHERE id = %s", (worker_id,))


def alive(connection: Connection) -> list[Row]:
    return connection.execute(
        """SELECT id, host, pid, queues, slots, started_at, seen_at, processes, metrics_url FROM workers
            WHERE seen_at > clock_timestamp() - make_interval(secs => %s) ORDER BY id""",
        (ALIVE_SECONDS,),
    ).fetchall()


# The claims of some processes, locked in the order of their ids as everywhere.
_CLAIMS_OF = """
SELECT id FROM batches WHERE state = 'running' AND owner = ANY(%(owners)s) ORDER BY id FOR NO KEY UPDATE"""


def owned_by(worker_id: str, pids: Iterable[int]) -> list[str]:
    """Under what the claims of these children are held."""
    return [f"{worker_id}/{pid}" for pid in pids]


def end_leases(connection: Connection, worker_id: str, pids: Iterable[int]) -> int:
    """Of children of a worker that are gone: what they held may be taken back at once. Returns how many batches.

    `reconcile` does that, and counts it as it counts every lease that is over; that the worker lives is known by this.
    """
    owners = owned_by(worker_id, pids)
    connection.execute("UPDATE workers SET seen_at = clock_timestamp() WHERE id = %s", (worker_id,))
    ended = connection.execute(
        f"UPDATE batches b SET lease_until = clock_timestamp() FROM ({_CLAIMS_OF}) AS c WHERE b.id = c.id",
        {"owners": owners},
    ).rowcount
    _end_runs(connection, "owner", owners)
    return ended


def _end_runs(connection: Connection, owner: str, owners: Sequence[str]) -> None:
    """Ends the leases of remote batches and of runs of schedules and duties. owner: what of their column `owner` is one
    of the owners."""
    for table in ("remote_batches", "schedules", "duties"):
        connection.execute(
            f"UPDATE {table} SET lease_until = clock_timestamp() WHERE {owner} = ANY(%s) AND lease_until IS NOT NULL",
            (list(owners),),
        )


def keep_leases(connection: Connection, worker_id: str, pids: Iterable[int], lease_seconds: float) -> int:
    """Extends what these processes hold and have not lost yet: they live, and cannot say so themselves."""
    return connection.execute(
        f"""UPDATE batches b SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
              FROM ({_CLAIMS_OF}) AS c WHERE b.id = c.id AND b.lease_until > clock_timestamp()""",
        {"owners": owned_by(worker_id, pids), "lease": lease_seconds},
    ).rowcount


def mark_wedged(connection: Connection, worker_id: str, pids: Iterable[int], lease_seconds: float) -> int:
    """Says of what these processes hold that it makes no progress. Returns how many batches."""
    return connection.execute(
        f"""UPDATE batches b SET wedged_at = coalesce(wedged_at, clock_timestamp()),
                   lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
              FROM ({_CLAIMS_OF}) AS c WHERE b.id = c.id AND b.lease_until > clock_timestamp()""",
        {"owners": owned_by(worker_id, pids), "lease": lease_seconds},
    ).rowcount


def unmark_wedged(connection: Connection, worker_id: str, pids: Iterable[int]) -> None:
    """They make progress again."""
    connection.execute(
        f"UPDATE batches b SET wedged_at = NULL FROM ({_CLAIMS_OF}) AS c WHERE b.id = c.id",
        {"owners": owned_by(worker_id, pids)},
    )
