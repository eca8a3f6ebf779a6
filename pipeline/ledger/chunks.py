"""Chunks: a row and a point each, born by one version and perhaps removed by a later one."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.ledger.batches import Claim
from pipeline.ledger.engine import Connection


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk about to be written."""

    point_id: uuid.UUID
    document_id: int
    born_version: int
    batch_id: int
    ordinal: int
    text: str
    chunk_hash: bytes
    embedding_key: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class LiveChunk:
    """A chunk of the published version: what the next version is compared with."""

    point_id: uuid.UUID
    document_id: int
    chunk_hash: bytes


@dataclass(frozen=True, slots=True)
class WantedPoint:
    """A chunk that has to go into the index, with what its point says."""

    point_id: uuid.UUID
    version_id: int
    job_id: uuid.UUID
    batch_id: int
    document_id: int
    ordinal: int
    text: str
    tokens: int
    embedding_key: bytes
    uri: str
    tenant: str
    title: str
    metadata: Mapping[str, Any]


def lock_live(connection: Connection, document_ids: Sequence[int]) -> dict[int, list[LiveChunk]]:
    """Locks the live chunks of (locked) documents. Returns document id -> chunks, in the order of their points."""
    rows = connection.execute(
        """SELECT point_id, document_id, chunk_hash FROM chunks
            WHERE document_id = ANY(%s) AND died_version IS NULL ORDER BY point_id FOR NO KEY UPDATE""",
        (list(document_ids),),
    ).fetchall()
    found: dict[int, list[LiveChunk]] = {}
    for row in rows:
        found.setdefault(row["document_id"], []).append(LiveChunk(**row))
    return found


def insert(connection: Connection, new: Sequence[NewChunk]) -> None:
    """Writes new chunks by COPY."""
    columns = ", ".join(NewChunk.__slots__)
    with connection.cursor() as cursor, cursor.copy(f"COPY chunks ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["uuid", "int8", "int8", "int8", "int4", "text", "bytea", "bytea", "int4"])
        for chunk in new:
            copy.write_row([getattr(chunk, name) for name in NewChunk.__slots__])


def remove(connection: Connection, removed: Mapping[uuid.UUID, int]) -> None:
    """point id -> the version that no longer has it."""
    connection.execute(
        """UPDATE chunks c SET died_version = r.version_id
             FROM unnest(%s::uuid[], %s::bigint[]) AS r (point_id, version_id) WHERE c.point_id = r.point_id""",
        (list(removed), list(removed.values())),
    )


def wanted_points(connection: Connection, claims: Sequence[Claim]) -> list[WantedPoint]:
    """The chunks of claimed embed batches whose version is still open: what is left to be indexed."""
    rows = connection.execute(
        # OFFSET 0: the batches first, then their versions by id. With statistics from when the tables were small,
        # Postgres would begin with every open version there is.
        """WITH mine AS MATERIALIZED (
             SELECT point_id, born_version, batch_id, document_id, ordinal, text, tokens, embedding_key
               FROM chunks WHERE batch_id = ANY(%s) AND died_version IS NULL)
           SELECT c.point_id, c.born_version AS version_id, v.job_id, c.batch_id, c.document_id, c.ordinal, c.text,
                  c.tokens, c.embedding_key, d.uri, d.tenant, v.title, v.metadata
             FROM mine c CROSS JOIN LATERAL (SELECT * FROM versions WHERE id = c.born_version OFFSET 0) v
             JOIN documents d ON d.id = c.document_id
            WHERE v.state = 'open'
            ORDER BY c.batch_id, c.born_version, c.ordinal""",
        ([claim.id for claim in claims],),
    ).fetchall()
    return [WantedPoint(**row) for row in rows]


def lock_batch(connection: Connection, batch_id: int) -> None:
    """Takes the row locks of a batch's chunks, before its own."""
    connection.execute("SELECT 1 FROM chunks WHERE batch_id = %s ORDER BY point_id FOR NO KEY UPDATE", (batch_id,))


def split_batch(connection: Connection, batch_id: int, halves: tuple[int, int]) -> None:
    """Moves the chunks of a batch to two others, half each, in the order of the text."""
    connection.execute(
        """WITH ranked AS (
             SELECT point_id, ntile(2) OVER (ORDER BY born_version, ordinal) AS half FROM chunks WHERE batch_id = %s)
           UPDATE chunks c SET batch_id = CASE r.half WHEN 1 THEN %s::bigint ELSE %s::bigint END
             FROM ranked r WHERE c.point_id = r.point_id""",
        (batch_id, *halves),
    )


def rekeyed(
    connection: Connection, wanted: Sequence[WantedPoint], key_of: Callable[[str], bytes]
) -> Sequence[WantedPoint]:
    """The chunks with the keys of their collection's model. It may have got another one since they were cut: then their
    rows say so from here on, and nobody collects the embedding that they are about to get."""
    keys = {point.point_id: key_of(point.text) for point in wanted}
    changed = {point.point_id: keys[point.point_id] for point in wanted if point.embedding_key != keys[point.point_id]}
    if not changed:
        return wanted
    connection.execute(
        """UPDATE chunks c SET embedding_key = w.embedding_key
             FROM (SELECT point_id FROM chunks WHERE point_id = ANY(%(points)b) ORDER BY point_id FOR NO KEY UPDATE) l
             JOIN unnest(%(points)b::uuid[], %(keys)b::bytea[]) AS w (point_id, embedding_key)
               ON w.point_id = l.point_id
            WHERE c.point_id = l.point_id""",
        {"points": list(changed), "keys": list(changed.values())},
    )
    return [replace(point, embedding_key=keys[point.point_id]) for point in wanted]
