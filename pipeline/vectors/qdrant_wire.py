"""Our values to Qdrant's protobuf messages and back.

The messages are made directly, not through qdrant-client's pydantic models: on the way of 256 points of 384 dimensions
that conversion costs more than the server does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from qdrant_client import grpc as wire

from pipeline.errors import VectorsRejected
from pipeline.vectors.base import DENSE, SPARSE, FieldType, Filters, Hit, Point
from pipeline.vectors.filters import Condition, conditions
from pipeline.vectors.sparse import SparseVector

# DenseVector is `repeated float data = 1`, which protobuf packs as: tag, length in bytes, little-endian float32.
_DENSE_TAG = b"\x0a"

FIELD_TYPES: Mapping[FieldType, wire.FieldType.ValueType] = {
    "keyword": wire.FieldType.FieldTypeKeyword,
    "integer": wire.FieldType.FieldTypeInteger,
    "float": wire.FieldType.FieldTypeFloat,
    "bool": wire.FieldType.FieldTypeBool,
}
FIELD_TYPE_NAMES: Mapping[int, str] = {number: name.lower() for name, number in wire.PayloadSchemaType.items()}


def dense_vector(vector: NDArray[np.float32]) -> wire.DenseVector:
    """float32[dim] -> message. The packed form of a repeated float is the array's own bytes: no float passes Python."""
    data = np.ascontiguousarray(vector, dtype="<f4").tobytes()
    return wire.DenseVector.FromString(_DENSE_TAG + _varint(len(data)) + data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sparse_vector(vector: SparseVector) -> wire.SparseVector:
    return wire.SparseVector(indices=vector.indices, values=vector.values)


def point_id(id: UUID) -> wire.PointId:
    return wire.PointId(uuid=str(id))


# Qdrant's numbers have 64 bits, and come before all UUIDs. No UUID of any version is as small.
NUMBERS = 2**64


def every_id(ids: Sequence[UUID]) -> list[wire.PointId]:
    """The ids as Qdrant may have them: what `read_id` made of a number is both the UUID and the number."""
    return [point_id(id) for id in ids] + [wire.PointId(num=id.int) for id in ids if id.int < NUMBERS]


def read_id(id: wire.PointId) -> UUID:
    """Numbers are ids that somebody else put there; they become UUIDs that none of ours equals."""
    return UUID(id.uuid) if id.WhichOneof("point_id_options") == "uuid" else UUID(int=id.num)


def point_struct(point: Point, collection: str) -> wire.PointStruct:
    """Raises VectorsRejected, naming the point, for a vector that is not finite or a payload that is not JSON."""
    if point.dense.ndim != 1 or not np.isfinite(point.dense).all():
        raise VectorsRejected(f"collection {collection!r}, point {point.id}: the vector is not a row of finite numbers")
    vectors = {DENSE: wire.Vector(dense=dense_vector(point.dense))}
    if point.sparse.indices:
        vectors[SPARSE] = wire.Vector(sparse=sparse_vector(point.sparse))
    struct = wire.PointStruct(id=point_id(point.id), vectors=wire.Vectors(vectors=wire.NamedVectors(vectors=vectors)))
    for key, value in point.payload.items():
        try:
            _write_value(struct.payload[key], value)
        except (TypeError, ValueError) as error:  # a number over 64 bits, a lone surrogate, no JSON
            raise VectorsRejected(f"collection {collection!r}, point {point.id}, payload {key!r}: {error}") from error
    return struct


def _write_value(out: wire.Value, value: Any) -> None:
    match value:
        case str():
            out.string_value = value
        case bool():
            out.bool_value = value
        case int():
            out.integer_value = value
        case float():
            out.double_value = value
        case None:
            out.null_value = wire.NULL_VALUE
        case Mapping():
            out.struct_value.SetInParent()
            for key, inner in value.items():
                _write_value(out.struct_value.fields[key], inner)
        case list() | tuple():
            out.list_value.SetInParent()
            for inner in value:
                _write_value(out.list_value.values.add(), inner)
        case _:
            raise TypeError(f"{type(value).__name__} is not a JSON value")


def read_payload(fields: Mapping[str, wire.Value]) -> dict[str, Any]:
    return {key: _read_value(value) for key, value in fields.items()}


def _read_value(value: wire.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    if kind == "struct_value":
        return read_payload(value.struct_value.fields)
    if kind == "list_value":
        return [_read_value(inner) for inner in value.list_value.values]
    return getattr(value, kind)


def read_hit(found: wire.ScoredPoint) -> Hit:
    return Hit(read_id(found.id), found.score, read_payload(found.payload))


def read_point(found: wire.RetrievedPoint) -> Point:
    """A retrieved point with its payload and vectors; older servers answer in the vectors' first form."""
    vectors = found.vectors.vectors.vectors
    dense: Any = ()
    sparse = SparseVector([], [])
    if DENSE in vectors:
        data = vectors[DENSE]
        dense = data.dense.data if data.WhichOneof("vector") == "dense" else data.data
    if SPARSE in vectors:
        terms = vectors[SPARSE]
        if terms.WhichOneof("vector") == "sparse":
            sparse = SparseVector(list(terms.sparse.indices), list(terms.sparse.values))
        else:
            sparse = SparseVector(list(terms.indices.data), list(terms.data))
    return Point(read_id(found.id), np.array(dense, dtype=np.float32), sparse, read_payload(found.payload))


def query(dense: NDArray[np.float32] | None, sparse: SparseVector | None) -> wire.Query:
    """The nearest points to the one vector that is given."""
    if dense is not None:
        return wire.Query(nearest=wire.VectorInput(dense=dense_vector(dense)))
    assert sparse is not None
    return wire.Query(nearest=wire.VectorInput(sparse=sparse_vector(sparse)))


def query_filter(filters: Filters, exclude: Collection[UUID]) -> wire.Filter | None:
    """All of the filters, none of the excluded ids; None where nothing is filtered. Raises InvalidFilter."""
    must = [_condition(condition) for condition in conditions(filters)]
    if not must and not exclude:
        return None
    out = wire.Filter(must=must)
    if exclude:
        out.must_not.add().has_id.has_id.extend(point_id(id) for id in exclude)
    return out


def _condition(condition: Condition) -> wire.Condition:
    out = wire.Condition()
    out.field.key = condition.path
    match condition.kind, condition.values:
        case "keyword", (str() as text,):
            out.field.match.keyword = text
        case "keyword", texts:
            out.field.match.keywords.SetInParent()  # an empty list is a list too: it matches nothing
            out.field.match.keywords.strings.extend(str(text) for text in texts)
        case "integer", (int() as number,):
            out.field.match.integer = number
        case "integer", numbers:
            out.field.match.integers.integers.extend(int(number) for number in numbers)
        case "bool", (truth,):
            out.field.match.boolean = bool(truth)
        case "float", (number,):  # Qdrant matches no floats; a range of one number does
            out.field.range.gte = out.field.range.lte = float(number)
    return out


# Bits of one number of a quantized vector, by the kinds that Qdrant has.
_PRODUCT_BITS = {0: 8.0, 1: 4.0, 2: 2.0, 3: 1.0, 4: 0.5}
_BINARY_BITS = {0: 1.0, 1: 2.0, 2: 1.5}
_TURBO_BITS = {0: 1.0, 1: 1.5, 2: 2.0, 3: 4.0, 4: 8.0}


def quantized_bits(config: wire.QuantizationConfig) -> float:
    """Bits of one number of a vector as it is quantized beside the float32; 0 where it is not."""
    match config.WhichOneof("quantization"):
        case "scalar":
            return 8.0
        case "product":
            return _PRODUCT_BITS.get(config.product.compression, 8.0)
        case "binary":
            return _BINARY_BITS.get(config.binary.encoding, 1.0)
        case None:
            return 0.0
        case kind:
            return _TURBO_BITS.get(getattr(getattr(config, kind), "bits", 3), 4.0)
