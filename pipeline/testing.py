"""In-memory doubles for tests of applications and of Millrace itself. They pass the contract suites of the real parts.

There is no second ledger: what needs one is tested on Postgres.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from pipeline.embedding.base import Embedded, ModelRun, ModelSpec, Role, checked
from pipeline.errors import CollectionMismatch, InvalidRequest, VectorsRejected
from pipeline.vectors.base import BASE_FIELDS, PREFETCH, RRF_K, Description, FieldType, Filters, Hit, Point
from pipeline.vectors.filters import conditions
from pipeline.vectors.sizes import SAMPLE_POINTS, estimate, sampled
from pipeline.vectors.sparse import SparseVector

_INT64 = range(-(2**63), 2**63)

# The indexes that can answer for a value of this type; Qdrant in strict mode refuses where there is none.
_INDEXES: Mapping[FieldType, tuple[FieldType, ...]] = {
    "keyword": ("keyword",),
    "bool": ("bool",),
    "integer": ("integer",),
    "float": ("float", "integer"),
}

_PATH_PART = re.compile(r'"([^"]*)"|([^."]+)')


class ConstantEmbedder:
    """An Embedder without a model: the same text has the same vector for ever, another text another.

    A vector is the SHAKE-256 of prefix and text, read as numbers from -1 to 1 and normalised. A text has as many tokens
    as words, and two more. `calls` holds what was embedded, in order.
    """

    def __init__(
        self,
        dimensions: int = 8,
        *,
        name: str = "constant",
        max_tokens: int = 256,
        query_prefix: str = "",
        passage_prefix: str = "",
        texts_per_run: int = 32,
    ) -> None:
        self._spec = ModelSpec(
            name=name,
            provider="local",
            dimensions=dimensions,
            max_tokens=max_tokens,
            pooling="none",
            normalize=True,
            precision="float32",
            revision="shake-256",
            query_prefix=query_prefix,
            passage_prefix=passage_prefix,
        )
        self._texts_per_run = texts_per_run
        self.calls: list[tuple[Role, tuple[str, ...]]] = []

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def texts(self) -> list[str]:
        """Every text that was ever embedded, as often as it was."""
        return [text for _, texts in self.calls for text in texts]

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        self._check(texts, role)
        self.calls.append((role, tuple(texts)))
        rows = [self._vector(self.spec.prefix(role) + text) for text in texts]
        runs = []
        for start in range(0, len(texts), self._texts_per_run):
            part = texts[start : start + self._texts_per_run]
            runs.append(ModelRun(len(part), len(part) * max(self.count_tokens(part)), 0.0))
            if on_progress is not None:
                on_progress(start + len(part))
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), self.spec.dimensions)
        return Embedded(checked(vectors, len(texts), self.spec), tuple(runs))

    @property
    def tokens_per_second(self) -> float | None:
        """Nothing is measured: there is no model."""
        return None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len((self.spec.passage_prefix + text).split()) + 2 for text in texts]

    def _check(self, texts: Sequence[str], role: Role) -> None:
        for position, (text, tokens) in enumerate(zip(texts, self.count_tokens(texts), strict=True)):
            if not text.strip():
                raise InvalidRequest(f"text {position} is empty: there is nothing to embed")
            if role == "passage" and tokens > self.spec.max_tokens:
                raise InvalidRequest(
                    f"text {position} has {tokens} tokens, {self.spec.name} takes {self.spec.max_tokens}"
                )

    def _vector(self, text: str) -> NDArray[np.float64]:
        data = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(4 * self.spec.dimensions)
        row = np.frombuffer(data, dtype="<i4") / 2.0**31
        return row / np.linalg.norm(row)


@dataclass
class _Collection:
    dimensions: int
    fields: dict[str, FieldType] = field(default_factory=lambda: dict(BASE_FIELDS))
    points: dict[UUID, Point] = field(default_factory=dict)


class MemoryVectorStore:
    """A VectorStore in a dictionary: exact search, Qdrant's scores.

    Like Qdrant in strict mode, it refuses to filter on a field that has no index of the value's type.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._collections: dict[str, _Collection] = {}

    def ensure_collection(self, name: str, dimensions: int, on_missing: Callable[[], None] | None = None) -> bool:
        with self._lock:
            made = name not in self._collections
            if made and on_missing is not None:
                on_missing()
            found = self._collections.setdefault(name, _Collection(dimensions))
        if found.dimensions != dimensions:
            raise CollectionMismatch(
                f"collection {name!r} holds vectors of {found.dimensions} dimensions, the model makes {dimensions}; "
                "use the model that it was made with, or another collection"
            )
        return made

    def ensure_fields(self, name: str, fields: Mapping[str, FieldType]) -> None:
        if not fields:
            return
        with self._lock:
            collection = self._existing(name)
            for path, kind in fields.items():
                indexed = collection.fields.setdefault(path, kind)
                if indexed != kind:
                    raise VectorsRejected(f"collection {name!r}: field {path!r} is indexed as {indexed}, not as {kind}")

    def names(self) -> set[str]:
        with self._lock:
            return set(self._collections)

    def drop_collection(self, name: str) -> bool:
        with self._lock:
            return self._collections.pop(name, None) is not None

    def upsert(self, name: str, points: Sequence[Point], on_progress: Callable[[int], None] | None = None) -> None:
        if not points:
            return
        with self._lock:
            collection = self._existing(name)
            stored = [_stored(point, name, collection.dimensions) for point in points]
            collection.points |= {point.id: point for point in stored}
        if on_progress is not None:
            on_progress(len(points))

    def delete(self, name: str, ids: Sequence[UUID]) -> None:
        with self._lock:
            if name in self._collections:
                for id in ids:
                    self._collections[name].points.pop(id, None)

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
        if limit < 1:
            raise InvalidRequest(f"limit must be at least 1, not {limit}")
        with self._lock:
            collection = self._collections.get(name, _Collection(0))
            points = dict(collection.points)
        if name not in self._collections:
            return []
        _check_filters(name, collection, filters)
        excluded = set(exclude)
        wanted = {id for id, point in points.items() if id not in excluded and matches(point.payload, filters)}
        halves = []
        if dense is not None:
            halves.append(_by_cosine(name, collection, points, wanted, dense))
        if sparse is not None and sparse.indices:
            halves.append(_by_terms(points, wanted, sparse))
        if len(halves) == 2:
            halves = [_fused([_best(half, PREFETCH * limit) for half in halves])]
        best = _best(halves[0], limit) if halves else []
        return [Hit(id, score, _copied(points[id].payload)) for id, score in best]

    def present(self, name: str, ids: Sequence[UUID]) -> set[UUID]:
        return set(self.points(name, ids))

    def points(self, name: str, ids: Sequence[UUID]) -> dict[UUID, Point]:
        with self._lock:
            points = self._collections[name].points if name in self._collections else {}
            found = [points[id] for id in ids if id in points]
        return {point.id: Point(point.id, point.dense.copy(), point.sparse, _copied(point.payload)) for point in found}

    def scroll(self, name: str, page: int = 1000, start: UUID | None = None) -> Iterator[list[UUID]]:
        with self._lock:
            ids = sorted(self._collections[name].points) if name in self._collections else []
        ids = ids if start is None else [id for id in ids if id >= start]
        for first in range(0, len(ids), page):
            yield ids[first : first + page]

    def count(self, name: str) -> int:
        with self._lock:
            return len(self._collections[name].points) if name in self._collections else 0

    def describe(self, name: str) -> Description | None:
        with self._lock:
            if (collection := self._collections.get(name)) is None:
                return None
            points = list(collection.points.values())
        entries = len(points) * len(collection.fields)
        taken = [(point.payload, len(point.sparse.indices)) for point in points[:SAMPLE_POINTS]]
        sizes = estimate(len(points), collection.dimensions, 0, sampled(taken), entries)
        return Description(
            name=name,
            health="green",
            optimizer="ok",
            points=len(points),
            vectors=2 * len(points),
            indexed_vectors=0,
            segments=1,
            dimensions=collection.dimensions,
            fields=dict(collection.fields),
            vector_bytes=sizes.vectors,
            index_bytes=sizes.index,
            payload_bytes=sizes.payload,
        )

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing to let go."""

    def _existing(self, name: str) -> _Collection:
        if name not in self._collections:
            raise VectorsRejected(f"there is no collection {name!r}")
        return self._collections[name]


def matches(payload: Mapping[str, Any], filters: Filters) -> bool:
    """Does the payload pass every filter, as Qdrant would say?"""
    return all(
        any(_equals(value, found) for value in condition.values for found in _values_at(payload, condition.path))
        for condition in conditions(filters)
    )


def _values_at(payload: object, path: str) -> list[Any]:
    for quoted, plain in _PATH_PART.findall(path):
        if not isinstance(payload, Mapping):
            return []
        payload = payload.get(quoted or plain)
    return payload if isinstance(payload, list) else [payload]


def _equals(value: object, found: object) -> bool:
    """A float equals any number; anything else only its own type (Python's True equals 1, Qdrant's does not)."""
    if isinstance(value, float):
        return isinstance(found, int | float) and not isinstance(found, bool) and found == value
    return type(found) is type(value) and found == value


def _check_filters(name: str, collection: _Collection, filters: Filters) -> None:
    for condition in conditions(filters):
        kinds = _INDEXES[condition.kind]
        if condition.values and collection.fields.get(condition.path) not in kinds:
            raise VectorsRejected(
                f"collection {name!r}: Index required but not found for {condition.path!r} of type {' or '.join(kinds)}"
            )


def _stored(point: Point, name: str, dimensions: int) -> Point:
    where = f"collection {name!r}, point {point.id}"
    if point.dense.ndim != 1 or not np.isfinite(point.dense).all():
        raise VectorsRejected(f"{where}: the vector is not a row of finite numbers")
    if len(point.dense) != dimensions:
        raise VectorsRejected(f"{where}: Vector dimension error: expected dim: {dimensions}, got {len(point.dense)}")
    if len(point.sparse.indices) != len(point.sparse.values) or len(set(point.sparse.indices)) != len(
        point.sparse.indices
    ):
        raise VectorsRejected(f"{where}: the sparse vector must have one value for each index, and each index once")
    try:
        payload = _copied(point.payload)
    except (TypeError, ValueError) as error:
        raise VectorsRejected(f"{where}: {error}") from error
    return Point(point.id, _normalised(point.dense), point.sparse, payload)


def _normalised(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(vector))
    return np.array(vector / length if length else vector, dtype=np.float32)


def _copied(value: Any) -> Any:
    """A deep copy of a JSON value; raises TypeError or ValueError for what Qdrant cannot store."""
    match value:
        case None | bool() | float():
            return value
        case int():
            if value not in _INT64:
                raise ValueError(f"{value} is over 64 bits")
            return int(value)
        case str():
            value.encode()  # a lone surrogate raises UnicodeEncodeError
            return str(value)
        case Mapping():
            return {_copied(key): _copied(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_copied(inner) for inner in value]
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _by_cosine(
    name: str, collection: _Collection, points: Mapping[UUID, Point], wanted: set[UUID], query: NDArray[np.float32]
) -> dict[UUID, float]:
    if query.shape != (collection.dimensions,):
        raise VectorsRejected(
            f"collection {name!r}: Vector dimension error: expected dim: {collection.dimensions}, got {query.shape}"
        )
    direction = _normalised(query)
    return {id: float(points[id].dense @ direction) for id in wanted}


def _by_terms(points: Mapping[UUID, Point], wanted: set[UUID], query: SparseVector) -> dict[UUID, float]:
    """BM25 with Qdrant's inverse document frequency: ln((N - n + 0.5) / (n + 0.5) + 1), over the whole collection."""
    total = sum(1 for point in points.values() if point.sparse.indices)
    having = Counter(index for point in points.values() for index in point.sparse.indices)
    weights = {
        index: value * math.log((total - having[index] + 0.5) / (having[index] + 0.5) + 1)
        for index, value in zip(query.indices, query.values, strict=True)
    }
    scores = {}
    for id in wanted:
        terms = dict(zip(points[id].sparse.indices, points[id].sparse.values, strict=True))
        if terms.keys() & weights.keys():
            scores[id] = sum(terms[index] * weight for index, weight in weights.items() if index in terms)
    return scores


def _fused(halves: Sequence[Sequence[tuple[UUID, float]]]) -> dict[UUID, float]:
    scores: dict[UUID, float] = {}
    for half in halves:
        for rank, (id, _) in enumerate(half):
            scores[id] = scores.get(id, 0.0) + 1 / (RRF_K + rank)
    return scores


def _best(scores: Mapping[UUID, float], limit: int) -> list[tuple[UUID, float]]:
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:limit]
