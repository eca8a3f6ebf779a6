"""What every vector store promises: run against the in-memory one and the vector server (a real Qdrant too, where
MILLRACE_TEST_QDRANT_URL names one: then `qdrant_url` is its address)."""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from pipeline.errors import CollectionMismatch, InvalidFilter, InvalidRequest, LeaseLost, VectorsRejected
from pipeline.settings import QdrantSettings
from pipeline.testing import MemoryVectorStore
from pipeline.vectors.base import Filters, Point, VectorStore
from pipeline.vectors.filters import field_path
from pipeline.vectors.qdrant import QdrantStore
from pipeline.vectors.sparse import SparseVector

DIMENSIONS = 4
NOTHING = SparseVector([], [])
BULK = 10


@pytest.fixture(params=["memory", "server"])
def store(request: pytest.FixtureRequest) -> Iterator[VectorStore]:
    if request.param == "memory":
        yield MemoryVectorStore()
        return
    url = request.getfixturevalue("qdrant_url")
    opened = QdrantStore(QdrantSettings.model_validate({"url": url, "upsert_points": BULK, "upserts_in_flight": 3}))
    yield opened
    opened.close()


@pytest.fixture
def name(store: VectorStore) -> Iterator[str]:
    """A collection of four dimensions, empty."""
    collection = f"contract-{uuid.uuid4().hex}"
    store.ensure_collection(collection, DIMENSIONS)
    yield collection
    store.drop_collection(collection)


def id_of(number: int) -> UUID:
    return UUID(int=number)


def point(
    number: int,
    dense: list[float] | None = None,
    sparse: dict[int, float] | None = None,
    **payload: Any,
) -> Point:
    terms = sorted((sparse or {}).items())
    vector = [1.0, 0.0, 0.0, 0.0] if dense is None else dense
    return Point(
        id_of(number),
        np.array(vector, dtype=np.float32),
        SparseVector([index for index, _ in terms], [value for _, value in terms]),
        {"tenant": "default", "document": number, "version": number + 100, **payload},
    )


def found(
    store: VectorStore,
    name: str,
    dense: list[float] | None = None,
    sparse: dict[int, float] | None = None,
    *,
    limit: int = 10,
    filters: Filters | None = None,
    exclude: tuple[UUID, ...] = (),
) -> list[tuple[int, float]]:
    """(number, score) of the hits."""
    query = None if sparse is None else SparseVector(list(sparse), list(sparse.values()))
    hits = store.search(
        name,
        None if dense is None else np.array(dense, dtype=np.float32),
        query,
        limit=limit,
        filters=filters or {},
        exclude=exclude,
    )
    return [(hit.id.int, hit.score) for hit in hits]


def numbers(hits: list[tuple[int, float]]) -> list[int]:
    return [number for number, _ in hits]


EAST, NORTH = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]


# Points


def test_a_point_comes_back_with_its_whole_payload(store: VectorStore, name: str) -> None:
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
    store.upsert(name, [point(1, EAST, **payload)])
    (hit,) = store.search(name, np.array(EAST, dtype=np.float32), None, limit=1, filters={})
    assert hit.id == id_of(1)
    assert hit.payload == {"tenant": "default", "document": 1, "version": 101, **payload}


def test_an_id_that_is_upserted_again_is_replaced(store: VectorStore, name: str) -> None:
    store.upsert(name, [point(1, EAST, {5: 1.0}, title="old", draft=True)])
    store.upsert(name, [point(1, NORTH, title="new")])
    assert store.count(name) == 1
    (hit,) = store.search(name, np.array(NORTH, dtype=np.float32), None, limit=5, filters={})
    assert hit.score == pytest.approx(1.0)
    assert hit.payload["title"] == "new"
    assert "draft" not in hit.payload
    assert found(store, name, sparse={5: 1.0}) == []


