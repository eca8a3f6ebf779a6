"""One side of the benchmark `collector`: a process that imports what a worker does, and a forked child that works.

`python -m benchmarks.collector_loop SIDE DOCUMENTS MODELS` prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import texts
from benchmarks.constant import ConstantVectors
from pipeline.assembly import Services
from pipeline.settings import ChunkingSettings, load_settings
from tasks import collector

DOCUMENT_BYTES = 10_000
# As many documents go through one task as a prepare batch has.
TOGETHER = 50
DEFAULT_THRESHOLDS = (700, 10, 10)  # of Python 3.11
# A side -> what of the collector's care it has.
SIDES: Mapping[str, Sequence[str]] = {
    "as_python_has_it": (),
    "frozen_before_the_fork": ("fork",),
    "frozen_after_warming_too": ("fork", "warm"),
    "thresholds_alone": ("thresholds",),
    "all_of_it": ("fork", "warm", "thresholds"),
}


class Collections:
    """What the collector does in this process: how often, and for how long, by generation."""

    def __init__(self) -> None:
        self.count = [0, 0, 0]
        self.seconds = [0.0, 0.0, 0.0]
        self._began = 0.0
        gc.callbacks.append(self._called)

    def _called(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.count[info["generation"]] += 1
            self.seconds[info["generation"]] += time.perf_counter() - self._began


def main(side: str, documents: int, models: Path) -> None:
    has = SIDES[side]
    for module in ("pipeline.vectors.qdrant", "tasks.prepare", "tasks.embed", "tasks.maintenance", "workers.lifecycle"):
        __import__(module)
    if "fork" in has:
        collector.before_fork()
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as told:
            json.dump(_child(has, documents, models), told)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        sys.stdout.write(told.read() + "\n")
    os.wait()


def _child(has: Sequence[str], documents: int, models: Path) -> dict[str, Any]:
    gc.set_threshold(*(collector.THRESHOLDS if "thresholds" in has else DEFAULT_THRESHOLDS))
    inherited = _memory()
    settings = load_settings(home=models.parent)
    services = Services(settings, embedder=ConstantVectors(models))
    tree = [texts.text(number, DOCUMENT_BYTES) for number in range(documents)]
    _work(services, tree[:TOGETHER])
    if "warm" in has:
        collector.after_task()
    watched, began, cpu = Collections(), time.perf_counter(), time.process_time()
    chunks = sum(_work(services, tree[start : start + TOGETHER]) for start in range(0, documents, TOGETHER))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    worked = list(watched.seconds), list(watched.count)
    gc.collect()  # one full collection, of all that such a child has, for every side
    after = _memory()
    return {
        "chunks": chunks,
        "chunks_per_cpu_second": chunks / cpu,
        "seconds": seconds,
        "collections": worked[1],
        "collecting_share": sum(worked[0]) / seconds,
        "full_collections_seconds": worked[0][2],
        "one_full_collection_ms": 1000 * (watched.seconds[2] - worked[0][2]),
        "private_mb": after["private"],
        "copied_mb": max(0.0, inherited["shared"] - after["shared"]),
    }


def _work(services: Services, documents: Sequence[str]) -> int:
    """What a child does with a batch, but for what it sends: its objects are those that the collector sees."""
    embedder = services.embedder(services.spec.to_json())
    found = services.chunker(ChunkingSettings(), embedder).chunk_many([(text, "md") for text in documents])
    chunks = [(number, chunk) for number, of_one in enumerate(found) for chunk in of_one]
    vectors = embedder.embed([chunk.text for _, chunk in chunks]).vectors
    sparse = services.sparse({}).documents([chunk.text for _, chunk in chunks])
    points = [
        {"document": number, "ordinal": chunk.ordinal, "text": chunk.text, "vector": vector, "terms": terms}
        for (number, chunk), vector, terms in zip(chunks, vectors, sparse, strict=True)
    ]
    return len(points)


def _memory() -> dict[str, float]:
    """MB that this process shares with its parent, and that are its own; zeros where the system does not tell."""
    found = {"shared": 0.0, "private": 0.0}
    try:
        lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, size = line.partition(":")
        if name in ("Shared_Clean", "Shared_Dirty"):
            found["shared"] += int(size.split()[0]) / 1024
        elif name in ("Private_Clean", "Private_Dirty"):
            found["private"] += int(size.split()[0]) / 1024
    return found


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
