"""Points and searches of the contract suites of vector stores."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np

from pipeline.vectors.base import Filters, Point, VectorStore
from pipeline.vectors.sparse import SparseVector

DIMENSIONS = 4


def id_of(number: int) -> UUID:
    return UUID(int=number)


def point(
    number: int,
    dense: list[float] | None = None,
    sparse: dict[int, float] | None = None,
    **payload: Any,
) -> Point:
    terms = sorted((sparse or {}).items())
    vector = [1.0, 0.0, 0.0, 0.0] if dense is None else dense
    return Point(
        id_of(number),
        np.array(vector, dtype=np.float32),
        SparseVector([index for index, _ in terms], [value for _, value in terms]),
        {"tenant": "default", "document": number, "version": number + 100, **payload},
    )


def found(
    store: VectorStore,
    collection: str,
    dense: list[float] | None = None,
    sparse: dict[int, float] | None = None,
    *,
    limit: int = 10,
    filters: Filters | None = None,
    exclude: tuple[UUID, ...] = (),
) -> list[tuple[int, float]]:
    """(number, score) of the hits."""
    query = None if sparse is None else SparseVector(list(sparse), list(sparse.values()))
    hits = store.search(
        collection,
        None if dense is None else np.array(dense, dtype=np.float32),
        query,
        limit=limit,
        filters=filters or {},
        exclude=exclude,
    )
    return [(hit.id.int, hit.score) for hit in hits]


def numbers(hits: list[tuple[int, float]]) -> list[int]:
    return [number for number, _ in hits]


EAST, NORTH = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]
