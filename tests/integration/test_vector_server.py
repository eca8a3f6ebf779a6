"""The embedded vector server through the unmodified qdrant-client."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import numpy as np
import pytest
from google.protobuf.message_factory import GetMessageClass
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as api
from qdrant_client.grpc import (
    collections_service_pb2,
    points_service_pb2,
    qdrant_pb2,
    snapshots_service_pb2,
)
from vector_server import (
    DIMENSIONS,
    KEY,
    VectorServer,
    dense_of,
    make_collection,
    points,
    running,
    stored_ids,
    until,
)

SERVICES = {
    "Qdrant": qdrant_pb2,
    "Collections": collections_service_pb2,
    "Points": points_service_pb2,
    "Snapshots": snapshots_service_pb2,
}
UNIMPLEMENTED = {
    "qdrant.Collections/CollectionClusterInfo",
    "qdrant.Collections/UpdateCollectionClusterSetup",
    "qdrant.Collections/CreateShardKey",
    "qdrant.Collections/DeleteShardKey",
    "qdrant.Collections/ListShardKeys",
    "qdrant.Points/CreateVectorName",
    "qdrant.Points/DeleteVectorName",
    "qdrant.Points/Recommend",
    "qdrant.Points/RecommendBatch",
    "qdrant.Points/RecommendGroups",
    "qdrant.Points/Discover",
    "qdrant.Points/DiscoverBatch",
    "qdrant.Points/SearchMatrixPairs",
    "qdrant.Points/SearchMatrixOffsets",
    *(f"qdrant.Snapshots/{name}" for name in ("Create", "List", "Delete", "CreateFull", "ListFull", "DeleteFull")),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorServer]:
    with running(tmp_path_factory.mktemp("vectors"), "--optimize-at", "300") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: VectorServer) -> Iterator[QdrantClient]:
    with server.client() as connected:
        yield connected


@pytest.fixture
def ten(client: QdrantClient, request: pytest.FixtureRequest) -> Iterator[str]:
    """A collection with the points 0 to 9."""
    name = request.node.name[:200].replace("/", "-").translate({ord(c): "-" for c in '<>:"\\|?*'})
    make_collection(client, name)
    client.upsert(name, points(range(10)), wait=True)
    yield name
    client.delete_collection(name)


def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    return error.code(), error.details()


def methods() -> list[tuple[str, Any]]:
    return [
        (f"{service.full_name}/{method.name}", method)
        for name, file in SERVICES.items()
        for service in [file.DESCRIPTOR.services_by_name[name]]
        for method in service.methods
    ]


@pytest.mark.parametrize(("name", "method"), methods(), ids=[name for name, _ in methods()])
def test_every_rpc_works_or_says_by_name_that_it_is_not_implemented(
    server: VectorServer, name: str, method: Any
) -> None:
    request = GetMessageClass(method.input_type)()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary(
            f"/{name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        try:
            call(request, metadata=[("api-key", KEY)], timeout=20)
            status, message = grpc.StatusCode.OK, ""
        except grpc.RpcError as error:
            status, message = error.code(), error.details() or ""
    if name in UNIMPLEMENTED:
        assert status is grpc.StatusCode.UNIMPLEMENTED
        assert name in message
    else:  # an empty request is a wrong one, but it is understood
        assert status in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


# -- who may ask ------------------------------------------------------------------------------------------------------


def test_without_the_key_only_the_health_check_answers(server: VectorServer) -> None:
    with server.client(key=None) as stranger:
        assert refusal(stranger.get_collections) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "Must provide an API key or an Authorization bearer token",
        )
    with server.client(key="wrong") as stranger:
        assert refusal(stranger.get_collections) == (grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert api.QdrantStub(channel).HealthCheck(api.HealthCheckRequest()).version == "1.20.0"
        token = [("authorization", f"Bearer {KEY}")]
        assert api.CollectionsStub(channel).List(api.ListCollectionsRequest(), metadata=token) is not None


def test_the_key_is_in_no_command_line_and_in_no_log(server: VectorServer) -> None:
    assert KEY not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
    assert KEY not in server.log.read_text()


# -- the real server's words ------------------------------------------------------------------------------------------


def _upsert_raw(client: QdrantClient, name: str, **point: Any) -> Any:
    struct = api.PointStruct(id=api.PointId(num=77), **point)
    return client.grpc_points.Upsert(api.UpsertPoints(collection_name=name, points=[struct], wait=True))


def _dense(values: list[float], name: str = "dense") -> api.Vectors:
    vector = api.Vector(dense=api.DenseVector(data=values))
    return api.Vectors(vectors=api.NamedVectors(vectors={name: vector}))


def _sparse(indices: list[int], values: list[float]) -> api.Vectors:
    vector = api.Vector(sparse=api.SparseVector(indices=indices, values=values))
    return api.Vectors(vectors=api.NamedVectors(vectors={"bm25": vector}))


INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND

REFUSALS: dict[str, tuple[Any, grpc.StatusCode, str]] = {
    "missing collection": (
        lambda client, name: client.get_collection("nowhere"),
        MISSING,
        "Not found: Collection `nowhere` doesn't exist!",
    ),
    "existing collection": (
        make_collection,
        grpc.StatusCode.ALREADY_EXISTS,
        "Wrong input: Collection `{name}` already exists!",
    ),
    "wrong size": (
        lambda client, name: _upsert_raw(client, name, vectors=_dense([1.0, 2.0, 3.0])),
        INVALID,
        f"Wrong input: Vector dimension error: expected dim: {DIMENSIONS}, got 3",
    ),
    "unknown vector": (
        lambda client, name: _upsert_raw(client, name, vectors=_dense([1.0], "other")),
        INVALID,
        "Wrong input: Not existing vector name error: other",
    ),
    "no vectors": (_upsert_raw, INVALID, "Expected some vectors"),
    "bad id": (
        lambda client, name: client.grpc_points.Get(
            api.GetPoints(collection_name=name, ids=[api.PointId(uuid="not a uuid")])
        ),
        INVALID,
        "Unable to parse UUID: not a uuid",
    ),
    "sparse length": (
        lambda client, name: _upsert_raw(client, name, vectors=_sparse([1, 2], [1.0])),
        INVALID,
        "Validation error in body: [values: must be the same length as indices]",
    ),
    "sparse twice": (
        lambda client, name: _upsert_raw(client, name, vectors=_sparse([1, 1], [1.0, 2.0])),
        INVALID,
        "Validation error in body: [indices: must be unique]",
    ),
    "sparse query": (
        lambda client, name: client.query_points(
            name, query=models.SparseVector(indices=[1, 2], values=[1.0]), using="bm25"
        ),
        INVALID,
        "Validation error in body: [values: must be the same length as indices]",
    ),
    "no selector": (
        lambda client, name: client.grpc_points.Delete(api.DeletePoints(collection_name=name)),
        INVALID,
        "PointSelector is missing",
    ),
    "limit 0": (
        lambda client, name: client.query_points(name, query=dense_of(0), using="dense", limit=0),
        INVALID,
        "Validation error in body: [limit: value 0 invalid, must be 1 or larger]",
    ),
    "scroll limit 0": (
        lambda client, name: client.scroll(name, limit=0),
        INVALID,
        "Validation error in body: [limit: value 0 invalid, must be 1 or larger]",
    ),
    "empty condition": (
        lambda client, name: client.count(name, api.Filter(must=[api.Condition(field=api.FieldCondition(key="a"))])),
        INVALID,
        "Validation error in body: [match: At least one field condition must be specified]",
    ),
    "payload of a missing point": (
        lambda client, name: client.set_payload(name, {"a": 1}, points=[3, 404]),
        MISSING,
        "Not found: No point with id 404 found",
    ),
    "query by a missing point": (
        lambda client, name: client.query_points(name, query=404, using="dense"),
        MISSING,
        "Not found: No point with id 404 found",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_have_the_real_servers_code_and_words(client: QdrantClient, ten: str, case: str) -> None:
    call, status, message = REFUSALS[case]
    assert refusal(lambda: call(client, ten)) == (status, message.format(name=ten))
    assert client.count(ten).count == 10


def test_deleting_what_is_not_there_is_no_error(client: QdrantClient, ten: str) -> None:
    assert client.delete_collection("nowhere") is False
    client.delete(ten, [404], wait=True)
    assert client.count(ten).count == 10


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_point_of_a_batch_keeps_the_whole_batch_out(client: QdrantClient, ten: str, bad: float) -> None:
    batch = points(range(100, 400))
    batch[299].vector["dense"][3] = bad  # type: ignore[index, call-overload]
    status, message = refusal(lambda: client.upsert(ten, batch))
    assert status is INVALID
    assert "finite" in message
    assert client.count(ten).count == 10


def test_a_bad_operation_of_an_update_batch_keeps_all_of_it_out(client: QdrantClient, ten: str) -> None:
    operations = [
        models.UpsertOperation(upsert=models.PointsList(points=points([50]))),
        models.UpdateVectorsOperation(
            update_vectors=models.UpdateVectors(points=[models.PointVectors(id=1, vector={"dense": [1.0]})])
        ),
    ]
    assert refusal(lambda: client.batch_update_points(ten, operations))[0] is INVALID
    assert stored_ids(client, ten) == set(range(10))


# -- what is stored ---------------------------------------------------------------------------------------------------


def test_what_is_upserted_is_what_is_retrieved(client: QdrantClient, ten: str) -> None:
    payload = {
        "text": "τέξτ \N{SNOWMAN}",
        "none": None,
        "yes": True,
        "whole": -(2**53),
        "real": 0.25,
        "list": [1, "two", [3.5, None], {}],
        "nested": {"a": {"b": []}},
    }
    identity = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
    vector = np.asarray(dense_of(1), dtype=np.float32)
    sparse = models.SparseVector(indices=[9, 4], values=[0.5, 1.5])
    client.upsert(
        ten, [models.PointStruct(id=identity, vector={"dense": dense_of(1), "bm25": sparse}, payload=payload)]
    )

    (record,) = client.retrieve(ten, [identity], with_vectors=True)

    assert UUID(str(record.id)) == UUID(identity)
    assert record.payload == payload
    stored: Any = record.vector
    np.testing.assert_allclose(stored["dense"], vector / np.linalg.norm(vector), rtol=1e-5)
    assert dict(zip(stored["bm25"].indices, stored["bm25"].values, strict=True)) == {9: 0.5, 4: 1.5}


def test_a_point_may_lack_a_vector_and_have_an_empty_sparse_one(client: QdrantClient, ten: str) -> None:
    empty = models.SparseVector(indices=[], values=[])
    client.upsert(ten, [models.PointStruct(id=20, vector={"dense": dense_of(20)})])
    client.upsert(ten, [models.PointStruct(id=21, vector={"dense": dense_of(21), "bm25": empty})])
    assert stored_ids(client, ten) == {*range(10), 20, 21}


def test_payloads_are_set_overwritten_and_cleared(client: QdrantClient, ten: str) -> None:
    client.set_payload(ten, {"extra": 1}, points=[1], wait=True)
    client.set_payload(ten, {"deep": 2}, points=[1], key="metadata", wait=True)
    client.overwrite_payload(ten, {"only": 3}, points=[2], wait=True)
    client.delete_payload(ten, ["kind", "number"], points=[3], wait=True)
    client.clear_payload(ten, [4], wait=True)
    client.set_payload(ten, {"odd": True}, points=_where("metadata.even", False), wait=True)

    found = {record.id: record.payload for record in client.retrieve(ten, [1, 2, 3, 4])}
    metadata = {"lang": "en", "even": False, "deep": 2}
    assert found[1] == {"number": 1, "kind": "kind 1", "extra": 1, "odd": True, "metadata": metadata}
    assert found[2] == {"only": 3}
    assert found[3] == {"metadata": {"lang": "en", "even": False}, "odd": True}
    assert found[4] == {}


def _where(key: str, value: Any) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key=key, match=models.MatchValue(value=value))])


def test_vectors_are_updated_and_deleted_alone(client: QdrantClient, ten: str) -> None:
    client.update_vectors(ten, [models.PointVectors(id=1, vector={"dense": dense_of(99)})], wait=True)
    client.delete_vectors(ten, ["bm25"], points=[2], wait=True)

    assert client.query_points(ten, query=dense_of(99), using="dense", limit=1).points[0].id == 1
    (record,) = client.retrieve(ten, [2], with_vectors=True)
    assert set(record.vector or {}) == {"dense"}


def test_an_update_batch_is_applied_in_order(client: QdrantClient, ten: str) -> None:
    client.batch_update_points(
        ten,
        [
            models.UpsertOperation(upsert=models.PointsList(points=points([50]))),
            models.SetPayloadOperation(set_payload=models.SetPayload(payload={"a": 1}, points=[50])),
            models.DeletePayloadOperation(delete_payload=models.DeletePayload(keys=["number"], points=[50])),
            models.DeleteOperation(delete=models.PointIdsList(points=[1])),
            models.DeleteOperation(delete=models.FilterSelector(filter=_where("number", 2))),
            models.ClearPayloadOperation(clear_payload=models.PointIdsList(points=[3])),
        ],
    )
    assert stored_ids(client, ten) == {0, *range(3, 10), 50}
    found = {record.id: record.payload for record in client.retrieve(ten, [3, 50])}
    assert found[3] == {}
    assert found[50] == {"kind": "kind 2", "a": 1, "metadata": {"lang": "en", "even": True}}


def test_points_are_deleted_by_filter(client: QdrantClient, ten: str) -> None:
    client.delete(ten, _where("kind", "kind 0"), wait=True)
    assert stored_ids(client, ten) == {1, 2, 4, 5, 7, 8}


# -- what is found ----------------------------------------------------------------------------------------------------


def test_a_dense_query_gives_the_cosine(client: QdrantClient, ten: str) -> None:
    wanted = np.asarray(dense_of(500))
    matrix = np.asarray([dense_of(point) for point in range(10)])
    cosine = matrix @ wanted / np.linalg.norm(matrix, axis=1) / np.linalg.norm(wanted)

    for params in (None, models.SearchParams(exact=True), models.SearchParams(hnsw_ef=200)):
        hits = client.query_points(ten, query=wanted.tolist(), using="dense", limit=10, search_params=params).points
        assert [hit.id for hit in hits] == np.argsort(-cosine).tolist()
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosine)[::-1], rtol=1e-4)


def test_hybrid_scores_are_the_real_servers_default_fusion(client: QdrantClient, ten: str) -> None:
    sparse = models.SparseVector(indices=[103], values=[1.0])  # a term of point 3 alone
    answer = client.query_points(
        ten,
        prefetch=[
            models.Prefetch(query=dense_of(3), using="dense", limit=2),
            models.Prefetch(query=sparse, using="bm25", limit=20),
        ],
        query=models.FusionQuery(fusion=models.Fusion.RRF),
        limit=10,
    ).points
    assert answer[0].id == 3
    assert [hit.score for hit in answer] == pytest.approx([1 / 2 + 1 / 2, 1 / 3])


def test_filters_choose_points(client: QdrantClient, ten: str) -> None:
    number = "number"
    cases: list[tuple[models.Filter, set[int]]] = [
        (_where("metadata.even", True), {0, 2, 4, 6, 8}),
        (models.Filter(must=[models.FieldCondition(key="kind", match=models.MatchAny(any=["kind 1"]))]), {1, 4, 7}),
        (models.Filter(must=[models.FieldCondition(key=number, range=models.Range(gte=3, lt=5))]), {3, 4}),
        (models.Filter(must_not=[models.HasIdCondition(has_id=[0, 1, 2, 3, 4, 5, 6])]), {7, 8, 9}),
        (models.Filter(must=[models.HasIdCondition(has_id=[2, 404])]), {2}),
        (models.Filter(should=[_where(number, 1), _where(number, 8)]), {1, 8}),
        (models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="nothing"))]), set(range(10))),
    ]
    for condition, wanted in cases:
        hits = client.query_points(ten, query=dense_of(0), using="dense", limit=10, query_filter=condition).points
        assert {hit.id for hit in hits} == wanted
        assert client.count(ten, condition).count == len(wanted)


def test_a_query_by_a_point_leaves_that_point_out(client: QdrantClient, ten: str) -> None:
    by_point = client.query_points(ten, query=3, using="dense", limit=10).points
    by_vector = client.query_points(ten, query=dense_of(3), using="dense", limit=10).points
    assert [hit.id for hit in by_vector[1:]] == [hit.id for hit in by_point]
    liked = models.RecommendQuery(recommend=models.RecommendInput(positive=[3]))
    assert [hit.id for hit in client.query_points(ten, query=liked, using="dense", limit=10).points] == [
        hit.id for hit in by_point
    ]


def test_a_batch_answers_each_query_as_if_alone(client: QdrantClient, ten: str) -> None:
    requests = [models.QueryRequest(query=dense_of(point), using="dense", limit=3) for point in range(4)]
    answers = client.query_batch_points(ten, requests)
    alone = [client.query_points(ten, query=dense_of(point), using="dense", limit=3) for point in range(4)]
    assert [[hit.id for hit in answer.points] for answer in answers] == [
        [hit.id for hit in answer.points] for answer in alone
    ]


def test_older_clients_search_too(client: QdrantClient, ten: str) -> None:
    request = api.SearchPoints(
        collection_name=ten, vector=dense_of(4), vector_name="dense", limit=1, with_payload={"enable": True}
    )
    (hit,) = client.grpc_points.Search(request).result
    assert (hit.id.num, hit.payload["number"].integer_value) == (4, 4)
    (batch,) = client.grpc_points.SearchBatch(
        api.SearchBatchPoints(collection_name=ten, search_points=[request])
    ).result
    assert [hit.id.num for hit in batch.result] == [4]


def test_scrolling_visits_every_point_once(client: QdrantClient, ten: str) -> None:
    seen: list[Any] = []
    offset: Any = None
    while True:
        page, offset = client.scroll(ten, limit=3, offset=offset, with_payload=["number"])
        seen += [(record.id, record.payload) for record in page]
        if offset is None:
            break
    assert seen == [(point, {"number": point}) for point in range(10)]


def test_an_indexed_field_orders_and_counts_its_values(client: QdrantClient, ten: str) -> None:
    client.create_payload_index(ten, "number", models.PayloadSchemaType.INTEGER, wait=True)
    client.create_payload_index(ten, "kind", models.KeywordIndexParams(type="keyword", is_tenant=True), wait=True)
    schema = client.get_collection(ten).payload_schema
    assert {name: (index.data_type, index.points) for name, index in schema.items()} == {
        "number": (models.PayloadSchemaType.INTEGER, 10),
        "kind": (models.PayloadSchemaType.KEYWORD, 10),
    }
    last, _ = client.scroll(ten, limit=2, order_by=models.OrderBy(key="number", direction=models.Direction.DESC))
    assert [record.id for record in last] == [9, 8]
    facets = client.facet(ten, "kind", exact=True).hits
    assert {hit.value: hit.count for hit in facets} == {"kind 0": 4, "kind 1": 3, "kind 2": 3}

    client.delete_payload_index(ten, "kind", wait=True)
    status, message = refusal(lambda: client.facet(ten, "kind"))
    assert status is INVALID
    assert message.startswith("Wrong input: No appropriate index for faceting: `kind`")


def test_groups_hold_the_best_hits_of_each_value(client: QdrantClient, ten: str) -> None:
    ranked = [hit.id for hit in client.query_points(ten, query=dense_of(5), using="dense", limit=10).points]
    groups = client.query_points_groups(ten, "kind", query=dense_of(5), using="dense", limit=2, group_size=3).groups
    assert len(groups) == 2
    for group in groups:
        assert [hit.id for hit in group.hits] == [i for i in ranked if f"kind {i % 3}" == group.id][:3]
        assert all((hit.payload or {})["kind"] == group.id for hit in group.hits)


# -- collections and aliases ------------------------------------------------------------------------------------------


def test_an_alias_stands_for_its_collection_until_it_is_moved(client: QdrantClient, ten: str) -> None:
    def point_to(collection: str) -> None:
        create = models.CreateAlias(collection_name=collection, alias_name="live")
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])

    point_to(ten)
    assert client.collection_exists("live")
    client.upsert("live", points([11]), wait=True)
    assert client.count("live").count == client.count(ten).count == 11

    make_collection(client, "other")
    point_to("other")
    assert client.count("live").count == 0
    assert [(item.alias_name, item.collection_name) for item in client.get_aliases().aliases] == [("live", "other")]
    assert client.get_collection_aliases(ten).aliases == []
    client.delete_collection("other")
    assert client.get_aliases().aliases == []
    assert not client.collection_exists("live")


def test_alias_changes_are_all_or_nothing(client: QdrantClient, ten: str) -> None:
    changes = [
        models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=ten, alias_name="one")),
        models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="nowhere", alias_name="two")),
    ]
    assert refusal(lambda: client.update_collection_aliases(changes))[0] is MISSING
    assert client.get_aliases().aliases == []


@pytest.mark.parametrize("name", ["with space", "ünïcode", "a" * 255, "100%", "..."])
def test_collections_may_have_any_name_that_the_real_server_takes(client: QdrantClient, name: str) -> None:
    make_collection(client, name)
    assert name in {item.name for item in client.get_collections().collections}
    client.upsert(name, points([1]), wait=True)
    assert client.count(name).count == 1
    assert client.delete_collection(name) is True


@pytest.mark.parametrize("name", ["", "a/b", "..", "a" * 256, 'quo"te'])
def test_collections_may_not_have_other_names(client: QdrantClient, name: str) -> None:
    assert refusal(lambda: make_collection(client, name))[0] is INVALID


# -- optimising -------------------------------------------------------------------------------------------------------


def test_writes_and_searches_go_on_while_a_collection_is_optimised(server: VectorServer, client: QdrantClient) -> None:
    name = "optimised"
    make_collection(client, name)
    client.create_payload_index(name, "kind", models.PayloadSchemaType.KEYWORD, wait=True)
    first = server.directories(name)
    client.upsert(name, points(range(400)), wait=True)
    until(lambda: server.is_optimizing(name), "the optimisation begins")
    under_way = next(entry for entry in server.directories(name) if entry.startswith("delta-"))
    assert client.get_collection(name).status is models.CollectionStatus.YELLOW

    # While the child works: inserts, deletes, updates, and searches that see all of it at once.
    added, kept, late = 400, set(range(400)), set()
    while under_way in server.directories(name):
        client.upsert(name, points(range(added, added + 10)), wait=True)
        client.set_payload(name, {"kind": "late"}, points=[added], wait=True)
        client.delete(name, [added - 400, added + 1], wait=True)
        kept = (kept | set(range(added, added + 10))) - {added - 400, added + 1}
        late.add(added)
        assert client.query_points(name, query=dense_of(added), using="dense", limit=1).points[0].id == added
        assert client.count(name).count == len(kept)
        added += 10
        time.sleep(0.02)  # the child needs a core, too

    until(lambda: client.get_collection(name).status is models.CollectionStatus.GREEN, "green")
    info = client.get_collection(name)
    assert info.points_count == len(kept)
    assert info.payload_schema["kind"].data_type is models.PayloadSchemaType.KEYWORD
    assert stored_ids(client, name) == kept
    assert client.count(name, _where("kind", "late")).count == len(late & kept) > 0
    assert not set(first) & set(server.directories(name)) - {"collection.pb", "state.json"}
    assert len([entry for entry in server.directories(name) if entry.startswith("shard-")]) == 1
    client.delete_collection(name)


def test_a_collection_is_deleted_in_the_middle_of_its_optimisation(server: VectorServer, client: QdrantClient) -> None:
    name = "doomed"
    make_collection(client, name)
    client.upsert(name, points(range(400)), wait=True)
    until(lambda: server.is_optimizing(name), "the optimisation begins")

    assert client.delete_collection(name) is True

    assert not client.collection_exists(name)
    until(lambda: not list((server.data / "scratch").iterdir()), "nothing is left of it")
    make_collection(client, name)
    client.upsert(name, points(range(5)), wait=True)
    assert stored_ids(client, name) == set(range(5))
    client.delete_collection(name)


def test_each_optimisation_waits_for_more_points_than_the_last(server: VectorServer, client: QdrantClient) -> None:
    name = "growing"
    make_collection(client, name)

    def optimised_at() -> list[int]:
        return [int(count) for count in re.findall(rf"optimised {name} at (\d+) points", server.log.read_text())]

    client.upsert(name, points(range(300)), wait=True)
    until(lambda: optimised_at() == [300], "the first optimisation")
    client.upsert(name, points(range(300, 899)), wait=True)
    assert client.get_collection(name).status is models.CollectionStatus.GREEN
    client.upsert(name, points([899]), wait=True)
    until(lambda: optimised_at() == [300, 900], "the second, after twice as many points")
    client.delete_collection(name)


def test_a_changed_configuration_reaches_the_engine_with_an_optimisation(
    server: VectorServer, client: QdrantClient
) -> None:
    name = "changed"
    make_collection(client, name)
    client.upsert(name, points(range(50)), wait=True)
    first = server.directories(name)

    client.update_collection(name, hnsw_config=models.HnswConfigDiff(m=8))

    until(lambda: client.get_collection(name).status is models.CollectionStatus.GREEN, "green")
    until(lambda: server.directories(name) != first, "another shard")
    assert client.get_collection(name).config.hnsw_config.m == 8
    configs = [path.read_text() for path in server.data.glob(f"collections/{name}/shard-*/edge_config.json")]
    assert any('"m":8' in text for text in configs)
    assert stored_ids(client, name) == set(range(50))
    client.delete_collection(name)
