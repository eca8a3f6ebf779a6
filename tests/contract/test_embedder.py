"""What every embedder promises: run against the local model, the one without a model that tests use, and OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.embedding.base import Embedder, ModelSpec
from pipeline.embedding.local import LocalEmbedder
from pipeline.embedding.openai.embedder import OpenAIEmbedder
from pipeline.embedding.openai.spec import openai_spec
from pipeline.errors import InvalidRequest
from pipeline.settings import EmbeddingSettings, OpenAISettings, RedisSettings
from pipeline.testing import ConstantEmbedder

TEXTS = [
    "The gate decides how much water reaches the wheel.",
    "Water.",
    "A miller opens the gate in the morning, when the first carts come down from the farms; whoever is late waits.",
    "Die Mühle mahlt langsam – 磨坊 🌾",
]


@pytest.fixture(scope="module", params=["local", "constant", "constant with prefixes", "openai"])
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    if request.param == "openai":
        server = request.getfixturevalue("openai_process")
        settings = OpenAISettings.model_validate({"api_key": server.key, "base_url": server.url, "request_inputs": 32})
        redis = RedisSettings.model_validate({"url": request.getfixturevalue("redis_server").url})
        opened = OpenAIEmbedder(settings, redis, openai_spec(settings))
        yield opened
        opened.close()
    else:
        yield _free(request.param, tmp_path_factory)


def _free(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    if kind == "local":
        small = EmbeddingSettings(min_batch_tokens=16, max_batch_tokens=64)
        return LocalEmbedder(small, tmp_path_factory.mktemp("models"))
    if kind == "constant":
        return ConstantEmbedder()
    return ConstantEmbedder(query_prefix="query: ", passage_prefix="passage: ")


def test_the_spec_survives_its_json(embedder: Embedder) -> None:
    assert ModelSpec.from_json(embedder.spec.to_json()) == embedder.spec


def test_vectors_are_float32_of_the_models_dimensions_and_of_length_one(embedder: Embedder) -> None:
    vectors = embedder.embed(TEXTS).vectors

    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), embedder.spec.dimensions)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_vectors_come_in_the_order_of_the_texts(embedder: Embedder) -> None:
    order = [2, 0, 3, 1]

    vectors = embedder.embed(TEXTS).vectors
    shuffled = embedder.embed([TEXTS[position] for position in order]).vectors

    np.testing.assert_allclose(shuffled, vectors[order], atol=1e-5)
    alone = np.concatenate([embedder.embed([text]).vectors for text in TEXTS])
    np.testing.assert_allclose(alone, vectors, atol=1e-5)


def test_the_same_text_has_the_same_vector_and_another_text_another(embedder: Embedder) -> None:
    vectors = embedder.embed([TEXTS[0], TEXTS[1], TEXTS[0]]).vectors

    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    assert float(vectors[0] @ vectors[1]) < 0.99


def test_no_texts_have_no_vectors_and_no_runs(embedder: Embedder) -> None:
    embedded = embedder.embed([])

    assert embedded.vectors.shape == (0, embedder.spec.dimensions)
    assert embedded.runs == ()
    assert embedder.count_tokens([]) == []


def test_the_runs_account_for_every_text_and_progress_is_told_after_each(embedder: Embedder) -> None:
    told: list[int] = []

    embedded = embedder.embed(TEXTS * 20, on_progress=told.append)

    assert sum(run.texts for run in embedded.runs) == len(TEXTS) * 20
    assert all(run.padded_tokens >= run.texts and run.seconds >= 0 for run in embedded.runs)
    sizes = [run.texts for run in embedded.runs]
    assert told == [sum(sizes[: n + 1]) for n in range(len(sizes))]
    assert len(told) > 1


def test_queries_and_passages_share_vectors_exactly_where_they_share_a_fingerprint(embedder: Embedder) -> None:
    one = embedder.spec.fingerprint("query") == embedder.spec.fingerprint("passage")

    query = embedder.embed([TEXTS[0]], "query").vectors
    passage = embedder.embed([TEXTS[0]], "passage").vectors

    assert np.allclose(query, passage, atol=1e-5) == one


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_an_empty_text_is_refused_by_its_number(embedder: Embedder, empty: str) -> None:
    with pytest.raises(InvalidRequest, match="text 1 is empty"):
        embedder.embed([TEXTS[0], empty])


def test_a_passage_over_the_limit_is_refused_with_its_number_and_tokens(embedder: Embedder) -> None:
    long = "word " * embedder.spec.max_tokens
    (tokens,) = embedder.count_tokens([long])

    with pytest.raises(InvalidRequest, match=f"text 2 has {tokens} tokens, .* takes {embedder.spec.max_tokens}"):
        embedder.embed([*TEXTS[:2], long])


def test_a_passage_of_exactly_the_limit_is_embedded(embedder: Embedder) -> None:
    (overhead,) = embedder.count_tokens([""])
    full = " ".join(["word"] * (embedder.spec.max_tokens - overhead))

    assert embedder.count_tokens([full]) == [embedder.spec.max_tokens]
    assert embedder.embed([full]).vectors.shape == (1, embedder.spec.dimensions)


def test_tokens_are_counted_past_the_limit(embedder: Embedder) -> None:
    few, many = embedder.count_tokens(["word", " ".join(["word"] * 5000)])

    assert many - few == 4999


def test_a_long_query_is_embedded_whole(embedder: Embedder) -> None:
    query = "how much water reaches the wheel " * embedder.spec.max_tokens

    vectors = embedder.embed([query[: 8 * embedder.spec.max_tokens], TEXTS[0]], "query").vectors

    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(vectors[1], embedder.embed([TEXTS[0]], "query").vectors[0], atol=1e-5)


def test_lone_surrogates_are_embedded(embedder: Embedder) -> None:
    assert embedder.embed(["half a \ud83c pair"]).vectors.shape == (1, embedder.spec.dimensions)
