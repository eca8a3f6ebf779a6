"""Collections that were found missing in Qdrant: what was in them is in the ledger, and has to be put back."""

from __future__ import annotations

from datetime import datetime

from pipeline.ledger.engine import Connection, Row


def note(connection: Connection, collection_id: int, physical: str | None = None) -> bool:
    """Says that the collection is missing in Qdrant now. Nothing is lost with one that has no points yet; nor where it
    goes by another name there than `physical`, because it is being re-embedded or was a moment ago.

    True where it was not known to be lost before.
    """
    row = connection.execute(
        """UPDATE collections k SET lost_at = clock_timestamp()
             FROM (SELECT id, lost_at FROM collections WHERE id = %(id)s FOR NO KEY UPDATE) AS before
            WHERE k.id = before.id AND (%(physical)s::text IS NULL OR k.physical = %(physical)s)
              AND (EXISTS (SELECT 1 FROM documents d JOIN chunks c ON c.document_id = d.id AND c.died_version IS NULL
                            JOIN versions v ON v.id = c.born_version
                           WHERE d.collection_id = %(id)s AND v.published_gen IS NOT NULL)
                   OR EXISTS (SELECT 1 FROM versions v JOIN chunks c ON c.born_version = v.id
                                JOIN batches b ON b.id = c.batch_id
                               WHERE v.collection_id = %(id)s AND v.state = 'open' AND b.state = 'indexed'))
        RETURNING before.lost_at IS NULL AS first""",
        {"id": collection_id, "physical": physical},
    ).fetchone()
    return row is not None and bool(row["first"])


def forget(connection: Connection, collection_id: int, seen: datetime | None = None) -> None:
    """The collection has all its points again. seen: the time of the loss that was mended; a later one stays."""
    connection.execute(
        """UPDATE collections SET lost_at = NULL
            WHERE id = %(id)s AND (%(seen)s::timestamptz IS NULL OR lost_at = %(seen)s)""",
        {"id": collection_id, "seen": seen},
    )


def listing(connection: Connection) -> list[Row]:
    """name and lost_at of the collections that are lost."""
    rows = connection.execute("SELECT name, lost_at FROM collections WHERE lost_at IS NOT NULL ORDER BY name")
    return rows.fetchall()


def published(connection: Connection) -> list[Row]:
    """id and physical of the collections that had something published and are not known to be lost."""
    return connection.execute(
        "SELECT id, physical FROM collections WHERE generation > 0 AND lost_at IS NULL ORDER BY id"
    ).fetchall()
