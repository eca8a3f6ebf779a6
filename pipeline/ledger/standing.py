"""How chunks stand: which of them the index must hold, which it may hold, and what is stored of them.

A chunk that is expected stays so until it is leaving, and never comes back: one that is expected before and after a
look into the index was so in between.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Connection

# live: of a published version. indexed: of one not published yet, by a batch that is done. arriving: of one not
# published yet. leaving: removed or abandoned, may still be there. stale: should have left the index.
Standing = Literal["live", "indexed", "arriving", "leaving", "stale"]

EXPECTED = frozenset({"live", "indexed"})

FIRST, LAST = uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)

# c: rows of chunks, with point_id, born_version, died_version and batch_id. OFFSET 0: each chunk's own rows by id. With
# statistics from when the tables were small, Postgres would read every version there is.
STANDING = """
  CROSS JOIN LATERAL (SELECT collection_id, published_gen FROM versions WHERE id = c.born_version OFFSET 0) born
   LEFT JOIN LATERAL (SELECT id, state, contracted FROM versions WHERE id = c.died_version OFFSET 0) died ON true
   LEFT JOIN LATERAL (SELECT state FROM batches
                       WHERE id = c.batch_id AND died.id IS NULL AND born.published_gen IS NULL OFFSET 0) batch ON true
  CROSS JOIN LATERAL (SELECT
        CASE WHEN died.id IS NULL AND born.published_gen IS NOT NULL THEN 'live'
             WHEN died.id IS NULL AND batch.state = 'indexed' THEN 'indexed'
             WHEN died.id IS NULL THEN 'arriving'
             WHEN died.state = 'open' THEN 'live'
             WHEN died.contracted = 0 THEN 'leaving'
             ELSE 'stale' END AS standing) s"""


# Among the vectors of another model, which a collection is to have or has just got (`ledger.reembeddings`): a chunk is
# expected when it was put there, and has another key. Without such, both joins find nothing.
_AGAIN = """
   LEFT JOIN LATERAL (SELECT done, embedding_key FROM reembed_chunks
                       WHERE point_id = c.point_id AND reembedding_id = %(reembedding)s OFFSET 0) again ON true
  CROSS JOIN LATERAL (SELECT
        CASE WHEN %(building)s AND s.standing IN ('live', 'indexed') AND again.done IS NOT TRUE THEN 'arriving'
             ELSE s.standing END AS standing,
        coalesce(again.embedding_key, c.embedding_key) AS embedding_key) t"""


def _again(connection: Connection, collection: Collection) -> dict[str, Any]:
    """The parameters of `_AGAIN`, by the name of the Qdrant collection that is meant."""
    row = connection.execute(
        """SELECT r.id AS reembedding, k.physical <> r.physical AS building
             FROM reembeddings r JOIN collections k ON k.id = r.collection_id
            WHERE r.collection_id = %s AND r.ended_at IS NULL AND r.physical = %s""",
        (collection.id, collection.physical),
    ).fetchone()
    return row or {"reembedding": None, "building": False}


@dataclass(frozen=True, slots=True)
class Known:
    """A chunk that the ledger knows. embedded: its vector is stored."""

    point_id: uuid.UUID
    standing: Standing
    embedded: bool


def step(connection: Connection, after: uuid.UUID, upto: uuid.UUID, limit: int) -> uuid.UUID:
    """Where to end a step that reads about `limit` chunks (of all collections) with ids in (after, upto]."""
    row = connection.execute(
        """SELECT point_id FROM chunks WHERE point_id > %s AND point_id <= %s
            ORDER BY point_id OFFSET %s LIMIT 1""",
        (after, upto, limit - 1),
    ).fetchone()
    return row["point_id"] if row else upto


def known(connection: Connection, collection: Collection, after: uuid.UUID, upto: uuid.UUID) -> list[Known]:
    """The collection's chunks with ids in (after, upto], by id."""
    rows = connection.execute(
        f"""WITH mine AS MATERIALIZED (
              SELECT point_id, born_version, died_version, batch_id, embedding_key FROM chunks
               WHERE point_id > %(after)s AND point_id <= %(upto)s ORDER BY point_id)
            SELECT c.point_id, t.standing,
                   EXISTS (SELECT 1 FROM embeddings e WHERE e.key = t.embedding_key) AS embedded
              FROM mine c {STANDING} {_AGAIN}
             WHERE born.collection_id = %(collection)s ORDER BY c.point_id""",
        {**_again(connection, collection), "after": after, "upto": upto, "collection": collection.id},
    ).fetchall()
    return [Known(**row) for row in rows]


def standing(
    connection: Connection, collection: Collection, point_ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, Standing]:
    """How those of the points stand that the ledger knows, now."""
    rows = connection.execute(
        f"""WITH mine AS MATERIALIZED (
              SELECT point_id, born_version, died_version, batch_id, embedding_key FROM chunks
               WHERE point_id = ANY(%(points)s))
            SELECT c.point_id, t.standing FROM mine c {STANDING} {_AGAIN}
             WHERE born.collection_id = %(collection)s""",
        {**_again(connection, collection), "points": list(point_ids), "collection": collection.id},
    ).fetchall()
    return {row["point_id"]: row["standing"] for row in rows}


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk with everything that its point is made of, but for the vector."""

    point_id: uuid.UUID
    standing: Standing
    version_id: int
    document_id: int
    ordinal: int
    text: str
    tokens: int
    chunk_hash: bytes
    embedding_key: bytes
    uri: str
    tenant: str
    title: str
    metadata: Mapping[str, Any]


def stored(connection: Connection, collection: Collection, point_ids: Sequence[uuid.UUID]) -> list[StoredChunk]:
    """Those of the points that the ledger knows, by id."""
    rows = connection.execute(
        f"""WITH mine AS MATERIALIZED (SELECT * FROM chunks WHERE point_id = ANY(%(points)s))
            SELECT c.point_id, t.standing, c.born_version AS version_id, c.document_id, c.ordinal, c.text, c.tokens,
                   c.chunk_hash, t.embedding_key, d.uri, d.tenant, v.title, v.metadata
              FROM mine c {STANDING} {_AGAIN}
              JOIN versions v ON v.id = c.born_version
              JOIN documents d ON d.id = c.document_id
             WHERE born.collection_id = %(collection)s ORDER BY c.point_id""",
        {**_again(connection, collection), "points": list(point_ids), "collection": collection.id},
    ).fetchall()
    return [StoredChunk(**row) for row in rows]


def live_places(connection: Connection, places: Sequence[tuple[int, int, int]]) -> set[tuple[int, int, int]]:
    """Those of the (document, born version, ordinal) that a live chunk has: a second point there is a duplicate."""
    rows = connection.execute(
        """SELECT c.document_id, c.born_version, c.ordinal
             FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS p (document_id, born_version, ordinal)
             JOIN chunks c ON c.born_version = p.born_version AND c.ordinal = p.ordinal
                          AND c.document_id = p.document_id
             LEFT JOIN versions died ON died.id = c.died_version
            WHERE died.id IS NULL OR died.state = 'open'""",
        ([place[0] for place in places], [place[1] for place in places], [place[2] for place in places]),
    ).fetchall()
    return {(row["document_id"], row["born_version"], row["ordinal"]) for row in rows}
