"""What is on its way already, asked cheaply: enqueuers wait, or are refused, where it is too much."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.ledger.engine import Connection
from pipeline.ledger.fleet import ALIVE_SECONDS


@dataclass(frozen=True, slots=True)
class Load:
    """staged_bytes: of documents that are not indexed yet. ready_batches: counted up to the limit that was asked for.

    all_paused: whether everything is paused. workers: that are alive.
    """

    staged_bytes: int
    ready_batches: int
    all_paused: bool
    workers: int


def load(connection: Connection, most_batches: int) -> Load:
    """How much waits now.

    `content` is stored EXTERNAL, so that its length stands beside the pointer to it: no content is read. Batches of
    what is paused count too; they take as much room.
    """
    row = connection.execute(
        """SELECT (SELECT coalesce(sum(octet_length(content)), 0) FROM staged)::bigint AS staged_bytes,
                  (SELECT count(*) FROM (
                     (SELECT 1 FROM batches WHERE state = 'ready' AND NOT held LIMIT %(most)s)
                      UNION ALL
                     (SELECT 1 FROM batches WHERE state = 'ready' AND held LIMIT %(most)s)
                      LIMIT %(most)s) AS b) AS ready_batches,
                  EXISTS (SELECT 1 FROM pauses WHERE collection_id IS NULL) AS all_paused,
                  (SELECT count(*) FROM workers
                    WHERE seen_at > clock_timestamp() - make_interval(secs => %(alive)s)) AS workers""",
        {"most": most_batches, "alive": ALIVE_SECONDS},
    ).fetchone()
    assert row is not None
    return Load(**row)
