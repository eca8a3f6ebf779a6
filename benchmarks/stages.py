"""Where the time of a worker goes: seconds of CPU by stage, taken around the functions that do the work."""

from __future__ import annotations

import atexit
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from benchmarks.constant import ConstantVectors
from pipeline import ingest
from pipeline.chunking import Chunker
from pipeline.extract.isolation.extractor import Extractor
from pipeline.ledger import chunks, embeddings
from pipeline.vectors.qdrant import QdrantStore
from pipeline.vectors.sparse import SparseEncoder
from tasks import base

DIRECTORY_VARIABLE = "MILLRACE_BENCHMARK_STAGES"

# Stage -> what is timed: (owner, name). Time that belongs to a stage inside another one is counted there alone.
_STAGES: Mapping[str, tuple[tuple[Any, str], ...]] = {
    "extract (worker's side)": ((Extractor, "extract_many"),),
    "split": ((Chunker, "chunk_many"),),
    "count tokens": ((ConstantVectors, "count_tokens"),),
    "constant vectors": ((ConstantVectors, "embed"),),
    "BM25": ((SparseEncoder, "documents"),),
    "COPY (client)": ((chunks, "insert"), (embeddings, "store")),
    "diff": ((ingest, "_diff"),),
    "points (client)": ((QdrantStore, "upsert"),),
    "collection checks": ((QdrantStore, "ensure_collection"), (QdrantStore, "ensure_fields")),
    "dispatch": ((base, "dispatch"),),
    "ledger (client)": ((ingest, "prepare"), (ingest, "embed"), (base, "perform")),
}


class Stages:
    """CPU seconds of this process by stage. One task at a time: threads that help it are counted with it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            self._enter(stage)
            try:
                found = function(*arguments, **named)
                return list(found) if stage.startswith("extract") and isinstance(found, Iterable) else found
            finally:
                self._leave()

        return call

    def _enter(self, stage: str) -> None:
        self._charge()
        self._open.append(stage)

    def _leave(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def watch(directory: Path) -> None:
    """Times the stages of this process from now on; its seconds are in `directory`/PID.json after every task."""
    stages = Stages()
    for stage, places in _STAGES.items():
        for owner, name in places:
            setattr(owner, name, stages.timed(stage, getattr(owner, name)))
    performed = base.perform

    def perform(*arguments: Any, **named: Any) -> Any:
        try:
            return performed(*arguments, **named)
        finally:
            write()

    def write() -> None:
        target = directory / f"{os.getpid()}.json"
        target.with_suffix(".new").write_text(json.dumps(stages.seconds), "utf-8")
        target.with_suffix(".new").replace(target)

    base.perform = perform
    atexit.register(write)


def read(directory: Path) -> dict[str, float]:
    """Stage -> seconds of CPU so far, of all processes that are watched."""
    found: defaultdict[str, float] = defaultdict(float)
    for path in directory.glob("*.json"):
        for stage, seconds in json.loads(path.read_text("utf-8")).items():
            found[stage] += seconds
    return dict(found)