def test_a_large_upsert_is_applied_whole_and_tells_its_progress(store: VectorStore, name: str) -> None:
    progress: list[int] = []
    store.upsert(name, [point(number) for number in range(1, 96)], progress.append)
    assert store.count(name) == 95
    assert progress == sorted(progress)
    assert progress[-1] == 95


def test_what_progress_raises_stops_the_upsert(store: VectorStore, name: str) -> None:
    def stop(done: int) -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        store.upsert(name, [point(number) for number in range(1, 96)], stop)
    written = store.count(name)
    # Nothing is under way any more: what is there now is all that will be.
    store.upsert(name, [point(1)])
    assert store.count(name) in (written, written + 1)


def test_nothing_is_upserted_or_deleted_without_a_request(store: VectorStore) -> None:
    store.upsert("no-such-collection", [])
    store.delete("no-such-collection", [])


def test_deleted_points_are_gone_and_missing_ones_are_no_error(store: VectorStore, name: str) -> None:
    store.upsert(name, [point(number) for number in range(1, 6)])
    store.delete(name, [id_of(2), id_of(4), id_of(99)])
    assert numbers(found(store, name, EAST)) == [1, 3, 5]
    store.delete(name, [id_of(2)])
    assert store.count(name) == 3


def test_vectors_come_back_normalised(store: VectorStore, name: str) -> None:
    store.upsert(name, [point(1, [3.0, 4.0, 0.0, 0.0]), point(2, NORTH), point(3)])
    vectors = store.vectors(name, [id_of(1), id_of(2), id_of(99)])
    assert set(vectors) == {id_of(1), id_of(2)}
    assert vectors[id_of(1)].dtype == np.float32
    np.testing.assert_allclose(vectors[id_of(1)], [0.6, 0.8, 0, 0], atol=1e-6)


def test_a_scroll_shows_every_point_once_with_version_and_document(store: VectorStore, name: str) -> None:
    store.upsert(name, [point(number, text="long") for number in range(1, 26)])
    pages = list(store.scroll(name, page=10))
    assert [len(page) for page in pages] == [10, 10, 5]
    assert {id.int: payload for page in pages for id, payload in page} == {
        number: {"document": number, "version": number + 100} for number in range(1, 26)
    }


# What is refused


@pytest.mark.parametrize("dense", [[1.0, 0.0, 0.0], [1.0] * 5])
def test_a_vector_of_another_dimension_is_rejected_by_name(store: VectorStore, name: str, dense: list[float]) -> None:
    with pytest.raises(VectorsRejected) as error:
        store.upsert(name, [point(1), point(2, dense)])
    assert name in str(error.value)
    assert f"expected dim: 4, got {len(dense)}" in str(error.value)
    assert store.count(name) == 0
    with pytest.raises(VectorsRejected, match=name):
        found(store, name, dense)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_vector_that_is_not_finite_is_rejected_by_id(store: VectorStore, name: str, number: float) -> None:
    with pytest.raises(VectorsRejected, match=str(id_of(7))):
        store.upsert(name, [point(7, [number, 0.0, 0.0, 1.0])])
    assert store.count(name) == 0


@pytest.mark.parametrize("sparse", [SparseVector([1, 2], [1.0]), SparseVector([1, 1], [1.0, 2.0])])
def test_a_sparse_vector_that_does_not_add_up_is_rejected(store: VectorStore, name: str, sparse: SparseVector) -> None:
    broken = Point(id_of(1), np.array(EAST, dtype=np.float32), sparse, {"document": 1})
    with pytest.raises(VectorsRejected, match=name):
        store.upsert(name, [broken])
    store.upsert(name, [point(2)])
    assert store.count(name) == 1


@pytest.mark.parametrize("value", [2**64, "\ud800", object(), {"x": {1, 2}}])
def test_a_payload_that_is_no_json_is_rejected_by_id(store: VectorStore, name: str, value: object) -> None:
    with pytest.raises(VectorsRejected, match=str(id_of(7))):
        store.upsert(name, [point(7, value=value)])


