"""Messages for remote batches: which rows are due, and which of those sent are lost."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pipeline.ledger.engine import Connection

# A message that nobody took for so long is sent again, and one this young may still be on its way into Redis.
_RESEND_SECONDS = 60.0
# To read the answers to more than so many texts takes minutes, or seconds at least.
_MANY_INPUTS = 5_000
_IN_TRANSIT_SECONDS = 5.0


def pick_due(connection: Connection, limit: int) -> list[tuple[int, int, bool]]:
    """Stamps rows for which something is to be done, and returns (id, priority, whether it may take minutes): nobody
    else sends them meanwhile."""
    rows = connection.execute(
        """UPDATE remote_batches SET sent_at = clock_timestamp()
            WHERE id IN (SELECT id FROM remote_batches
                          WHERE next_at <= clock_timestamp() AND owner IS NULL AND closed_at IS NULL
                            AND (sent_at IS NULL OR sent_at < clock_timestamp() - make_interval(secs => %s))
                          ORDER BY priority, next_at LIMIT %s FOR NO KEY UPDATE SKIP LOCKED)
        RETURNING id, priority, inputs > %s AND state IN ('planned', 'uploading', 'submitted', 'ended', 'harvesting')
                                AS long""",
        (_RESEND_SECONDS, limit, _MANY_INPUTS),
    ).fetchall()
    return sorted((row["id"], row["priority"], row["long"]) for row in rows)


def unstamp(connection: Connection, batch_ids: Iterable[int]) -> None:
    """Takes the stamps back: the messages may not have arrived."""
    connection.execute(
        "UPDATE remote_batches SET sent_at = NULL WHERE id = ANY(%s) AND owner IS NULL", (sorted(batch_ids),)
    )


def awaited(connection: Connection) -> bool:
    """Whether a message is on its way."""
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM remote_batches WHERE sent_at IS NOT NULL AND closed_at IS NULL) AS some"
    ).fetchone()
    return bool(row and row["some"])


def forget_lost_messages(connection: Connection, carried: Collection[int]) -> int:
    """Clears the stamps of rows that nobody took and no message carries. Returns how many."""
    return connection.execute(
        """UPDATE remote_batches SET sent_at = NULL
            WHERE owner IS NULL AND closed_at IS NULL AND NOT id = ANY(%s)
              AND sent_at < clock_timestamp() - make_interval(secs => %s)""",
        (sorted(carried), _IN_TRANSIT_SECONDS),
    ).rowcount
