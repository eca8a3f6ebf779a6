"""The embedded vector server through the unmodified qdrant-client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import grpc
import numpy as np
import psutil
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
    refusal,
    running,
    stored_ids,
    where,
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
    assert not any(KEY in word for word in psutil.Process(server.process.pid).cmdline())
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
    client.set_payload(ten, {"odd": True}, points=where("metadata.even", False), wait=True)

    found = {record.id: record.payload for record in client.retrieve(ten, [1, 2, 3, 4])}
    metadata = {"lang": "en", "even": False, "deep": 2}
    assert found[1] == {"number": 1, "kind": "kind 1", "extra": 1, "odd": True, "metadata": metadata}
    assert found[2] == {"only": 3}
    assert found[3] == {"metadata": {"lang": "en", "even": False}, "odd": True}
    assert found[4] == {}


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
            models.DeleteOperation(delete=models.FilterSelector(filter=where("number", 2))),
            models.ClearPayloadOperation(clear_payload=models.PointIdsList(points=[3])),
        ],
    )
    assert stored_ids(client, ten) == {0, *range(3, 10), 50}
    found = {record.id: record.payload for record in client.retrieve(ten, [3, 50])}
    assert found[3] == {}
    assert found[50] == {"kind": "kind 2", "a": 1, "metadata": {"lang": "en", "even": True}}


def test_points_are_deleted_by_filter(client: QdrantClient, ten: str) -> None:
    client.delete(ten, where("kind", "kind 0"), wait=True)
    assert stored_ids(client, ten) == {1, 2, 4, 5, 7, 8}


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