def test_a_missing_collection_holds_nothing_and_takes_nothing(store: VectorStore) -> None:
    missing = f"missing-{uuid.uuid4().hex}"
    assert found(store, missing, EAST) == []
    assert found(store, missing, EAST, {1: 1.0}) == []
    assert store.count(missing) == 0
    assert list(store.scroll(missing)) == []
    assert store.vectors(missing, [id_of(1)]) == {}
    store.delete(missing, [id_of(1)])
    assert store.drop_collection(missing) is False
    with pytest.raises(VectorsRejected, match=missing):
        store.upsert(missing, [point(1)])
    with pytest.raises(VectorsRejected, match=missing):
        store.ensure_fields(missing, {"metadata.lang": "keyword"})


# Collections


def test_a_collection_is_made_once(store: VectorStore, name: str) -> None:
    store.upsert(name, [point(1)])
    store.ensure_collection(name, DIMENSIONS)
    assert store.count(name) == 1


def test_a_collection_of_other_dimensions_is_refused_naming_both(store: VectorStore, name: str) -> None:
    with pytest.raises(CollectionMismatch) as error:
        store.ensure_collection(name, 8)
    assert name in str(error.value)
    assert "4 dimensions" in str(error.value)
    assert "8" in str(error.value)


def test_a_dropped_collection_is_made_anew(store: VectorStore, name: str) -> None:
    store.upsert(name, [point(1)])
    assert store.drop_collection(name) is True
    store.ensure_collection(name, 2)
    assert store.count(name) == 0


def test_many_can_make_one_collection_at_once(store: VectorStore) -> None:
    collection = f"race-{uuid.uuid4().hex}"
    together = threading.Barrier(6)

    def make() -> None:
        together.wait(timeout=20)
        store.ensure_collection(collection, DIMENSIONS)
        store.ensure_fields(collection, {"metadata.lang": "keyword"})

    with ThreadPoolExecutor(6) as threads:
        for one in [threads.submit(make) for _ in range(6)]:
            one.result()
    store.upsert(collection, [point(1, metadata={"lang": "de"})])
    assert numbers(found(store, collection, EAST, filters={"metadata.lang": "de"})) == [1]
    store.drop_collection(collection)


def test_a_field_keeps_the_type_that_it_was_indexed_with(store: VectorStore, name: str) -> None:
    store.ensure_fields(name, {"metadata.year": "integer"})
    store.ensure_fields(name, {"metadata.year": "integer"})
    with pytest.raises(VectorsRejected) as error:
        store.ensure_fields(name, {"metadata.year": "keyword"})
    assert "metadata.year" in str(error.value)
    assert "integer" in str(error.value)


# Search


def test_dense_search_scores_by_cosine(store: VectorStore, name: str) -> None:
    store.upsert(name, [point(1, NORTH), point(2, [5.0, 5.0, 0.0, 0.0]), point(3, [2.0, 0.0, 0.0, 0.0])])
    hits = found(store, name, [7.0, 0.0, 0.0, 0.0])
    assert numbers(hits) == [3, 2, 1]
    assert [score for _, score in hits] == pytest.approx([1.0, math.sqrt(0.5), 0.0], abs=1e-5)
    assert found(store, name, EAST, limit=1) == hits[:1]


def test_sparse_search_scores_by_bm25_with_the_rarity_of_terms_in_the_collection(store: VectorStore, name: str) -> None:
    store.upsert(
        name,
        [point(1, sparse={10: 1.5, 11: 0.5}), point(2, sparse={10: 0.7}), point(3, sparse={12: 1.0}), point(4)],
    )
    hits = found(store, name, sparse={10: 1.0, 11: 1.0, 77: 1.0})

    def rarity(having: int, total: int = 3) -> float:
        return math.log((total - having + 0.5) / (having + 0.5) + 1)

    assert numbers(hits) == [1, 2]
    assert [score for _, score in hits] == pytest.approx([1.5 * rarity(2) + 0.5 * rarity(1), 0.7 * rarity(2)], rel=1e-4)


