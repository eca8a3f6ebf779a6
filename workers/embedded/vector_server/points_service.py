"""The Points service: writes and reads of one collection."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import qdrant_edge as edge
from qdrant_client import grpc as api

from workers.embedded.vector_server import changes, validate
from workers.embedded.vector_server.collection import Collection
from workers.embedded.vector_server.filters import optional_filter
from workers.embedded.vector_server.groups import query_groups
from workers.embedded.vector_server.legacy import from_search, from_search_groups
from workers.embedded.vector_server.queries import DEFAULT_LIMIT, QueryReader, order_by
from workers.embedded.vector_server.rpc import Call
from workers.embedded.vector_server.store import Store
from workers.embedded.vector_server.values import (
    NamedVector,
    PointId,
    id_message,
    point_id,
    with_payload,
    with_vectors,
    write_record,
    write_scored,
)


class Points:
    """One method for each kind of request; all raise Refused and the engine's errors, which rpc.py translates."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._operations = itertools.count()

    def calls(self) -> dict[str, Call]:
        writes: dict[str, Call] = {kind: partial(self.write, kind) for kind in changes.KINDS}
        return writes | {
            "UpdateBatch": self.update_batch,
            "Get": self.get,
            "Scroll": self.scroll,
            "Count": self.count,
            "Facet": self.facet,
            "Query": self.query,
            "QueryBatch": self.query_batch,
            "QueryGroups": self.query_groups,
            "Search": self.search,
            "SearchBatch": self.search_batch,
            "SearchGroups": self.search_groups,
        }

    # -- writes: applied before they are acknowledged, whatever `wait` says -------------------------------------------

    def write(self, kind: str, request: Any) -> api.PointsOperationResponse:
        collection = self._store.get(request.collection_name)
        self._store.room.check(kind)
        collection.apply([changes.change(kind, request, collection.schema)])
        return api.PointsOperationResponse(result=self._completed())

    def update_batch(self, request: api.UpdateBatchPoints) -> api.UpdateBatchResponse:
        collection = self._store.get(request.collection_name)
        batch = changes.batch(request, collection.schema)
        for change in batch:
            self._store.room.check(change.kind)
        collection.apply(batch)
        return api.UpdateBatchResponse(result=[self._completed() for _ in batch])

    def _completed(self) -> api.UpdateResult:
        return api.UpdateResult(operation_id=next(self._operations), status=api.UpdateStatus.Completed)

    # -- reads --------------------------------------------------------------------------------------------------------

    def get(self, request: api.GetPoints) -> api.GetResponse:
        ids = validate.ids(request.ids)
        response = api.GetResponse()
        with self._store.get(request.collection_name).reading() as engine:
            records = engine.retrieve(ids, with_payload(request.with_payload), with_vectors(request.with_vectors))
        for record in records:
            write_record(record, response.result.add())
        return response

    def scroll(self, request: api.ScrollPoints) -> api.ScrollResponse:
        read = edge.ScrollRequest(
            offset=point_id(request.offset) if request.HasField("offset") else None,
            limit=validate.limit(request.limit) if request.HasField("limit") else DEFAULT_LIMIT,
            filter=optional_filter(request),
            with_payload=with_payload(request.with_payload, default=True),
            with_vector=with_vectors(request.with_vectors),
            order_by=order_by(request.order_by) if request.HasField("order_by") else None,
        )
        with self._store.get(request.collection_name).reading() as engine:
            records, following = engine.scroll(read)
        response = api.ScrollResponse()
        for record in records:
            write_record(record, response.result.add())
        if following is not None:
            response.next_page_offset.CopyFrom(id_message(following))
        return response

    def count(self, request: api.CountPoints) -> api.CountResponse:
        exact = request.exact if request.HasField("exact") else True
        read = edge.CountRequest(exact=exact, filter=optional_filter(request))
        with self._store.get(request.collection_name).reading() as engine:
            return api.CountResponse(result=api.CountResult(count=engine.count(read)))

    def facet(self, request: api.FacetCounts) -> api.FacetResponse:
        read = edge.FacetRequest(
            key=request.key,
            limit=validate.limit(request.limit) if request.HasField("limit") else DEFAULT_LIMIT,
            exact=request.exact,
            filter=optional_filter(request),
        )
        with self._store.get(request.collection_name).reading() as engine:
            hits = engine.facet(read).hits
        response = api.FacetResponse()
        for hit in hits:
            value = response.hits.add(count=hit.count).value
            if isinstance(hit.value, bool):
                value.bool_value = hit.value
            elif isinstance(hit.value, int):
                value.integer_value = hit.value
            else:
                value.string_value = hit.value
        return response

    def query(self, request: api.QueryPoints) -> api.QueryResponse:
        collection = self._store.get(request.collection_name)
        response = api.QueryResponse()
        with collection.reading() as engine:
            hits = engine.query(_reader(collection, engine).request(request))
        for hit in hits:
            write_scored(hit, response.result.add())
        return response

    def query_batch(self, request: api.QueryBatchPoints) -> api.QueryBatchResponse:
        response = api.QueryBatchResponse()
        self._batch(request.collection_name, list(request.query_points), response)
        return response

    def search(self, request: api.SearchPoints) -> api.SearchResponse:
        return api.SearchResponse(result=self.query(from_search(request)).result)

    def search_batch(self, request: api.SearchBatchPoints) -> api.SearchBatchResponse:
        response = api.SearchBatchResponse()
        self._batch(request.collection_name, [from_search(item) for item in request.search_points], response)
        return response

    def _batch(self, name: str, queries: list[api.QueryPoints], response: Any) -> None:
        collection = self._store.get(name)
        with collection.reading() as engine:
            reader = _reader(collection, engine)
            answers = engine.query_batch(edge.QueryBatchRequest([reader.request(query) for query in queries]))
        for hits in answers:
            batch = response.result.add()
            for hit in hits:
                write_scored(hit, batch.result.add())

    def query_groups(self, request: api.QueryPointGroups) -> api.QueryGroupsResponse:
        collection = self._store.get(request.collection_name)
        with collection.reading() as engine:
            groups = query_groups(request, engine, _reader(collection, engine))
        return api.QueryGroupsResponse(result=groups)

    def search_groups(self, request: api.SearchPointGroups) -> api.SearchGroupsResponse:
        return api.SearchGroupsResponse(result=self.query_groups(from_search_groups(request)).result)


def _reader(collection: Collection, engine: edge.EdgeShard) -> QueryReader:
    def stored_vector(point: PointId, name: str) -> NamedVector | None:
        records = engine.retrieve([point], False, [name])
        if not records:
            return None
        content: Any = records[0].vector
        return content.get(name) if isinstance(content, dict) else content

    return QueryReader(collection.schema, stored_vector)
