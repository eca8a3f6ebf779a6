"""An embedding that somebody begins to need while it is collected, at the worst moments, with connections of two."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from workshop import Workshop, chunked

from pipeline import Settings
from pipeline.cached_embedding import embed_cached
from pipeline.duties import Bounds
from pipeline.ledger import embeddings
from pipeline.ledger import garbage as rows
from tasks import garbage

PATIENCE_SECONDS = 60.0
NEVER = 1e-9  # days


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """Every embedding that nothing needs is old enough to go."""
    kept = settings.garbage.model_copy(update={"embeddings_days": NEVER})
    made = Workshop(chunked(settings.model_copy(update={"garbage": kept})))
    yield made
    made.close()


def forgotten(workshop: Workshop, *texts: str) -> list[bytes]:
    """Embeddings that nothing needs, used long ago."""
    embed_cached(workshop.services.ledger, workshop.embedder, texts, "passage")
    workshop.sql("UPDATE embeddings SET last_used = now() - interval '1 year'")
    return [bytes(row["key"]) for row in workshop.sql("SELECT key FROM embeddings ORDER BY key")]


class Collecting:
    """A collection of embeddings that stops after its n-th statement, until `go_on`."""

    def __init__(self, workshop: Workshop, after: int) -> None:
        self._workshop = workshop
        self._after = after
        self._stopped, self._go = threading.Event(), threading.Event()
        self.taken = -1
        self._thread = threading.Thread(daemon=True, target=self._run)
        self._thread.start()
        assert self._stopped.wait(PATIENCE_SECONDS)

    def _run(self) -> None:
        url = self._workshop.settings.postgres.url.get_secret_value()
        with psycopg.connect(url, row_factory=dict_row) as connection:
            plain, count = connection.execute, 0

            def execute(*given: Any, **named: Any) -> Any:
                nonlocal count
                cursor = plain(*given, **named)
                count += 1
                if count == self._after:
                    self._stopped.set()
                    assert self._go.wait(PATIENCE_SECONDS)
                return cursor

            connection.__dict__["execute"] = execute
            try:
                given = rows.ages(self._workshop.services.settings.garbage, 0.0)
                kind = rows.KINDS["embeddings"]
                self.taken = rows.page(connection, kind, given, after=None, rows=100, dry_run=False).taken
            finally:
                del connection.__dict__["execute"]
                self._stopped.set()

    def go_on(self) -> int:
        """Returns how many were taken."""
        self._go.set()
        self._thread.join(PATIENCE_SECONDS)
        assert self.taken >= 0
        return self.taken


def waits(workshop: Workshop) -> bool:
    """Whether a statement waits for a lock of another transaction."""
    return bool(workshop.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_whole(workshop: Workshop) -> None:
    assert workshop.texts() == {"a": ["ash"]}
    assert workshop.audit() == {"expected": 1, "present": 1}, "its embedding is stored"


def test_what_comes_into_need_before_it_is_locked_stays(workshop: Workshop) -> None:
    # Given a collection that has looked, and found nobody who needs the embedding
    forgotten(workshop, "ash")
    workshop.put({"a": "ash"})
    collecting = Collecting(workshop, after=1)

    # When a document is cut, finds its embedding and is published
    workshop.work()

    # Then the collection asks again, and leaves it
    assert collecting.go_on() == 0
    assert workshop.embedded() == ["ash"], "once, before"
    assert_whole(workshop)


def test_what_is_found_while_it_is_going_is_computed_again(workshop: Workshop) -> None:
    # Given a collection that has locked the embedding and asked for the last time who needs it
    forgotten(workshop, "ash")
    workshop.put({"a": "ash"})
    collecting = Collecting(workshop, after=3)

    # When a document is cut, and its embedding looked up
    working = threading.Thread(daemon=True, target=workshop.work)
    working.start()
    eventually(lambda: waits(workshop))

    # Then that waits until the collection has gone, and the text is embedded anew
    assert collecting.go_on() == 1
    working.join(PATIENCE_SECONDS)
    assert workshop.embedded() == ["ash", "ash"]
    assert_whole(workshop)


def test_what_is_locked_and_not_yet_asked_for_again_is_left_to_who_came(workshop: Workshop) -> None:
    # Given a collection that has locked the embedding
    forgotten(workshop, "ash")
    workshop.put({"a": "ash"})
    collecting = Collecting(workshop, after=2)

    # When a document is cut, and its embedding looked up
    working = threading.Thread(daemon=True, target=workshop.work)
    working.start()
    eventually(lambda: waits(workshop))

    # Then the collection finds its chunk, and the embedding is there when the lookup goes on
    assert collecting.go_on() == 0
    working.join(PATIENCE_SECONDS)
    assert workshop.embedded() == ["ash"]
    assert_whole(workshop)


def test_what_somebody_is_looking_up_is_passed_over(workshop: Workshop) -> None:
    keys = forgotten(workshop, "ash", "birch")
    with workshop.services.ledger.transaction() as connection:
        assert set(embeddings.use(connection, keys[:1])) == set(keys[:1])
        found = garbage.expire(workshop.services, Bounds(100, 20.0))
    assert found["embeddings"] == 1
    assert workshop.value("SELECT key FROM embeddings") == keys[0]


def test_what_is_written_while_the_same_is_going_is_stored(workshop: Workshop) -> None:
    # Given a collection that is about to commit
    forgotten(workshop, "ash")
    collecting = Collecting(workshop, after=3)
    (vector,) = workshop.embedder.embed(["ash"]).vectors
    (key,) = [bytes(row["key"]) for row in workshop.sql("SELECT key FROM embeddings")]
    stored: list[bytes] = []

    # When a worker that had not found it stores the same embedding
    def store() -> None:
        with workshop.services.ledger.transaction() as connection:
            stored.extend(embeddings.store(connection, {key: (vector, 1)}))

    writing = threading.Thread(daemon=True, target=store)
    writing.start()
    eventually(lambda: waits(workshop))
    assert collecting.go_on() == 1
    writing.join(PATIENCE_SECONDS)

    # Then it is there
    assert stored == [key]
    assert workshop.value("SELECT count(*) FROM embeddings") == 1


def test_a_collection_waits_for_nobody_and_holds_up_no_reader(workshop: Workshop) -> None:
    # Given ten thousand embeddings that nothing needs, and a few that something needs
    workshop.index({f"a{number}": f"ash {number}" for number in range(20)})
    workshop.sql(
        """INSERT INTO embeddings (key, vector, tokens, last_used)
           SELECT sha256(n::text::bytea), repeat('x', 1536)::bytea, 1,
                  now() - interval '1 year' + make_interval(secs => n)
             FROM generate_series(1, 10000) AS n"""
    )
    keys = [bytes(row["key"]) for row in workshop.sql("SELECT key FROM embeddings ORDER BY last_used DESC LIMIT 2000")]
    waited: list[float] = []
    over = threading.Event()

    # When they are collected, beside one who reads all of them again and again, and one who uses those that are needed
    def read(use: Callable[..., object], wanted: list[bytes]) -> None:
        while not over.is_set():
            with workshop.services.ledger.transaction() as connection:
                connection.execute("SET LOCAL lock_timeout = '250ms'")
                began = time.perf_counter()
                use(connection, wanted)
                waited.append(time.perf_counter() - began)

    beside = [
        threading.Thread(daemon=True, target=read, args=(embeddings.load, keys[:50])),
        threading.Thread(daemon=True, target=read, args=(embeddings.use, keys[:20])),
    ]
    for thread in beside:
        thread.start()
    eventually(lambda: len(waited) > 10)
    before = len(waited)
    taken = garbage.expire(workshop.services, Bounds(500, 120.0))["embeddings"]
    during = len(waited) - before
    over.set()
    for thread in beside:
        thread.join(PATIENCE_SECONDS)

    # Then nobody waited for a lock: none was ever refused after its time
    assert taken == 10_000
    assert during > 2
    assert workshop.value("SELECT count(*) FROM embeddings") == 20


def test_a_plain_reader_reads_what_is_locked_at_once(workshop: Workshop) -> None:
    keys = forgotten(workshop, "ash")
    collecting = Collecting(workshop, after=3)
    with workshop.services.ledger.transaction() as connection:
        connection.execute("SET LOCAL lock_timeout = '1ms'")
        assert set(embeddings.load(connection, keys)) == set(keys)
    with workshop.services.ledger.transaction() as connection:
        connection.execute("SET LOCAL lock_timeout = '1ms'")
        locked = "SELECT key FROM embeddings WHERE key = ANY(%s) FOR KEY SHARE SKIP LOCKED"
        assert connection.execute(locked, (keys,)).fetchall() == []
    assert collecting.go_on() == 1
