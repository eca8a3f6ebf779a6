"""Embeddings: content-addressed, computed once. The durable tier of the cache: what a chunk has is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.ledger.engine import Connection

Vector = NDArray[np.float32]

# last_used serves garbage collection by days; writing it on every read would double the write load.
_USED_GRAIN = "1 day"


def load(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, Vector]:
    """key -> float32[dimensions], for those of the keys that are stored."""
    rows = connection.execute("SELECT key, vector FROM embeddings WHERE key = ANY(%s)", (list(keys),), binary=True)
    return {bytes(row["key"]): np.frombuffer(row["vector"], dtype="<f4") for row in rows}


def use(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, Vector]:
    """As `load`, for who makes something of them that will need them: what is found stays.

    Call it when the chunks that have these keys are committed. Garbage collection locks an embedding before it asks for
    its chunks. So either this waits for it, and does not find what went; or it has the lock first, and then whoever
    collects asks later than the chunks came, and finds them.
    """
    rows = connection.execute(
        "SELECT key, vector FROM embeddings WHERE key = ANY(%s) ORDER BY key FOR KEY SHARE", (list(keys),), binary=True
    )
    found = {bytes(row["key"]): np.frombuffer(row["vector"], dtype="<f4") for row in rows}
    touch(connection, list(found))
    return found


def store(
    connection: Connection, vectors: Mapping[bytes, tuple[Vector, int]], costs: Mapping[bytes, float] | None = None
) -> list[bytes]:
    """key -> (float32[dimensions], tokens); costs: US dollars of those that were bought. What is stored already stays.
    Returns the keys that are new."""
    keys = sorted(vectors)
    paid = costs or {}
    rows = connection.execute(
        """INSERT INTO embeddings (key, vector, tokens, cost)
           SELECT * FROM unnest(%b::bytea[], %b::bytea[], %b::int[], %b::float8[]) ON CONFLICT (key) DO NOTHING
           RETURNING key""",
        (
            keys,
            [np.ascontiguousarray(vectors[key][0], dtype="<f4").tobytes() for key in keys],
            [vectors[key][1] for key in keys],
            [float(paid.get(key, 0.0)) for key in keys],
        ),
    ).fetchall()
    return [bytes(row["key"]) for row in rows]


def touch(connection: Connection, keys: Sequence[bytes]) -> None:
    """Says that these embeddings were used today."""
    connection.execute(
        f"""UPDATE embeddings SET last_used = now()
             WHERE key IN (SELECT key FROM embeddings
                            WHERE key = ANY(%s) AND last_used < now() - interval '{_USED_GRAIN}'
                            ORDER BY key FOR NO KEY UPDATE SKIP LOCKED)""",
        (list(keys),),
    )
