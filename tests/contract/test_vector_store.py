"""What every vector store promises of points and collections; of searches: test_vector_search.py."""

from __future__ import annotations

import math
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from command_line import eventually
from vector_points import DIMENSIONS, EAST, NORTH, found, id_of, numbers, point

from pipeline.errors import CollectionMismatch, LeaseLost, VectorsRejected
from pipeline.vectors.base import Point, VectorStore
from pipeline.vectors.sparse import SparseVector

# Points


def test_a_point_comes_back_with_its_whole_payload(store: VectorStore, collection: str) -> None:
    payload: dict[str, Any] = {
        "uri": "a.md",
        "ordinal": 3,
        "text": "größer ✓",
        "metadata": {
            "lang": "de",
            "year": 2024,
            "price": 1.5,
            "draft": False,
            "tags": ["a", "b"],
            "none": None,
            "x": {},
        },
        "empty": [],
        "long": 2**62,
    }
    store.upsert(collection, [point(1, EAST, **payload)])
    (hit,) = store.search(collection, np.array(EAST, dtype=np.float32), None, limit=1, filters={})
    assert hit.id == id_of(1)
    assert hit.payload == {"tenant": "default", "document": 1, "version": 101, **payload}


def test_an_id_that_is_upserted_again_is_replaced(store: VectorStore, collection: str) -> None:
    store.upsert(collection, [point(1, EAST, {5: 1.0}, title="old", draft=True)])
    store.upsert(collection, [point(1, NORTH, title="new")])
    assert store.count(collection) == 1
    (hit,) = store.search(collection, np.array(NORTH, dtype=np.float32), None, limit=5, filters={})
    assert hit.score == pytest.approx(1.0)
    assert hit.payload["title"] == "new"
    assert "draft" not in hit.payload
    assert found(store, collection, sparse={5: 1.0}) == []


def test_a_large_upsert_is_applied_whole_and_tells_its_progress(store: VectorStore, collection: str) -> None:
    progress: list[int] = []
    store.upsert(collection, [point(number) for number in range(1, 96)], progress.append)
    assert store.count(collection) == 95
    assert progress == sorted(progress)
    assert progress[-1] == 95


def test_what_progress_raises_stops_the_upsert(store: VectorStore, collection: str) -> None:
    def stop(done: int) -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        store.upsert(collection, [point(number) for number in range(1, 96)], stop)
    written = store.count(collection)
    # Nothing is under way any more: what is there now is all that will be.
    store.upsert(collection, [point(1)])
    assert store.count(collection) in (written, written + 1)


def test_nothing_is_upserted_or_deleted_without_a_request(store: VectorStore) -> None:
    store.upsert("no-such-collection", [])
    store.delete("no-such-collection", [])


def test_deleted_points_are_gone_and_missing_ones_are_no_error(store: VectorStore, collection: str) -> None:
    store.upsert(collection, [point(number) for number in range(1, 6)])
    store.delete(collection, [id_of(2), id_of(4), id_of(99)])
    assert numbers(found(store, collection, EAST)) == [1, 3, 5]
    store.delete(collection, [id_of(2)])
    assert store.count(collection) == 3


def test_vectors_come_back_normalised(store: VectorStore, collection: str) -> None:
    store.upsert(collection, [point(1, [3.0, 4.0, 0.0, 0.0]), point(2, NORTH), point(3)])
    points = store.points(collection, [id_of(1), id_of(2), id_of(99)])
    assert set(points) == {id_of(1), id_of(2)}
    assert points[id_of(1)].dense.dtype == np.float32
    np.testing.assert_allclose(points[id_of(1)].dense, [0.6, 0.8, 0, 0], atol=1e-6)


