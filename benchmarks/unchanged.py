"""An unchanged tree ingested again: every file is read and hashed, and compared with the durable ledger.

The tree is published first, by a worker whose embedding costs nothing: the comparison is with what is published, and
with nothing else. Each round is a client of its own, so that nothing is remembered but what the ledger holds.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import texts
from benchmarks.report import Figures, Options, summary
from benchmarks.stack import LiveStack, live_stack

FILES = 5000
BYTES = 10_000
ROUNDS = 5
COLLECTION = "unchanged"


def measure(options: Options) -> Figures:
    """documents_per_second: the median of the rounds, each over the whole tree."""
    files, rounds = options.take(FILES, ROUNDS)
    with TemporaryDirectory(prefix="millrace-tree-") as directory, live_stack(constant=True) as stack:
        tree = Path(directory)
        written = texts.write_tree(tree, 0, files, BYTES)
        first = _ingest(stack, tree)
        rates = [files / _ingest(stack, tree, files) for _ in range(rounds)]
    return {
        "documents": files,
        "mean_bytes": written // files,
        "first_ingest_seconds": round(first, 2),
        "documents_per_second": summary(rates, 0),
        "megabytes_per_second": round(summary(rates, 4)["median"] * written / files / 1e6, 1),
    }


def _ingest(stack: LiveStack, tree: Path, unchanged: int = 0) -> float:
    """Seconds until the job has ended. Raises AssertionError where not as many documents were found unchanged."""
    with stack.client() as client:
        started = time.perf_counter()
        job = client.ingest(tree, collection=COLLECTION)
        seconds = time.perf_counter() - started
        ended = job if job.finished else client.wait(job.job_id)
    assert ended.state == "succeeded", ended
    assert ended.documents["unchanged"] == unchanged, ended
    return seconds if unchanged else time.perf_counter() - started
