"""What every vector store promises of searches and filters."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from vector_points import DIMENSIONS, EAST, NORTH, found, id_of, numbers, point

from pipeline.errors import InvalidFilter, InvalidRequest
from pipeline.vectors.base import Filters, VectorStore
from pipeline.vectors.filters import field_path

# Search


def test_dense_search_scores_by_cosine(store: VectorStore, collection: str) -> None:
    store.upsert(collection, [point(1, NORTH), point(2, [5.0, 5.0, 0.0, 0.0]), point(3, [2.0, 0.0, 0.0, 0.0])])
    hits = found(store, collection, [7.0, 0.0, 0.0, 0.0])
    assert numbers(hits) == [3, 2, 1]
    assert [score for _, score in hits] == pytest.approx([1.0, math.sqrt(0.5), 0.0], abs=1e-5)
    assert found(store, collection, EAST, limit=1) == hits[:1]


def test_sparse_search_scores_by_bm25_with_the_rarity_of_terms_in_the_collection(
    store: VectorStore, collection: str
) -> None:
    store.upsert(
        collection,
        [point(1, sparse={10: 1.5, 11: 0.5}), point(2, sparse={10: 0.7}), point(3, sparse={12: 1.0}), point(4)],
    )
    hits = found(store, collection, sparse={10: 1.0, 11: 1.0, 77: 1.0})

    def rarity(having: int, total: int = 3) -> float:
        return math.log((total - having + 0.5) / (having + 0.5) + 1)

    assert numbers(hits) == [1, 2]
    assert [score for _, score in hits] == pytest.approx([1.5 * rarity(2) + 0.5 * rarity(1), 0.7 * rarity(2)], rel=1e-4)


def test_hybrid_search_adds_reciprocal_ranks(store: VectorStore, collection: str) -> None:
    store.upsert(
        collection,
        [
            point(1, EAST, {10: 0.1}),  # first dense, third sparse
            point(2, [0.9, 0.1, 0.0, 0.0], {10: 0.9}),  # second, first
            point(3, [0.8, 0.3, 0.0, 0.0]),  # third, nowhere
            point(4, [0.7, 0.6, 0.0, 0.0], {10: 0.5}),  # fourth, second
        ],
    )
    hits = found(store, collection, EAST, {10: 1.0}, limit=4)
    assert [(number, round(score, 5)) for number, score in hits] == [
        (2, round(1 / 3 + 1 / 2, 5)),
        (1, round(1 / 2 + 1 / 4, 5)),
        (4, round(1 / 5 + 1 / 3, 5)),
        (3, round(1 / 4, 5)),
    ]


def test_a_half_without_a_query_is_left_out(store: VectorStore, collection: str) -> None:
    store.upsert(collection, [point(1, EAST, {10: 1.0}), point(2, NORTH, {10: 2.0})])
    (first, score), *_ = found(store, collection, EAST, {})
    assert (first, round(score, 5)) == (1, 1.0)
    assert numbers(found(store, collection, None, {10: 1.0})) == [2, 1]
    assert found(store, collection, None, {}) == []
    assert found(store, collection, None, None) == []


def test_equal_scores_are_ordered_and_cut_by_id(store: VectorStore, collection: str) -> None:
    store.upsert(collection, [point(number, EAST) for number in (9, 3, 7, 1, 8, 2)])
    assert numbers(found(store, collection, EAST, limit=4)) == [1, 2, 3, 7]


def test_equal_sums_of_ranks_are_ordered_and_cut_by_id_every_time(store: VectorStore, collection: str) -> None:
    # Given four points in one order by meaning and in the reverse order by words: 1 and 4 tie, 2 and 3 tie
    store.upsert(
        collection, [point(number, [1.0, number / 10, 0.0, 0.0], {10: float(number)}) for number in (4, 2, 1, 3)]
    )
    # When we ask several times, then ties fall the same way each time, though the server breaks them by chance
    for _ in range(5):
        assert numbers(found(store, collection, EAST, {10: 1.0}, limit=4)) == [1, 4, 2, 3]
        assert numbers(found(store, collection, EAST, {10: 1.0}, limit=3)) == [1, 4, 2]


def test_excluded_points_make_room_for_the_next(store: VectorStore, collection: str) -> None:
    store.upsert(collection, [point(number, [1.0, number / 10, 0.0, 0.0], {10: 1 / number}) for number in range(1, 8)])
    exclude = (id_of(1), id_of(2), id_of(99))
    assert numbers(found(store, collection, EAST, limit=3, exclude=exclude)) == [3, 4, 5]
    assert numbers(found(store, collection, None, {10: 1.0}, limit=3, exclude=exclude)) == [3, 4, 5]
    assert numbers(found(store, collection, EAST, {10: 1.0}, limit=3, exclude=exclude)) == [3, 4, 5]


def test_a_limit_under_one_is_refused(store: VectorStore, collection: str) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        found(store, collection, EAST, limit=0)


# Filters

SHELF: list[dict[str, Any]] = [
    {"lang": "de", "year": 2020, "price": 1.5, "draft": True, "tags": ["a", "b"], "two words": "x"},
    {"lang": "en", "year": 2021, "price": 2, "draft": False, "tags": ["b"], "two words": "y"},
    {"lang": "fr", "year": 2020, "price": 2.5, "draft": False, "tags": []},
    {"year": 2019},
]


@pytest.fixture(scope="module")
def shelf(store: VectorStore) -> Iterator[str]:
    """A collection that tests only read."""
    collection = f"shelf-{uuid.uuid4().hex}"
    store.ensure_collection(collection, DIMENSIONS)
    store.ensure_fields(
        collection,
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
        collection,
        [
            point(number, EAST, {10: 1.0}, metadata=metadata, uri=f"{number}.md")
            for number, metadata in enumerate(SHELF, start=1)
        ],
    )
    yield collection
    store.drop_collection(collection)


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


def test_a_filter_narrows_each_half_before_they_are_fused(store: VectorStore, collection: str) -> None:
    # Given twenty points of another tenant that both halves like better
    others = [point(number, NORTH, {10: 9.0}, tenant="other") for number in range(100, 120)]
    mine = [point(number, [0.0, 1.0, number / 10, 0.0], {10: 1 / number}, tenant="mine") for number in (1, 2)]
    store.upsert(collection, others + mine)
    # When we ask for two of our own, then they are found though they are in no unfiltered first four
    assert numbers(found(store, collection, NORTH, {10: 1.0}, limit=2, filters={"tenant": "mine"})) == [1, 2]
