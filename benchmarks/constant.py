"""An embedder that costs next to nothing: what is left of the time is everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import shake_256
from pathlib import Path

import numpy as np

from pipeline.embedding.base import Embedded, ModelRun, ModelSpec, Role
from pipeline.embedding.local import LocalEmbedder
from pipeline.settings import EmbeddingSettings

# In the environment of a worker with constant vectors: it sends no Celery events.
NO_EVENTS_VARIABLE = "MILLRACE_BENCHMARK_NO_EVENTS"


class ConstantVectors:
    """The offline model's tokenizer, limit and dimensions; the same text has the same vector for ever.

    The vectors differ from text to text, or the index that they go into would have an easier life than a real one's.
    """

    def __init__(self, models: Path) -> None:
        """models: where the offline model is built, for its tokenizer."""
        self._model = LocalEmbedder(EmbeddingSettings(), models)
        real = self._model.spec
        self._spec = ModelSpec("constant", "local", real.dimensions, real.max_tokens, "none", True, "float32", "shake")

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def tokens_per_second(self) -> float | None:
        """As fast as a graphics card: a claim then gathers a few batches, and not one."""
        return 50_000.0

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._model.count_tokens(texts)

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        raw = b"".join(shake_256(text.encode()).digest(self._spec.dimensions) for text in texts)
        vectors = np.frombuffer(raw, np.int8).reshape(len(texts), self._spec.dimensions).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if on_progress is not None:
            on_progress(len(texts))
        return Embedded(vectors, (ModelRun(len(texts), len(texts), 0.0),))
