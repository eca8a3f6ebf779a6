"""How fast documents become durable: one job at a time, as a web request does it, and many in one job.

What `ingest` has returned is committed in Postgres (fsync on). No worker runs meanwhile: its share of two cores would
be taken from the client, or not, by chance.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import texts
from benchmarks.report import Figures, Options, summary
from benchmarks.stack import LiveStack, live_stack
from pipeline.client import Client
from pipeline.document import Document
from pipeline.sources.given import Ingestible

SMALL, LARGE = 1_000, 10_000  # bytes of a text
JOBS = 300
DOCUMENTS = 5000
ROUNDS = 3


def measure(options: Options) -> Figures:
    """one_job_ms: of a job with one document of 1 kB; documents_per_second: of a job with all of them."""
    documents, rounds = options.take(DOCUMENTS, ROUNDS)
    jobs = 20 if options.quick else JOBS
    seed = 0
    one: list[float] = []
    rates: dict[str, list[float]] = {"inline_1kb": [], "inline_10kb": [], "files_10kb": []}
    with live_stack(constant=True, workers=0, express=False) as stack, stack.client() as client:
        client.ingest([Document("warm", "up")])  # opens connections, makes the collection
        for _ in range(rounds):
            one += [_one(client, number) for number in range(seed, seed + jobs // rounds)]
            seed += jobs
            rates["inline_1kb"].append(_bulk(client, iter(_documents(seed, documents, SMALL)), documents))
            seed += documents
            rates["inline_10kb"].append(_bulk(client, iter(_documents(seed, documents, LARGE)), documents))
            seed += documents
            with TemporaryDirectory(prefix="millrace-tree-") as directory:
                texts.write_tree(Path(directory), seed, documents, LARGE)
                os.sync()  # or the tree would still be written to the disk that Postgres waits for
                rates["files_10kb"].append(_bulk(client, Path(directory), documents))
            seed += documents
        messages = _messages(stack)
    return {
        "jobs": len(one),
        "one_job_ms": {"p50": _percentile(one, 50), "p99": _percentile(one, 99)},
        "documents": documents,
        "documents_per_second": {name: summary(found, 0) for name, found in rates.items()},
        "messages_in_redis_at_the_end": messages,
    }


def _one(client: Client, seed: int) -> float:
    """Milliseconds of one job."""
    document = Document(f"one/{seed}", texts.text(seed, SMALL), "text/markdown")
    started = time.perf_counter()
    client.ingest([document])
    return (time.perf_counter() - started) * 1e3


def _documents(seed: int, count: int, size: int) -> Sequence[Document]:
    return [
        Document(f"bulk/{seed + number}", content, "text/markdown")
        for number, content in enumerate(texts.texts(seed, count, size))
    ]


def _bulk(client: Client, source: Ingestible, documents: int) -> float:
    """Documents a second, from the call until it has returned."""
    started = time.perf_counter()
    job = client.ingest(source)
    seconds = time.perf_counter() - started
    assert job.documents["total"] == documents, job
    return documents / seconds


def _messages(stack: LiveStack) -> int:
    """The backlog waits in Postgres: whatever was enqueued, Redis holds a window of it."""
    services = stack.services()
    try:
        return sum(services.broker.depths().values())
    finally:
        services.close()


def _percentile(values: Sequence[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 2)
