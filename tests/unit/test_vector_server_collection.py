"""One collection of the vector server, in this process: readers, panics, copies."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
import qdrant_edge as edge
from qdrant_client import grpc as api

from workers.embedded.vector_server import changes, validate
from workers.embedded.vector_server.collection import Collection
from workers.embedded.vector_server.errors import AlreadyExists, Broken, NotFound, Stopping
from workers.embedded.vector_server.store import Store


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


@pytest.fixture
def collection(tmp_path: Path) -> Any:
    Collection.create(tmp_path / "books", spec())
    opened = Collection(tmp_path / "books", optimize_at=100)
    yield opened
    opened.close()


def test_a_panic_of_the_engine_ends_this_collection_with_a_clear_error(
    collection: Collection, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Given a query that panics, let in past the validation
    two = validate.sparse_vector(([1, 2], [1.0, 1.0]))
    collection.apply([changes.change("Upsert", upsert(1), collection.schema)])
    bad = edge.SparseVector([1, 2], [1.0])
    request = edge.QueryRequest(limit=1, query=edge.Query.Nearest(bad, using="bm25"))

    # When it is asked
    with (
        pytest.raises(Broken, match=r"Collection `books` is not served: .*Restart the vector server") as raised,
        collection.reading() as engine,
    ):
        engine.query(request)

    # Then nothing is served any more, and the next start has all of it
    assert raised.value.status is grpc.StatusCode.INTERNAL
    with pytest.raises(Broken), collection.reading():
        pass
    with pytest.raises(Broken):
        collection.apply([changes.change("Upsert", upsert(2), collection.schema)])
    assert not collection.due
    collection.close()
    again = Collection(tmp_path / "books", optimize_at=100)
    with again.reading() as engine:
        assert engine.count(edge.CountRequest()) == 1
        (hit,) = engine.query(edge.QueryRequest(limit=1, query=edge.Query.Nearest(two, using="bm25")))
        assert (hit.id, hit.score) == (1, 1.0)
    again.close()
    assert "panicked" in capfd.readouterr().err


def refused_as_stopping(collection: Collection) -> bool:
    try:
        collection.apply([])
    except Stopping:  # never "not found": who hears that takes the points for deleted
        return True
    return False


def test_a_shard_is_not_closed_under_a_reader(collection: Collection) -> None:
    collection.apply([changes.change("Upsert", upsert(1, 2, 3), collection.schema)])
    closing = threading.Thread(target=collection.close)
    with collection.reading() as engine:
        closing.start()
        while not refused_as_stopping(collection):
            time.sleep(0.001)
        assert engine.count(edge.CountRequest()) == 3
        assert closing.is_alive()
    closing.join(60)
    assert not closing.is_alive()


def test_a_point_that_a_change_needs_must_be_there(collection: Collection) -> None:
    selector = api.PointsSelector(points=api.PointsIdsList(ids=[api.PointId(num=1), api.PointId(num=404)]))
    payload = {"a": api.Value(integer_value=1)}
    request = api.SetPayloadPoints(points_selector=selector, payload=payload)
    collection.apply([changes.change("Upsert", upsert(1), collection.schema)])

    with pytest.raises(NotFound, match=r"^Not found: No point with id 404 found$"):
        collection.apply([changes.change("SetPayload", request, collection.schema)])

    with collection.reading() as engine:
        assert engine.retrieve([1], True, False)[0].payload == {}


def test_a_copy_that_missed_a_change_is_not_taken_over(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    copy = collection.start_copy(lambda: False)
    monkeypatch.setattr("workers.embedded.vector_server.collection.write_record", full)
    collection.apply([changes.change("Upsert", upsert(1), collection.schema)])

    assert collection.take_over(copy, 0) is False

    collection.abandon(copy)
    with collection.reading() as engine:
        assert engine.count(edge.CountRequest()) == 1
    assert not copy.directory.exists()


def test_an_abandoned_copy_is_due_again(collection: Collection) -> None:
    collection.apply([changes.change("Upsert", upsert(*range(100)), collection.schema)])
    assert collection.due
    copy = collection.start_copy(lambda: False)
    assert not collection.due
    collection.abandon(copy)
    assert collection.due
    assert sorted(path.name for path in collection.root.iterdir())[:1] == ["collection.pb"]
    assert len(os.listdir(collection.root)) == 3


def test_a_collection_that_cannot_be_read_is_there_and_broken_until_it_is_dropped(tmp_path: Path) -> None:
    strange = tmp_path / "collections" / "books"
    strange.mkdir(parents=True)
    (strange / "collection.pb").write_bytes(b"\xff\xff\xff")
    store = Store(tmp_path, optimize_at=100)
    with pytest.raises(Broken, match="Collection `books` is not served"), store.get("books").reading():
        pass
    with pytest.raises(AlreadyExists):
        store.create(spec())
    assert strange.exists()
    assert store.drop("books") is True
    store.create(spec())
    with store.get("books").reading() as engine:
        assert engine.count(edge.CountRequest()) == 0
    store.close()
