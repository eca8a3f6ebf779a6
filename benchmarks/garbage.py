"""Garbage collection of orphans, beside one who writes and one who reads: how long it takes, and who waits for it.

The orphans are real rows and points: embeddings that nothing needs, chunks without a version, and points of theirs. The
workers rest; collected is in this process, by the very function that the duty calls, with its limits.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np

from benchmarks import texts
from benchmarks.report import Figures, Options, say
from benchmarks.stack import live_stack
from pipeline import Client, Document
from pipeline.assembly import Services
from pipeline.duties import Bounds
from pipeline.ledger import embeddings
from pipeline.ledger.engine import Connection
from pipeline.vectors.base import Point
from pipeline.vectors.sparse import SparseVector
from tasks import garbage

ORPHANS = 100_000
QUICK_ORPHANS = 1_000
DOCUMENTS = 200
BYTES = 2_000
COLLECTION = "swept"
DIMENSIONS = 384
ALONE_SECONDS = 5.0
LOOK_SECONDS = 0.002
KEYS = 32  # of one batch


@dataclass(slots=True)
class Beside:
    """What went on beside: seconds of each transaction; the longest that anybody waited for a lock."""

    writes: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    longest_wait: float = 0.0


def measure(options: Options) -> Figures:
    """Seconds and rows a second of each kind, each of `orphans`; the writer's and the reader's transactions alone and
    beside it; lock_wait_ms: the longest wait of anybody for a lock of a row meanwhile, looked for every 2 ms."""
    orphans = QUICK_ORPHANS if options.quick else options.pages or ORPHANS
    figures: Figures = {"orphans": orphans}
    with live_stack(constant=True) as stack, closing(stack.services()) as services:
        nobodys, needed = _prepare(services, 8 if options.quick else DOCUMENTS)
        garbage.expire(services, Bounds(1, 0.0))  # opens what has to be opened
        with _others(services, needed) as alone:
            time.sleep(0.2 if options.quick else ALONE_SECONDS)
        figures["alone"] = _told(alone)
        _leave_embeddings(services, orphans)
        figures["embeddings"] = _collected(services, needed, garbage.expire, ("embeddings",), orphans)
        physical = _leave_chunks(services, orphans, nobodys)
        assert services.vectors.count(physical) >= orphans
        figures["chunks_and_points"] = _collected(services, needed, garbage.collect, ("chunks", "points"), 2 * orphans)
    return figures


def _prepare(services: Services, documents: int) -> tuple[int, Sequence[bytes]]:
    """A few live documents. Returns the number of a version that nobody has, and the keys of their embeddings."""
    with services.ledger.transaction() as connection:
        row = connection.execute("SELECT coalesce(max(id), 0) + 1 AS nobodys FROM versions").fetchone()
        assert row is not None
        connection.execute(f"ALTER TABLE versions ALTER id RESTART WITH {row['nobodys'] + 1}")
        # The workers' own turns come at any time.
        for duty in ("gc.data", "cache.expire"):
            connection.execute(
                """INSERT INTO duties (name, enabled) VALUES (%s, false)
                   ON CONFLICT (name) DO UPDATE SET enabled = false""",
                (duty,),
            )
    client = Client(services=services)
    contents = (Document(f"text/{n}", text) for n, text in enumerate(texts.texts(0, documents, BYTES)))
    ended = client.wait(client.ingest(contents, collection=COLLECTION).job_id)
    assert ended.state == "succeeded", ended
    with services.ledger.transaction() as connection:
        rows = connection.execute("SELECT DISTINCT embedding_key FROM chunks").fetchall()
    return row["nobodys"], [bytes(found["embedding_key"]) for found in rows]


def _leave_embeddings(services: Services, orphans: int) -> None:
    say(f"{orphans} embeddings that nothing needs")
    for first in range(0, orphans, 5000):
        with services.ledger.transaction() as connection:
            connection.execute(
                """INSERT INTO embeddings (key, vector, tokens, last_used)
                   SELECT sha256(('orphan ' || n)::bytea), decode(repeat(md5(n::text), %s), 'hex'), 1,
                          now() - interval '1 year' + make_interval(secs => n)
                     FROM generate_series(%s::int, %s::int) AS n""",
                (DIMENSIONS * 4 // 16, first, min(first + 5000, orphans) - 1),
            )


def _leave_chunks(services: Services, orphans: int, version: int) -> str:
    """Returns the collection's name in the index."""
    say(f"{orphans} chunks without a version, and their points")
    with services.ledger.transaction() as connection:
        row = connection.execute("SELECT physical FROM collections WHERE name = %s", (COLLECTION,)).fetchone()
    assert row is not None
    name = str(row["physical"])
    chance = np.random.default_rng(1)
    for first in range(0, orphans, 1000):
        ids = [uuid.uuid4() for _ in range(first, min(first + 1000, orphans))]
        with services.ledger.transaction() as connection:
            connection.execute(
                """INSERT INTO chunks (point_id, document_id, born_version, ordinal, text, chunk_hash, embedding_key,
                                       tokens)
                   SELECT id, 0, %s, 0, 'nobody knows of this chunk any more', '', '', 1
                     FROM unnest(%s::uuid[]) AS id""",
                (version, ids),
            )
        vectors = chance.standard_normal((len(ids), DIMENSIONS), np.float32)
        payload = {"tenant": "", "document": 0, "version": version, "ordinal": 0, "uri": "", "text": ""}
        services.vectors.upsert(
            name,
            [
                Point(id_, vector / np.linalg.norm(vector), SparseVector([], []), payload)
                for id_, vector in zip(ids, vectors, strict=True)
            ],
        )
    return name


