"""What the vector server checks before the engine sees it, and what it makes of the engine's failures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
import qdrant_edge as edge
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import grpc as api

from workers.embedded.vector_server import changes, validate, values
from workers.embedded.vector_server.config import Schema, check_spec, schema
from workers.embedded.vector_server.errors import (
    BadRequest,
    Unsupported,
    translate,
)
from workers.embedded.vector_server.files import copy_tree
from workers.embedded.vector_server.queries import QueryReader

SCHEMA = Schema(dense={"dense": 4, "": 2}, multi={"late": 2}, sparse=frozenset({"bm25"}))
NOT_A_NUMBER = float("nan")


def spec(name: str = "books") -> api.CreateCollection:
    dense = api.VectorParams(size=4, distance=api.Distance.Cosine)
    return api.CreateCollection(
        collection_name=name,
        vectors_config=api.VectorsConfig(params_map=api.VectorParamsMap(map={"dense": dense})),
        sparse_vectors_config=api.SparseVectorConfig(map={"bm25": api.SparseVectorParams()}),
    )


def upsert(*ids: int) -> api.UpsertPoints:
    dense = api.Vector(dense=api.DenseVector(data=[1, 2, 3, 4]))
    sparse = api.Vector(sparse=api.SparseVector(indices=[1, 2], values=[0.5, 0.5]))
    vectors = api.Vectors(vectors=api.NamedVectors(vectors={"dense": dense, "bm25": sparse}))
    return api.UpsertPoints(points=[api.PointStruct(id=api.PointId(num=point), vectors=vectors) for point in ids])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dense", [1.0, 2.0], "Wrong input: Vector dimension error: expected dim: 4, got 2"),
        ("dense", [], "Wrong input: Vector dimension error: expected dim: 4, got 0"),
        ("dense", [1.0, 2.0, 3.0, NOT_A_NUMBER], "Validation error in body: [data: must contain finite numbers only]"),
        ("dense", [1.0, float("inf"), 3.0, float("-inf")], "Validation error in body: [data: must contain finite"),
        ("dense", ([1], [1.0]), "Wrong input: Conversion between sparse and regular vectors failed"),
        ("dense", [[1.0, 2.0, 3.0, 4.0]], "Wrong input: Conversion between multi and regular vectors failed"),
        ("bm25", [1.0], "Wrong input: Conversion between sparse and regular vectors failed"),
        ("bm25", ([1, 2], [1.0]), "Validation error in body: [values: must be the same length as indices]"),
        ("bm25", ([2, 2], [1.0, 1.0]), "Validation error in body: [indices: must be unique]"),
        ("bm25", ([1], [NOT_A_NUMBER]), "Validation error in body: [values: must contain finite numbers only]"),
        ("late", [[1.0, 2.0], [1.0]], "Wrong input: Vector dimension error: expected dim: 2, got 1"),
        ("other", [1.0], "Wrong input: Not existing vector name error: other"),
    ],
)
def test_a_wrong_vector_is_refused(name: str, content: Any, message: str) -> None:
    with pytest.raises(BadRequest) as raised:
        validate.vector(SCHEMA, name, content)
    assert str(raised.value).startswith(message)
    assert raised.value.status is grpc.StatusCode.INVALID_ARGUMENT


def test_a_right_vector_is_taken_as_it_is() -> None:
    assert validate.vector(SCHEMA, "dense", [1.0, 2.0, 3.0, 4.0]) == [1.0, 2.0, 3.0, 4.0]
    assert validate.vector(SCHEMA, "", [0.0, 0.0]) == [0.0, 0.0]
    assert validate.vector(SCHEMA, "late", [1.0, 2.0]) == [[1.0, 2.0]]
    sparse = validate.vector(SCHEMA, "bm25", ([7, 3], [1.0, 2.0]))
    assert (sparse.indices, sparse.values) == ([7, 3], [1.0, 2.0])
    assert validate.vector(SCHEMA, "bm25", ([], [])).indices == []


def test_the_vector_forms_of_older_clients_are_read() -> None:
    assert values.vector(api.Vector(data=[1.0, 2.0])) == [1.0, 2.0]
    assert values.vector(api.Vector(data=[1.0], indices=api.SparseIndices(data=[9]))) == ([9], [1.0])


def test_texts_are_not_embedded_here() -> None:
    with pytest.raises(Unsupported, match="Inference"):
        values.vector(api.Vector(document=api.Document(text="a", model="b")))


def test_ids_are_numbers_or_uuids() -> None:
    identity = UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
    assert values.point_id(api.PointId(num=2**64 - 1)) == 2**64 - 1
    assert values.point_id(api.PointId(uuid=str(identity))) == identity
    assert values.id_message(identity).uuid == str(identity)
    for bad in (api.PointId(uuid="x"), api.PointId()):
        with pytest.raises(BadRequest):
            values.point_id(bad)


@pytest.mark.parametrize(
    "change",
    [
        {"collection_name": "a/b"},
        {"vectors_config": api.VectorsConfig(params=api.VectorParams(size=0, distance=api.Distance.Dot))},
        {"vectors_config": api.VectorsConfig(params=api.VectorParams(size=65_537, distance=api.Distance.Dot))},
        {"vectors_config": api.VectorsConfig(params=api.VectorParams(size=4))},
    ],
)
def test_a_collection_that_the_real_server_refuses_is_refused(change: dict[str, Any]) -> None:
    wrong = spec()
    wrong.MergeFrom(api.CreateCollection(**change))
    with pytest.raises(BadRequest):
        check_spec(wrong)


def test_what_would_be_ignored_is_refused_instead() -> None:
    for field, value in (
        ("strict_mode_config", api.StrictModeConfig(enabled=True)),
        ("sharding_method", api.ShardingMethod.Custom),
    ):
        with pytest.raises(Unsupported):
            check_spec(api.CreateCollection(**{"collection_name": "a", field: value}))


def test_the_schema_of_a_collection_says_what_its_vectors_are() -> None:
    assert schema(spec()) == Schema(dense={"dense": 4}, multi={}, sparse=frozenset({"bm25"}))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_a_payload_comes_back_as_it_went(content: dict[str, Any]) -> None:
    message = api.PointStruct()
    values.write_payload(content, message.payload)
    read = values.payload(api.PointStruct.FromString(message.SerializeToString()).payload)
    assert json.dumps(read, sort_keys=True) == json.dumps(content, sort_keys=True)  # 1, 1.0 and True are three things


def test_a_payload_number_is_finite() -> None:
    with pytest.raises(BadRequest, match="finite"):
        values.json_value(api.Value(double_value=NOT_A_NUMBER))


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            Exception("Vector dimension error: expected dim: 4, got 3"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "Wrong input: Vector dimension error: expected dim: 4, got 3",
        ),
        (Exception("No point with id 7"), grpc.StatusCode.NOT_FOUND, "Not found: No point with id 7 found"),
        (
            Exception("Service runtime error: IO Error: No space left on device"),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Service internal error: No space left on device: Service runtime error: IO Error: No space left on device",
        ),
        (ValueError("invalid JSON path a["), grpc.StatusCode.INVALID_ARGUMENT, "Wrong input: invalid JSON path a["),
        (KeyError("x"), grpc.StatusCode.INTERNAL, "Service internal error: KeyError('x')"),
    ],
)
def test_errors_of_the_engine_become_the_servers(error: Exception, status: grpc.StatusCode, message: str) -> None:
    refused = translate(error)
    assert (refused.status, str(refused)) == (status, message)


# -- updates ----------------------------------------------------------------------------------------------------------


def test_an_upsert_is_cut_so_that_searches_get_their_turn() -> None:
    change = changes.change("Upsert", upsert(*range(150)), schema(spec()))
    assert [operation.points for operation in change.operations] == [64, 64, 22]


def test_an_update_without_a_selector_is_refused() -> None:
    for kind in ("Delete", "SetPayload", "OverwritePayload", "DeletePayload", "ClearPayload", "DeleteVectors"):
        request = {
            "Delete": api.DeletePoints(),
            "SetPayload": api.SetPayloadPoints(),
            "OverwritePayload": api.SetPayloadPoints(),
            "DeletePayload": api.DeletePayloadPoints(),
            "ClearPayload": api.ClearPayloadPoints(),
            "DeleteVectors": api.DeletePointVectors(),
        }[kind]
        with pytest.raises(BadRequest, match=r"^PointSelector is missing$"):
            changes.change(kind, request, SCHEMA)


def test_a_delta_gives_back_what_was_written_and_leaves_an_unfinished_record(tmp_path: Path) -> None:
    books = schema(spec())
    path = tmp_path / "delta"
    with path.open("wb") as delta:
        changes.write_record(delta, changes.change("Upsert", upsert(1, 2), books))
        selector = api.PointsSelector(points=api.PointsIdsList(ids=[api.PointId(num=1)]))
        changes.write_record(delta, changes.change("Delete", api.DeletePoints(points=selector), books))
        whole = delta.tell()
        changes.write_record(delta, changes.change("Upsert", upsert(3), books))
        end = delta.tell()
    complete = path.read_bytes()

    for cut in range(whole, end):
        path.write_bytes(complete[:cut])
        with path.open("rb") as delta:
            read = list(changes.read_records(delta, books))
            assert [(change.kind, offset) for change, offset in read][-1] == ("Delete", whole)
            assert delta.tell() == whole
            with path.open("ab") as more:
                more.write(complete[cut:])
            assert [change.kind for change, _ in changes.read_records(delta, books)] == ["Upsert"]


def test_reading_a_delta_ends_although_a_writer_goes_on(tmp_path: Path) -> None:
    books = schema(spec())
    change = changes.change("Upsert", upsert(1), books)
    with (tmp_path / "delta").open("wb") as delta, (tmp_path / "delta").open("rb") as reader:
        changes.write_record(delta, change)
        rounds = 0
        for _ in changes.read_records(reader, books):
            changes.write_record(delta, change)
            rounds += 1
        assert rounds == 1


def test_a_copy_keeps_its_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep").mkdir(parents=True)
    with (source / "deep" / "holes").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"middle")
        file.truncate(20_000_000)
    (source / "empty").touch()

    copy_tree(source, target, lambda: False)

    copied = target / "deep" / "holes"
    assert copied.read_bytes() == (source / "deep" / "holes").read_bytes()
    assert (target / "empty").stat().st_size == 0
    assert copied.stat().st_blocks * 512 < 1_000_000


# -- queries ----------------------------------------------------------------------------------------------------------


def read(query: api.QueryPoints, stored: dict[Any, Any] | None = None) -> edge.QueryRequest:
    return QueryReader(SCHEMA, lambda point, _: (stored or {}).get(point)).request(query)


def test_a_query_is_checked_like_an_update() -> None:
    wrong = api.VectorInput(sparse=api.SparseVector(indices=[1, 1], values=[1, 1]))
    inner = api.PrefetchQuery(query=api.Query(nearest=wrong), using="bm25")
    with pytest.raises(BadRequest, match="must be unique"):
        read(api.QueryPoints(prefetch=[api.PrefetchQuery(prefetch=[inner])]))
    with pytest.raises(BadRequest, match="limit: value 0 invalid"):
        read(api.QueryPoints(prefetch=[api.PrefetchQuery(limit=0)]))


def test_what_the_engine_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="`formula`"):
        read(api.QueryPoints(query=api.Query(formula=api.Formula())))
    with pytest.raises(Unsupported, match="lookup_from"):
        read(api.QueryPoints(lookup_from=api.LookupLocation(collection_name="x")))


def test_limits_default_to_ten() -> None:
    assert read(api.QueryPoints()).limit == 10


def test_bytes_of_a_record_are_written_at_once() -> None:
    class Counting(io.BytesIO):
        writes = 0

        def write(self, content: Any, /) -> int:
            Counting.writes += 1
            return super().write(content)

    changes.write_record(Counting(), changes.change("Upsert", upsert(1), schema(spec())))
    assert Counting.writes == 1
