"""The searcher's story: generation -> embed query -> retrieve -> verify.

1. Read the collection's generation G, before anything else.
2. Embed the query, and ask the index for more than is wanted.
3. Keep what was visible in G; Postgres says so. Short of the limit, leave out what was not and ask again.

So a document that is being updated is never half old and half new, and never absent. What cannot be done is named in
`degraded`: "unverified" (Postgres is away: results straight from the index), "incomplete" (rounds ran out),
"lost" (Qdrant lost the collection, and it is not rebuilt yet), "keywords" (who embeds for money does not answer, or may
not be paid, and the query was not asked before: it is searched for by its words alone).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cached_embedding import embed_cached
from pipeline.circuits import Admission, Circuit
from pipeline.embedding.base import Embedder, ModelSpec
from pipeline.errors import (
    BoughtElsewhere,
    BudgetExhausted,
    InvalidFilter,
    InvalidRequest,
    InvalidVectors,
    LedgerUnavailable,
    ProviderUnavailable,
)
from pipeline.ledger import collections, visibility
from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Ledger
from pipeline.ledger.visibility import Place, Visible
from pipeline.lone_buying import Payment
from pipeline.observe import Timings, logger
from pipeline.settings import CostSettings, OpenAISettings, SearchSettings
from pipeline.vectors.base import METADATA, Hit, VectorStore
from pipeline.vectors.filters import field_path
from pipeline.vectors.sparse import SparseEncoder

# Points of what is no longer visible leave the index a minute later; a search older than this might miss some.
_MAX_AGE_SECONDS = 30.0
_MAX_STARTS = 3
# However few are wanted: of two short lists, the best by meaning and the best by words would only tie.
_FETCH_AT_LEAST = 20
# While who embeds for money does not answer, searches of this process do not wait for it again at once.
_RESTS = (1.0, 2.0, 4.0, 8.0, 15.0)

_log = logger("search")


@dataclass(frozen=True, slots=True)
class Result:
    """One chunk that was found. score: reciprocal-rank fusion of dense and BM25, higher is better.

    metadata: the document's, and the chunk's place in it: `section` (the path of headings, "Guide > Install") and
    `page` (from 1), where the format has them and the document's metadata says nothing else under these names.
    """

    id: str
    score: float
    text: str
    uri: str
    title: str
    metadata: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "score": self.score,
            "text": self.text,
            "uri": self.uri,
            "title": self.title,
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found, best first, and how: the generation it saw, what was degraded, milliseconds by step."""

    query: str
    collection: str
    generation: int
    results: tuple[Result, ...]
    cache: str = "miss"
    degraded: tuple[str, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "query": self.query,
            "collection": self.collection,
            "generation": self.generation,
            "results": [result.to_json() for result in self.results],
            "cache": self.cache,
            "degraded": list(self.degraded),
            "timings_ms": dict(self.timings_ms),
        }