def test_points_come_back_whole(store: VectorStore, collection: str) -> None:
    payload = {"text": "a", "metadata": {"ratio": 1.0, "count": 2, "tags": ["x", "y"], "done": False}}
    store.upsert(collection, [point(1, NORTH, {7: 0.5, 9: 1.25}, **payload), point(2)])
    points = store.points(collection, [id_of(1), id_of(2)])
    assert points[id_of(1)].sparse == SparseVector([7, 9], [0.5, 1.25])
    assert points[id_of(1)].payload == {"tenant": "default", "document": 1, "version": 101, **payload}
    assert points[id_of(2)].sparse == SparseVector([], [])
    assert store.present(collection, [id_of(2), id_of(99)]) == {id_of(2)}


def test_a_scroll_tells_every_id_once_in_order(store: VectorStore, collection: str) -> None:
    ids = sorted(UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128) for number in range(1, 26))
    store.upsert(collection, [replace(point(number), id=id) for number, id in enumerate(reversed(ids))])
    pages = list(store.scroll(collection, page=10))
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [id for page in pages for id in page] == ids
    assert list(store.scroll(collection, page=10, start=ids[18])) == [ids[18:]]
    assert list(store.scroll(collection, page=10, start=UUID(int=ids[18].int + 1))) == [ids[19:]]


# What is refused


@pytest.mark.parametrize("dense", [[1.0, 0.0, 0.0], [1.0] * 5])
def test_a_vector_of_another_dimension_is_rejected_by_name(
    store: VectorStore, collection: str, dense: list[float]
) -> None:
    with pytest.raises(VectorsRejected) as error:
        store.upsert(collection, [point(1), point(2, dense)])
    assert collection in str(error.value)
    assert f"expected dim: 4, got {len(dense)}" in str(error.value)
    assert store.count(collection) == 0
    with pytest.raises(VectorsRejected, match=collection):
        found(store, collection, dense)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_vector_that_is_not_finite_is_rejected_by_id(store: VectorStore, collection: str, number: float) -> None:
    with pytest.raises(VectorsRejected, match=str(id_of(7))):
        store.upsert(collection, [point(7, [number, 0.0, 0.0, 1.0])])
    assert store.count(collection) == 0


@pytest.mark.parametrize("sparse", [SparseVector([1, 2], [1.0]), SparseVector([1, 1], [1.0, 2.0])])
def test_a_sparse_vector_that_does_not_add_up_is_rejected(
    store: VectorStore, collection: str, sparse: SparseVector
) -> None:
    broken = Point(id_of(1), np.array(EAST, dtype=np.float32), sparse, {"document": 1})
    with pytest.raises(VectorsRejected, match=collection):
        store.upsert(collection, [broken])
    store.upsert(collection, [point(2)])
    assert store.count(collection) == 1


@pytest.mark.parametrize("value", [2**64, "\ud800", object(), {"x": {1, 2}}])
def test_a_payload_that_is_no_json_is_rejected_by_id(store: VectorStore, collection: str, value: object) -> None:
    with pytest.raises(VectorsRejected, match=str(id_of(7))):
        store.upsert(collection, [point(7, value=value)])


def test_a_missing_collection_holds_nothing_and_takes_nothing(store: VectorStore) -> None:
    missing = f"missing-{uuid.uuid4().hex}"
    assert found(store, missing, EAST) == []
    assert found(store, missing, EAST, {1: 1.0}) == []
    assert store.count(missing) == 0
    assert list(store.scroll(missing)) == []
    assert store.points(missing, [id_of(1)]) == {}
    assert store.present(missing, [id_of(1)]) == set()
    assert missing not in store.names()
    store.delete(missing, [id_of(1)])
    assert store.drop_collection(missing) is False
    with pytest.raises(VectorsRejected, match=missing):
        store.upsert(missing, [point(1)])
    with pytest.raises(VectorsRejected, match=missing):
        store.ensure_fields(missing, {"metadata.lang": "keyword"})


# Collections


def test_a_collection_is_made_once(store: VectorStore, collection: str) -> None:
    store.upsert(collection, [point(1)])
    store.ensure_collection(collection, DIMENSIONS)
    assert store.count(collection) == 1