def _collected(
    services: Services,
    needed: Sequence[bytes],
    run: Callable[[Services, Bounds], object],
    kinds: Sequence[str],
    orphans: int,
) -> Figures:
    """Runs the duty until it has taken all of them."""
    duty = next(duty for duty in garbage.DUTIES if duty.run is run)
    taken = runs = 0
    with _others(services, needed) as beside:
        started = time.perf_counter()
        while taken < orphans:
            counts = duty.run(services, Bounds(duty.limit, duty.budget_seconds))
            found = sum(counts[kind] for kind in kinds)
            assert found, counts
            taken, runs = taken + found, runs + 1
        seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 2),
        "rows_per_second": round(taken / seconds),
        "runs": runs,
        **_told(beside),
        "lock_wait_ms": round(beside.longest_wait * 1000, 1),
    }


@contextmanager
def _others(services: Services, needed: Sequence[bytes]) -> Iterator[Beside]:
    """A writer, a reader and a watch over the locks, each with connections of its own."""
    beside, over = Beside(), threading.Event()
    chance = np.random.default_rng(2)

    def write(connection: Connection) -> None:
        keys = [chance.bytes(32) for _ in range(KEYS)]
        embeddings.use(connection, needed[:KEYS])
        embeddings.store(connection, {key: (np.zeros(DIMENSIONS, np.float32), 1) for key in keys})

    def read(connection: Connection) -> None:
        embeddings.load(connection, needed[:KEYS])
        connection.execute("SELECT key, vector FROM embeddings ORDER BY last_used LIMIT %s", (KEYS,)).fetchall()

    def watch(connection: Connection) -> None:
        row = connection.execute(
            """SELECT extract(epoch FROM max(clock_timestamp() - waitstart))::float8 AS waited
                 FROM pg_locks WHERE NOT granted"""
        ).fetchone()
        beside.longest_wait = max(beside.longest_wait, (row["waited"] if row else None) or 0.0)

    def again_and_again(what: Callable[[Connection], None], times: list[float], pause: float) -> None:
        with closing(Services(services.settings)) as own:
            while not over.is_set():
                began = time.perf_counter()
                with own.ledger.transaction() as connection:
                    what(connection)
                times.append(time.perf_counter() - began)
                time.sleep(pause)

    looks: list[float] = []
    threads = [
        threading.Thread(target=again_and_again, args=given)
        for given in ((write, beside.writes, 0.01), (read, beside.reads, 0.01), (watch, looks, LOOK_SECONDS))
    ]
    for thread in threads:
        thread.start()
    try:
        yield beside
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _told(beside: Beside) -> Figures:
    """Of the transactions beside: milliseconds."""
    return {
        name: {
            "count": len(times),
            "p50_ms": round(float(np.percentile(times, 50)) * 1000, 2),
            "p99_ms": round(float(np.percentile(times, 99)) * 1000, 2),
            "max_ms": round(max(times) * 1000, 2),
        }
        for name, times in (("writer", beside.writes[1:] or [0.0]), ("reader", beside.reads[1:] or [0.0]))
    }
