"""The local provider: ONNX models through FastEmbed, in this process, with `threads` threads.

Three kinds of model: the bundled one (the default, no network), a directory (`embedding.path`), and whatever else
FastEmbed knows by name (downloaded once into the data directory).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline import resident
from pipeline.document import encodable
from pipeline.embedding import bundled, catalogue, directory
from pipeline.embedding.base import Embedded, ModelRun, ModelSpec, Role, checked
from pipeline.embedding.batching import AdaptiveBatch, by_length, fitting
from pipeline.embedding.windows import any_too_long, checked_texts, cut_queries
from pipeline.errors import ModelUnavailable
from pipeline.settings import EmbeddingSettings

# Texts tokenised in one call: enough to keep all cores busy; ten thousand at once would take 300 MB.
COUNT_BATCH = 512


def resolve_spec(settings: EmbeddingSettings) -> ModelSpec:
    """The model that the settings mean. Loads no model; for the default one it imports and reads nothing at all.

    Raises ModelUnavailable for a name that FastEmbed does not know, or a directory that lacks something.
    """
    if settings.path is not None:
        return directory.read(settings.path, settings.model).spec
    if settings.model.lower() == bundled.NAME.lower():
        return bundled.spec_of(settings.precision)
    return catalogue.spec_of(settings.model)


class LocalEmbedder:
    """Embeds with ONNX Runtime. The model is loaded at the first use, once, whichever thread comes first.

    settings: which model, how many threads, how large a run may be.
    cache_dir: where models are built or downloaded to (`HOME/models`).
    """

    def __init__(self, settings: EmbeddingSettings, cache_dir: Path) -> None:
        self.settings = settings
        self.cache_dir = cache_dir
        self.spec = resolve_spec(settings)
        self.batch = AdaptiveBatch(settings.min_batch_tokens, settings.max_batch_tokens, settings.target_seconds)
        self._loading = threading.Lock()
        self._loaded: catalogue.Loaded | None = None

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        """The vectors of the texts: float32[n, dim], L2-normalised, in order.

        Nothing is embedded truncated. A passage over the model's limit raises InvalidRequest with its index and token
        count; a query over it is cut into windows at white space, and its vector is the mean of theirs, each weighted
        by its tokens, normalised again.
        """
        if not texts:
            return Embedded(np.empty((0, self.spec.dimensions), np.float32), ())
        plain = checked_texts(texts)
        prefixed = [self.spec.prefix(role) + text for text in plain]
        counts = self._count(prefixed)
        limit = self._limit()
        if any_too_long(counts, limit, role, self.spec.name):
            return self._run_windows(plain, counts, limit, on_progress)
        return self._run(prefixed, counts, role, on_progress)

    @property
    def tokens_per_second(self) -> float | None:
        """Padded tokens per second, as measured in this process; None before the first runs."""
        return self.batch.speed

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a passage: never truncated, special tokens and the passage prefix included."""
        return self._count([self.spec.passage_prefix + encodable(text) for text in texts])

    def _count(self, texts: Sequence[str]) -> list[int]:
        counts: list[int] = []
        for start in range(0, len(texts), COUNT_BATCH):
            encodings = self._model().tokenizer.encode_batch_fast(list(texts[start : start + COUNT_BATCH]))
            counts += [len(encoding) for encoding in encodings]
        return counts

    def _limit(self) -> int:
        """The smaller of what the spec promises and what FastEmbed's own tokenizer would cut off."""
        return min(self.spec.max_tokens, self._model().truncates_at)

    def _run(
        self, texts: Sequence[str], counts: Sequence[int], role: Role, on_progress: Callable[[int], None] | None
    ) -> Embedded:
        """One model run after the other, over the texts sorted by length."""
        order = by_length(counts)
        lengths = [counts[position] for position in order]
        vectors = np.empty((len(texts), self.spec.dimensions), np.float32)
        runs: list[ModelRun] = []
        done = 0
        while done < len(order):
            size = fitting(lengths[done:], self.batch.tokens)
            positions = order[done : done + size]
            started = time.perf_counter()
            found = self._model().run([texts[position] for position in positions], role)
            seconds = time.perf_counter() - started
            vectors[positions] = checked(found, size, self.spec)
            run = ModelRun(texts=size, padded_tokens=size * lengths[done], seconds=seconds)
            self.batch.measured(run.padded_tokens, run.seconds)
            runs.append(run)
            done += size
            if on_progress:
                on_progress(done)
        return Embedded(vectors, tuple(runs))

    def _run_windows(
        self, texts: Sequence[str], counts: Sequence[int], limit: int, on_progress: Callable[[int], None] | None
    ) -> Embedded:
        """Queries of which some are longer than the model's limit."""
        prefix = self.spec.query_prefix
        windows = cut_queries(
            texts, counts, limit, self.spec.name, lambda pieces: self._count([prefix + piece for piece in pieces])
        )
        embedded = self._run([prefix + window for window in windows.texts], windows.weights, "query", None)
        if on_progress:
            on_progress(len(texts))
        return Embedded(windows.merged(embedded.vectors, self.spec), embedded.runs)

    def _model(self) -> catalogue.Loaded:
        if self._loaded is None:
            with self._loading:
                if self._loaded is None:
                    self._loaded = self._load()
                    resident.hold(f"{self.spec.name} ({self.spec.precision})", self._loaded.size)
                    resident.on_pressure(self.shrink)
        return self._loaded

    def shrink(self) -> None:
        """Gives back what the model's largest runs took and its next ones may not need."""
        if self._loaded is not None:
            self._loaded.shrink()

    def _load(self) -> catalogue.Loaded:
        settings, threads = self.settings, self.settings.threads
        if settings.path is not None:
            found = directory.read(settings.path, settings.model)
            if found.spec != self.spec:  # its vectors would be stored as those of another model
                raise ModelUnavailable(f"the model in {settings.path} changed while this process ran; start it again")
            return directory.load(found, self.cache_dir, threads)
        if self.spec.name != bundled.NAME:
            return catalogue.load_by_name(self.spec, self.cache_dir, threads)
        if settings.precision == "float32" and bundled.weights_directory() is None:
            return catalogue.load_by_name(self.spec, self.cache_dir, threads)
        built = bundled.model_directory(self.cache_dir, settings.precision)
        return catalogue.load_from(bundled.NAME, built, self.spec, self.cache_dir, threads)
