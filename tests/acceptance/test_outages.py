"""A real stack whose servers are killed, stopped and emptied while it works and applications enqueue: every document is
there once, nobody is blamed, and no worker is started again."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
import slow_ledger
from command_line import CommandLine, MakeHome, eventually

from pipeline import Client, Document
from pipeline.assembly import Services
from pipeline.errors import Unavailable
from pipeline.settings import load_settings
from pipeline.status import JobStatus

DOCUMENTS = 120
STOPPED_SECONDS = 10.0
STORE_SECONDS = 0.5  # of each batch until the outage is over, so that there is a middle on every machine
PATIENCE_SECONDS = 90.0
OURS = ("express", "general1", "beat", "flower")
# Leases that run out during each outage, small batches, and little patience with what does not answer.
ENVIRONMENT = {
    "MILLRACE_INGEST__PREPARE_DOCUMENTS": "10",
    "MILLRACE_INGEST__EMBED_CHUNKS": "2",
    "MILLRACE_EMBEDDING__MAX_WAIT_SECONDS": "0.05",
    "MILLRACE_WORK__LEASE_SECONDS": "4",
    "MILLRACE_WORK__HEARTBEAT_SECONDS": "1",
    "MILLRACE_POSTGRES__TIMEOUT": "4",
    "MILLRACE_POSTGRES__CONNECT_TIMEOUT": "2",
    "MILLRACE_REDIS__TIMEOUT": "3",
    "MILLRACE_QDRANT__TIMEOUT": "4",
}


@dataclass
class Application:
    """Enqueues a document every little while, from a thread, until it is told to stop; and tries again what failed."""

    client: Client
    collection: str
    jobs: list[JobStatus] = field(default_factory=list)
    slowest: float = 0.0
    delayed: int = 0
    refused: int = 0

    def run(self, stop: threading.Event) -> None:
        number = 0
        while not stop.wait(0.3):
            number += 1
            name = f"app{self.collection}{number}"
            while not self._enqueue(name):
                self.refused += 1
                time.sleep(0.3)

    def _enqueue(self, name: str) -> bool:
        started = time.monotonic()
        try:
            job = self.client.ingest(
                [Document(f"app/{name}", text(name))], collection=self.collection, idempotency_key=name
            )
        except Unavailable:
            return False
        finally:
            self.slowest = max(self.slowest, time.monotonic() - started)
        self.jobs.append(job)
        self.delayed += job.waiting is not None and job.waiting.reason.startswith("dispatch is delayed")
        return True


def text(word: str) -> str:
    return f"The word {word} stands in this document alone. A mill grinds what the race brings it."


@dataclass(frozen=True)
class Mill:
    """The stack, an application on it, and its servers by their processes."""

    line: CommandLine
    services: Services
    client: Client

    def run_file(self) -> dict[str, Any]:
        return dict(json.loads((self.line.home / "run.json").read_text()))

    def pid(self, part: str) -> int:
        """Of the part that runs now."""

        def found() -> int | None:
            pids = [each["pid"] for each in self.run_file()["parts"] if each["name"] == part]
            return pids[0] if pids and psutil.pid_exists(pids[0]) else None

        return int(eventually(found, PATIENCE_SECONDS))

    def ours(self) -> dict[str, int]:
        return {part: self.pid(part) for part in OURS}

    def family(self, part: str) -> list[psutil.Process]:
        process = psutil.Process(self.pid(part))
        return [process, *process.children(recursive=True)]

    def sql(self, query: str, **given: Any) -> list[dict[str, Any]]:
        with self.services.ledger.transaction() as connection:
            return connection.execute(query, given).fetchall()

    def kill(self, part: str) -> None:
        for member in self.family(part):
            with suppress(psutil.NoSuchProcess):
                member.kill()

    @contextmanager
    def stopped(self, part: str) -> Iterator[None]:
        family = self.family(part)
        for member in family:
            member.suspend()
        try:
            yield
        finally:
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.resume()

    def kill_and_empty_redis(self) -> None:
        """Its supervisor is held meanwhile, or it would be up again before its files are gone."""
        supervisor = psutil.Process(self.run_file()["pid"])
        pid = self.pid("redis")
        supervisor.suspend()
        try:
            self.kill("redis")
            for kept in (self.line.home / "redis").iterdir():
                if kept.name != "redis.conf":
                    shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
        finally:
            supervisor.send_signal(signal.SIGCONT)
        eventually(lambda: self.pid("redis") != pid, PATIENCE_SECONDS)

    def goes_through(self, collection: str, outage: Callable[[], None]) -> Application:
        """An ingest in the middle, an application that enqueues, and the outage; then all of it is there, once."""
        before = self.ours()
        stop = threading.Event()
        application = Application(self.client, collection)
        thread = threading.Thread(target=application.run, args=(stop,), daemon=True)
        words = [f"{collection}{number}" for number in range(DOCUMENTS)]
        self.slow(STORE_SECONDS)
        job = self.client.ingest([Document(word, text(word)) for word in words], collection=collection)
        thread.start()
        eventually(lambda: self._in_the_middle(job), PATIENCE_SECONDS)

        outage()

        back = len(application.jobs)
        eventually(lambda: len(application.jobs) > back + 1, PATIENCE_SECONDS)  # it reaches the ledger again
        self.slow(0)
        stop.set()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        for made in [job, *application.jobs]:
            done = self.client.wait(made.job_id, timeout=PATIENCE_SECONDS)
            assert done.state == "succeeded", done
        self._assert_each_is_there_once(collection, len(words) + len(application.jobs))
        assert self.ours() == before, "no worker and no beat was started again"
        return application

    def slow(self, seconds: float) -> None:
        slow_ledger.slow(self.line.addresses()["MILLRACE_POSTGRES__URL"], seconds)

    def _in_the_middle(self, job: JobStatus) -> bool:
        (row,) = self.sql("SELECT chunks_indexed AS n FROM jobs WHERE id = %(id)s", id=job.job_id)
        assert row["n"] < DOCUMENTS * 0.9
        return bool(row["n"])

    def _assert_each_is_there_once(self, collection: str, count: int) -> None:
        (rows,) = self.sql(
            """SELECT count(DISTINCT d.uri) AS documents, count(v.id) AS versions, count(c.point_id) AS chunks
                 FROM collections k JOIN documents d ON d.collection_id = k.id
                 JOIN versions v ON v.document_id = d.id AND v.id = d.published_version
                 JOIN chunks c ON c.born_version = v.id AND c.died_version IS NULL WHERE k.name = %(name)s""",
            name=collection,
        )
        assert rows == {"documents": count, "versions": count, "chunks": count}
        blamed = self.sql(
            """SELECT b.kind, b.attempts, b.losses, b.error FROM batches b JOIN collections k ON k.id = b.collection_id
                WHERE k.name = %(name)s AND b.attempts + b.losses > 0""",
            name=collection,
        )
        assert blamed == [], "nobody is to blame for an outage"
        audit = self.line.json("audit", "--collection", collection)
        assert audit["expected"] == audit["present"] == count
        assert [audit[fault] for fault in ("missing", "orphaned", "duplicate", "stale")] == [0, 0, 0, 0]


@pytest.fixture(scope="module")
def mill(make_home: MakeHome) -> Iterator[Mill]:
    line = CommandLine(make_home("outages"), ENVIRONMENT)
    line.json("up", "--detach", "--workers", "1", "--concurrency", "2")
    settings = load_settings(home=line.home)
    settings = settings.model_copy(
        update={
            "redis": settings.redis.model_copy(update={"timeout": 3.0}),
            "postgres": settings.postgres.model_copy(update={"timeout": 4.0, "connect_timeout": 2.0}),
            "qdrant": settings.qdrant.model_copy(update={"timeout": 4.0}),
        }
    )
    services = Services(settings)
    slow_ledger.install(settings.postgres.url.get_secret_value())
    with Client(services=services) as client:
        yield Mill(line, services, client)
    line.run("down")


def _wait(seconds: float) -> None:
    """That is how long the outage lasts."""
    time.sleep(seconds)


def test_each_server_killed_in_turn_costs_nothing(mill: Mill) -> None:
    def outage() -> None:
        for part in ("redis", "qdrant", "postgres"):
            pid = mill.pid(part)
            mill.kill(part)
            eventually(lambda part=part, pid=pid: mill.pid(part) != pid, PATIENCE_SECONDS)  # type: ignore[misc]

    mill.goes_through("killed", outage)


@pytest.mark.parametrize("part", ["postgres", "qdrant", "redis"])
def test_a_server_that_is_stopped_for_longer_than_any_lease_costs_nothing(mill: Mill, part: str) -> None:
    def outage() -> None:
        with mill.stopped(part):
            _wait(STOPPED_SECONDS)

    application = mill.goes_through(f"stopped{part}", outage)

    if part == "redis":
        assert application.refused == 0
        assert application.slowest < 8.0, "what is enqueued is durable within seconds"
        assert application.delayed > 0, "and its caller is told that its start is delayed"
    if part == "qdrant":
        assert application.refused == application.delayed == 0, "who enqueues needs no index"


def test_redis_that_comes_back_with_an_empty_disk_costs_nothing(mill: Mill) -> None:
    mill.goes_through("emptied", mill.kill_and_empty_redis)