def test_hybrid_search_adds_reciprocal_ranks(store: VectorStore, name: str) -> None:
    store.upsert(
        name,
        [
            point(1, EAST, {10: 0.1}),  # first dense, third sparse
            point(2, [0.9, 0.1, 0.0, 0.0], {10: 0.9}),  # second, first
            point(3, [0.8, 0.3, 0.0, 0.0]),  # third, nowhere
            point(4, [0.7, 0.6, 0.0, 0.0], {10: 0.5}),  # fourth, second
        ],
    )
    hits = found(store, name, EAST, {10: 1.0}, limit=4)
    assert [(number, round(score, 5)) for number, score in hits] == [
        (2, round(1 / 3 + 1 / 2, 5)),
        (1, round(1 / 2 + 1 / 4, 5)),
        (4, round(1 / 5 + 1 / 3, 5)),
        (3, round(1 / 4, 5)),
    ]


def test_a_half_without_a_query_is_left_out(store: VectorStore, name: str) -> None:
    store.upsert(name, [point(1, EAST, {10: 1.0}), point(2, NORTH, {10: 2.0})])
    (first, score), *_ = found(store, name, EAST, {})
    assert (first, round(score, 5)) == (1, 1.0)
    assert numbers(found(store, name, None, {10: 1.0})) == [2, 1]
    assert found(store, name, None, {}) == []
    assert found(store, name, None, None) == []


def test_equal_scores_are_ordered_and_cut_by_id(store: VectorStore, name: str) -> None:
    store.upsert(name, [point(number, EAST) for number in (9, 3, 7, 1, 8, 2)])
    assert numbers(found(store, name, EAST, limit=4)) == [1, 2, 3, 7]


def test_equal_sums_of_ranks_are_ordered_and_cut_by_id_every_time(store: VectorStore, name: str) -> None:
    # Given four points in one order by meaning and in the reverse order by words: 1 and 4 tie, 2 and 3 tie
    store.upsert(name, [point(number, [1.0, number / 10, 0.0, 0.0], {10: float(number)}) for number in (4, 2, 1, 3)])
    # When we ask several times, then ties fall the same way each time, though the server breaks them by chance
    for _ in range(5):
        assert numbers(found(store, name, EAST, {10: 1.0}, limit=4)) == [1, 4, 2, 3]
        assert numbers(found(store, name, EAST, {10: 1.0}, limit=3)) == [1, 4, 2]


def test_excluded_points_make_room_for_the_next(store: VectorStore, name: str) -> None:
    store.upsert(name, [point(number, [1.0, number / 10, 0.0, 0.0], {10: 1 / number}) for number in range(1, 8)])
    exclude = (id_of(1), id_of(2), id_of(99))
    assert numbers(found(store, name, EAST, limit=3, exclude=exclude)) == [3, 4, 5]
    assert numbers(found(store, name, None, {10: 1.0}, limit=3, exclude=exclude)) == [3, 4, 5]
    assert numbers(found(store, name, EAST, {10: 1.0}, limit=3, exclude=exclude)) == [3, 4, 5]


def test_a_limit_under_one_is_refused(store: VectorStore, name: str) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        found(store, name, EAST, limit=0)


# Filters

SHELF: list[dict[str, Any]] = [
    {"lang": "de", "year": 2020, "price": 1.5, "draft": True, "tags": ["a", "b"], "two words": "x"},
    {"lang": "en", "year": 2021, "price": 2, "draft": False, "tags": ["b"], "two words": "y"},
    {"lang": "fr", "year": 2020, "price": 2.5, "draft": False, "tags": []},
    {"year": 2019},
]


