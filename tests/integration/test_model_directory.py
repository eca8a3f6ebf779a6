"""A model in a directory of one's own: described by its files, loaded like any other."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.embedding import bundled
from pipeline.embedding.base import Embedder
from pipeline.embedding.catalogue import prefixes_of
from pipeline.embedding.local import LocalEmbedder, resolve_spec
from pipeline.errors import InvalidRequest, ModelUnavailable
from pipeline.settings import EmbeddingSettings

TEXTS = ["The gate decides how much water reaches the wheel.", "Water."]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def directory(tmp_path: Path, cache: Path) -> Path:
    """The bundled model as somebody would keep one of their own: the layout of sentence-transformers."""
    built = bundled.model_directory(cache, "float32")
    package = bundled.weights_directory()
    assert package is not None
    own = tmp_path / "own"
    (own / "onnx").mkdir(parents=True)
    os.link(built / "model.onnx", own / "onnx" / "model.onnx")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        shutil.copyfile(package / name, own / name)
    shutil.copyfile(package / "sentence_bert_config.json", own / "sentence_bert_config.json")
    shutil.copytree(package / "1_Pooling", own / "1_Pooling")
    return own


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def opened(directory: Path, cache: Path, model: str = "acme/own") -> Embedder:
    return LocalEmbedder(EmbeddingSettings(model=model, path=directory), cache)


def test_it_embeds_as_its_files_say(directory: Path, cache: Path) -> None:
    own = opened(directory, cache)

    expected = LocalEmbedder(EmbeddingSettings(), cache).embed(TEXTS).vectors
    np.testing.assert_allclose(own.embed(TEXTS).vectors, expected, atol=1e-5)
    assert (own.spec.name, own.spec.dimensions, own.spec.pooling) == ("acme/own", 384, "mean")
    assert own.spec.max_tokens == 256  # of sentence_bert_config.json; the tokenizer alone would take 512
    with pytest.raises(InvalidRequest, match="text 0 has 302 tokens, acme/own takes 256"):
        own.embed(["word " * 300])


def test_opened_twice_it_is_the_same_model(directory: Path, cache: Path) -> None:
    first, second = opened(directory, cache), opened(directory, cache)

    np.testing.assert_array_equal(first.embed(TEXTS).vectors, second.embed(TEXTS).vectors)
    assert first.spec == second.spec


def test_a_family_that_wants_prefixes_gets_them(directory: Path, cache: Path) -> None:
    e5, plain = opened(directory, cache, "acme/e5-small"), opened(directory, cache)

    passage, query = e5.embed(TEXTS).vectors, e5.embed(TEXTS, "query").vectors

    np.testing.assert_allclose(passage, plain.embed([f"passage: {text}" for text in TEXTS]).vectors, atol=1e-5)
    np.testing.assert_allclose(query, plain.embed([f"query: {text}" for text in TEXTS]).vectors, atol=1e-5)
    assert e5.count_tokens(TEXTS) == plain.count_tokens([f"passage: {text}" for text in TEXTS])


def test_cls_pooling_is_another_vector_and_another_fingerprint(directory: Path, cache: Path) -> None:
    mean = opened(directory, cache)
    pooled = mean.embed(TEXTS).vectors
    change(directory / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)

    cls = opened(directory, cache)

    assert cls.spec.pooling == "cls"
    assert cls.spec.fingerprint("passage") != mean.spec.fingerprint("passage")
    assert float((cls.embed(TEXTS).vectors * pooled).sum(axis=1).max()) < 0.99


def test_a_directory_that_changed_before_it_was_loaded_is_refused(directory: Path, cache: Path) -> None:
    own = opened(directory, cache)
    change(directory / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)

    with pytest.raises(ModelUnavailable, match="changed while this process ran"):
        own.embed(TEXTS)


def test_another_tokenizer_or_model_file_is_another_revision(directory: Path, cache: Path) -> None:
    settings = EmbeddingSettings(model="acme/own", path=directory)
    first = resolve_spec(settings)
    tokenizer = directory / "tokenizer.json"

    tokenizer.write_text(tokenizer.read_text() + "\n")
    second = resolve_spec(settings)
    (directory / "onnx" / "model.onnx_data").write_bytes(b"external weights")
    third = resolve_spec(settings)

    assert len({first.revision, second.revision, third.revision}) == 3
    assert resolve_spec(settings) == third


@pytest.mark.parametrize(
    "missing", ["tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json", "onnx/model.onnx"]
)
def test_a_missing_file_is_named(directory: Path, missing: str) -> None:
    (directory / missing).unlink()

    with pytest.raises(ModelUnavailable) as caught:
        resolve_spec(EmbeddingSettings(path=directory))

    assert (missing if missing.endswith(".json") else "must hold one ONNX file and has none") in str(caught.value)


def test_several_model_files_are_not_guessed_between(directory: Path) -> None:
    (directory / "onnx" / "model.onnx").rename(directory / "a.onnx")
    (directory / "b.onnx").touch()

    with pytest.raises(ModelUnavailable, match=r"has several \(a.onnx, b.onnx\), none of them called model.onnx"):
        resolve_spec(EmbeddingSettings(path=directory))


def test_the_only_model_file_may_have_any_name(directory: Path, cache: Path) -> None:
    (directory / "onnx" / "model.onnx").rename(directory / "minilm.onnx")

    assert opened(directory, cache).embed(TEXTS).vectors.shape == (2, 384)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "must set exactly one of pooling_mode_mean"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "must set exactly one of"),
        ("1_Pooling/config.json", {"word_embedding_dimension": "many"}, "names no word_embedding_dimension"),
    ],
)
def test_a_description_that_says_too_little_is_refused(
    directory: Path, file: str, values: dict[str, object], message: str
) -> None:
    change(directory / file, **values)

    with pytest.raises(ModelUnavailable, match=message):
        resolve_spec(EmbeddingSettings(path=directory))


def test_a_tokenizer_without_a_limit_is_refused(directory: Path) -> None:
    (directory / "sentence_bert_config.json").unlink()
    change(directory / "tokenizer_config.json", model_max_length=10**30)

    with pytest.raises(ModelUnavailable, match=r"tokenizer_config.json names no model_max_length"):
        resolve_spec(EmbeddingSettings(path=directory))


def test_a_description_that_is_no_json_is_named(directory: Path) -> None:
    (directory / "tokenizer_config.json").write_text("{")

    with pytest.raises(ModelUnavailable, match=r"tokenizer_config.json cannot be read"):
        resolve_spec(EmbeddingSettings(path=directory))


def test_a_file_that_is_no_model_is_refused_when_it_is_loaded(directory: Path, cache: Path) -> None:
    (directory / "onnx" / "model.onnx").unlink()
    (directory / "onnx" / "model.onnx").write_bytes(b"no model")

    with pytest.raises(ModelUnavailable, match="acme/own could not be loaded"):
        opened(directory, cache).embed(TEXTS)


@pytest.mark.parametrize(
    ("name", "query", "passage"),
    [
        ("intfloat/e5-base-v2", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large", "query: ", "passage: "),
        ("BAAI/bge-base-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("BAAI/bge-base-en", "Represent this sentence for searching relevant passages: ", ""),
        ("Snowflake/snowflake-arctic-embed-m", "Represent this sentence for searching relevant passages: ", ""),
        ("Snowflake/snowflake-arctic-embed-m-v2.0", "query: ", ""),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("thenlper/gte-base", "", ""),
        ("sentence-transformers/all-MiniLM-L6-v2", "", ""),
    ],
)
def test_prefixes_are_those_of_the_model_cards(name: str, query: str, passage: str) -> None:
    assert prefixes_of(name) == (query, passage)
