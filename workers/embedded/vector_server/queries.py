"""Queries: protobuf messages to the engine's requests, with the points that they name looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qdrant_edge as edge
from qdrant_client import grpc as api

from workers.embedded.vector_server import validate
from workers.embedded.vector_server.config import Schema
from workers.embedded.vector_server.errors import BadRequest, Unsupported, invalid, missing_point
from workers.embedded.vector_server.filters import optional_filter
from workers.embedded.vector_server.values import (
    Message,
    NamedVector,
    PointId,
    optional,
    point_id,
    vector,
    with_payload,
    with_vectors,
)

DEFAULT_LIMIT = 10
# The engine's RRF constant that gives the real server's default scores.
RRF_K = 2
_DIRECTIONS = {api.Direction.Asc: edge.Direction.Asc, api.Direction.Desc: edge.Direction.Desc}
_MMR_LAMBDA = 0.5

Lookup = Callable[[PointId, str], NamedVector | None]


def order_by(message: Message) -> edge.OrderBy:
    start: Any = None
    if message.HasField("start_from"):
        kind = message.start_from.WhichOneof("value")
        if kind is not None:
            start = getattr(message.start_from, kind)
        if kind == "timestamp":
            start = start.ToJsonString()
    return edge.OrderBy(key=message.key, direction=_DIRECTIONS[message.direction], start_from=start)


def _params(message: Message) -> edge.SearchParams | None:
    if not message.HasField("params"):
        return None
    params = message.params
    quantization = acorn = idf = None
    if params.HasField("quantization"):
        options = params.quantization
        quantization = edge.QuantizationSearchParams(
            ignore=options.ignore, rescore=optional(options, "rescore"), oversampling=optional(options, "oversampling")
        )
    if params.HasField("acorn"):
        acorn = edge.AcornSearchParams(params.acorn.enable, optional(params.acorn, "max_selectivity"))
    if params.HasField("idf"):
        idf = edge.IdfParams(optional_filter(params.idf, "corpus"))
    return edge.SearchParams(
        hnsw_ef=optional(params, "hnsw_ef"),
        exact=params.exact,
        quantization=quantization,
        indexed_only=params.indexed_only,
        acorn=acorn,
        idf=idf,
    )


class QueryReader:
    """Reads one request. `lookup(id, vector name)` gives a stored vector, or None where there is no such point."""

    def __init__(self, schema: Schema, lookup: Lookup) -> None:
        self._schema = schema
        self._lookup = lookup
        self._variants: dict[str, Callable[[Any, Message, set[PointId]], Any]] = {
            "nearest": self._nearest,
            "nearest_with_mmr": self._mmr,
            "recommend": self._recommend,
            "discover": self._discover,
            "context": self._context,
            "fusion": lambda content, *_: _fusion(content),
            "rrf": lambda content, *_: _rrf(content),
            "order_by": lambda content, *_: order_by(content),
            "sample": lambda *_: edge.Sample.Random,
        }

    def request(self, message: api.QueryPoints) -> edge.QueryRequest:
        """Raises BadRequest, NotFound for a point that the query names, Unsupported."""
        _refuse_lookup(message)
        named: set[PointId] = set()
        query = self._query(message, named)
        return edge.QueryRequest(
            limit=validate.limit(message.limit) if message.HasField("limit") else DEFAULT_LIMIT,
            offset=optional(message, "offset"),
            query=query,
            prefetches=[self._prefetch(item) for item in message.prefetch] or None,
            with_vector=with_vectors(message.with_vectors),
            with_payload=with_payload(message.with_payload),
            filter=_without(optional_filter(message), named),
            score_threshold=optional(message, "score_threshold"),
            params=_params(message),
        )

    def _prefetch(self, message: Message) -> edge.Prefetch:
        _refuse_lookup(message)
        named: set[PointId] = set()
        query = self._query(message, named)
        return edge.Prefetch(
            limit=validate.limit(message.limit) if message.HasField("limit") else DEFAULT_LIMIT,
            query=query,
            prefetches=[self._prefetch(item) for item in message.prefetch] or None,
            params=_params(message),
            filter=_without(optional_filter(message), named),
            score_threshold=optional(message, "score_threshold"),
        )

    def _query(self, message: Message, named: set[PointId]) -> Any:
        kind = message.query.WhichOneof("variant") if message.HasField("query") else None
        if kind is None:
            return None
        if kind not in self._variants:
            raise Unsupported(f"Query variant `{kind}` is not implemented by the embedded vector server")
        return self._variants[kind](getattr(message.query, kind), message, named)

    def _nearest(self, content: Message, message: Message, named: set[PointId]) -> Any:
        return edge.Query.Nearest(self._vector(content, message.using, named), using=message.using or None)

    def _discover(self, content: Message, message: Message, named: set[PointId]) -> Any:
        target = self._vector(content.target, message.using, named)
        query = edge.DiscoverQuery(target, self._pairs(content.context, message.using, named))
        return edge.Query.Discover(query, using=message.using or None)

    def _context(self, content: Message, message: Message, named: set[PointId]) -> Any:
        pairs = self._pairs(content, message.using, named)
        return edge.Query.Context(edge.ContextQuery(pairs), using=message.using or None)

    def _vector(self, message: Message, using: str, named: set[PointId]) -> NamedVector:
        if message.WhichOneof("variant") != "id":
            return validate.vector(self._schema, using, vector(message))
        validate.vector_names(self._schema, [using])
        point = point_id(message.id)
        stored = self._lookup(point, using)
        if stored is None:
            raise missing_point(point)
        named.add(point)
        return stored

    def _mmr(self, content: Message, message: Message, named: set[PointId]) -> edge.Mmr:
        limit = message.limit if message.HasField("limit") else DEFAULT_LIMIT
        options = content.mmr
        diversity = options.diversity if options.HasField("diversity") else _MMR_LAMBDA
        if not 0 <= diversity <= 1:
            raise invalid("mmr.diversity", f"value {diversity} invalid, must be from 0 to 1")
        return edge.Mmr(
            self._vector(content.nearest, message.using, named),
            1 - diversity,
            options.candidates_limit if options.HasField("candidates_limit") else limit,
            message.using or None,
        )

    def _recommend(self, content: Message, message: Message, named: set[PointId]) -> Any:
        using = message.using
        positive = [self._vector(item, using, named) for item in content.positive]
        negative = [self._vector(item, using, named) for item in content.negative]
        query = edge.RecommendQuery(positive, negative)
        match content.strategy:
            case api.RecommendStrategy.BestScore:
                return edge.Query.RecommendBestScore(query, using=using or None)
            case api.RecommendStrategy.SumScores:
                return edge.Query.RecommendSumScores(query, using=using or None)
        if not positive:
            raise BadRequest("Wrong input: At least one positive vector ID required with this strategy")
        if using not in self._schema.dense:
            raise Unsupported("Recommendation by average of sparse or multi vectors is not implemented")
        return edge.Query.Nearest(_average(positive, negative), using=using or None)

    def _pairs(self, message: Message, using: str, named: set[PointId]) -> list[edge.ContextPair]:
        return [
            edge.ContextPair(self._vector(pair.positive, using, named), self._vector(pair.negative, using, named))
            for pair in message.pairs
        ]


def _fusion(kind: int) -> Any:
    return edge.Fusion.Dbsf() if kind == api.Fusion.DBSF else edge.Fusion.Rrf(k=RRF_K)


def _rrf(content: Message) -> Any:
    return edge.Fusion.Rrf(k=content.k if content.HasField("k") else RRF_K, weights=list(content.weights) or None)


def _average(positive: list[list[float]], negative: list[list[float]]) -> list[float]:
    """The mean of the positives, moved away from the mean of the negatives."""
    mean = [sum(column) / len(positive) for column in zip(*positive, strict=True)]
    if not negative:
        return mean
    other = [sum(column) / len(negative) for column in zip(*negative, strict=True)]
    return [2 * one - two for one, two in zip(mean, other, strict=True)]


def _without(condition: edge.Filter | None, named: set[PointId]) -> edge.Filter | None:
    """The filter, with the points that the query itself names left out of the answer, as the real server does."""
    if not named:
        return condition
    return edge.Filter(must=[condition] if condition else None, must_not=[edge.HasIdCondition(set(named))])


def _refuse_lookup(message: Message) -> None:
    if message.HasField("lookup_from"):
        raise Unsupported("lookup_from is not implemented by the embedded vector server")
