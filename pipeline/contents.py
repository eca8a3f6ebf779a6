"""Whether points say what the ledger says: the vector, the words, and what stands beside them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.document import canonical, digest
from pipeline.ledger import embeddings, standing
from pipeline.ledger.collections import Collection
from pipeline.ledger.embeddings import Vector
from pipeline.ledger.standing import StoredChunk
from pipeline.points import payload_of, terms_of
from pipeline.tools import Tools
from pipeline.vectors.base import METADATA, Point
from pipeline.vectors.sparse import SparseVector

# A server may keep vectors as float16 or in eight bits; what is another text's vector is much further away.
_SAME_DIRECTION = 0.999
_SAME_WEIGHT = 0.01


def differing(tools: Tools, collection: Collection, point_ids: Sequence[uuid.UUID]) -> tuple[int, list[uuid.UUID]]:
    """How many of these live points could be compared, and those that say something else than the ledger.

    Ledger, index and ledger again: what is removed meanwhile differs in nothing. Raises Unavailable.
    """
    with tools.ledger.transaction() as connection:
        chunks = [chunk for chunk in standing.stored(connection, collection, point_ids) if chunk.standing == "live"]
        vectors = embeddings.load(connection, sorted({chunk.embedding_key for chunk in chunks}))
    points = tools.vectors.points(collection.physical, [chunk.point_id for chunk in chunks])
    chunks = [chunk for chunk in chunks if chunk.point_id in points]
    suspects = [
        chunk.point_id
        for chunk, terms in zip(chunks, terms_of(tools, collection, chunks), strict=True)
        if not _same(collection, chunk, points[chunk.point_id], vectors.get(chunk.embedding_key), terms)
    ]
    if suspects:
        with tools.ledger.transaction() as connection:
            known = standing.standing(connection, collection, suspects)
        suspects = [point for point in suspects if known.get(point) == "live"]
    return len(chunks), suspects


def _same(collection: Collection, chunk: StoredChunk, point: Point, vector: Vector | None, terms: SparseVector) -> bool:
    return (
        (vector is None or _same_direction(point.dense, vector))
        and _same_terms(point.sparse, terms)
        and _same_payload(collection, chunk, point.payload)
    )


def _same_direction(found: Vector, stored: Vector) -> bool:
    if found.shape != stored.shape:
        return False
    lengths = float(np.linalg.norm(found)) * float(np.linalg.norm(stored))
    return bool(lengths) and float(found @ stored) / lengths > _SAME_DIRECTION


def _same_terms(found: SparseVector, stored: SparseVector) -> bool:
    weights = dict(zip(found.indices, found.values, strict=True))
    return weights.keys() == set(stored.indices) and all(
        abs(weights[index] - value) <= _SAME_WEIGHT * max(1.0, abs(value))
        for index, value in zip(stored.indices, stored.values, strict=True)
    )


def _same_payload(collection: Collection, chunk: StoredChunk, found: Mapping[str, Any]) -> bool:
    """The title is left out: a point keeps the one that it was born with. The metadata may be filterable as it was when
    the chunk was made, or as it would be now: fields are declared later, too."""
    wanted = payload_of(collection, chunk)
    for key in ("tenant", "uri", "document", "version", "ordinal", "text"):
        if found.get(key) != wanted[key]:
            return False
    metadata = found.get(METADATA)
    if metadata == wanted[METADATA]:
        return True
    return isinstance(metadata, Mapping) and digest(chunk.text, canonical(metadata)) == chunk.chunk_hash
