"""Whole-batch validation: nothing reaches the engine's log unless all of a request is right.

The engine writes a batch to its log before it looks at it, applies what it can, and never loads again after a sparse
vector whose indices and values differ in length. So every vector is checked here first, in the real server's words.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

import qdrant_edge as edge
from qdrant_client import grpc as api

from workers.embedded.vector_server.config import Schema
from workers.embedded.vector_server.errors import BadRequest, invalid
from workers.embedded.vector_server.values import NamedVector, PointId, named_vectors, payload, point_id


def _finite(values: list[float], field: str) -> None:
    # One sum shows any NaN or infinity: float32 values cannot overflow a float64 sum.
    if not isfinite(sum(values)):
        raise invalid(field, "must contain finite numbers only")


def _dimensions(values: list[float], size: int) -> None:
    if len(values) != size:
        raise BadRequest(f"Wrong input: Vector dimension error: expected dim: {size}, got {len(values)}")


def sparse_vector(content: NamedVector) -> edge.SparseVector:
    """`(indices, values)` as the engine's sparse vector. Raises BadRequest; an empty one is allowed."""
    if not isinstance(content, tuple):
        raise BadRequest("Wrong input: Conversion between sparse and regular vectors failed")
    indices, values = content
    if len(indices) != len(values):
        raise invalid("values", "must be the same length as indices")
    if len(set(indices)) != len(indices):
        raise invalid("indices", "must be unique")
    _finite(values, "values")
    return edge.SparseVector(indices, values)


def _dense(content: NamedVector, size: int) -> list[float]:
    if isinstance(content, tuple):
        raise BadRequest("Wrong input: Conversion between sparse and regular vectors failed")
    if content and isinstance(content[0], list):
        raise BadRequest("Wrong input: Conversion between multi and regular vectors failed")
    _dimensions(content, size)
    _finite(content, "data")
    return list(content)


def _multi(content: NamedVector, size: int) -> list[list[float]]:
    if isinstance(content, tuple):
        raise BadRequest("Wrong input: Conversion between sparse and multi vectors failed")
    rows = content if content and isinstance(content[0], list) else [content]
    for row in rows:
        _dimensions(row, size)
        _finite(row, "data")
    return list(rows)


def vector(schema: Schema, name: str, content: NamedVector) -> NamedVector:
    """The vector as the engine takes it. Raises BadRequest for an unknown name, a wrong size or kind, NaN, infinity."""
    size = schema.dense.get(name)
    if size is not None:
        return _dense(content, size)
    if name in schema.sparse:
        return sparse_vector(content)
    size = schema.multi.get(name)
    if size is not None:
        return _multi(content, size)
    raise BadRequest(f"Wrong input: Not existing vector name error: {name}")


def vectors(schema: Schema, message: api.Vectors) -> dict[str, NamedVector]:
    """All vectors of a point, checked. Raises BadRequest."""
    return {name: vector(schema, name, content) for name, content in named_vectors(message).items()}


def points(schema: Schema, messages: Iterable[api.PointStruct]) -> list[edge.Point]:
    """All points of an upsert, or BadRequest for the first that is wrong."""
    return [
        edge.Point(point_id(message.id), vectors(schema, message.vectors), payload(message.payload))
        for message in messages
    ]


def point_vectors(schema: Schema, messages: Iterable[api.PointVectors]) -> list[edge.PointVectors]:
    return [edge.PointVectors(point_id(message.id), vectors(schema, message.vectors)) for message in messages]


def vector_names(schema: Schema, names: Iterable[str]) -> list[str]:
    """Raises BadRequest for a vector that the collection does not have."""
    known: list[str] = []
    for name in names:
        if name not in schema.dense and name not in schema.sparse and name not in schema.multi:
            raise BadRequest(f"Wrong input: Not existing vector name error: {name}")
        known.append(name)
    return known


def ids(messages: Iterable[api.PointId]) -> list[PointId]:
    return [point_id(message) for message in messages]


def limit(value: int, field: str = "limit") -> int:
    """Raises BadRequest for 0."""
    if value < 1:
        raise invalid(field, f"value {value} invalid, must be 1 or larger")
    return value
