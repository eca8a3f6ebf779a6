"""Ways to hand texts to the model, in one process on one thread: one at a time, in batches of 32 and of 64, and ours.

Ours sorts by length over all that is at hand and cuts by padded tokens; the others go through FastEmbed in the order in
which the texts come, as most programs do. The chunks are those of the corpus, the short texts queries of a few words.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import corpus, report
from benchmarks.report import Figures, Options
from pipeline.chunking import Chunker
from pipeline.embedding import bundled
from pipeline.embedding.bundled import Precision
from pipeline.embedding.local import LocalEmbedder
from pipeline.settings import ChunkingSettings, EmbeddingSettings

PAGES = 40
ROUNDS = 5
SHORT_TEXTS = 10
MILLISECONDS = 1000.0
HOUR_SECONDS = 3600.0

PRECISIONS: tuple[Precision, ...] = ("float32", "int8")

Way = Callable[[Sequence[str]], Any]


def measure(options: Options) -> Figures:
    """By way: ms per chunk, ms per ten short texts, documents an hour (of this corpus); all ways in every round."""
    most, rounds = options.take(PAGES, ROUNDS)
    with tempfile.TemporaryDirectory(prefix="millrace-benchmark-") as scratch:
        machine = report.machine()
        pages = corpus.write(options.corpus, most, Path(scratch) / "corpus")
        embedders: dict[Precision, LocalEmbedder] = {
            precision: _embedder(precision, Path(scratch)) for precision in PRECISIONS
        }
        ways = _ways(embedders, Path(scratch))
        full = embedders["float32"]
        chunker = Chunker(ChunkingSettings(), full.count_tokens, full.spec.max_tokens)
        cut = chunker.chunk_many([(page.text, "markdown") for page in pages.pages])
        chunks = [chunk.text for found in cut for chunk in found]
        short = [" ".join(text.split()[:6]) for text in chunks[:: max(1, len(chunks) // SHORT_TEXTS)]][:SHORT_TEXTS]
        for way in ways.values():
            way(chunks[:64])  # loads and warms
        long_seconds = _rounds(ways, chunks, rounds)
        short_seconds = _rounds(ways, short, rounds)
    documents = len(pages.pages)
    return {
        "ways": {
            name: {
                "ms_per_chunk": report.summary([MILLISECONDS * s / len(chunks) for s in long_seconds[name]]),
                "ms_per_10_short_texts": report.summary([MILLISECONDS * s for s in short_seconds[name]]),
                "documents_per_hour": round(HOUR_SECONDS * documents / report.middle(long_seconds[name])),
                "times_as_fast_as_sequential": report.ratio(long_seconds["sequential"], long_seconds[name]),
            }
            for name in ways
        },
        "chunks": len(chunks),
        "tokens_per_chunk": round(sum(full.count_tokens(chunks)) / len(chunks)),
        "documents": documents,
        "corpus": pages.name,
        "rounds": rounds,
        "threads": 1,
        "machine": machine,
        "versions": report.versions(),
    }


def _embedder(precision: Precision, directory: Path) -> LocalEmbedder:
    return LocalEmbedder(EmbeddingSettings(precision=precision), directory / "models")


def _ways(embedders: dict[Precision, LocalEmbedder], directory: Path) -> dict[str, Way]:
    from fastembed import TextEmbedding

    plain = TextEmbedding(
        bundled.NAME,
        cache_dir=str(directory / "models"),
        threads=1,
        specific_model_path=str(bundled.model_directory(directory / "models", "float32")),
        local_files_only=True,
    )
    return {
        "sequential": lambda texts: [list(plain.embed([text])) for text in texts],
        "fixed_32": lambda texts: list(plain.embed(texts, batch_size=32)),
        "fixed_64": lambda texts: list(plain.embed(texts, batch_size=64)),
        "ours": embedders["float32"].embed,
        "ours_int8": embedders["int8"].embed,
    }


def _rounds(ways: dict[str, Way], texts: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Seconds by way, one value a round; the ways take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way(texts)
            seconds[name].append(time.perf_counter() - started)
            report.say(f"{name}, {len(texts)} texts: {seconds[name][-1]:.3f} s")
    return seconds
