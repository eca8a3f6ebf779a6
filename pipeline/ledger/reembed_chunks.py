"""The chunks of a collection that gets the vectors of another model: which are put into batches, which are done, which
cannot be embedded.

Their rows in `chunks` stay as they are until the collection was switched: the batch that indexed them first, and their
key under the model that searches use. What belongs to the new vectors is beside it, a row for each chunk that a search
can find or soon will: made by the walk through all of them (`put`), or by whoever completes one meanwhile (`follow`).
So once the walk is over, what is not done yet is what is left.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.ledger import batches, jobs
from pipeline.ledger.batches import Claim
from pipeline.ledger.chunks import WantedPoint
from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.reembeddings import Reembedding
from pipeline.ledger.standing import STANDING

# Of rows of chunks c: not removed, as far as it is sure.
_ALIVE = """(c.died_version IS NULL OR EXISTS (
    SELECT 1 FROM versions d WHERE d.id = c.died_version AND d.state = 'open'))"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk that is to get a new vector. ordinal: its place in its document."""

    point_id: uuid.UUID
    ordinal: int
    text: str


@dataclass(frozen=True, slots=True)
class Keyed:
    """A chunk with its embedding under the new model."""

    point_id: uuid.UUID
    embedding_key: bytes
    tokens: int


# -- the beginning -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """Chunks of a collection in a range of ids. expected: so many are in the index; pieces: of these, and of those that
    are on their way there, the ones of at least so many bytes."""

    expected: int
    pieces: Sequence[Piece]


def survey(connection: Connection, collection_id: int, after: uuid.UUID, upto: uuid.UUID, least_bytes: int) -> Page:
    rows = connection.execute(
        f"""WITH mine AS MATERIALIZED (
              SELECT point_id, born_version, died_version, batch_id, ordinal, text FROM chunks
               WHERE point_id > %s AND point_id <= %s)
            SELECT c.point_id, c.ordinal, s.standing IN ('live', 'indexed') AS expected,
                   CASE WHEN octet_length(c.text) >= %s THEN c.text END AS text
              FROM mine c {STANDING}
             WHERE born.collection_id = %s AND s.standing IN ('live', 'indexed', 'arriving')""",
        (after, upto, least_bytes, collection_id),
    ).fetchall()
    return Page(
        sum(row["expected"] for row in rows),
        [Piece(row["point_id"], row["ordinal"], row["text"]) for row in rows if row["text"] is not None],
    )


# -- what is put into batches ------------------------------------------------------------------------------------------


def unseen(connection: Connection, known: Reembedding, after: uuid.UUID, upto: uuid.UUID) -> list[Piece]:
    """The chunks with ids in (after, upto] that are in the index, or have been told so, and have no row yet."""
    rows = connection.execute(
        f"""WITH mine AS MATERIALIZED (
              SELECT point_id, born_version, died_version, batch_id, ordinal, text FROM chunks c
               WHERE point_id > %(after)s AND point_id <= %(upto)s
                 AND NOT EXISTS (SELECT 1 FROM reembed_chunks r
                                  WHERE r.point_id = c.point_id AND r.reembedding_id = %(reembedding)s))
            SELECT c.point_id, c.ordinal, c.text FROM mine c {STANDING}
             WHERE born.collection_id = %(collection)s AND s.standing IN ('live', 'indexed')""",
        {"after": after, "upto": upto, "reembedding": known.id, "collection": known.collection_id},
    ).fetchall()
    return [Piece(**row) for row in rows]


def unassigned(connection: Connection, known: Reembedding, limit: int) -> list[Piece]:
    """Up to `limit` chunks that have a row and are in no batch: what came meanwhile, and what is to be tried again."""
    rows = connection.execute(
        f"""SELECT c.point_id, c.ordinal, c.text FROM reembed_chunks r JOIN chunks c ON c.point_id = r.point_id
            WHERE r.reembedding_id = %s AND NOT r.done AND r.batch_id IS NULL AND r.error IS NULL AND {_ALIVE}
            ORDER BY r.point_id LIMIT %s""",
        (known.id, limit),
    ).fetchall()
    return [Piece(**row) for row in rows]


def loosen(connection: Connection, known: Reembedding, limit: int) -> int:
    """Takes chunks out of batches that have ended without them: a worker of an older version knows nothing of
    re-embedding, finds no chunks of such a batch, and takes it for done. Returns how many."""
    return connection.execute(
        """UPDATE reembed_chunks SET batch_id = NULL
            WHERE point_id IN (SELECT r.point_id FROM reembed_chunks r JOIN batches b ON b.id = r.batch_id
                                WHERE r.reembedding_id = %s AND NOT r.done AND r.error IS NULL AND b.state = 'indexed'
                                ORDER BY r.point_id LIMIT %s FOR NO KEY UPDATE OF r SKIP LOCKED)""",
        (known.id, limit),
    ).rowcount


def put(connection: Connection, known: Reembedding, groups: Mapping[int, Sequence[Keyed]]) -> bool:
    """Batch id -> the chunks that it is to embed. False where somebody else has put some of them into others."""
    given = [(batch_id, chunk) for batch_id, members in groups.items() for chunk in members]
    written = connection.execute(
        """INSERT INTO reembed_chunks AS r (point_id, reembedding_id, batch_id, embedding_key, tokens)
           SELECT w.point_id, %(reembedding)s, w.batch_id, w.embedding_key, w.tokens
             FROM unnest(%(points)b::uuid[], %(batches)b::bigint[], %(keys)b::bytea[], %(tokens)b::int[])
               AS w (point_id, batch_id, embedding_key, tokens)
            ORDER BY w.point_id
           ON CONFLICT (point_id) DO UPDATE
              SET reembedding_id = excluded.reembedding_id, batch_id = excluded.batch_id, done = false, error = NULL,
                  embedding_key = excluded.embedding_key, tokens = excluded.tokens
            WHERE r.reembedding_id <> excluded.reembedding_id OR (r.batch_id IS NULL AND NOT r.done)""",
        {
            "reembedding": known.id,
            "points": [chunk.point_id for _, chunk in given],
            "batches": [batch_id for batch_id, _ in given],
            "keys": [chunk.embedding_key for _, chunk in given],
            "tokens": [chunk.tokens for _, chunk in given],
        },
    ).rowcount
    return written == len(given)


def refuse(connection: Connection, reembedding_id: int, errors: Mapping[uuid.UUID, str]) -> None:
    """Says of chunks why they cannot be embedded, and takes them out of their batches."""
    points = sorted(errors)
    connection.execute(
        """INSERT INTO reembed_chunks AS r (point_id, reembedding_id, error)
           SELECT w.point_id, %(reembedding)s, w.error
             FROM unnest(%(points)s::uuid[], %(errors)s::text[]) AS w (point_id, error) ORDER BY w.point_id
           ON CONFLICT (point_id) DO UPDATE
              SET reembedding_id = excluded.reembedding_id, error = excluded.error, batch_id = NULL, done = false
            WHERE NOT r.done OR r.reembedding_id <> excluded.reembedding_id""",
        {"reembedding": reembedding_id, "points": points, "errors": [errors[point] for point in points]},
    )


def follow(connection: Connection, collection_id: int, point_ids: Sequence[uuid.UUID]) -> None:
    """These chunks have just been indexed by the model that searches use, in a collection that is held (`share`): where
    it is being re-embedded they are to be so, too."""
    connection.execute(
        """INSERT INTO reembed_chunks (point_id, reembedding_id)
           SELECT p.id, r.id FROM reembeddings r CROSS JOIN unnest(%s::uuid[]) AS p (id)
            WHERE r.collection_id = %s AND r.ended_at IS NULL AND r.state IN ('building', 'auditing', 'switching')
            ORDER BY p.id
           ON CONFLICT (point_id) DO NOTHING""",
        (sorted(point_ids), collection_id),
    )


# -- what workers do ---------------------------------------------------------------------------------------------------


def wanted_points(connection: Connection, claims: Sequence[Claim]) -> list[WantedPoint]:
    """The chunks of claimed batches that are left to be put among the new vectors."""
    rows = connection.execute(
        f"""WITH mine AS MATERIALIZED (
             SELECT point_id, batch_id, embedding_key, tokens FROM reembed_chunks WHERE batch_id = ANY(%s) AND NOT done)
           SELECT c.point_id, c.born_version AS version_id, b.job_id, r.batch_id, c.document_id, c.ordinal, c.text,
                  r.tokens, r.embedding_key, d.uri, d.tenant, v.title, v.metadata
             FROM mine r CROSS JOIN LATERAL (SELECT * FROM chunks WHERE point_id = r.point_id OFFSET 0) c
             CROSS JOIN LATERAL (SELECT * FROM versions WHERE id = c.born_version OFFSET 0) v
             JOIN documents d ON d.id = c.document_id JOIN batches b ON b.id = r.batch_id
            WHERE {_ALIVE}
            ORDER BY r.batch_id, c.point_id""",
        ([claim.id for claim in claims],),
    ).fetchall()
    return [WantedPoint(**row) for row in rows]


def complete(connection: Connection, claims: Sequence[Claim], indexed: Sequence[WantedPoint]) -> None:
    """One transaction under the epoch: the batches end, their chunks are among the new vectors. Raises LeaseLost."""
    batches.hold(connection, claims)
    points = sorted(point.point_id for point in indexed)
    connection.execute(
        """UPDATE reembed_chunks r SET done = true, error = NULL
             FROM (SELECT point_id FROM reembed_chunks WHERE point_id = ANY(%s) ORDER BY point_id FOR NO KEY UPDATE) l
            WHERE r.point_id = l.point_id""",
        (points,),
    )
    # What was removed meanwhile is removed for good.
    connection.execute(
        "DELETE FROM reembed_chunks WHERE batch_id = ANY(%s) AND NOT done", ([claim.id for claim in claims],)
    )
    batches.finish(connection, claims)
    counted: dict[uuid.UUID, dict[str, int]] = {}
    for claim in claims:
        counted.setdefault(claim.job_id, {"chunks_indexed": 0})["chunks_indexed"] += claim.size
    jobs.count(connection, counted)
    jobs.note_indexing(connection, counted)


def members(connection: Connection, batch_id: int) -> int:
    """How many chunks are still in the batch."""
    row = connection.execute(
        "SELECT count(*) AS n FROM reembed_chunks WHERE batch_id = %s AND NOT done", (batch_id,)
    ).fetchone()
    return int(row["n"]) if row else 0


def split(connection: Connection, batch_id: int, halves: tuple[int, int]) -> None:
    """Moves the chunks of a (locked) batch to two others, half each."""
    connection.execute(
        """WITH ranked AS (
             SELECT point_id, ntile(2) OVER (ORDER BY point_id) AS half FROM reembed_chunks
              WHERE batch_id = %s AND NOT done)
           UPDATE reembed_chunks c SET batch_id = CASE r.half WHEN 1 THEN %s::bigint ELSE %s::bigint END
             FROM ranked r WHERE c.point_id = r.point_id""",
        (batch_id, *halves),
    )


# -- how far it is -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Left:
    """Chunks that are not among the new vectors yet, of those that have a row: in a batch, in none, failed. Counted up
    to a limit each."""

    batched: int
    unassigned: int
    failed: int

    @property
    def total(self) -> int:
        return self.batched + self.unassigned + self.failed


def left(connection: Connection, known: Reembedding, limit: int) -> Left:
    """What is left, each kind counted up to `limit`. Chunks that were removed are not."""
    kinds = {
        "batched": "r.batch_id IS NOT NULL AND r.error IS NULL",
        "unassigned": "r.batch_id IS NULL AND r.error IS NULL",
        "failed": "r.batch_id IS NULL AND r.error IS NOT NULL",
    }
    row = connection.execute(
        "SELECT "
        + ", ".join(
            f"""(SELECT count(*) FROM (
                   SELECT 1 FROM reembed_chunks r JOIN chunks c ON c.point_id = r.point_id
                    WHERE r.reembedding_id = %(id)s AND NOT r.done AND {condition} AND {_ALIVE}
                    LIMIT %(limit)s) AS t) AS {kind}"""
            for kind, condition in kinds.items()
        ),
        {"id": known.id, "limit": limit},
    ).fetchone()
    assert row is not None
    return Left(**row)


def walk_under_way(connection: Connection, known: Reembedding) -> bool:
    """Whether what the walk has put into batches is not all embedded yet. Of what was split or came since nothing is
    said."""
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM batches WHERE job_id = %s AND ended_at IS NULL AND id <= %s) AS some",
        (known.job_id, known.walk_batch),
    ).fetchone()
    return bool(row and row["some"])


def ready_batches(connection: Connection, known: Reembedding, limit: int) -> int:
    """How many of its batches wait for a worker, counted up to `limit`."""
    row = connection.execute(
        """SELECT count(*) AS n FROM (
             SELECT 1 FROM batches WHERE job_id = %s AND ended_at IS NULL AND state = 'ready' LIMIT %s) AS t""",
        (known.job_id, limit),
    ).fetchone()
    return int(row["n"]) if row else 0


def hurry(connection: Connection, known: Reembedding) -> None:
    """What is ready of its batches goes to the first queue: others wait for it."""
    connection.execute(
        """UPDATE batches SET priority = 0, sent_at = NULL
            WHERE id IN (SELECT id FROM batches WHERE job_id = %s AND ended_at IS NULL AND state = 'ready'
                            AND priority > 0 ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)""",
        (known.job_id,),
    )


def uri_of(connection: Connection, point_id: uuid.UUID) -> str:
    """The document of a chunk."""
    row = connection.execute(
        "SELECT d.uri FROM chunks c JOIN documents d ON d.id = c.document_id WHERE c.point_id = %s", (point_id,)
    ).fetchone()
    return str(row["uri"]) if row else "a document that is gone"


# -- what cannot be embedded -------------------------------------------------------------------------------------------


def failing(connection: Connection, known: Reembedding, limit: int) -> list[Row]:
    """uri, ordinal and error of chunks that could not be embedded, as far as they are not removed."""
    return connection.execute(
        f"""SELECT d.uri, c.ordinal, r.error FROM reembed_chunks r JOIN chunks c ON c.point_id = r.point_id
              JOIN documents d ON d.id = c.document_id
            WHERE r.reembedding_id = %s AND NOT r.done AND r.batch_id IS NULL AND r.error IS NOT NULL AND {_ALIVE}
            ORDER BY r.point_id LIMIT %s""",
        (known.id, limit),
    ).fetchall()


def try_again(connection: Connection, known: Reembedding, document_ids: Sequence[int] | None = None) -> int:
    """What failed, of these documents or (None) of all, is to be embedded again. Returns how many chunks."""
    return connection.execute(
        """UPDATE reembed_chunks r SET error = NULL, batch_id = NULL
             FROM chunks c
            WHERE c.point_id = r.point_id AND r.reembedding_id = %(id)s AND NOT r.done AND r.batch_id IS NULL
              AND r.error IS NOT NULL
              AND (%(documents)s::bigint[] IS NULL OR c.document_id = ANY(%(documents)s))""",
        {"id": known.id, "documents": None if document_ids is None else list(document_ids)},
    ).rowcount


# -- the end -----------------------------------------------------------------------------------------------------------


def settle(connection: Connection, known: Reembedding, limit: int) -> int:
    """Up to `limit` chunks of a collection that was switched get their new key themselves. Returns how many rows went.

    Until then who asks for a key by the new vectors' name is told the one beside (`ledger.standing`), and both keys
    count where embeddings are collected.
    """
    rows = connection.execute(
        """SELECT point_id FROM reembed_chunks WHERE reembedding_id = %s ORDER BY point_id LIMIT %s""",
        (known.id, limit),
    ).fetchall()
    points = [row["point_id"] for row in rows]
    connection.execute(
        """UPDATE chunks c SET embedding_key = r.embedding_key, tokens = r.tokens
             FROM (SELECT point_id FROM chunks WHERE point_id = ANY(%s) ORDER BY point_id FOR NO KEY UPDATE) l
             JOIN reembed_chunks r ON r.point_id = l.point_id
            WHERE c.point_id = l.point_id AND r.done""",
        (points,),
    )
    connection.execute("DELETE FROM reembed_chunks WHERE point_id = ANY(%s)", (points,))
    return len(points)


def forget(connection: Connection, known: Reembedding, limit: int) -> int:
    """Lets up to `limit` rows of a cancelled one go. Returns how many."""
    return connection.execute(
        """DELETE FROM reembed_chunks WHERE point_id IN (
             SELECT point_id FROM reembed_chunks WHERE reembedding_id = %s ORDER BY point_id LIMIT %s)""",
        (known.id, limit),
    ).rowcount
