"""The offline model in float32 and int8: speed side by side, in turns, and how far the vectors agree.

The texts are chunks of the language reference that every Python carries.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from pydoc_data import topics

import numpy as np

from benchmarks.report import Options
from pipeline.chunking import Chunker
from pipeline.embedding.local import LocalEmbedder
from pipeline.settings import ChunkingSettings, EmbeddingSettings

ROUNDS = 5
TEXTS = 60


def measure(options: Options) -> dict[str, float]:
    """Medians over the rounds; the ratio is taken within each round, since machines are noisy."""
    most, rounds = options.take(TEXTS, ROUNDS)
    with tempfile.TemporaryDirectory() as directory:
        full = LocalEmbedder(EmbeddingSettings(precision="float32"), Path(directory))
        small = LocalEmbedder(EmbeddingSettings(precision="int8"), Path(directory))
        chunker = Chunker(ChunkingSettings(), full.count_tokens, full.spec.max_tokens)
        pages = [(topics.topics[name], "plain") for name in sorted(topics.topics)]
        texts = [chunk.text for chunks in chunker.chunk_many(pages) for chunk in chunks]
        texts = texts[:: max(1, len(texts) // most)][:most]
        for embedder in (full, small):
            embedder.embed(texts[:8])  # loads and warms
        seconds: dict[str, list[float]] = {"float32": [], "int8": []}
        for _ in range(rounds):
            for name, embedder in (("float32", full), ("int8", small)):
                started = time.perf_counter()
                vectors = embedder.embed(texts).vectors
                seconds[name].append(time.perf_counter() - started)
                if name == "float32":
                    exact = vectors
        cosines = np.sum(exact * vectors, axis=1)
        nearest = [np.argsort(-(side @ side.T) + 2 * np.eye(len(texts)), axis=1)[:, 0] for side in (exact, vectors)]
        ratios = [slow / fast for slow, fast in zip(seconds["float32"], seconds["int8"], strict=True)]
    return {
        "texts": len(texts),
        "float32_texts_per_second": round(len(texts) / statistics.median(seconds["float32"]), 1),
        "int8_texts_per_second": round(len(texts) / statistics.median(seconds["int8"]), 1),
        "int8_times_as_fast": round(statistics.median(ratios), 2),
        "mean_cosine": round(float(cosines.mean()), 4),
        "worst_cosine": round(float(cosines.min()), 4),
        "same_nearest_neighbour": round(float(np.mean(nearest[0] == nearest[1])), 3),
    }