@dataclass(frozen=True, slots=True)
class Searcher:
    """What the story is told with."""

    ledger: Ledger
    vectors: VectorStore
    embedder: Callable[[Mapping[str, Any]], Embedder]
    sparse: Callable[[Mapping[str, Any]], SparseEncoder]
    settings: SearchSettings
    openai: OpenAISettings = field(default_factory=OpenAISettings)
    cost: CostSettings = field(default_factory=CostSettings)
    # The collections as they were last seen, for searching while Postgres is away.
    seen: dict[str, Collection] = field(default_factory=dict)
    provider: Circuit = field(default_factory=lambda: Circuit(_RESTS))

    def search(
        self, query: str, collection: str, *, limit: int, filters: Mapping[str, Any], tenant: str
    ) -> SearchResult:
        """The best `limit` chunks of the tenant's published documents.

        Raises InvalidRequest (empty query, limit), UnknownCollection, InvalidFilter (unknown field, wrong type),
        VectorsUnavailable, LedgerUnavailable where even the collection cannot be looked up.
        """
        if not query.strip():
            raise InvalidRequest("the query is empty; say what to look for")
        if not 1 <= limit <= self.settings.max_limit:
            raise InvalidRequest(f"limit {limit} is not between 1 and {self.settings.max_limit}")
        timings = Timings("search")
        for _ in range(_MAX_STARTS):
            started = time.monotonic()
            with timings.step("ledger"):
                found = self._collection(collection)
            wanted = {"tenant": tenant, **payload_filters(filters, found)}
            with timings.step("embed"):
                dense = self._embed(found, query, tenant)
                sparse = self.sparse(found.sparse).query(query)
            results, degraded = self._retrieve(found, dense, sparse, limit, wanted, timings)
            if dense is None:
                degraded.append("keywords")
            if found.lost_at is not None:
                degraded.append("lost")
            if time.monotonic() - started < _MAX_AGE_SECONDS:
                break
        return SearchResult(
            query=query,
            collection=collection,
            generation=found.generation,
            results=tuple(results),
            degraded=tuple(degraded),
            timings_ms=timings.milliseconds(),
        )

    def _collection(self, name: str) -> Collection:
        try:
            with self.ledger.transaction() as connection:
                self.seen[name] = collections.get(connection, name)
        except LedgerUnavailable:
            if name not in self.seen:
                raise
        return self.seen[name]

    def _embed(self, collection: Collection, query: str, tenant: str) -> NDArray[np.float32] | None:
        """The query's vector, float32[dim]; None where it would have to be bought, and cannot be now. Nothing is bought
        that the ledger does not see."""
        embedder = self.embedder(collection.model)
        if ModelSpec.from_json(collection.model).provider == "local":
            vector: NDArray[np.float32] = embedder.embed([query], "query").vectors[0]
            return vector
        if self.provider.admit() is Admission.REST:
            return None
        payment = Payment(self.openai, self.cost, tenant, collection.name, collection.id)
        try:
            vector = embed_cached(self.ledger, embedder, [query], "query", payment).vectors[0]
        except (ProviderUnavailable, InvalidVectors) as error:
            _log.warning("searching by words alone: %s", error)
            self.provider.failed(str(error))
            return None
        except (LedgerUnavailable, BudgetExhausted, BoughtElsewhere) as error:
            _log.warning("searching by words alone: %s", error)
            self.provider.released()
            return None
        except BaseException:
            self.provider.released()
            raise
        self.provider.succeeded()
        return vector

    def _retrieve(
        self, collection: Collection, dense: Any, sparse: Any, limit: int, filters: Mapping[str, Any], timings: Timings
    ) -> tuple[list[Result], list[str]]:
        results: list[Result] = []
        seen: set[uuid.UUID] = set()
        invisible: set[uuid.UUID] = set()
        wanted = max(2 * limit, _FETCH_AT_LEAST)
        for _ in range(self.settings.max_rounds):
            with timings.step("retrieve"):
                hits = self.vectors.search(
                    collection.physical,
                    dense,
                    sparse,
                    limit=wanted,
                    filters=filters,
                    exclude=invisible,
                    hnsw_ef=self.settings.hnsw_ef,
                )
            with timings.step("verify"):
                verified = self._verify(collection, hits, limit)
            if verified is None:
                return [_unverified(hit) for hit in hits[:limit]], ["unverified"]
            results, shown = verified
            if len(results) >= limit or len(hits) < wanted:
                return results, []
            invisible |= {hit.id for hit in hits} - shown
            if not invisible - seen:
                return results, []
            seen |= invisible
        return results, ["incomplete"]

    def _verify(
        self, collection: Collection, hits: list[Hit], limit: int
    ) -> tuple[list[Result], set[uuid.UUID]] | None:
        """The best results, and which of all hits were visible in the collection's generation; None where Postgres
        is away."""
        if not hits:
            return [], set()
        try:
            with self.ledger.transaction() as connection:
                visible = visibility.visible(connection, [hit.id for hit in hits], collection.generation)
                best = [hit for hit in hits if hit.id in visible][:limit]
                places = visibility.places(connection, [visible[hit.id] for hit in best])
        except LedgerUnavailable:
            return None
        return [_result(hit.score, visible[hit.id], places.get(hit.id)) for hit in best], set(visible)


def _result(score: float, chunk: Visible, place: Place | None) -> Result:
    """The chunk as a result; where it stands is in the metadata, under what the document's own metadata leaves free."""
    where: dict[str, Any] = {}
    if place is not None and place.section:
        where["section"] = place.section
    if place is not None and place.page is not None:
        where["page"] = place.page
    return Result(str(chunk.point_id), score, chunk.text, chunk.uri, chunk.title, {**where, **chunk.metadata})


def _unverified(hit: Hit) -> Result:
    payload = hit.payload
    return Result(
        str(hit.id),
        hit.score,
        str(payload.get("text", "")),
        str(payload.get("uri", "")),
        str(payload.get("title", "")),
        payload.get(METADATA) or {},
    )


def typed_filters(filters: Mapping[str, Any], collection: Collection) -> dict[str, Any]:
    """The filters with every value in its field's type: a command line can only say text.

    Raises InvalidFilter, naming the field and those that there are.
    """
    typed: dict[str, Any] = {}
    for key, value in filters.items():
        declared = "keyword" if key == "uri" else collection.fields.get(key)
        if declared is None:
            known = ", ".join(sorted({*collection.fields, "uri"}))
            raise InvalidFilter(f"collection {collection.name!r} has no field {key!r} to filter on; it has {known}")
        several = isinstance(value, list | tuple)
        typed[key] = [_typed(key, item, declared) for item in value] if several else _typed(key, value, declared)
    return typed


def payload_filters(filters: Mapping[str, Any], collection: Collection) -> dict[str, Any]:
    """Metadata filters as filters on the payload of points. Raises InvalidFilter."""
    typed = typed_filters(filters, collection)
    return {key if key == "uri" else field_path(METADATA, key): value for key, value in typed.items()}


_TRUTH = {"true": True, "false": False}


def _typed(key: str, value: Any, declared: str) -> str | int | float | bool:
    try:
        match declared, value:
            case "keyword", str(text):
                return text
            case "bool", bool(truth):
                return truth
            case "bool", str(word):
                return _TRUTH[word.lower()]
            case ("integer" | "float", bool()):
                pass
            case "integer", int() | str():
                return int(value)
            case "float", int() | float() | str():
                return float(value)
    except (KeyError, ValueError):
        pass
    raise InvalidFilter(f"field {key!r} is of type {declared}; {value!r} is not")
