"""Queries, filters and configurations of every kind, through the unmodified qdrant-client."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as api
from vector_server import DIMENSIONS, dense_of, make_collection, points, refusal, running, stored_ids, where

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantClient]:
    with running(tmp_path_factory.mktemp("vectors")) as server, server.client() as connected:
        yield connected


@pytest.fixture
def ten(client: QdrantClient) -> Iterator[str]:
    """A collection with the points 0 to 9."""
    make_collection(client, "ten")
    client.upsert("ten", points(range(10)), wait=True)
    yield "ten"
    client.delete_collection("ten")


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
        (where("metadata.even", True), {0, 2, 4, 6, 8}),
        (models.Filter(must=[models.FieldCondition(key="kind", match=models.MatchAny(any=["kind 1"]))]), {1, 4, 7}),
        (models.Filter(must=[models.FieldCondition(key=number, range=models.Range(gte=3, lt=5))]), {3, 4}),
        (models.Filter(must_not=[models.HasIdCondition(has_id=[0, 1, 2, 3, 4, 5, 6])]), {7, 8, 9}),
        (models.Filter(must=[models.HasIdCondition(has_id=[2, 404])]), {2}),
        (models.Filter(should=[where(number, 1), where(number, 8)]), {1, 8}),
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


# -- every kind of query, filter and configuration ---------------------------------------------------------------------

PAIR = models.ContextPair(positive=1, negative=2)
QUERIES: dict[str, tuple[Any, set[int] | None]] = {
    "order": (models.OrderByQuery(order_by=models.OrderBy(key="number", start_from=7)), {7, 8, 9}),
    "sample": (models.SampleQuery(sample=models.Sample.RANDOM), set(range(10))),
    "mmr": (models.NearestQuery(nearest=dense_of(1), mmr=models.Mmr(diversity=0.5)), set(range(10))),
    "discover": (models.DiscoverQuery(discover=models.DiscoverInput(target=3, context=PAIR)), {0, *range(4, 10)}),
    "context": (models.ContextQuery(context=[PAIR]), {0, *range(3, 10)}),
    "best score": (
        models.RecommendQuery(
            recommend=models.RecommendInput(positive=[1], negative=[2], strategy=models.RecommendStrategy.BEST_SCORE)
        ),
        {0, *range(3, 10)},
    ),
    "sum of scores": (
        models.RecommendQuery(
            recommend=models.RecommendInput(positive=[1], strategy=models.RecommendStrategy.SUM_SCORES)
        ),
        {0, *range(2, 10)},
    ),
    "average": (
        models.RecommendQuery(recommend=models.RecommendInput(positive=[1, 2], negative=[3])),
        {0, *range(4, 10)},
    ),
}


@pytest.mark.parametrize("kind", QUERIES)
def test_every_kind_of_query_leaves_out_the_points_that_it_names(client: QdrantClient, ten: str, kind: str) -> None:
    query, found = QUERIES[kind]
    client.create_payload_index(ten, "number", models.PayloadSchemaType.INTEGER, wait=True)
    using = None if kind in ("order", "sample") else "dense"
    assert {hit.id for hit in client.query_points(ten, query=query, using=using, limit=10).points} == found


def test_an_average_recommendation_is_twice_the_liked_less_the_disliked(client: QdrantClient, ten: str) -> None:
    unit = {point: np.asarray(dense_of(point)) / np.linalg.norm(dense_of(point)) for point in range(10)}
    wanted = 2 * (unit[1] + unit[2]) / 2 - unit[3]
    recommend = models.RecommendQuery(recommend=models.RecommendInput(positive=[1, 2], negative=[3]))
    hits = client.query_points(ten, query=recommend, using="dense", limit=10).points
    for hit in hits:
        assert hit.score == pytest.approx(unit[int(hit.id)] @ wanted / np.linalg.norm(wanted), abs=1e-5)


@pytest.mark.parametrize(
    ("fusion", "scores"),
    [
        (models.FusionQuery(fusion=models.Fusion.DBSF), None),
        (models.RrfQuery(rrf=models.Rrf(k=60)), [2 / 60, 1 / 61]),
    ],
)
def test_fusions_other_than_the_default(
    client: QdrantClient, ten: str, fusion: Any, scores: list[float] | None
) -> None:
    term = models.SparseVector(indices=[103], values=[1.0])
    prefetch = [
        models.Prefetch(query=dense_of(3), using="dense", limit=2),
        models.Prefetch(query=term, using="bm25", limit=2),
    ]
    hits = client.query_points(ten, prefetch=prefetch, query=fusion, limit=10).points
    assert (hits[0].id, len(hits)) == (3, 2)
    if scores:
        assert [hit.score for hit in hits] == pytest.approx(scores)


BERLIN, POTSDAM = {"lon": 13.4, "lat": 52.5}, {"lon": 13.06, "lat": 52.4}
PLACES: list[dict[str, Any]] = [
    {"place": BERLIN, "at": "2024-05-01T00:00:00Z", "text": "the quick brown fox", "tags": ["a", "b"]},
    {"place": POTSDAM, "at": "2025-05-01T00:00:00Z", "text": "a lazy dog", "tags": [], "parts": [{"x": 1, "y": 2}]},
    {"text": None, "parts": [{"x": 1, "y": 3}, {"x": 2, "y": 2}]},
]
EXACT = models.FieldCondition
CORNERS = [(13.0, 52.0), (14.0, 52.0), (14.0, 53.0), (13.0, 53.0), (13.0, 52.0)]
FILTERS: dict[str, tuple[models.Condition, set[int]]] = {
    "radius": (
        EXACT(key="place", geo_radius=models.GeoRadius(center=models.GeoPoint(**BERLIN), radius=5000)),
        {0},
    ),
    "box": (
        EXACT(
            key="place",
            geo_bounding_box=models.GeoBoundingBox(
                top_left=models.GeoPoint(lon=13.0, lat=52.45), bottom_right=models.GeoPoint(lon=13.2, lat=52.3)
            ),
        ),
        {1},
    ),
    "polygon": (
        EXACT(
            key="place",
            geo_polygon=models.GeoPolygon(
                exterior=models.GeoLineString(points=[models.GeoPoint(lon=lon, lat=lat) for lon, lat in CORNERS])
            ),
        ),
        {0, 1},
    ),
    "date": (EXACT(key="at", range=models.DatetimeRange(gte=datetime(2025, 1, 1, tzinfo=UTC))), {1}),
    "count": (EXACT(key="tags", values_count=models.ValuesCount(gte=1)), {0}),
    "empty": (models.IsEmptyCondition(is_empty=models.PayloadField(key="tags")), {1, 2}),
    "null": (models.IsNullCondition(is_null=models.PayloadField(key="text")), {2}),
    "vector": (models.HasVectorCondition(has_vector="bm25"), {0}),
    "nested": (
        models.NestedCondition(
            nested=models.Nested(
                key="parts",
                filter=models.Filter(
                    must=[
                        EXACT(key="x", match=models.MatchValue(value=1)),
                        EXACT(key="y", match=models.MatchValue(value=2)),
                    ]
                ),
            )
        ),
        {1},
    ),
    "except": (EXACT(key="tags[]", match=models.MatchExcept(**{"except": ["a"]})), {0}),
    "text": (EXACT(key="text", match=models.MatchText(text="fox quick")), {0}),
    "phrase": (EXACT(key="text", match=models.MatchPhrase(phrase="lazy dog")), {1}),
    "any word": (EXACT(key="text", match=models.MatchTextAny(text_any="dog brown")), {0, 1}),
}


@pytest.fixture(scope="module")
def places(client: QdrantClient) -> str:
    make_collection(client, "places")
    words = models.TextIndexParams(
        type=models.TextIndexType.TEXT, tokenizer=models.TokenizerType.WORD, lowercase=True, phrase_matching=True
    )
    client.create_payload_index("places", "text", words, wait=True)
    client.create_payload_index("places", "place", models.PayloadSchemaType.GEO, wait=True)
    client.create_payload_index("places", "at", models.DatetimeIndexParams(type="datetime"), wait=True)
    sparse = models.SparseVector(indices=[1], values=[1.0])
    vectors = [{"dense": dense_of(0), "bm25": sparse}, {"dense": dense_of(1)}, {"dense": dense_of(2)}]
    client.upsert(
        "places",
        [
            models.PointStruct(id=point, vector=vector, payload=payload)
            for point, (vector, payload) in enumerate(zip(vectors, PLACES, strict=True))
        ],
    )
    return "places"


@pytest.mark.parametrize("kind", FILTERS)
def test_every_kind_of_condition_chooses_its_points(client: QdrantClient, places: str, kind: str) -> None:
    condition, chosen = FILTERS[kind]
    found, _ = client.scroll(places, models.Filter(must=[condition]), limit=10, with_payload=False)
    assert {record.id for record in found} == chosen


def test_a_minimum_of_conditions(client: QdrantClient, ten: str) -> None:
    conditions = [where("kind", "kind 0"), where("metadata.even", True), where("number", 6)]
    two = models.Filter(min_should=models.MinShould(conditions=conditions, min_count=2))
    assert client.count(ten, two).count == len({0, 6})


@pytest.mark.parametrize(
    "quantization",
    [
        models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99)),
        models.ProductQuantization(product=models.ProductQuantizationConfig(compression=models.CompressionRatio.X4)),
        models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True)),
    ],
)
def test_quantized_collections_are_made_and_searched(client: QdrantClient, quantization: Any) -> None:
    make_collection(client, "small", quantization_config=quantization)
    client.upsert("small", points(range(50)), wait=True)
    params = models.SearchParams(quantization=models.QuantizationSearchParams(rescore=True, oversampling=2.0))
    hits = client.query_points("small", query=dense_of(7), using="dense", limit=1, search_params=params).points
    assert hits[0].id == 7
    assert type(client.get_collection("small").config.quantization_config) is type(quantization)
    client.delete_collection("small")


def test_unnamed_and_multi_vectors(client: QdrantClient) -> None:
    client.create_collection("plain", models.VectorParams(size=DIMENSIONS, distance=models.Distance.DOT))
    client.upsert("plain", [models.PointStruct(id=1, vector=dense_of(1))], wait=True)
    assert client.query_points("plain", query=dense_of(1), limit=1).points[0].id == 1
    (record,) = client.retrieve("plain", [1], with_vectors=True)
    assert record.vector == pytest.approx(dense_of(1))
    client.delete_collection("plain")

    late = models.VectorParams(
        size=2,
        distance=models.Distance.COSINE,
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
    )
    client.create_collection("late", {"late": late})
    rows = [[1.0, 0.0], [0.0, 1.0]]
    client.upsert("late", [models.PointStruct(id=1, vector={"late": rows})], wait=True)
    hit = client.query_points("late", query=rows, using="late", limit=1, with_vectors=True).points[0]
    assert (hit.score, hit.vector) == (2.0, {"late": rows})
    client.delete_collection("late")


def test_an_upsert_may_only_insert_or_only_update(client: QdrantClient, ten: str) -> None:
    def upsert(mode: Any) -> None:
        structs = [
            api.PointStruct(
                id=api.PointId(num=point),
                vectors=api.Vectors(
                    vectors=api.NamedVectors(vectors={"dense": api.Vector(dense=api.DenseVector(data=dense_of(point)))})
                ),
                payload={"mode": api.Value(integer_value=mode)},
            )
            for point in (9, 10 + mode)
        ]
        client.grpc_points.Upsert(api.UpsertPoints(collection_name=ten, points=structs, update_mode=mode, wait=True))

    upsert(api.UpdateMode.InsertOnly)
    upsert(api.UpdateMode.UpdateOnly)

    assert stored_ids(client, ten) == {*range(10), 11}
    assert [record.payload for record in client.retrieve(ten, [9, 11])] == [{"mode": 2}, {"mode": 1}]
