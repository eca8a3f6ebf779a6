"""Filters: protobuf messages to the engine's conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import qdrant_edge as edge
from qdrant_client import grpc as api

from workers.embedded.vector_server.errors import BadRequest, Unsupported, invalid
from workers.embedded.vector_server.values import Message, optional, point_id

_BOUNDS = ("gte", "gt", "lte", "lt")


_MATCHES: dict[str, Callable[[Message], Any]] = {
    "keyword": lambda message: edge.MatchValue(message.keyword),
    "integer": lambda message: edge.MatchValue(message.integer),
    "boolean": lambda message: edge.MatchValue(cast(bool, np.bool_(message.boolean))),  # it takes True for the number 1
    "text": lambda message: edge.MatchText(message.text),
    "text_any": lambda message: edge.MatchTextAny(message.text_any),
    "phrase": lambda message: edge.MatchPhrase(message.phrase),
    "prefix": lambda message: edge.MatchPrefix(message.prefix),
    "substring": lambda message: edge.MatchSubstring(message.substring),
    "keywords": lambda message: edge.MatchAny(list(message.keywords.strings)),
    "integers": lambda message: edge.MatchAny(list(message.integers.integers)),
    "except_keywords": lambda message: edge.MatchExcept(list(message.except_keywords.strings)),
    "except_integers": lambda message: edge.MatchExcept(list(message.except_integers.integers)),
}


def _match(message: Message) -> Any:
    kind = message.WhichOneof("match_value")
    if kind is None:
        raise BadRequest("Malformed Match condition")
    return _MATCHES[kind](message)


def _geo_point(message: Message) -> edge.GeoPoint:
    return edge.GeoPoint(message.lon, message.lat)


def _geo_line(message: Message) -> list[edge.GeoPoint]:
    return [_geo_point(point) for point in message.points]


def _field(message: Message) -> edge.FieldCondition:
    tests: dict[str, Any] = {}
    if message.HasField("match"):
        tests["match"] = _match(message.match)
    if message.HasField("range"):
        tests["range"] = edge.RangeFloat(**{bound: optional(message.range, bound) for bound in _BOUNDS})
    if message.HasField("datetime_range"):
        span = message.datetime_range
        tests["range"] = edge.RangeDateTime(
            **{bound: getattr(span, bound).ToJsonString() if span.HasField(bound) else None for bound in _BOUNDS}
        )
    if message.HasField("geo_bounding_box"):
        box = message.geo_bounding_box
        tests["geo_bounding_box"] = edge.GeoBoundingBox(_geo_point(box.top_left), _geo_point(box.bottom_right))
    if message.HasField("geo_radius"):
        tests["geo_radius"] = edge.GeoRadius(_geo_point(message.geo_radius.center), message.geo_radius.radius)
    if message.HasField("geo_polygon"):
        polygon = message.geo_polygon
        holes = [_geo_line(line) for line in polygon.interiors]
        tests["geo_polygon"] = edge.GeoPolygon(_geo_line(polygon.exterior), holes or None)
    if message.HasField("values_count"):
        tests["values_count"] = edge.ValuesCount(**{bound: optional(message.values_count, bound) for bound in _BOUNDS})
    for name in ("is_empty", "is_null"):
        if message.HasField(name):
            tests[name] = getattr(message, name)
    if not tests:
        raise invalid("match", "At least one field condition must be specified")
    return edge.FieldCondition(key=message.key, **tests)


_CONDITIONS: dict[str, Callable[[Message], Any]] = {
    "field": lambda message: _field(message.field),
    "filter": lambda message: engine_filter(message.filter),
    "has_id": lambda message: edge.HasIdCondition({point_id(item) for item in message.has_id.has_id}),
    "is_empty": lambda message: edge.IsEmptyCondition(message.is_empty.key),
    "is_null": lambda message: edge.IsNullCondition(message.is_null.key),
    "has_vector": lambda message: edge.HasVectorCondition(message.has_vector.has_vector),
    "nested": lambda message: edge.NestedCondition(message.nested.key, engine_filter(message.nested.filter)),
}


def _condition(message: Message) -> Any:
    kind = message.WhichOneof("condition_one_of")
    if kind is None:
        raise BadRequest("Malformed Condition type")
    if kind not in _CONDITIONS:
        raise Unsupported(f"Filter condition `{kind}` is not implemented by the embedded vector server")
    return _CONDITIONS[kind](message)


def engine_filter(message: api.Filter) -> edge.Filter:
    """Raises BadRequest for conditions that test nothing, Unsupported for those that the engine does not have."""
    at_least = None
    if message.HasField("min_should"):
        conditions = [_condition(item) for item in message.min_should.conditions]
        at_least = edge.MinShould(conditions, message.min_should.min_count)
    return edge.Filter(
        must=[_condition(item) for item in message.must] or None,
        should=[_condition(item) for item in message.should] or None,
        must_not=[_condition(item) for item in message.must_not] or None,
        min_should=at_least,
    )


def optional_filter(message: Message, field: str = "filter") -> edge.Filter | None:
    return engine_filter(getattr(message, field)) if message.HasField(field) else None
