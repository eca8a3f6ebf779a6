"""Updates: which engine operations a request stands for, and how a change is written to and read from a delta.

While a copy of a shard is optimised, changes go on in the shard and are appended to a delta, from which the copy
catches up. A record of the delta is the request itself: `<kind byte> <length, 4 bytes> <protobuf>`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import qdrant_edge as edge
from qdrant_client import grpc as api

from workers.embedded.vector_server import validate
from workers.embedded.vector_server.config import Schema
from workers.embedded.vector_server.errors import BadRequest
from workers.embedded.vector_server.filters import engine_filter, optional_filter
from workers.embedded.vector_server.indexes import index_schema
from workers.embedded.vector_server.values import Message, PointId, optional, payload

# An engine call holds the interpreter lock: 64 points take some milliseconds, so that searches get their turn between.
POINTS_PER_CALL = 64

_HEADER = struct.Struct("<BI")


@dataclass(frozen=True, slots=True)
class Operation:
    """One engine call; `points` is how many points it writes or removes, as far as that is known beforehand."""

    call: edge.UpdateOperation
    points: int


@dataclass(frozen=True, slots=True)
class Change:
    """A validated request: its operations, and the ids that must be there when it is applied."""

    kind: str
    request: Message
    operations: tuple[Operation, ...]
    requires: tuple[PointId, ...] = ()


def _chunks(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), POINTS_PER_CALL):
        yield items[start : start + POINTS_PER_CALL]


def _selected(
    selector: Message,
    by_ids: Callable[[list[PointId]], edge.UpdateOperation],
    by_filter: Callable[[edge.Filter], edge.UpdateOperation],
) -> tuple[tuple[Operation, ...], tuple[PointId, ...]]:
    kind = selector.WhichOneof("points_selector_one_of")
    if kind == "points":
        ids = validate.ids(selector.points.ids)
        return tuple(Operation(by_ids(part), len(part)) for part in _chunks(ids)), tuple(ids)
    if kind == "filter":
        return (Operation(by_filter(engine_filter(selector.filter)), 0),), ()
    raise BadRequest("PointSelector is missing")


_MODES = (edge.UpdateMode.Upsert, edge.UpdateMode.InsertOnly, edge.UpdateMode.UpdateOnly)


def _upsert(request: api.UpsertPoints, schema: Schema) -> Change:
    points = validate.points(schema, request.points)
    condition = optional_filter(request, "update_filter")
    mode = _MODES[request.update_mode] if request.HasField("update_mode") else None
    operations = (
        Operation(edge.UpdateOperation.upsert_points(part, condition=condition, update_mode=mode), len(part))
        for part in _chunks(points)
    )
    return Change("Upsert", request, tuple(operations))


def _delete(request: api.DeletePoints, _: Schema) -> Change:
    update = edge.UpdateOperation
    operations, _ids = _selected(request.points, update.delete_points, update.delete_points_by_filter)
    return Change("Delete", request, operations)  # deleting what is not there is no error


def _set_payload(request: api.SetPayloadPoints, _: Schema) -> Change:
    update, fields, key = edge.UpdateOperation, payload(request.payload), optional(request, "key")
    operations, ids = _selected(
        request.points_selector,
        lambda ids: update.set_payload(ids, fields, key),
        lambda condition: update.set_payload_by_filter(condition, fields, key),
    )
    return Change("SetPayload", request, operations, ids)


def _overwrite_payload(request: api.SetPayloadPoints, _: Schema) -> Change:
    update, fields, key = edge.UpdateOperation, payload(request.payload), optional(request, "key")
    operations, ids = _selected(
        request.points_selector,
        lambda ids: update.overwrite_payload(ids, fields, key),
        lambda condition: update.overwrite_payload_by_filter(condition, fields, key),
    )
    return Change("OverwritePayload", request, operations, ids)


def _delete_payload(request: api.DeletePayloadPoints, _: Schema) -> Change:
    update, keys = edge.UpdateOperation, list(request.keys)
    operations, ids = _selected(
        request.points_selector,
        lambda ids: update.delete_payload(ids, keys),
        lambda condition: update.delete_payload_by_filter(condition, keys),
    )
    return Change("DeletePayload", request, operations, ids)


def _clear_payload(request: api.ClearPayloadPoints, _: Schema) -> Change:
    update = edge.UpdateOperation
    operations, ids = _selected(request.points, update.clear_payload, update.clear_payload_by_filter)
    return Change("ClearPayload", request, operations, ids)


def _update_vectors(request: api.UpdatePointVectors, schema: Schema) -> Change:
    points = validate.point_vectors(schema, request.points)
    condition = optional_filter(request, "update_filter")
    operations = (
        Operation(edge.UpdateOperation.update_vectors(part, condition=condition), len(part)) for part in _chunks(points)
    )
    return Change(
        "UpdateVectors", request, tuple(operations), tuple(validate.ids(point.id for point in request.points))
    )


def _delete_vectors(request: api.DeletePointVectors, schema: Schema) -> Change:
    update, names = edge.UpdateOperation, validate.vector_names(schema, request.vectors.names)
    operations, ids = _selected(
        request.points_selector,
        lambda ids: update.delete_vectors(ids, names),
        lambda condition: update.delete_vectors_by_filter(condition, names),
    )
    return Change("DeleteVectors", request, operations, ids)


def _create_field_index(request: api.CreateFieldIndexCollection, _: Schema) -> Change:
    call = edge.UpdateOperation.create_field_index(request.field_name, index_schema(request))
    return Change("CreateFieldIndex", request, (Operation(call, 0),))


def _delete_field_index(request: api.DeleteFieldIndexCollection, _: Schema) -> Change:
    call = edge.UpdateOperation.delete_field_index(request.field_name)
    return Change("DeleteFieldIndex", request, (Operation(call, 0),))


# Kind (the RPC's name) -> request class and builder. The order is the kind byte of a delta record.
_KINDS: dict[str, tuple[type[Any], Callable[[Any, Schema], Change]]] = {
    "Upsert": (api.UpsertPoints, _upsert),
    "Delete": (api.DeletePoints, _delete),
    "SetPayload": (api.SetPayloadPoints, _set_payload),
    "OverwritePayload": (api.SetPayloadPoints, _overwrite_payload),
    "DeletePayload": (api.DeletePayloadPoints, _delete_payload),
    "ClearPayload": (api.ClearPayloadPoints, _clear_payload),
    "UpdateVectors": (api.UpdatePointVectors, _update_vectors),
    "DeleteVectors": (api.DeletePointVectors, _delete_vectors),
    "CreateFieldIndex": (api.CreateFieldIndexCollection, _create_field_index),
    "DeleteFieldIndex": (api.DeleteFieldIndexCollection, _delete_field_index),
}
KINDS = tuple(_KINDS)


def change(kind: str, request: Message, schema: Schema) -> Change:
    """Validate a whole request and say what it does to the engine. Raises BadRequest, Unsupported."""
    return _KINDS[kind][1](request, schema)


def batch(request: api.UpdateBatchPoints, schema: Schema) -> list[Change]:
    """The changes of an UpdateBatch in its order, all of them validated before the first is applied."""
    return [change(*_alone(operation), schema) for operation in request.operations]


def _upsert_alone(content: Message) -> api.UpsertPoints:
    request = api.UpsertPoints(points=content.points)
    if content.HasField("update_filter"):
        request.update_filter.CopyFrom(content.update_filter)
    if content.HasField("update_mode"):
        request.update_mode = content.update_mode
    return request


def _set_alone(content: Message) -> api.SetPayloadPoints:
    request = api.SetPayloadPoints(payload=content.payload, points_selector=content.points_selector)
    if content.HasField("key"):
        request.key = content.key
    return request


def _update_vectors_alone(content: Message) -> api.UpdatePointVectors:
    request = api.UpdatePointVectors(points=content.points)
    if content.HasField("update_filter"):
        request.update_filter.CopyFrom(content.update_filter)
    return request


# Operation of a batch -> the kind of change, and how its content becomes the request of the RPC of its own.
_IN_BATCH: dict[str, tuple[str, Callable[[Any], Message]]] = {
    "upsert": ("Upsert", _upsert_alone),
    "delete_deprecated": ("Delete", lambda content: api.DeletePoints(points=content)),
    "delete_points": ("Delete", lambda content: api.DeletePoints(points=content.points)),
    "set_payload": ("SetPayload", _set_alone),
    "overwrite_payload": ("OverwritePayload", _set_alone),
    "delete_payload": (
        "DeletePayload",
        lambda content: api.DeletePayloadPoints(keys=content.keys, points_selector=content.points_selector),
    ),
    "clear_payload_deprecated": ("ClearPayload", lambda content: api.ClearPayloadPoints(points=content)),
    "clear_payload": ("ClearPayload", lambda content: api.ClearPayloadPoints(points=content.points)),
    "update_vectors": ("UpdateVectors", _update_vectors_alone),
    "delete_vectors": (
        "DeleteVectors",
        lambda content: api.DeletePointVectors(points_selector=content.points_selector, vectors=content.vectors),
    ),
}


def _alone(operation: api.PointsUpdateOperation) -> tuple[str, Message]:
    """One operation of a batch as the request of the RPC of its own."""
    name = operation.WhichOneof("operation")
    if name is None:
        raise BadRequest("Malformed PointsUpdateOperation: no operation is set")
    kind, build = _IN_BATCH[name]
    return kind, build(getattr(operation, name))


def write_record(delta: BinaryIO, item: Change) -> None:
    """Append one change; the record is complete in the file when this returns."""
    body = item.request.SerializeToString()
    delta.write(_HEADER.pack(KINDS.index(item.kind), len(body)) + body)
    delta.flush()


def read_records(delta: BinaryIO, schema: Schema) -> Iterator[tuple[Change, int]]:
    """The records from where the file stands up to its present end, each with the offset behind it.

    What is appended meanwhile is left for the next call, or a busy writer would never let this come to an end; an
    unfinished record at the end is left, too.
    """
    end = os.fstat(delta.fileno()).st_size
    while (start := delta.tell()) + _HEADER.size <= end:
        kind, length = _HEADER.unpack(delta.read(_HEADER.size))
        if delta.tell() + length > end:
            delta.seek(start)
            return
        name = KINDS[kind]
        yield change(name, _KINDS[name][0].FromString(delta.read(length)), schema), delta.tell()
