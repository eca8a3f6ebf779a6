"""The worker processes that are alive: each writes a row of its own and keeps it fresh."""

from __future__ import annotations

from pipeline.ledger.engine import Connection, Row

ALIVE_SECONDS = 10.0
_FORGET_SECONDS = 86_400.0


def report(connection: Connection, worker_id: str, host: str, pid: int, queues: str, slots: int) -> None:
    """A sign of life."""
    connection.execute(
        """INSERT INTO workers (id, host, pid, queues, slots) VALUES (%s, %s, %s, %s, %s)
           ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()""",
        (worker_id, host, pid, queues, slots),
    )


def leave(connection: Connection, worker_id: str) -> None:
    """A worker that ends in good order takes its row with it."""
    connection.execute("DELETE FROM workers WHERE id = %s", (worker_id,))


def alive(connection: Connection) -> list[Row]:
    return connection.execute(
        """SELECT id, host, pid, queues, slots, started_at, seen_at FROM workers
            WHERE seen_at > clock_timestamp() - make_interval(secs => %s) ORDER BY id""",
        (ALIVE_SECONDS,),
    ).fetchall()


def forget_dead(connection: Connection) -> int:
    """Drops the rows of workers that have not been seen for a day."""
    return connection.execute(
        "DELETE FROM workers WHERE seen_at < clock_timestamp() - make_interval(secs => %s)", (_FORGET_SECONDS,)
    ).rowcount
