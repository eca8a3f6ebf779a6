"""An index compared with the ledger, mended after damage, and made again: points a second of each, side by side.

What is read, compared and written is real: texts, 384 dimensions, BM25. Nothing is embedded, as never when points are
put back. The client does the work, and the servers; the workers rest.
"""

from __future__ import annotations

import time
import tracemalloc
from contextlib import closing

from benchmarks import texts
from benchmarks.report import Figures, Options, say, summary
from benchmarks.stack import live_stack
from pipeline import Client, Document
from pipeline.assembly import Services
from pipeline.ledger import collections

DOCUMENTS = 4000
BYTES = 5_000
ROUNDS = 3
COLLECTION = "audited"
LOST = 10  # before each repair every tenth point is lost


def measure(options: Options) -> Figures:
    """Medians of the rounds. audit: ids, and 200 points whole; audit_all_vectors: every point whole; repair: with a
    tenth of the points lost, over all points; rebuild: of nothing."""
    documents, rounds = options.take(DOCUMENTS, ROUNDS)
    rates: dict[str, list[float]] = {"audit": [], "audit_all_vectors": [], "repair": [], "rebuild": []}
    with live_stack(constant=True) as stack, closing(stack.services()) as services:
        client = Client(services=services)
        points = _fill(client, documents)
        say(f"{points} points")
        for _ in range(rounds):
            started = time.perf_counter()
            assert client.audit(COLLECTION).present == points
            rates["audit"].append(points / (time.perf_counter() - started))

            started = time.perf_counter()
            assert client.audit(COLLECTION, all_vectors=True).compared == points
            rates["audit_all_vectors"].append(points / (time.perf_counter() - started))

            lost = _lose(services)
            started = time.perf_counter()
            report = client.audit(COLLECTION, repair=True)
            rates["repair"].append(points / (time.perf_counter() - started))
            assert report.repaired is not None
            assert (report.repaired.upserted, report.repaired.embedded) == (lost, 0), report

            rebuilt = client.rebuild(COLLECTION, fresh=True)
            rates["rebuild"].append(points / rebuilt.seconds)
            assert (rebuilt.points, rebuilt.repaired.embedded) == (points, 0), rebuilt
        tracemalloc.start()
        client.audit(COLLECTION)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return {
        "points": points,
        "points_per_second": {name: summary(values, 0) for name, values in rates.items()},
        "audit_peak_mb": round(peak / 2**20, 1),
    }


def _fill(client: Client, documents: int) -> int:
    """Indexes so many documents. Returns the points that makes."""
    contents = (Document(f"text/{n}", text) for n, text in enumerate(texts.texts(0, documents, BYTES)))
    job = client.ingest(contents, collection=COLLECTION)
    ended = client.wait(job.job_id)
    assert ended.state == "succeeded", ended
    return ended.chunks["indexed"]


def _lose(services: Services) -> int:
    """Takes every tenth point out of the index. Returns how many these are."""
    with services.ledger.transaction() as connection:
        name = collections.get(connection, COLLECTION).physical
    lost = [point for page in services.vectors.scroll(name, 5000) for point in page[::LOST]]
    services.vectors.delete(name, lost)
    return len(lost)
