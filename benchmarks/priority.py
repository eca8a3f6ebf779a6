"""What is urgent behind a long backlog: when it starts, and what is left for the backlog meanwhile.

10,000 batches of low priority wait; jobs of high priority come one at a time, and are timed by the ledger's clock from
their row to the claim of their first batch. Then a job of high priority with many batches keeps the queue `high` full:
the finished batches of both are counted while it does. Embedding costs nothing, so that it takes a minute.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from benchmarks import texts
from benchmarks.report import Figures, Options
from benchmarks.stack import live_stack
from pipeline.assembly import Services
from pipeline.client import Client
from pipeline.document import Document
from pipeline.ledger import backlog

LOW_BATCHES = 10_000
HIGH_JOBS = 40
BUSY_BATCHES = 1_500
BYTES = 1_000
PATIENCE = 120.0
# While so many batches of high priority are ready, its queue is full, and so is its share of turns.
FULL = 64
PAUSE = 0.1


def measure(options: Options) -> Figures:
    """high_start_ms: from the job to the claim of its first batch. low_share: of the batches finished meanwhile."""
    low = 60 if options.quick else options.pages or LOW_BATCHES
    jobs, busy, full = (2, 20, 2) if options.quick else (HIGH_JOBS, BUSY_BATCHES, FULL)
    # A batch a document: ten thousand batches are then ten thousand documents, and not half a million.
    one_each = {"prepare_documents": 1, "embed_chunks": 1}
    with live_stack(constant=True, ingest=one_each) as stack:
        services = stack.services()
        client = Client(services=services)
        try:
            client.wait(client.ingest(_documents("warm", 0, 20)).job_id, timeout=PATIENCE)
            client.ingest(_documents("low", 1_000, low), priority="low")
            waiting = _ready(services)["low"]
            delays = [_start_ms(client, services, number) for number in range(jobs)]
            left = _ready(services)["low"]
            shares = _busy(client, services, busy, full)
        finally:
            client.close()
    return {
        "low_batches_waiting": {"when_the_first_came": waiting, "when_the_last_came": left},
        "high_jobs": jobs,
        "high_start_ms": {
            "p50": round(statistics.median(delays), 1),
            "p95": round(statistics.quantiles(delays, n=20, method="inclusive")[-1], 1),
            "max": round(max(delays), 1),
        },
        **shares,
    }


def _documents(name: str, first: int, count: int) -> Iterator[Document]:
    for number, content in enumerate(texts.texts(first, count, BYTES)):
        yield Document(f"{name}/{number}", content, "text/markdown")


def _start_ms(client: Client, services: Services, number: int) -> float:
    job = client.ingest(_documents(f"high{number}", 100_000 + number, 1), priority="high")
    client.wait(job.job_id, timeout=PATIENCE)
    with services.ledger.transaction() as connection:
        row = connection.execute(
            "SELECT extract(epoch FROM started_at - created_at)::float8 * 1000 AS ms FROM jobs WHERE id = %s",
            (job.job_id,),
        ).fetchone()
    assert row is not None
    return float(row["ms"])


def _busy(client: Client, services: Services, batches: int, full: int) -> Figures:
    """The batches of each priority that were finished while high had more than its queue holds."""
    client.ingest(_documents("busy", 200_000, batches), priority="high")
    begun, before = time.perf_counter(), _finished(services)
    deadline = time.monotonic() + PATIENCE
    seconds, after = 0.0, before
    while (ready := _ready(services))["high"] > full and ready["low"] > 0:
        assert time.monotonic() < deadline, f"high is still busy after {PATIENCE:g} s: {ready}"
        seconds, after = time.perf_counter() - begun, _finished(services)
        time.sleep(PAUSE)
    done = {name: after[name] - before[name] for name in ("high", "low")}
    return {
        "busy_seconds": round(seconds, 1),
        "finished_while_high_was_busy": done,
        "low_share": round(done["low"] / max(1, sum(done.values())), 3),
    }


def _ready(services: Services) -> dict[str, int]:
    with services.ledger.transaction() as connection:
        return {name: int(found["ready_batches"]) for name, found in backlog.depth(connection).items()}


def _finished(services: Services) -> dict[str, int]:
    with services.ledger.transaction() as connection:
        rows = connection.execute(
            "SELECT priority, count(*) AS n FROM batches WHERE state = 'indexed' GROUP BY priority"
        ).fetchall()
    found = {row["priority"]: row["n"] for row in rows}
    return {"high": found.get(0, 0), "low": found.get(2, 0)}
