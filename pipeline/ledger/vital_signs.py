"""What health asks of the ledger beside the depth of the queues: few rows each, by index."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.fleet import ALIVE_SECONDS

# A worker that ended without a word is told of for so long; then it is somebody's who knows what became of it.
SILENT_SECONDS = 600.0
# Webhooks that were given up before this are nobody's news any more.
GIVEN_UP_SECONDS = 86_400.0
# More dead letters than this are told of as so many.
MOST_LETTERS = 10_000


@dataclass(frozen=True, slots=True)
class VitalSigns:
    """given_up: webhooks, in the last day. wedged: batches held by processes that make no progress. beat_seconds: since
    beat was last heard of, None: never. everything_paused: seconds since then; None: it is not."""

    open_letters: int
    given_up: int
    wedged: int
    beat_seconds: float | None
    everything_paused: float | None


def read(connection: Connection) -> VitalSigns:
    row = connection.execute(
        """SELECT (SELECT count(*) FROM (SELECT FROM dead_letters WHERE resolved_at IS NULL LIMIT %(most)s) d)
                      AS open_letters,
                  (SELECT count(*) FROM webhook_deliveries
                    WHERE state = 'dead' AND ended_at > clock_timestamp() - make_interval(secs => %(given_up)s))
                      AS given_up,
                  (SELECT count(*) FROM batches WHERE state = 'running' AND wedged_at IS NOT NULL) AS wedged,
                  (SELECT extract(epoch FROM clock_timestamp() - max(seen_at))::float8 FROM services
                    WHERE name = 'beat') AS beat_seconds,
                  (SELECT extract(epoch FROM clock_timestamp() - paused_at)::float8 FROM pauses
                    WHERE collection_id IS NULL) AS everything_paused""",
        {"most": MOST_LETTERS, "given_up": GIVEN_UP_SECONDS},
    ).fetchone()
    assert row is not None
    return VitalSigns(**row)


def silent_workers(connection: Connection) -> list[Row]:
    """Workers (id, seconds) that stopped reporting lately and took no leave."""
    return connection.execute(
        """SELECT id, extract(epoch FROM clock_timestamp() - seen_at)::float8 AS seconds FROM workers
            WHERE seen_at <= clock_timestamp() - make_interval(secs => %s)
              AND seen_at > clock_timestamp() - make_interval(secs => %s) ORDER BY id""",
        (ALIVE_SECONDS, SILENT_SECONDS),
    ).fetchall()


def processes(connection: Connection) -> list[Row]:
    """Live workers (id, host, processes): as each process has measured itself."""
    return connection.execute(
        """SELECT id, host, processes FROM workers
            WHERE seen_at > clock_timestamp() - make_interval(secs => %s) ORDER BY id""",
        (ALIVE_SECONDS,),
    ).fetchall()


def failing_duties(connection: Connection) -> list[Row]:
    """Duties (name, error) whose last run failed and that are not switched off."""
    return connection.execute(
        """SELECT name, coalesce(result ->> 'error', '') AS error FROM duties WHERE failed AND enabled ORDER BY name"""
    ).fetchall()