def test_a_collection_is_described(store: VectorStore, collection: str) -> None:
    empty = store.describe(collection)
    store.ensure_fields(collection, {"metadata.lang": "keyword"})
    store.upsert(
        collection, [point(number, EAST, {7: 1.0}, text="words " * 20, metadata={"lang": "en"}) for number in range(30)]
    )
    told = store.describe(collection)

    assert empty is not None
    assert (empty.name, empty.points, empty.vectors, empty.dimensions) == (collection, 0, 0, DIMENSIONS)
    assert told is not None
    assert (told.points, told.vectors, told.dimensions) == (30, 60, DIMENSIONS)
    assert 0 <= told.indexed_vectors <= told.vectors
    assert (told.health, told.optimizer) == ("green", "ok")
    assert told.segments >= 1
    assert told.fields["metadata.lang"] == "keyword"
    assert told.fields["document"] == "integer"
    assert told.vector_bytes >= 30 * DIMENSIONS * 4
    assert 30 * 120 < told.payload_bytes < 30 * 400
    assert told.bytes > empty.bytes
    store.drop_collection(collection)
    assert store.describe(collection) is None


def test_a_collection_of_other_dimensions_is_refused_naming_both(store: VectorStore, collection: str) -> None:
    with pytest.raises(CollectionMismatch) as error:
        store.ensure_collection(collection, 8)
    assert collection in str(error.value)
    assert "4 dimensions" in str(error.value)
    assert "8" in str(error.value)


def test_a_dropped_collection_is_made_anew(store: VectorStore, collection: str) -> None:
    store.upsert(collection, [point(1)])
    assert collection in store.names()
    assert store.drop_collection(collection) is True
    assert collection not in store.names()
    asked: list[bool] = []
    assert store.ensure_collection(collection, 2, lambda: asked.append(collection in store.names())) is True
    assert asked == [False], "it is told before there is one again"
    assert store.ensure_collection(collection, 2, lambda: asked.append(True)) is False
    assert asked == [False]
    assert store.count(collection) == 0


def test_many_can_make_one_collection_at_once(store: VectorStore) -> None:
    made = f"race-{uuid.uuid4().hex}"
    together = threading.Barrier(6)

    def make() -> bool:
        together.wait(timeout=60)
        first = store.ensure_collection(made, DIMENSIONS)
        store.ensure_fields(made, {"metadata.lang": "keyword"})
        return first

    with ThreadPoolExecutor(6) as threads:
        assert [one.result() for one in [threads.submit(make) for _ in range(6)]].count(True) == 1
    store.upsert(made, [point(1, metadata={"lang": "de"})])
    assert numbers(found(store, made, EAST, filters={"metadata.lang": "de"})) == [1]
    store.drop_collection(made)


def test_a_field_keeps_the_type_that_it_was_indexed_with(store: VectorStore, collection: str) -> None:
    store.ensure_fields(collection, {"metadata.year": "integer"})
    store.ensure_fields(collection, {"metadata.year": "integer"})
    with pytest.raises(VectorsRejected) as error:
        store.ensure_fields(collection, {"metadata.year": "keyword"})
    assert "metadata.year" in str(error.value)
    assert "integer" in str(error.value)


# Use


def test_a_store_is_alive_and_can_be_used_after_close(store: VectorStore, collection: str) -> None:
    eventually(store.alive)  # it says within two seconds whether it is, which a busy machine may need
    store.upsert(collection, [point(1)])
    store.close()
    assert store.count(collection) == 1
    store.close()
    store.close()


def test_many_threads_write_and_search_at_once(store: VectorStore, collection: str) -> None:
    def write(thread: int) -> None:
        store.upsert(collection, [point(thread * 100 + number) for number in range(30)])
        assert len(found(store, collection, EAST, limit=5)) == 5

    with ThreadPoolExecutor(4) as threads:
        for one in [threads.submit(write, thread) for thread in range(1, 5)]:
            one.result()
    assert store.count(collection) == 120
