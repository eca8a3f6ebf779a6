"""Points that no search can see any more: which are due to leave the index, and that they have left it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from pipeline.ledger.engine import Connection

# Points of one page, about: their rows are written in one transaction, of about half a second.
_MOST_POINTS = 10_000


@dataclass(frozen=True, slots=True)
class Sweep:
    """Points of one collection to be deleted, for versions that are at the same sweep (0: first, 1: second).

    physicals: where they are in Qdrant; also among vectors that the collection is about to get.
    """

    collection_id: int
    physicals: tuple[str, ...]
    sweep: int
    version_ids: tuple[int, ...]
    points: tuple[uuid.UUID, ...]


def due(connection: Connection, after_seconds: float, again_seconds: float, limit: int) -> list[Sweep]:
    """Up to `limit` ended versions whose removed or abandoned chunks are due, by collection; fewer of large ones."""
    rows = connection.execute(
        """WITH found AS (
             SELECT id, collection_id, contracted, ended_at FROM versions
              WHERE contracted < 2 AND ended_at IS NOT NULL
                AND ended_at < clock_timestamp()
                    - make_interval(secs => CASE contracted WHEN 0 THEN %s::float8 ELSE %s::float8 END)
              ORDER BY ended_at LIMIT %s),
           ended AS (
             SELECT id, collection_id, contracted
               FROM (SELECT f.*, sum(k.n) OVER (ORDER BY f.ended_at, f.id) - k.n AS before
                       FROM found f CROSS JOIN LATERAL (
                         SELECT count(*) AS n FROM (
                           SELECT 1 FROM chunks WHERE died_version = f.id LIMIT %s) AS c) AS k) AS summed
              WHERE before < %s)
           SELECT e.collection_id, e.contracted,
                  array_prepend(k.physical, ARRAY(
                    SELECT r.physical FROM reembeddings r WHERE r.collection_id = e.collection_id AND r.ended_at IS NULL
                       AND r.physical <> k.physical)) AS physicals, array_agg(DISTINCT e.id) AS versions,
                  array_agg(c.point_id) FILTER (WHERE c.point_id IS NOT NULL) AS points
             FROM ended e JOIN collections k ON k.id = e.collection_id
             LEFT JOIN chunks c ON c.died_version = e.id
            GROUP BY e.collection_id, k.physical, e.contracted
            ORDER BY e.collection_id, e.contracted""",
        (after_seconds, again_seconds, limit, _MOST_POINTS, _MOST_POINTS),
    ).fetchall()
    return [
        Sweep(
            row["collection_id"],
            tuple(row["physicals"]),
            row["contracted"],
            tuple(row["versions"]),
            tuple(row["points"] or ()),
        )
        for row in rows
    ]


def done(connection: Connection, sweep: Sweep) -> None:
    """The points of this sweep are deleted; after the second one the rows of their chunks go too."""
    connection.execute(
        "UPDATE versions SET contracted = contracted + 1 WHERE id = ANY(%s) AND contracted = %s",
        (list(sweep.version_ids), sweep.sweep),
    )
    if sweep.sweep == 1:
        connection.execute("DELETE FROM chunks WHERE point_id = ANY(%s)", (list(sweep.points),))
        connection.execute("DELETE FROM reembed_chunks WHERE point_id = ANY(%s)", (list(sweep.points),))
