"""Documents that break the process which embeds them, for real: a worker's pool children die, and only they fail.

The worker is a real one with two pool children; `reconcile` runs here as beat would have it run, only more often.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from command_line import eventually
from services import RedisServer
from workshop import COLLECTION, Workshop

from pipeline import Settings
from pipeline.duties import Bounds
from pipeline.settings import load_settings
from pipeline.testing import ConstantEmbedder
from tasks.maintenance import reconcile
from workers.embedded.part import Part, run_alone, tail
from workers.embedded.stack import address_variables
from workers.programs import APP, GENERAL_QUEUES, worker_argv

TESTS = Path(__file__).parents[1]
GOOD = 63
PATIENCE_SECONDS = 60.0
RECONCILE_SECONDS = 0.2
# Four batches of sixteen chunks, coalesced into one claim: the bad one is to be found among sixty-four, then alone.
ENVIRONMENT = {"MILLRACE_INGEST__EMBED_CHUNKS": "16", "MILLRACE_WORK__BACKOFF_SECONDS": "0.05"}


@dataclass(frozen=True)
class Mill:
    """The ledger of a real worker, seen by an application and an onlooker. pid: of the worker's main process."""

    workshop: Workshop
    pid: int
    log: Path

    def children(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.pid).children()}


@contextmanager
def repeated(act: Callable[[], object], seconds: float) -> Iterator[list[BaseException]]:
    """Calls `act` again and again in a thread meanwhile; what it raised is in the list."""
    stop = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        while True:
            try:
                act()
            except BaseException as error:  # noqa: BLE001 - told by the test
                raised.append(error)
            if stop.wait(seconds):
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def mill(
    module_postgres_url: str, redis_server: RedisServer, qdrant_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mill]:
    redis_server.flush()
    directory = tmp_path_factory.mktemp("poison")
    addresses = {
        "postgres": {"url": module_postgres_url},
        "redis": {"url": redis_server.url},
        "qdrant": {"url": qdrant_url},
    }
    settings: Settings = load_settings(home=directory / "home", **addresses)
    workshop = Workshop(settings, ConstantEmbedder())
    part = Part(
        "worker",
        tuple("poison_worker" if word == APP else word for word in worker_argv("general", GENERAL_QUEUES, 2)),
        directory,
        {
            **{name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")},
            **address_variables(addresses),
            **ENVIRONMENT,
            "MILLRACE_HOME": str(directory / "home"),
            "PYTHONPATH": str(TESTS),
        },
        ready=lambda: bool(workshop.sql("SELECT 1 FROM workers")),
    )
    log = directory / "worker.log"
    with (
        run_alone(part, log) as running,
        repeated(lambda: reconcile(workshop.services, Bounds(500, 20.0)), RECONCILE_SECONDS),
    ):
        yield Mill(workshop, running.pid, log)
    workshop.close()


@pytest.mark.parametrize(
    ("word", "said", "dies"),
    [
        # Of what signal is added where the pool says so before the lease is taken back (test_blame has that).
        ("segfaulting", "its process died", True),
        ("devouring", "its process died", True),
        ("memoryless", "MemoryError", False),
    ],
)
def test_a_text_that_breaks_its_process_is_one_dead_letter_among_63_indexed_ones_and_served_as_before(
    mill: Mill, word: str, said: str, dies: bool
) -> None:
    # Given a document that is published, and that a searcher finds all the while
    workshop, client, bad = mill.workshop, mill.workshop.client, f"{word}/bad"
    collection = f"{COLLECTION}-{word}"
    before = client.ingest([(bad, "the version before")], collection=collection)
    assert client.wait(before.job_id, PATIENCE_SECONDS).state == "succeeded"
    children = mill.children()

    def look() -> None:
        found = client.search("anything", collection=collection, filters={"uri": bad})
        assert [result.text for result in found.results] == ["the version before"], found
        assert found.degraded == ()

    # When its next version breaks the process that embeds it, coalesced with 63 good ones
    texts = [(f"{word}/{number}", f"good words number {number}") for number in range(GOOD)]
    texts.insert(40, (bad, f"a {word} text"))
    with repeated(look, 0.1) as raised:
        job = client.ingest(texts, collection=collection)
        done = client.wait(job.job_id, PATIENCE_SECONDS)

    # Then those are indexed, it is one dead letter, and what it was is still what searches find
    assert (done.state, done.documents["indexed"], done.documents["failed"]) == ("partial", GOOD, 1), tail(mill.log)
    assert raised == []
    (letter,) = client.dead_letters(job=job.job_id)
    assert (letter.uri, letter.step, letter.ordinal, letter.chunk) == (bad, "embed", 0, f"a {word} text")
    assert letter.attempts == 3, "alone, it had all of its attempts"
    assert said in letter.error
    assert (letter.traceback is None) == dies
    look()
    assert len(client.uris(collection=collection)) == GOOD + 1
    report = client.audit(collection).to_json()
    assert (report["expected"], report["present"], report["missing"]) == (GOOD + 1, GOOD + 1, 0)
    # And it is the children that died, not the worker; nobody else is blamed for it
    assert psutil.pid_exists(mill.pid)
    assert bool(children & mill.children()) or dies
    eventually(lambda: len(mill.children()) >= 2)
    blamed = workshop.sql(
        """SELECT DISTINCT c.born_version FROM batches b JOIN chunks c ON c.batch_id = b.id
            WHERE b.job_id = %(id)s AND b.size = 1 AND b.attempts + b.losses > 0""",
        id=job.job_id,
    )
    assert len(blamed) == 1
    together = workshop.value("SELECT bool_or(alone) FROM batches WHERE job_id = %(id)s AND size = 16", id=job.job_id)
    assert together, "it was claimed in company, and that was not held against the others"
