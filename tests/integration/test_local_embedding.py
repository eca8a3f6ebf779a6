"""The bundled model, loaded for real: right vectors, whole texts, runs that are what they say, and no network."""

from __future__ import annotations

import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from pipeline import resident
from pipeline.embedding import bundled, catalogue
from pipeline.embedding.local import LocalEmbedder
from pipeline.errors import EmbeddingFailed, InvalidRequest
from pipeline.resident import MIB
from pipeline.settings import EmbeddingSettings

WORDS = " ".join(topics.topics.values()).split()
PACKAGE = bundled.weights_directory() or Path()


def samples(count: int, seed: int = 7) -> list[str]:
    """Texts of 3 to 120 words of the language reference, all within the model's limit."""
    chance = random.Random(seed)
    starts = [chance.randrange(len(WORDS) - 120) for _ in range(count * 3)]
    texts = [" ".join(WORDS[start : start + chance.randint(3, 120)]) for start in starts]
    tokenizer = Tokenizer.from_file(str(PACKAGE / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [text for text in texts if len(tokenizer.encode(text)) <= bundled.MAX_TOKENS][:count]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def embedder(models: Path) -> LocalEmbedder:
    return LocalEmbedder(EmbeddingSettings(), models)


class Reference:
    """BERT as its paper says, in numpy, one text at a time: nothing in common with the graph that is tested."""

    def __init__(self) -> None:
        self.weights = {
            name: value.astype(np.float64)
            for name, value in load_file(PACKAGE / "model.safetensors").items()
            if value.dtype == np.float32
        }
        self.tokenizer = Tokenizer.from_file(str(PACKAGE / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def vector(self, text: str) -> NDArray[np.float64]:
        ids = self.tokenizer.encode(text).ids
        table = "embeddings.{}_embeddings.weight"
        hidden = (
            self.weights[table.format("word")][ids]
            + self.weights[table.format("position")][np.arange(len(ids))]
            + self.weights[table.format("token_type")][0]
        )
        hidden = self.normed(hidden, "embeddings.LayerNorm")
        for number in range(6):
            layer = f"encoder.layer.{number}"
            query, key, value = (
                self.dense(hidden, f"{layer}.attention.self.{part}").reshape(len(ids), 12, 32).swapaxes(0, 1)
                for part in ("query", "key", "value")
            )
            scores = query @ key.swapaxes(1, 2) / math.sqrt(32)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            context = (weights @ value).swapaxes(0, 1).reshape(len(ids), 384)
            hidden = self.normed(
                hidden + self.dense(context, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm"
            )
            wide = self.dense(hidden, f"{layer}.intermediate.dense")
            wide = wide * 0.5 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
            hidden = self.normed(hidden + self.dense(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        pooled: NDArray[np.float64] = hidden.mean(axis=0)
        return pooled / np.linalg.norm(pooled)

    def dense(self, value: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        found: NDArray[np.float64] = value @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return found

    def normed(self, value: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = value - value.mean(axis=-1, keepdims=True)
        spread = np.sqrt(value.var(axis=-1, keepdims=True) + 1e-12)
        found: NDArray[np.float64] = centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return found


def test_vectors_are_those_of_an_independent_forward_pass(embedder: LocalEmbedder) -> None:
    full = " ".join(WORDS[:400])
    while embedder.count_tokens([full])[0] > bundled.MAX_TOKENS:
        full = full.rsplit(" ", 1)[0]
    full += " !" * (bundled.MAX_TOKENS - embedder.count_tokens([full])[0])
    texts = ["word", "The mill turns.", *samples(4), "Größe 你好 🌾 e\u0301", full]
    assert embedder.count_tokens(texts)[-1] == bundled.MAX_TOKENS
    reference = Reference()
    expected = np.stack([reference.vector(text) for text in texts])

    together = embedder.embed(texts).vectors
    # One run for all of them: everything but the longest is padded.
    padded = embedder._model().run(texts, "passage")

    assert float(np.abs(together - expected).max()) < 1e-4
    assert float(np.abs(padded - expected).max()) < 1e-4


def test_int8_agrees_with_float32_as_its_documentation_says(models: Path, embedder: LocalEmbedder) -> None:
    texts = samples(40)
    fast = LocalEmbedder(EmbeddingSettings(precision="int8"), models)

    cosines = (embedder.embed(texts).vectors * fast.embed(texts).vectors).sum(axis=1)

    assert 0.98 < float(cosines.mean()) < 0.9999
    assert float(cosines.min()) > 0.95
    assert fast.spec.fingerprint("passage") != embedder.spec.fingerprint("passage")


def test_related_texts_are_nearer_than_unrelated_ones(embedder: LocalEmbedder) -> None:
    question, answer, other = embedder.embed(
        ["How do I catch an exception?", "The try statement handles errors that are raised.", "The cat sat in the sun."]
    ).vectors

    assert float(question @ answer) > float(question @ other) + 0.2


@pytest.fixture
def session_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes [texts, tokens] that the ONNX session is really run with."""
    from fastembed.text.onnx_text_model import OnnxTextModel

    shapes: list[tuple[int, int]] = []
    run = OnnxTextModel._run_model

    def recorded(self: Any, onnx_input: dict[str, Any], onnx_output_names: list[str] | None = None) -> Any:
        shapes.append(onnx_input["input_ids"].shape)
        return run(self, onnx_input, onnx_output_names)

    monkeypatch.setattr(OnnxTextModel, "_run_model", recorded)
    return shapes


def test_the_session_runs_exactly_the_batches_that_were_cut(models: Path, session_runs: list[tuple[int, int]]) -> None:
    limit = 512
    embedder = LocalEmbedder(EmbeddingSettings(min_batch_tokens=limit, max_batch_tokens=limit), models)
    texts = samples(50)

    runs = embedder.embed(texts).runs

    assert session_runs == [(run.texts, run.padded_tokens // run.texts) for run in runs]
    assert all(run.padded_tokens <= limit for run in runs)
    # Sorted by length first, next to nothing of a run is padding.
    assert sum(run.padded_tokens for run in runs) < 1.15 * sum(embedder.count_tokens(texts))


def test_the_batch_adapts_to_the_speed_that_was_measured(models: Path) -> None:
    settings = EmbeddingSettings(min_batch_tokens=64, max_batch_tokens=100_000, target_seconds=0.02)
    embedder = LocalEmbedder(settings, models)

    embedder.embed(samples(30))

    assert embedder.batch.speed is not None
    assert embedder.batch.tokens == pytest.approx(max(64, embedder.batch.speed * 0.02), abs=1)


def test_the_vector_of_a_long_query_is_the_weighted_mean_of_its_windows(embedder: LocalEmbedder) -> None:
    half, other = " ".join(WORDS[1000:1100]), " ".join(WORDS[5000:5100])
    assert embedder.count_tokens([f"{half} {other}"])[0] > bundled.MAX_TOKENS

    long, short = embedder.embed([f"{half} {other}", "short"], "query").vectors

    first, second, alone = embedder.embed([half, other, "short"]).vectors
    assert float(long @ first) > 0.7
    assert float(long @ second) > 0.7
    np.testing.assert_allclose(short, alone, atol=1e-5)


def test_a_query_of_a_book_is_refused(embedder: LocalEmbedder) -> None:
    with pytest.raises(InvalidRequest, match="query 0 has 5002 tokens"):
        embedder.embed(["word " * 5000], "query")


def test_a_query_without_spaces_is_cut_all_the_same(embedder: LocalEmbedder) -> None:
    assert np.isfinite(embedder.embed(["你好世界" * 200], "query").vectors).all()


def test_threads_that_come_together_load_the_model_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = catalogue._load

    def counted(*args: Any, **kwargs: Any) -> Any:
        loads.append(threading.current_thread().name)
        return load(*args, **kwargs)

    monkeypatch.setattr(catalogue, "_load", counted)
    embedder = LocalEmbedder(EmbeddingSettings(), models)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: embedder.embed([f"text {n % 2}"]).vectors[0], range(8)))

    assert len(loads) == 1
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)


def test_a_failure_of_the_session_is_ours_and_may_be_tried_again(
    embedder: LocalEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastembed.text.onnx_text_model import OnnxTextModel

    def out_of_memory(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Failed to allocate memory")

    monkeypatch.setattr(OnnxTextModel, "_run_model", out_of_memory)

    with pytest.raises(EmbeddingFailed, match="a run of 1 texts: Failed to allocate memory"):
        embedder.embed(["text"])


def test_what_the_largest_run_took_is_given_back_on_pressure_and_the_next_run_is_the_same(
    embedder: LocalEmbedder,
) -> None:
    # Given a model that has run 16 texts of 120 words at once, which takes about a hundred MB
    texts = [" ".join(WORDS[start : start + 120]) for start in range(0, 16 * 120, 120)]
    before = embedder._model().run(texts, "passage")
    large = resident.resident_bytes()

    # When this process gives memory back
    done = resident.collect("asked")

    # Then most of that is back with the system, and the model, told by its size, is still there
    assert done.before - done.after > 30 * MIB, (large, done)
    assert resident.held_bytes() >= 80_000_000
    np.testing.assert_allclose(embedder._model().run(texts, "passage"), before, atol=1e-6)
