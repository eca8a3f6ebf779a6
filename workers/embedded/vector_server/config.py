"""A collection's configuration: CreateCollection to the engine's config and to the schema that requests must fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import qdrant_edge as edge
from qdrant_client import grpc as api

from workers.embedded.vector_server.errors import BadRequest, Unsupported, invalid
from workers.embedded.vector_server.values import Message, optional

# The real server's defaults, for what the engine wants and for what GetCollectionInfo answers.
HNSW_M = 16
HNSW_EF_CONSTRUCT = 100
HNSW_FULL_SCAN_KB = 10_000
INDEXING_THRESHOLD_KB = 10_000

_DISTANCES = {
    api.Distance.Cosine: edge.Distance.Cosine,
    api.Distance.Euclid: edge.Distance.Euclid,
    api.Distance.Dot: edge.Distance.Dot,
    api.Distance.Manhattan: edge.Distance.Manhattan,
}
_MEMORY = {1: edge.Memory.Cold, 2: edge.Memory.Cached, 3: edge.Memory.Pinned}
_DATATYPES = {
    0: None,
    1: edge.VectorStorageDatatype.Float32,
    2: edge.VectorStorageDatatype.Uint8,
    3: edge.VectorStorageDatatype.Float16,
    5: edge.VectorStorageDatatype.Turbo8,
    6: edge.VectorStorageDatatype.Turbo16,
}
_PRODUCT = {
    0: edge.CompressionRatio.X4,
    1: edge.CompressionRatio.X8,
    2: edge.CompressionRatio.X16,
    3: edge.CompressionRatio.X32,
    4: edge.CompressionRatio.X64,
}
_BINARY = {
    0: edge.BinaryQuantizationEncoding.OneBit,
    1: edge.BinaryQuantizationEncoding.TwoBits,
    2: edge.BinaryQuantizationEncoding.OneAndHalfBits,
}
_TURBO_BITS = {
    0: edge.TurboQuantBitSize.Bits1,
    1: edge.TurboQuantBitSize.Bits1_5,
    2: edge.TurboQuantBitSize.Bits2,
    3: edge.TurboQuantBitSize.Bits4,
    4: edge.TurboQuantBitSize.Bits8,
}
MAX_NAME = 255
MAX_DIMENSIONS = 65_536
_FORBIDDEN_IN_NAMES = '<>:"/\\|?*\0\x1f'


@dataclass(frozen=True, slots=True)
class Schema:
    """What vectors a collection has: dense and multi-vector names with their dimensions, and sparse names."""

    dense: Mapping[str, int]
    multi: Mapping[str, int]
    sparse: frozenset[str]


def vector_params(spec: api.CreateCollection) -> dict[str, api.VectorParams]:
    """Dense vectors by name; the unnamed vector has the name ""."""
    kind = spec.vectors_config.WhichOneof("config")
    if kind == "params":
        return {"": spec.vectors_config.params}
    return dict(spec.vectors_config.params_map.map) if kind else {}


def schema(spec: api.CreateCollection) -> Schema:
    params = vector_params(spec)
    multi = {name for name, item in params.items() if item.HasField("multivector_config")}
    return Schema(
        dense={name: int(item.size) for name, item in params.items() if name not in multi},
        multi={name: int(params[name].size) for name in multi},
        sparse=frozenset(spec.sparse_vectors_config.map),
    )


def check_spec(spec: api.CreateCollection) -> None:
    """Raises BadRequest for a name or a size that the real server refuses."""
    name = spec.collection_name
    if not 1 <= len(name) <= MAX_NAME:
        raise invalid("collection_name", f'value "{name}" invalid, must be from 1 to {MAX_NAME} characters')
    for character in _FORBIDDEN_IN_NAMES:
        if character in name:
            raise invalid("collection_name", f'collection name cannot contain "{character!r}" char')
    if name in (".", ".."):
        raise invalid("collection_name", f'value "{name}" invalid')
    for params in vector_params(spec).values():
        if not 1 <= params.size <= MAX_DIMENSIONS:
            raise invalid("vectors_config.size", f"value {params.size} invalid, must be from 1 to {MAX_DIMENSIONS}")
        if params.distance not in _DISTANCES:
            raise BadRequest("Wrong input: Malformed distance parameter: UnknownDistance")
    refuse_strict_mode(spec)
    if spec.HasField("sharding_method") and spec.sharding_method == api.ShardingMethod.Custom:
        raise Unsupported("Custom sharding is not implemented by the embedded vector server")


def refuse_strict_mode(message: Message) -> None:
    """Raises Unsupported where strict mode is asked for: its limits would not be kept."""
    if message.strict_mode_config.enabled:
        raise Unsupported("Strict mode is not implemented by the embedded vector server")


def memory(message: Message) -> edge.Memory | None:
    return _MEMORY.get(message.memory) if message.HasField("memory") else None


def _hnsw(message: Message) -> edge.HnswIndexConfig:
    def value(field: str, default: int) -> int:
        return int(getattr(message, field)) if message.HasField(field) else default

    return edge.HnswIndexConfig(
        m=value("m", HNSW_M),
        ef_construct=value("ef_construct", HNSW_EF_CONSTRUCT),
        full_scan_threshold=value("full_scan_threshold", HNSW_FULL_SCAN_KB),
        max_indexing_threads=value("max_indexing_threads", 0),
        on_disk=optional(message, "on_disk"),
        payload_m=optional(message, "payload_m"),
        memory=memory(message),
    )


def _quantization(message: Message) -> Any:
    kind = message.WhichOneof("quantization")
    if kind is None:
        return None
    params = getattr(message, kind)
    shared = {"always_ram": optional(params, "always_ram"), "memory": memory(params)}
    if kind == "scalar":
        return edge.ScalarQuantizationConfig(edge.ScalarType.Int8, quantile=optional(params, "quantile"), **shared)
    if kind == "product":
        return edge.ProductQuantizationConfig(_PRODUCT[params.compression], **shared)
    if kind == "binary":
        encoding = _BINARY[params.encoding] if params.HasField("encoding") else None
        return edge.BinaryQuantizationConfig(encoding=encoding, **shared)
    bits = _TURBO_BITS[params.bits] if params.HasField("bits") else None
    return edge.TurboQuantQuantizationConfig(bits=bits, **shared)


def _datatype(message: Message) -> edge.VectorStorageDatatype | None:
    if not message.HasField("datatype"):
        return None
    if message.datatype not in _DATATYPES:
        raise Unsupported(f"Datatype {message.datatype} is not implemented by the embedded vector server")
    return _DATATYPES[message.datatype]


def _dense(params: Message) -> edge.EdgeVectorParams:
    multi = params.HasField("multivector_config")
    return edge.EdgeVectorParams(
        size=params.size,
        distance=_DISTANCES[params.distance],
        on_disk=optional(params, "on_disk"),
        multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim) if multi else None,
        datatype=_datatype(params),
        quantization_config=_quantization(params.quantization_config),
        hnsw_config=_hnsw(params.hnsw_config) if params.HasField("hnsw_config") else None,
        memory=memory(params),
    )


def _sparse(params: Message) -> edge.EdgeSparseVectorParams:
    return edge.EdgeSparseVectorParams(
        full_scan_threshold=optional(params.index, "full_scan_threshold"),
        on_disk=optional(params.index, "on_disk"),
        modifier=edge.Modifier.Idf if params.modifier == api.Modifier.Idf else None,
        datatype=_datatype(params.index),
        memory=memory(params.index),
    )


def engine_config(spec: api.CreateCollection) -> edge.EdgeConfig:
    """Raises Unsupported for options that the engine does not have."""
    optimizers = spec.optimizers_config
    names = (
        "deleted_threshold",
        "vacuum_min_vector_number",
        "default_segment_number",
        "max_segment_size",
        "indexing_threshold",
    )
    return edge.EdgeConfig(
        vectors={name: _dense(params) for name, params in vector_params(spec).items()},
        sparse_vectors={name: _sparse(params) for name, params in spec.sparse_vectors_config.map.items()} or None,
        on_disk_payload=optional(spec, "on_disk_payload"),
        hnsw_config=_hnsw(spec.hnsw_config),
        quantization_config=_quantization(spec.quantization_config),
        optimizers=edge.EdgeOptimizersConfig(**{name: optional(optimizers, name) for name in names}),
        payload_memory=memory(spec.payload),
        id_tracker_memory=memory(spec.id_tracker),
    )
