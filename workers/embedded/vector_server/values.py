"""Ids, payloads, vectors and points: protobuf messages to the engine's values and back."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any
from uuid import UUID

import qdrant_edge as edge
from qdrant_client import grpc as api

from workers.embedded.vector_server.errors import BadRequest, Unsupported, invalid

PointId = int | UUID | str  # the engine takes and gives UUID objects; a str never comes out of `point_id`
Json = Any  # None, bool, int, float, str, list or dict: what a payload holds
NamedVector = Any  # list[float] | list[list[float]] | edge.SparseVector
Message = Any  # a protobuf message whose class does not matter here


def optional(message: Message, field: str) -> Any:
    """The field's value, or None where it is not set."""
    return getattr(message, field) if message.HasField(field) else None


def point_id(message: api.PointId) -> PointId:
    """Raises BadRequest for a text that is no UUID and for an id that is not set."""
    kind = message.WhichOneof("point_id_options")
    if kind == "num":
        return message.num
    if kind == "uuid":
        try:
            return UUID(message.uuid)
        except ValueError:
            raise BadRequest(f"Unable to parse UUID: {message.uuid}") from None
    raise BadRequest("Malformed point id: no id is set")


def id_message(point: PointId) -> api.PointId:
    return api.PointId(num=point) if isinstance(point, int) else api.PointId(uuid=str(point))


def json_value(value: Message) -> Json:
    """A payload value. Raises BadRequest for NaN and infinities, which JSON does not have."""
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    if kind == "struct_value":
        return payload(value.struct_value.fields)
    if kind == "list_value":
        return [json_value(item) for item in value.list_value.values]
    content = getattr(value, kind)
    if kind == "double_value" and not isfinite(content):
        raise invalid("payload", f"a number must be finite, got {content}")
    return content


def payload(fields: Mapping[str, Message]) -> dict[str, Json]:
    return {key: json_value(value) for key, value in fields.items()}


def write_json(content: Json, value: Message) -> None:
    """Write a payload value into an empty protobuf Value."""
    if isinstance(content, str):
        value.string_value = content
    elif isinstance(content, bool):
        value.bool_value = content
    elif isinstance(content, int):
        value.integer_value = content
    elif isinstance(content, float):
        value.double_value = content
    elif content is None:
        value.null_value = 0
    elif isinstance(content, dict):
        value.struct_value.SetInParent()
        write_payload(content, value.struct_value.fields)
    else:
        value.list_value.SetInParent()
        for item in content:
            write_json(item, value.list_value.values.add())


def write_payload(content: Mapping[str, Json] | None, fields: Any) -> None:
    for key, value in (content or {}).items():
        write_json(value, fields[key])


def vector(message: Message) -> NamedVector:
    """A Vector or a VectorInput as `list[float]`, `list[list[float]]` or `(indices, values)`; not validated yet.

    Raises Unsupported for texts and images: the embedded server has no inference.
    """
    kind = message.WhichOneof("vector" if isinstance(message, api.Vector) else "variant")
    if kind == "dense":
        return list(message.dense.data)
    if kind == "sparse":
        return list(message.sparse.indices), list(message.sparse.values)
    if kind == "multi_dense":
        return [list(row.data) for row in message.multi_dense.vectors]
    if kind is None and isinstance(message, api.Vector):  # the form of clients older than 1.16
        if message.HasField("indices"):
            return list(message.indices.data), list(message.data)
        return list(message.data)
    if kind is None:
        raise BadRequest("Vector input is malformed: no vector is set")
    raise Unsupported(f"Inference ({kind}) is not implemented by the embedded vector server")


def named_vectors(message: api.Vectors) -> dict[str, NamedVector]:
    """All vectors of a point by name; the unnamed vector has the name "". Raises BadRequest where there are none."""
    kind = message.WhichOneof("vectors_options")
    if kind == "vector":
        return {"": vector(message.vector)}
    if kind == "vectors":
        return {name: vector(item) for name, item in message.vectors.vectors.items()}
    raise BadRequest("Expected some vectors")


def _write_vector(content: NamedVector, output: Message) -> None:
    if isinstance(content, edge.SparseVector):
        output.sparse.indices.extend(content.indices)
        output.sparse.values.extend(content.values)
    elif content and isinstance(content[0], list):
        for row in content:
            output.multi_dense.vectors.add().data.extend(row)
    else:
        output.dense.data.extend(content)


def write_vectors(content: Any, output: Message) -> None:
    if isinstance(content, dict):
        output.vectors.SetInParent()
        for name, item in content.items():
            _write_vector(item, output.vectors.vectors[name])
    elif content is not None:
        _write_vector(content, output.vector)


def write_record(record: edge.Record | edge.ScoredPoint, output: Message) -> None:
    """Write an engine record into an empty RetrievedPoint or ScoredPoint."""
    point = record.id
    if isinstance(point, int):
        output.id.num = point
    else:
        output.id.uuid = str(point)
    write_payload(record.payload, output.payload)
    if record.vector is not None:
        write_vectors(record.vector, output.vectors)
    order = record.order_value
    if isinstance(order, int):
        output.order_value.int = order
    elif order is not None:
        output.order_value.float = order


def write_scored(point: edge.ScoredPoint, output: Message) -> None:
    write_record(point, output)
    output.score = point.score
    output.version = point.version


def with_payload(selector: Message, default: bool = False) -> Any:
    kind = selector.WhichOneof("selector_options")
    if kind == "include":
        return edge.PayloadSelector.Include(list(selector.include.fields))
    if kind == "exclude":
        return edge.PayloadSelector.Exclude(list(selector.exclude.fields))
    return selector.enable if kind else default


def with_vectors(selector: Message) -> bool | list[str]:
    kind = selector.WhichOneof("selector_options")
    if kind == "include":
        return list(selector.include.names)
    return bool(selector.enable) if kind else False
