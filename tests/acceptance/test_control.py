"""The real stack under control: paused and resumed in the middle, put before a backlog, cancelled in the middle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, eventually

from pipeline import Client, ingest
from pipeline.assembly import Services
from pipeline.settings import load_settings

DOCUMENTS = 90
PATIENCE_SECONDS = 90.0
# Small batches, so that there is a middle.
ENVIRONMENT = {
    "MILLRACE_INGEST__PREPARE_DOCUMENTS": "10",
    "MILLRACE_INGEST__EMBED_CHUNKS": "4",
    "MILLRACE_EMBEDDING__MAX_WAIT_SECONDS": "0.05",
}
SENTENCE = "A mill grinds what the race brings it. "


@dataclass(frozen=True)
class Mill:
    """A stack of one general worker of two children, as its operator and as an onlooker see it."""

    line: CommandLine
    services: Services
    directory: Path

    @property
    def client(self) -> Client:
        return Client(services=self.services)

    def sql(self, query: str, **given: Any) -> list[dict[str, Any]]:
        with self.services.ledger.transaction() as connection:
            return connection.execute(query, given).fetchall()

    def enqueue(self, collection: str, priority: str = "normal", documents: int = DOCUMENTS) -> str:
        directory = self.directory / f"{collection}-{priority}"
        directory.mkdir()
        for number in range(documents):
            text = f"The word {collection}{priority}{number} stands in this document alone. {SENTENCE * 4}"
            (directory / f"{number}.txt").write_text(text)
        job = self.line.json("ingest", str(directory), "--collection", collection, "--priority", priority)
        return str(job["job_id"])

    def indexed(self, job_id: str) -> int:
        (row,) = self.sql("SELECT chunks_indexed FROM jobs WHERE id = %(id)s", id=job_id)
        return int(row["chunks_indexed"])

    def running(self, job_id: str) -> int:
        (row,) = self.sql("SELECT count(*) AS n FROM batches WHERE job_id = %(id)s AND state = 'running'", id=job_id)
        return int(row["n"])

    def await_middle(self, job_id: str) -> None:
        eventually(lambda: self.indexed(job_id) > 0 and self.running(job_id), PATIENCE_SECONDS)
        assert self.indexed(job_id) < DOCUMENTS, "nothing is left to do: make the documents more"

    def finished(self, job_id: str) -> str:
        with Client(services=Services(self.services.settings)) as client:
            return client.wait(job_id, timeout=PATIENCE_SECONDS).state


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    directory = tmp_path_factory.mktemp("control")
    line = CommandLine(directory / "home", ENVIRONMENT)
    line.json("up", "--detach", "--workers", "1", "--concurrency", "2")
    services = Services(load_settings(home=line.home, work={"contract_seconds": 0.5, "recontract_seconds": 1.0}))
    yield Mill(line, services, directory)
    services.close()
    line.run("down")


def test_a_job_is_paused_in_the_middle_and_resumed(mill: Mill) -> None:
    # Given a job in the middle
    job_id = mill.enqueue("paused")
    mill.await_middle(job_id)

    # When it is paused (in this process: a command takes a second to start, and the job does not wait for it)
    mill.client.pause(job_id, reason="a look at the index")
    told = mill.line.json("pause")

    # Then what is at work ends, and nothing more begins
    assert [(pause["scope"], pause["job_id"], pause["reason"]) for pause in told["paused"]] == [
        ("job", job_id, "a look at the index")
    ]
    eventually(lambda: mill.running(job_id) == 0)
    before = mill.indexed(job_id)
    assert before < DOCUMENTS
    time.sleep(4.0)  # longer than between two reconciles: nobody else could send something
    assert (mill.indexed(job_id), mill.running(job_id)) == (before, 0)
    status = mill.line.json("job", job_id)
    assert (status["state"], status["waiting"]["reason"]) == ("paused", "paused: a look at the index")
    assert mill.line.json("status")["paused"] == told["paused"]
    assert "a look at the index" in mill.line.run("pause").stdout

    # And when it is resumed, it ends
    assert mill.line.json("resume", job_id) == {"paused": []}
    assert mill.finished(job_id) == "succeeded"
    assert mill.line.run("pause", job_id, status=2).stderr.count("there is nothing left to pause") == 1


def test_a_low_job_is_put_before_a_longer_normal_backlog(mill: Mill) -> None:
    # Given a backlog, and a job behind it in every respect
    mill.line.json("pause", "--all")
    backlog = mill.enqueue("backlog")
    urgent = mill.enqueue("backlog", "low", documents=8)

    # When that one is given another priority
    assert mill.line.json("prioritize", urgent, "high")["priority"] == "high"
    mill.line.json("resume", "--all")

    # Then it is through before the backlog is
    assert (mill.finished(urgent), mill.finished(backlog)) == ("succeeded", "succeeded")
    rows = mill.sql("SELECT id::text FROM jobs WHERE id = ANY(%(ids)s) ORDER BY finished_at", ids=[backlog, urgent])
    assert [row["id"] for row in rows] == [urgent, backlog]


def test_a_job_is_cancelled_in_the_middle_and_what_it_added_leaves_the_index(mill: Mill) -> None:
    # Given a job in the middle
    job_id = mill.enqueue("cancelled")
    mill.await_middle(job_id)

    # When it is cancelled
    status = mill.client.cancel(job_id)

    # Then nothing of it is at work or waits, and every document of it is either indexed or cancelled
    assert status.state == "cancelled"
    assert mill.sql("SELECT count(*) AS n FROM batches WHERE job_id = %(id)s AND ended_at IS NULL", id=job_id) == [
        {"n": 0}
    ]
    documents = mill.line.json("job", job_id, status=1)["documents"]
    assert documents["indexed"] + documents["cancelled"] == DOCUMENTS
    assert documents["cancelled"] > 0

    # And what was on its way leaves the index with the next two contractions; not waiting for those of the duty
    work = mill.services.settings.work

    def clean() -> bool:
        ingest.contract(mill.services.tools, work.contract_seconds, work.recontract_seconds, 500)
        audit = mill.line.json("audit", "--collection", "cancelled", status=None)
        left = mill.sql("SELECT count(*) AS n FROM chunks WHERE died_version IS NOT NULL")[0]["n"]
        found = [audit[fault] for fault in ("missing", "orphaned", "duplicate", "stale")]
        return left == 0 and found == [0, 0, 0, 0] and audit["present"] == documents["indexed"]

    eventually(clean, PATIENCE_SECONDS)


def test_a_collection_and_everything_are_paused_and_resumed_by_name(mill: Mill) -> None:
    mill.line.json("pause", "--collection", "paused")
    told = mill.line.json("pause", "--all", "--reason", "maintenance")
    assert [pause["scope"] for pause in told["paused"]] == ["everything", "collection"]

    job_id = mill.enqueue("paused", "high", documents=2)

    assert mill.line.json("job", job_id)["waiting"]["reason"] == "everything is paused: maintenance"
    assert [pause["scope"] for pause in mill.line.json("resume", "--all")["paused"]] == ["collection"]
    assert mill.line.json("job", job_id)["waiting"]["reason"] == "collection paused is paused"
    assert mill.line.json("resume", "--collection", "paused") == {"paused": []}
    assert mill.finished(job_id) == "succeeded"
