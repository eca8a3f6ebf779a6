"""The seam to the vector store: what a point, a filter and a hit are, and what every store promises.

`tests/contract/test_vector_store.py` runs against every implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from pipeline.vectors.sparse import SparseVector

# Where a point's payload holds the filterable metadata of its document.
METADATA = "metadata"

DENSE = "dense"
SPARSE = "bm25"

FieldType = Literal["keyword", "integer", "float", "bool"]

Filters = Mapping[str, str | int | float | bool | Sequence[str | int]]
"""Payload path -> the value it must equal, or a list of which it must equal one (an empty list matches nothing).

A value matches its own kind only: a str text, an int whole numbers, a float any number, a bool truth values. Where the
payload holds a list, one matching element is enough.
"""

# What every point carries beside its text, and is filtered by.
BASE_FIELDS: Mapping[str, FieldType] = {
    "tenant": "keyword",
    "document": "integer",
    "version": "integer",
    "uri": "keyword",
}
TENANT_FIELD = "tenant"

# The constant of reciprocal rank fusion that Qdrant uses: score = sum of 1 / (RRF_K + rank), rank from 0.
RRF_K = 2

# Each half of a hybrid search retrieves this many times the limit before the halves are fused.
PREFETCH = 2


@dataclass(frozen=True, slots=True)
class Point:
    """What is stored of one chunk. dense: float32[dim], finite; sparse may have no terms; payload: JSON values."""

    id: UUID
    dense: NDArray[np.float32]
    sparse: SparseVector
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Hit:
    """A point that was found. score, higher is better: cosine, BM25, or the sum of reciprocal ranks if hybrid."""

    id: UUID
    score: float
    payload: dict[str, Any]


Health = Literal["green", "yellow", "grey", "red"]


@dataclass(frozen=True, slots=True)
class Description:
    """What a store says of a collection, and how many bytes it takes.

    health: green; yellow: optimising; grey: optimisations wait for an update; red: something failed, and `optimizer`
    says what (else "ok"). vectors: dense and sparse ones. indexed_vectors: those that an index finds; the others are
    compared one by one. fields: the payload's that have an index, and of which type.

    The bytes are those on disk, estimated from the numbers and a sample of the points (`vectors/sizes.py` says how,
    and how far off they may be); the write-ahead log is not in them.
    """

    name: str
    health: Health
    optimizer: str
    points: int
    vectors: int
    indexed_vectors: int
    segments: int
    dimensions: int
    fields: Mapping[str, str]
    vector_bytes: int
    index_bytes: int
    payload_bytes: int

    @property
    def bytes(self) -> int:
        return self.vector_bytes + self.index_bytes + self.payload_bytes


class VectorStore(Protocol):
    """Raises VectorsUnavailable when the store does not answer, VectorsFailed when it answers that it failed,
    VectorsRejected when it refuses the request (the message names the collection)."""

    def ensure_collection(self, name: str, dimensions: int, on_missing: Callable[[], None] | None = None) -> bool:
        """Makes the collection and its base payload indexes where missing; several processes may do it at once.

        on_missing is called before it is made. True where it was this call that made it. Raises CollectionMismatch
        where it exists with other vectors.
        """

    def ensure_fields(self, name: str, fields: Mapping[str, FieldType]) -> None:
        """Makes payload indexes for fields that are filtered on (a store may refuse to filter on any other).

        Raises VectorsRejected where the collection is missing or a field is indexed as another type.
        """

    def names(self) -> set[str]:
        """The collections that exist."""

    def drop_collection(self, name: str) -> bool:
        """True where it existed."""

    def upsert(self, name: str, points: Sequence[Point], on_progress: Callable[[int], None] | None = None) -> None:
        """Returns when every point is applied. Ids must differ; an id that is there already is replaced.

        on_progress(points applied so far) is called in this thread; what it raises stops the upsert. After an error any
        part of the points may have been applied, and none is applied later.
        """

    def delete(self, name: str, ids: Sequence[UUID]) -> None:
        """Returns when they are gone; missing ids and a missing collection are no error."""

    def search(
        self,
        name: str,
        dense: NDArray[np.float32] | None,
        sparse: SparseVector | None,
        *,
        limit: int,
        filters: Filters,
        exclude: Collection[UUID] = (),
        hnsw_ef: int = 128,
    ) -> list[Hit]:
        """The best `limit` points, by score and then by id; empty where the collection is missing.

        dense float32[dim] and sparse: hybrid (2 * limit of each, fused by reciprocal rank); one alone where the other
        is None (or sparse has no terms). Raises InvalidFilter, InvalidRequest for a limit under 1.
        """

    def present(self, name: str, ids: Sequence[UUID]) -> set[UUID]:
        """Those of the ids that are there; none where the collection is missing."""

    def points(self, name: str, ids: Sequence[UUID]) -> dict[UUID, Point]:
        """Those that exist, whole: dense float32[dim] and L2-normalised, empty where a point has none of that name."""

    def scroll(self, name: str, page: int = 1000, start: UUID | None = None) -> Iterator[list[UUID]]:
        """The id of every point (from `start` on), ascending, in pages; none where the collection is missing.

        What comes and goes meanwhile may be told or not; what stays is told once.
        """

    def count(self, name: str) -> int:
        """How many points; 0 where the collection is missing."""

    def describe(self, name: str) -> Description | None:
        """What there is to know of a collection: one question, and another for a sample of its points. None where it is
        missing."""

    def alive(self) -> bool:
        """Does it answer (within 2 s)?"""

    def close(self) -> None:
        """Lets connections go; the next call opens them again."""
