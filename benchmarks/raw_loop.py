"""The model and nothing else: what a loop around ONNX Runtime makes of the chunks when nothing is stored or promised.

As well as we can: tokenised once with all cores, sorted by length, cut into runs by padded tokens (the budget that is
best on this machine, tried beforehand), the longest first, handed to as many processes as Millrace has pool children
as they become free, each with as many threads as those have.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from multiprocessing.pool import Pool
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
from numpy.typing import NDArray

BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
TRIED_SHARE = 8  # a budget is tried, twice, on every eighth chunk
LIMIT_TOKENS = 256

Tokens = tuple[list[int], ...]

_session: list[Any] = []


def load(model: Path, threads: int) -> None:
    """In each process, once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    _session.append(onnxruntime.InferenceSession(model / "model.onnx", options, providers=["CPUExecutionProvider"]))


def run(texts: Tokens) -> NDArray[np.float32]:
    """One run: float32[n, dim], mean pooled over the tokens, L2-normalised."""
    longest = max(len(ids) for ids in texts)
    ids = np.zeros((len(texts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, found in enumerate(texts):
        ids[row, : len(found)] = found
        mask[row, : len(found)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (hidden,) = _session[0].run(None, inputs)
    pooled = np.matmul(mask[:, None, :].astype(np.float32), hidden)[:, 0]
    vectors: NDArray[np.float32] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return vectors


class RawLoop(AbstractContextManager["RawLoop"]):
    """`seconds(texts)` embeds them all. processes x threads: as many as the other side has."""

    def __init__(self, model: Path, processes: int, threads: int = 1) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LIMIT_TOKENS)
        self.processes = processes
        self.budget = BUDGETS[0]
        self.pool: Pool = multiprocessing.get_context("spawn").Pool(processes, load, (model, threads))

        self.pids = {child.pid for child in multiprocessing.active_children()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.terminate()
        self.pool.join()

    def choose(self, texts: Sequence[str]) -> dict[int, float]:
        """Tries the budgets and keeps the best. Returns seconds by budget."""
        sample = list(texts[::TRIED_SHARE])
        self.seconds(sample)  # warms
        tried = {}
        for self.budget in BUDGETS:
            tried[self.budget] = min(self.seconds(sample), self.seconds(sample))
        self.budget = min(tried, key=lambda budget: tried[budget])
        return tried

    def seconds(self, texts: Sequence[str]) -> float:
        """From the texts to all their vectors in this process."""
        started = time.perf_counter()
        encoded = sorted((found.ids for found in self.tokenizer.encode_batch_fast(list(texts))), key=len, reverse=True)
        vectors = list(self.pool.imap(run, self._runs(encoded)))
        elapsed = time.perf_counter() - started
        assert sum(len(found) for found in vectors) == len(texts)
        return elapsed

    def cpu_seconds(self) -> float:
        """Of this process and of those of the pool so far."""
        times = [child.cpu_times() for child in psutil.Process().children() if child.pid in self.pids]
        return time.process_time() + sum(found.user + found.system for found in times)

    def _runs(self, encoded: Sequence[list[int]]) -> list[Tokens]:
        runs = []
        done = 0
        while done < len(encoded):
            size = max(1, self.budget // len(encoded[done]))
            runs.append(tuple(encoded[done : done + size]))
            done += size
        return runs
