"""Qdrant through the unmodified qdrant-client, over gRPC.

What a real server does and the embedded one cannot show, this relies on all the same: `wait=True` on every write (what
returns is applied), payload indexes for whatever is filtered (strict mode refuses the rest), a deadline on every call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from qdrant_client import grpc as wire

from pipeline.errors import CollectionMismatch, InvalidRequest, VectorsFailed, VectorsRejected, VectorsUnavailable
from pipeline.settings import QdrantSettings
from pipeline.vectors.base import (
    BASE_FIELDS,
    DENSE,
    PREFETCH,
    SPARSE,
    TENANT_FIELD,
    Description,
    FieldType,
    Filters,
    Health,
    Hit,
    Point,
)
from pipeline.vectors.qdrant_connection import QdrantConnection
from pipeline.vectors.qdrant_errors import is_existing, is_missing
from pipeline.vectors.qdrant_wire import (
    FIELD_TYPE_NAMES,
    FIELD_TYPES,
    every_id,
    point_id,
    point_struct,
    quantized_bits,
    query,
    query_filter,
    read_hit,
    read_id,
    read_point,
)
from pipeline.vectors.sizes import SAMPLE_POINTS, Sampled, estimate, sampled
from pipeline.vectors.sparse import SparseVector

_HEALTH: Mapping[int, Health] = {
    wire.CollectionStatus.Green: "green",
    wire.CollectionStatus.Yellow: "yellow",
    wire.CollectionStatus.Grey: "grey",
    wire.CollectionStatus.Red: "red",
}
_HNSW_M = 16  # links of a graph node: Qdrant's default, right for a few hundred dimensions
_HNSW_EF_CONSTRUCT = 100  # width of the search that places a node: Qdrant's default
_IDS_PER_REQUEST = 1000  # about 40 kB of ids; 1000 vectors of 384 dimensions come back as 1.5 MB
_ALIVE_SECONDS = 2.0  # what a health check may take

# Fused ranks tie often (first here and first there score the same), and the server breaks ties by chance. So a few more
# than the limit are asked for, and the cut is made here, by score and id.
_TIE_MARGIN = 16


class QdrantStore:
    """A VectorStore on a Qdrant server; opened at the first call in each process, used from any thread."""

    def __init__(self, settings: QdrantSettings) -> None:
        self._settings = settings
        self._connection = QdrantConnection(settings)
        self._call = self._connection.call

    def __repr__(self) -> str:
        return f"QdrantStore({self._connection.address})"

    # Collections

    def ensure_collection(self, name: str, dimensions: int, on_missing: Callable[[], None] | None = None) -> bool:
        made = False
        info = self._info(name)
        if info is None:
            if on_missing is not None:
                on_missing()
            made = self._create(name, dimensions)
            info = self._info(name)
            if info is None:
                raise VectorsFailed(f"collection {name!r} of {self!r} was dropped while it was made")
        self._check_vectors(name, info, dimensions)
        self._index(name, info, BASE_FIELDS)
        return made

    def ensure_fields(self, name: str, fields: Mapping[str, FieldType]) -> None:
        if not fields:
            return
        info = self._info(name)
        if info is None:
            raise VectorsRejected(f"{self!r} has no collection {name!r} to index fields in")
        self._index(name, info, fields)

    def names(self) -> set[str]:
        response = self._call(None, lambda client: client.grpc_collections.List, wire.ListCollectionsRequest())
        return {collection.name for collection in response.collections}

    def drop_collection(self, name: str) -> bool:
        request = wire.DeleteCollection(collection_name=name, timeout=self._connection.whole_seconds)
        response = self._call(name, lambda client: client.grpc_collections.Delete, request, tolerate=is_missing)
        return response is not None and bool(response.result)

    def _info(self, name: str) -> wire.CollectionInfo | None:
        request = wire.GetCollectionInfoRequest(collection_name=name)
        response = self._call(name, lambda client: client.grpc_collections.Get, request, tolerate=is_missing)
        return None if response is None else response.result

    def _create(self, name: str, dimensions: int) -> bool:
        """True where nobody else was first."""
        dense = wire.VectorParams(size=dimensions, distance=wire.Distance.Cosine)
        sparse = wire.SparseVectorParams(modifier=wire.Modifier.Idf)
        request = wire.CreateCollection(
            collection_name=name,
            vectors_config=wire.VectorsConfig(params_map=wire.VectorParamsMap(map={DENSE: dense})),
            sparse_vectors_config=wire.SparseVectorConfig(map={SPARSE: sparse}),
            hnsw_config=wire.HnswConfigDiff(m=_HNSW_M, ef_construct=_HNSW_EF_CONSTRUCT),
            timeout=self._connection.whole_seconds,
        )
        # Another process may have made it since we looked. Who was first does not matter; what it made is checked next.
        response = self._call(name, lambda client: client.grpc_collections.Create, request, tolerate=is_existing)
        return response is not None

    def _check_vectors(self, name: str, info: wire.CollectionInfo, dimensions: int) -> None:
        params = info.config.params
        made = params.vectors_config.params_map.map
        if DENSE not in made or SPARSE not in params.sparse_vectors_config.map:
            raise CollectionMismatch(
                f"collection {name!r} of {self!r} has no vectors named {DENSE!r} and {SPARSE!r}: "
                "it was not made by Millrace; use another collection"
            )
        size, distance = made[DENSE].size, made[DENSE].distance
        if size != dimensions or distance != wire.Distance.Cosine:
            raise CollectionMismatch(
                f"collection {name!r} holds vectors of {size} dimensions ({wire.Distance.Name(distance)}), the model "
                f"makes {dimensions} (Cosine); use the model that it was made with, or another collection"
            )

    def _index(self, name: str, info: wire.CollectionInfo, fields: Mapping[str, FieldType]) -> None:
        for field, kind in fields.items():
            if field not in info.payload_schema:
                self._create_index(name, field, kind)
            elif (indexed := FIELD_TYPE_NAMES[info.payload_schema[field].data_type]) != kind:
                raise VectorsRejected(f"collection {name!r}: field {field!r} is indexed as {indexed}, not as {kind}")

    def _create_index(self, name: str, field: str, kind: FieldType) -> None:
        request = wire.CreateFieldIndexCollection(
            collection_name=name,
            wait=True,
            field_name=field,
            field_type=FIELD_TYPES[kind],
            timeout=self._connection.whole_seconds,
        )
        if field == TENANT_FIELD:  # the server then keeps the points of one tenant together
            request.field_index_params.keyword_index_params.is_tenant = True
        self._check_applied(name, self._call(name, lambda client: client.grpc_points.CreateFieldIndex, request))

    # Points

    def upsert(self, name: str, points: Sequence[Point], on_progress: Callable[[int], None] | None = None) -> None:
        if not points:
            return
        size = self._settings.upsert_points
        bulks = [points[start : start + size] for start in range(0, len(points), size)]
        done = 0
        # The threads live for one call, so that a fork inherits none; leaving the block waits for the requests under
        # way, so that nothing is written any more once an error was raised.
        with ThreadPoolExecutor(min(self._settings.upserts_in_flight, len(bulks)), "upsert") as threads:
            sent = {threads.submit(copy_context().run, self._upsert_bulk, name, bulk): len(bulk) for bulk in bulks}
            try:
                for request in as_completed(sent):
                    request.result()
                    done += sent[request]
                    if on_progress is not None:
                        on_progress(done)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _upsert_bulk(self, name: str, points: Sequence[Point]) -> None:
        request = wire.UpsertPoints(
            collection_name=name,
            wait=True,
            points=[point_struct(point, name) for point in points],
            timeout=self._connection.whole_seconds,
        )
        self._check_applied(name, self._call(name, lambda client: client.grpc_points.Upsert, request))

    def delete(self, name: str, ids: Sequence[UUID]) -> None:
        for page in _pages(ids):
            request = wire.DeletePoints(
                collection_name=name,
                wait=True,
                points=wire.PointsSelector(points=wire.PointsIdsList(ids=every_id(page))),
                timeout=self._connection.whole_seconds,
            )
            response = self._call(name, lambda client: client.grpc_points.Delete, request, tolerate=is_missing)
            if response is None:
                return
            self._check_applied(name, response)

    def _check_applied(self, name: str, response: wire.PointsOperationResponse) -> None:
        """A server that runs out of its own time answers without an error; only the status says so."""
        status = response.result.status
        if status != wire.UpdateStatus.Completed:
            raise VectorsUnavailable(
                f"{self!r}, collection {name!r}: the write is not applied yet ({wire.UpdateStatus.Name(status)}). "
                "Raise MILLRACE_QDRANT__TIMEOUT where the server is only slow."
            )

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
        narrow = query_filter(filters, exclude)
        width = wire.SearchParams(hnsw_ef=hnsw_ef)
        # A query of no known word has no terms: there is nothing that BM25 could find.
        sparse = sparse if sparse is not None and sparse.indices else None
        request = wire.QueryPoints(
            collection_name=name,
            limit=limit + _TIE_MARGIN,
            with_payload=wire.WithPayloadSelector(enable=True),
            timeout=self._connection.whole_seconds,
        )
        if dense is not None and sparse is not None:
            # The filter is inside each half: outside, it would leave fewer than the limit of what they retrieved.
            for using, half in ((DENSE, query(dense, None)), (SPARSE, query(None, sparse))):
                prefetch = request.prefetch.add(using=using, query=half, filter=narrow, limit=PREFETCH * limit)
                if using == DENSE:
                    prefetch.params.CopyFrom(width)
            request.query.fusion = wire.Fusion.RRF
        elif dense is not None or sparse is not None:
            request.query.CopyFrom(query(dense, sparse))
            request.using = SPARSE if dense is None else DENSE
            if narrow is not None:
                request.filter.CopyFrom(narrow)
            if dense is not None:
                request.params.CopyFrom(width)
        else:
            return []
        response = self._call(name, lambda client: client.grpc_points.Query, request, tolerate=is_missing)
        found = [] if response is None else [read_hit(hit) for hit in response.result]
        return sorted(found, key=lambda hit: (-hit.score, hit.id))[:limit]

    def present(self, name: str, ids: Sequence[UUID]) -> set[UUID]:
        nothing = wire.WithVectorsSelector(enable=False)
        return {read_id(found.id) for found in self._get(name, ids, wire.WithPayloadSelector(enable=False), nothing)}

    def points(self, name: str, ids: Sequence[UUID]) -> dict[UUID, Point]:
        named = wire.WithVectorsSelector(include=wire.VectorsSelector(names=[DENSE, SPARSE]))
        found = map(read_point, self._get(name, ids, wire.WithPayloadSelector(enable=True), named))
        return {point.id: point for point in found}

    def _get(
        self, name: str, ids: Sequence[UUID], payload: wire.WithPayloadSelector, vectors: wire.WithVectorsSelector
    ) -> Iterator[wire.RetrievedPoint]:
        for page in _pages(ids):
            request = wire.GetPoints(
                collection_name=name,
                ids=every_id(page),
                with_payload=payload,
                with_vectors=vectors,
                timeout=self._connection.whole_seconds,
            )
            response = self._call(name, lambda client: client.grpc_points.Get, request, tolerate=is_missing)
            if response is None:
                return
            yield from response.result

    def scroll(self, name: str, page: int = 1000, start: UUID | None = None) -> Iterator[list[UUID]]:
        request = wire.ScrollPoints(
            collection_name=name,
            limit=page,
            with_payload=wire.WithPayloadSelector(enable=False),
            with_vectors=wire.WithVectorsSelector(enable=False),
            timeout=self._connection.whole_seconds,
        )
        if start is not None:
            request.offset.CopyFrom(point_id(start))
        while True:
            response = self._call(name, lambda client: client.grpc_points.Scroll, request, tolerate=is_missing)
            if response is None:
                return
            if response.result:
                yield [read_id(found.id) for found in response.result]
            if not response.HasField("next_page_offset"):
                return
            request.offset.CopyFrom(response.next_page_offset)

    def count(self, name: str) -> int:
        request = wire.CountPoints(collection_name=name, exact=True, timeout=self._connection.whole_seconds)
        response = self._call(name, lambda client: client.grpc_points.Count, request, tolerate=is_missing)
        return 0 if response is None else int(response.result.count)

    # What there is

    def describe(self, name: str) -> Description | None:
        info = self._info(name)
        if info is None:
            return None
        params = info.config.params
        dense = params.vectors_config.params_map.map
        dimensions = int(dense[DENSE].size) if DENSE in dense else int(params.vectors_config.params.size)
        kinds = max(1, len(dense)) + len(params.sparse_vectors_config.map)
        points = int(info.points_count)
        # A sparse vector has its index at once, and is counted with the indexed ones; what is left are dense ones.
        in_graph = max(0, min(points, int(info.indexed_vectors_count) - points * (kinds - 1)))
        sizes = estimate(
            points,
            dimensions,
            in_graph,
            self._sample(name),
            sum(int(found.points) for found in info.payload_schema.values()),
            links=int(info.config.hnsw_config.m) or _HNSW_M,
            quantized_bits=quantized_bits(info.config.quantization_config),
        )
        return Description(
            name=name,
            health=_HEALTH.get(info.status, "red"),
            optimizer="ok" if info.optimizer_status.ok else info.optimizer_status.error or "failed",
            points=points,
            vectors=points * kinds,
            indexed_vectors=int(info.indexed_vectors_count),
            segments=int(info.segments_count),
            dimensions=dimensions,
            fields={
                field: FIELD_TYPE_NAMES.get(index.data_type, "unknown")
                for field, index in sorted(info.payload_schema.items())
            },
            vector_bytes=sizes.vectors,
            index_bytes=sizes.index,
            payload_bytes=sizes.payload,
        )

    def _sample(self, name: str) -> Sampled:
        request = wire.ScrollPoints(
            collection_name=name,
            limit=SAMPLE_POINTS,
            with_payload=wire.WithPayloadSelector(enable=True),
            with_vectors=wire.WithVectorsSelector(include=wire.VectorsSelector(names=[SPARSE])),
            timeout=self._connection.whole_seconds,
        )
        response = self._call(name, lambda client: client.grpc_points.Scroll, request, tolerate=is_missing)
        found = [read_point(point) for point in response.result] if response is not None else []
        return sampled([(point.payload, len(point.sparse.indices)) for point in found])

    # The connection

    def alive(self) -> bool:
        """Asks now, also where the circuit is open."""
        return self._connection.answers(min(_ALIVE_SECONDS, self._settings.timeout))

    def close(self) -> None:
        self._connection.close()


def _pages(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    for start in range(0, len(ids), _IDS_PER_REQUEST):
        yield ids[start : start + _IDS_PER_REQUEST]
