"""The Collections service: collections, their configuration and their aliases."""

from __future__ import annotations

from typing import Any

from qdrant_client import grpc as api

from workers.embedded.vector_server import config
from workers.embedded.vector_server.collection import Collection
from workers.embedded.vector_server.errors import BadRequest, missing_collection
from workers.embedded.vector_server.indexes import write_index_info
from workers.embedded.vector_server.rpc import Call
from workers.embedded.vector_server.store import Store


class Collections:
    """One method for each RPC; all raise Refused and the engine's errors, which rpc.py translates."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def calls(self) -> dict[str, Call]:
        return {
            "Create": self.create,
            "Update": self.update,
            "Delete": self.delete,
            "Get": self.get,
            "List": self.list,
            "CollectionExists": self.exists,
            "UpdateAliases": self.update_aliases,
            "ListAliases": self.list_aliases,
            "ListCollectionAliases": self.list_collection_aliases,
        }

    def create(self, request: api.CreateCollection) -> api.CollectionOperationResponse:
        self._store.create(request)
        return api.CollectionOperationResponse(result=True)

    def delete(self, request: api.DeleteCollection) -> api.CollectionOperationResponse:
        return api.CollectionOperationResponse(result=self._store.drop(request.collection_name))

    def list(self, _: api.ListCollectionsRequest) -> api.ListCollectionsResponse:
        names = (collection.name for collection in self._store.collections())
        return api.ListCollectionsResponse(collections=[api.CollectionDescription(name=name) for name in names])

    def exists(self, request: api.CollectionExistsRequest) -> api.CollectionExistsResponse:
        found = self._store.exists(request.collection_name)
        return api.CollectionExistsResponse(result=api.CollectionExists(exists=found))

    def get(self, request: api.GetCollectionInfoRequest) -> api.GetCollectionInfoResponse:
        collection = self._store.get(request.collection_name)
        with collection.reading() as engine:
            info = engine.info()
        response = api.GetCollectionInfoResponse()
        result = response.result
        result.status = _status(collection)
        result.optimizer_status.ok = collection.optimizer_error is None
        result.optimizer_status.error = collection.optimizer_error or ""
        result.segments_count = info.segments_count
        result.points_count = info.points_count
        result.indexed_vectors_count = info.indexed_vectors_count
        _write_config(collection.spec, result.config)
        for name, index in info.payload_schema.items():
            write_index_info(index, result.payload_schema[name])
        return response

    def update(self, request: api.UpdateCollection) -> api.CollectionOperationResponse:
        collection = self._store.get(request.collection_name)
        collection.change_spec(_updated(collection.spec, request))
        return api.CollectionOperationResponse(result=True)

    # -- aliases ------------------------------------------------------------------------------------------------------

    def update_aliases(self, request: api.ChangeAliases) -> api.CollectionOperationResponse:
        self._store.change_aliases(list(request.actions))
        return api.CollectionOperationResponse(result=True)

    def list_aliases(self, _: api.ListAliasesRequest) -> api.ListAliasesResponse:
        return _aliases(dict(self._store.aliases))

    def list_collection_aliases(self, request: api.ListCollectionAliasesRequest) -> api.ListAliasesResponse:
        name = request.collection_name
        if not self._store.exists(name):
            raise missing_collection(name)
        return _aliases({alias: target for alias, target in self._store.aliases.items() if target == name})


def _aliases(aliases: dict[str, str]) -> api.ListAliasesResponse:
    return api.ListAliasesResponse(
        aliases=[
            api.AliasDescription(alias_name=alias, collection_name=target) for alias, target in sorted(aliases.items())
        ]
    )


def _status(collection: Collection) -> Any:
    if collection.optimizer_error is not None:
        return api.CollectionStatus.Red
    # Due counts as optimising: who waits for green after an upload waits for the optimisation that is about to start.
    return api.CollectionStatus.Yellow if collection.optimizing or collection.due else api.CollectionStatus.Green


def _write_config(spec: api.CreateCollection, output: Any) -> None:
    """Write the configuration with every field set that clients expect of the real server."""
    params = output.params
    params.shard_number = params.replication_factor = params.write_consistency_factor = 1
    params.on_disk_payload = spec.on_disk_payload if spec.HasField("on_disk_payload") else True
    params.vectors_config.CopyFrom(spec.vectors_config)
    if spec.HasField("sparse_vectors_config"):
        params.sparse_vectors_config.CopyFrom(spec.sparse_vectors_config)
    hnsw = output.hnsw_config
    hnsw.m, hnsw.ef_construct = config.HNSW_M, config.HNSW_EF_CONSTRUCT
    hnsw.full_scan_threshold, hnsw.max_indexing_threads = config.HNSW_FULL_SCAN_KB, 0
    hnsw.MergeFrom(spec.hnsw_config)
    optimizer = output.optimizer_config
    optimizer.deleted_threshold, optimizer.vacuum_min_vector_number = 0.2, 1000
    optimizer.default_segment_number, optimizer.indexing_threshold = 0, config.INDEXING_THRESHOLD_KB
    optimizer.flush_interval_sec = 5
    optimizer.MergeFrom(spec.optimizers_config)
    wal = output.wal_config
    wal.wal_capacity_mb, wal.wal_segments_ahead, wal.wal_retain_closed = 32, 0, 1
    wal.MergeFrom(spec.wal_config)
    if spec.HasField("quantization_config"):
        output.quantization_config.CopyFrom(spec.quantization_config)
    for name, value in spec.metadata.items():
        output.metadata[name].CopyFrom(value)


def _updated(spec: api.CreateCollection, request: api.UpdateCollection) -> api.CreateCollection:
    """The configuration with the request's differences. Raises BadRequest for vectors that are not there."""
    config.refuse_strict_mode(request)
    changed = api.CreateCollection()
    changed.CopyFrom(spec)
    changed.optimizers_config.MergeFrom(request.optimizers_config)
    changed.hnsw_config.MergeFrom(request.hnsw_config)
    if request.HasField("quantization_config"):
        _replace_quantization(changed, request.quantization_config)
    if request.params.HasField("on_disk_payload"):
        changed.on_disk_payload = request.params.on_disk_payload
    for name, value in request.metadata.items():
        changed.metadata[name].CopyFrom(value)
    _update_vectors(changed, request.vectors_config)
    for name, params in request.sparse_vectors_config.map.items():
        if name not in changed.sparse_vectors_config.map:
            raise BadRequest(f"Wrong input: Not existing vector name error: {name}")
        changed.sparse_vectors_config.map[name].MergeFrom(params)
    config.engine_config(changed)
    return changed


def _update_vectors(changed: api.CreateCollection, difference: Any) -> None:
    kind = difference.WhichOneof("config")
    if kind is None:
        return
    by_name = {"": difference.params} if kind == "params" else dict(difference.params_map.map)
    vectors = config.vector_params(changed)
    for name, params in by_name.items():
        if name not in vectors:
            raise BadRequest(f"Wrong input: Not existing vector name error: {name}")
        target: Any = vectors[name]
        target.hnsw_config.MergeFrom(params.hnsw_config)
        for field in ("on_disk", "memory"):
            if params.HasField(field):
                setattr(target, field, getattr(params, field))
        if params.HasField("quantization_config"):
            _replace_quantization(target, params.quantization_config)


def _replace_quantization(target: Any, difference: Any) -> None:
    target.ClearField("quantization_config")
    kind = difference.WhichOneof("quantization")
    if kind not in (None, "disabled"):
        getattr(target.quantization_config, kind).CopyFrom(getattr(difference, kind))
