"""Figures of the whole that nobody else asks the ledger for, in one statement each."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.ledger.engine import Connection
from pipeline.ledger.fleet import ALIVE_SECONDS


@dataclass(frozen=True, slots=True)
class Figures:
    """tried: unfinished batches with a failed attempt or a lost worker. letters: dead letters that are open.

    staged_bytes: of documents that wait to be chunked. owed, given_up: webhooks.
    """

    tried: int
    letters: int
    staged_bytes: int
    owed: int
    given_up: int
    workers: int
    slots: int


def figures(connection: Connection) -> Figures:
    """As of now."""
    row = connection.execute(
        """SELECT (SELECT count(*) FROM batches WHERE state IN ('ready', 'running', 'waiting')
                      AND attempts + losses > 0) AS tried,
                  (SELECT count(*) FROM dead_letters WHERE resolved_at IS NULL) AS letters,
                  (SELECT coalesce(sum(octet_length(content)), 0) FROM staged)::bigint AS staged_bytes,
                  (SELECT count(*) FROM webhook_deliveries WHERE state = 'ready') AS owed,
                  (SELECT count(*) FROM webhook_deliveries WHERE state = 'dead') AS given_up,
                  w.workers, w.slots
             FROM (SELECT count(*) AS workers, coalesce(sum(slots), 0) AS slots FROM workers
                    WHERE seen_at > clock_timestamp() - make_interval(secs => %s)) AS w""",
        (ALIVE_SECONDS,),
    ).fetchone()
    assert row is not None
    return Figures(**row)


def leases(connection: Connection) -> dict[str, int]:
    """Kind -> batches that are claimed now."""
    rows = connection.execute(
        "SELECT kind, count(*) AS n FROM batches WHERE state = 'running' GROUP BY kind"
    ).fetchall()
    return {row["kind"]: row["n"] for row in rows}


def raised_alerts(connection: Connection) -> dict[str, int]:
    """Severity -> alerts that are raised and have not cleared."""
    rows = connection.execute(
        """SELECT severity, count(*) AS n FROM alerts
            WHERE raised_at IS NOT NULL AND cleared_at IS NULL GROUP BY severity"""
    ).fetchall()
    return {row["severity"]: row["n"] for row in rows}