@pytest.fixture
def shelf(store: VectorStore, name: str) -> str:
    store.ensure_fields(
        name,
        {
            "metadata.lang": "keyword",
            "metadata.year": "integer",
            "metadata.price": "float",
            "metadata.draft": "bool",
            "metadata.tags": "keyword",
            field_path("metadata", "two words"): "keyword",
        },
    )
    store.upsert(
        name,
        [
            point(number, EAST, {10: 1.0}, metadata=metadata, uri=f"{number}.md")
            for number, metadata in enumerate(SHELF, start=1)
        ],
    )
    return name


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"metadata.lang": "de"}, [1]),
        ({"metadata.lang": "xx"}, []),
        ({"metadata.lang": ["de", "fr", "xx"]}, [1, 3]),
        ({"metadata.lang": []}, []),
        ({"metadata.year": 2020}, [1, 3]),
        ({"metadata.year": [2019, 2021]}, [2, 4]),
        ({"metadata.price": 1.5}, [1]),
        ({"metadata.price": 2.0}, [2]),
        ({"metadata.draft": True}, [1]),
        ({"metadata.draft": False}, [2, 3]),
        ({"metadata.tags": "b"}, [1, 2]),
        ({"metadata.tags": ["a", "c"]}, [1]),
        ({'metadata."two words"': "y"}, [2]),
        ({"metadata.year": 2020, "metadata.draft": False}, [3]),
        ({"tenant": "default", "document": 2}, [2]),
        ({"tenant": "other"}, []),
        ({"version": [101, 104]}, [1, 4]),
        ({"uri": "3.md"}, [3]),
    ],
)
def test_a_filter_keeps_what_equals_its_values(
    store: VectorStore, shelf: str, filters: Filters, expected: list[int]
) -> None:
    assert numbers(found(store, shelf, EAST, filters=filters)) == expected
    assert numbers(found(store, shelf, None, {10: 1.0}, filters=filters)) == expected
    # Ranks within each half are those of equal scores here, so the order of their sums says nothing.
    assert sorted(numbers(found(store, shelf, EAST, {10: 1.0}, filters=filters))) == expected


@pytest.mark.parametrize("value", [None, {"a": 1}, ["a", 1], [True], [1.5], 2**64, "\ud800"])
def test_a_filter_that_cannot_be_asked_is_refused_by_name(store: VectorStore, shelf: str, value: Any) -> None:
    with pytest.raises(InvalidFilter, match=r"metadata\.lang"):
        found(store, shelf, EAST, filters={"metadata.lang": value})


def test_a_filter_narrows_each_half_before_they_are_fused(store: VectorStore, name: str) -> None:
    # Given twenty points of another tenant that both halves like better
    others = [point(number, NORTH, {10: 9.0}, tenant="other") for number in range(100, 120)]
    mine = [point(number, [0.0, 1.0, number / 10, 0.0], {10: 1 / number}, tenant="mine") for number in (1, 2)]
    store.upsert(name, others + mine)
    # When we ask for two of our own, then they are found though they are in no unfiltered first four
    assert numbers(found(store, name, NORTH, {10: 1.0}, limit=2, filters={"tenant": "mine"})) == [1, 2]


# Use


def test_a_store_is_alive_and_can_be_used_after_close(store: VectorStore, name: str) -> None:
    assert store.alive() is True
    store.upsert(name, [point(1)])
    store.close()
    assert store.count(name) == 1
    store.close()
    store.close()


def test_many_threads_write_and_search_at_once(store: VectorStore, name: str) -> None:
    def write(thread: int) -> None:
        store.upsert(name, [point(thread * 100 + number) for number in range(30)])
        assert len(found(store, name, EAST, limit=5)) == 5

    with ThreadPoolExecutor(4) as threads:
        for one in [threads.submit(write, thread) for thread in range(1, 5)]:
            one.result()
    assert store.count(name) == 120
