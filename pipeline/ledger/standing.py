"""How chunks stand: which of them the index must hold, which it may hold, and what is stored of them.

A chunk that is expected stays so until it is leaving, and never comes back: one that is expected before and after a
look into the index was so in between.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.ledger.engine import Connection

# live: of a published version. indexed: of one not published yet, by a batch that is done. arriving: of one not
# published yet. leaving: removed or abandoned, may still be there. stale: should have left the index.
Standing = Literal["live", "indexed", "arriving", "leaving", "stale"]

EXPECTED = frozenset({"live", "indexed"})

FIRST, LAST = uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)

# c: rows of chunks. OFFSET 0: each chunk's own rows by id. With statistics from when the tables were small, Postgres
# would read every version there is.
_STANDING = """
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


def known(connection: Connection, collection_id: int, after: uuid.UUID, upto: uuid.UUID) -> list[Known]:
    """The collection's chunks with ids in (after, upto], by id."""
    rows = connection.execute(
        f"""WITH mine AS MATERIALIZED (
              SELECT point_id, born_version, died_version, batch_id, embedding_key FROM chunks
               WHERE point_id > %s AND point_id <= %s ORDER BY point_id)
            SELECT c.point_id, s.standing,
                   EXISTS (SELECT 1 FROM embeddings e WHERE e.key = c.embedding_key) AS embedded
              FROM mine c {_STANDING}
             WHERE born.collection_id = %s ORDER BY c.point_id""",
        (after, upto, collection_id),
    ).fetchall()
    return [Known(**row) for row in rows]


def standing(connection: Connection, collection_id: int, point_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Standing]:
    """How those of the points stand that the ledger knows, now."""
    rows = connection.execute(
        f"""WITH mine AS MATERIALIZED (
              SELECT point_id, born_version, died_version, batch_id FROM chunks WHERE point_id = ANY(%s))
            SELECT c.point_id, s.standing FROM mine c {_STANDING} WHERE born.collection_id = %s""",
        (list(point_ids), collection_id),
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


def stored(connection: Connection, collection_id: int, point_ids: Sequence[uuid.UUID]) -> list[StoredChunk]:
    """Those of the points that the ledger knows, by id."""
    rows = connection.execute(
        f"""WITH mine AS MATERIALIZED (SELECT * FROM chunks WHERE point_id = ANY(%s))
            SELECT c.point_id, s.standing, c.born_version AS version_id, c.document_id, c.ordinal, c.text, c.tokens,
                   c.chunk_hash, c.embedding_key, d.uri, d.tenant, v.title, v.metadata
              FROM mine c {_STANDING}
              JOIN versions v ON v.id = c.born_version
              JOIN documents d ON d.id = c.document_id
             WHERE born.collection_id = %s ORDER BY c.point_id""",
        (list(point_ids), collection_id),
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
