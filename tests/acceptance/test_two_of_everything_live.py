"""A real stack with two beats, two control workers and two general workers: all of it as if there were one, also where
two commands come at once; and paused and resumed in the middle, put before a backlog, cancelled in the middle."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import slow_ledger
from command_line import CommandLine, MakeHome, eventually

from pipeline import Client, ingest
from pipeline.assembly import Services
from pipeline.settings import load_settings

DOCUMENTS = 60
LONG = 90  # documents of a job that has a middle
STORE_SECONDS = 2.0  # of each batch of it, until it was looked at
PATIENCE_SECONDS = 90.0
# Small batches, so that there is a middle.
ENVIRONMENT = {
    "MILLRACE_INGEST__PREPARE_DOCUMENTS": "10",
    "MILLRACE_INGEST__EMBED_CHUNKS": "4",
    "MILLRACE_EMBEDDING__MAX_WAIT_SECONDS": "0.05",
}
IN_GROUPS = {"MILLRACE_INGEST__GROUP_DOCUMENTS": "10"}  # so that two commands meet again and again
SENTENCE = "A mill grinds what the race brings it."


@dataclass(frozen=True)
class Mill:
    """A stack as its operator and as an onlooker see it."""

    line: CommandLine
    directory: Path
    services: Services
    client: Client

    def sql(self, query: str, **given: Any) -> list[dict[str, Any]]:
        with self.services.ledger.transaction() as connection:
            return connection.execute(query, given).fetchall()

    def at_once(self, *commands: tuple[str, ...]) -> list[Any]:
        """Runs commands at the same moment; each must end well. Returns what they printed, as JSON where it is that."""
        line = replace(self.line, env={**self.line.env, **IN_GROUPS})
        with ThreadPoolExecutor(len(commands)) as pool:
            told = [done.stdout for done in pool.map(lambda command: line.run(*command), commands)]
        return [json.loads(out) if out.startswith("{") else out for out in told]

    def write(self, name: str, words: str) -> Path:
        """A directory of documents, which say these words and each a word of its own."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        for number in range(DOCUMENTS):
            (directory / f"{name}{number}.txt").write_text(f"The word {name}{number} stands here alone. {words}")
        return directory

    def wait(self, job_id: str) -> Any:
        return self.client.wait(job_id, timeout=PATIENCE_SECONDS)

    def enqueue(self, collection: str, priority: str = "normal", documents: int = LONG) -> str:
        directory = self.directory / f"{collection}-{priority}"
        directory.mkdir()
        for number in range(documents):
            text = f"The word {collection}{priority}{number} stands in this document alone. {SENTENCE}"
            (directory / f"{number}.txt").write_text(text)
        job = self.line.json("ingest", str(directory), "--collection", collection, "--priority", priority)
        return str(job["job_id"])

    def indexed(self, job_id: str) -> int:
        (row,) = self.sql("SELECT chunks_indexed FROM jobs WHERE id = %(id)s", id=job_id)
        return int(row["chunks_indexed"])

    def running(self, job_id: str) -> int:
        (row,) = self.sql("SELECT count(*) AS n FROM batches WHERE job_id = %(id)s AND state = 'running'", id=job_id)
        return int(row["n"])

    def enqueue_to_the_middle(self, collection: str) -> str:
        """A job that is worked on slowly, of which something is done, until `slow(0)`."""
        self.slow(STORE_SECONDS)
        job_id = self.enqueue(collection)
        eventually(lambda: self.indexed(job_id) > 0 and self.running(job_id), PATIENCE_SECONDS)
        assert self.indexed(job_id) < LONG
        return job_id

    def slow(self, seconds: float) -> None:
        slow_ledger.slow(self.services.settings.postgres.url.get_secret_value(), seconds)

    def finished(self, job_id: str) -> str:
        return self.client.wait(job_id, timeout=PATIENCE_SECONDS).state


@pytest.fixture(scope="module")
def mill(make_home: MakeHome) -> Iterator[Mill]:
    """A stack, and beside it another beat, another control worker and another general one."""
    line = CommandLine(make_home("two"), ENVIRONMENT)
    directory = line.home.parent
    line.json("up", "--detach", "--workers", "1", "--concurrency", "1")
    others = [
        ("beat", "--schedule", "second"),
        ("worker", "--express", "-n", "second"),
        ("worker", "-c", "1", "-n", "third"),
    ]
    with (directory / "log").open("wb") as log:
        running = [
            subprocess.Popen(line.argv(*other), env=line.environment(), cwd=directory, stdout=log, stderr=log)
            for other in others
        ]
    services = Services(load_settings(home=line.home, work={"contract_seconds": 0.5, "recontract_seconds": 1.0}))
    made = Mill(line, directory, services, Client(services=services))
    slow_ledger.install(services.settings.postgres.url.get_secret_value())
    alive = "SELECT count(*) AS n FROM workers WHERE seen_at > clock_timestamp() - interval '5 seconds'"
    eventually(lambda: made.sql(alive) == [{"n": 4}], PATIENCE_SECONDS)
    yield made
    for process in running:
        process.terminate()
    for process in running:
        process.wait(PATIENCE_SECONDS)
    services.close()
    line.run("down")


def _assert_every_document_is_there_once(mill: Mill, collection: str) -> None:
    (row,) = mill.sql(
        """SELECT count(DISTINCT d.id) AS documents, count(*) AS chunks, count(DISTINCT c.embedding_key) AS texts
             FROM collections k JOIN documents d ON d.collection_id = k.id JOIN versions v ON v.id = d.published_version
             JOIN chunks c ON c.document_id = d.id AND c.died_version IS NULL WHERE k.name = %(name)s""",
        name=collection,
    )
    assert row == {"documents": DOCUMENTS, "chunks": DOCUMENTS, "texts": DOCUMENTS}
    audit = mill.line.json("audit", "--collection", collection)
    assert (audit["expected"], audit["present"]) == (DOCUMENTS, DOCUMENTS)
    assert [audit[fault] for fault in ("missing", "orphaned", "duplicate", "stale")] == [0, 0, 0, 0]


def test_two_ingests_under_one_key_at_once_are_one_job(mill: Mill) -> None:
    directory = mill.write("keyed", "It has a key.")
    command = ("ingest", str(directory), "--collection", "keyed", "--idempotency-key", "the key", "--json")

    first, second = mill.at_once(command, command)

    assert first["job_id"] == second["job_id"]
    job = mill.wait(first["job_id"])
    assert (job.state, job.documents["total"], job.documents["indexed"]) == ("succeeded", DOCUMENTS, DOCUMENTS)
    _assert_every_document_is_there_once(mill, "keyed")
    (row,) = mill.sql("SELECT sum(epoch) AS epochs, count(*) AS batches FROM batches")
    assert row["epochs"] == row["batches"], "every batch was claimed once"


def test_two_ingests_without_a_key_at_once_are_two_jobs_with_every_document_once(mill: Mill) -> None:
    directory = mill.write("keyless", "It has no key.")
    command = ("ingest", str(directory), "--collection", "keyless", "--json")

    jobs = mill.at_once(command, command)

    assert jobs[0]["job_id"] != jobs[1]["job_id"]
    done = [mill.wait(job["job_id"]) for job in jobs]
    assert [job.state for job in done] == ["succeeded", "succeeded"]
    for job in done:
        assert sum(job.documents[name] for name in ("indexed", "unchanged", "superseded")) == DOCUMENTS
    assert sum(job.chunks["embedded"] for job in done) == DOCUMENTS
    _assert_every_document_is_there_once(mill, "keyless")


def test_an_update_and_a_delete_at_once_leave_each_document_whole_or_gone(mill: Mill) -> None:
    directory = mill.write("raced", "It is old.")
    mill.wait(mill.line.json("ingest", str(directory), "--collection", "raced")["job_id"])
    mill.write("raced", "It is new.")
    uris = [row["uri"] for row in mill.sql("SELECT uri FROM documents WHERE uri LIKE '%%/raced%%'")]

    update, deletion = mill.at_once(
        ("ingest", str(directory), "--collection", "raced", "--json"),
        ("delete", *uris, "--collection", "raced", "--json"),
    )

    assert {mill.wait(job["job_id"]).state for job in (update, deletion)} == {"succeeded"}
    rows = mill.sql(
        """SELECT d.uri, v.kind, v.id = (SELECT max(id) FROM versions WHERE document_id = d.id
                                            AND state IN ('published', 'unchanged')) AS newest
             FROM documents d JOIN versions v ON v.id = d.published_version WHERE d.uri LIKE '%%/raced%%'"""
    )
    assert len(rows) == DOCUMENTS
    found = mill.client.search("the word that is new or old", collection="raced", limit=200).results
    assert sorted(result.uri for result in found) == sorted(row["uri"] for row in rows if row["kind"] == "ingest")
    assert all(result.text.endswith("It is new.") for result in found)
    assert mill.client.audit("raced").clean


def test_two_beats_and_two_control_workers_run_a_duty_once_an_interval(mill: Mill) -> None:
    before = mill.sql("SELECT name, epoch, clock_timestamp() AS at FROM duties WHERE name = 'reconcile'")
    eventually(
        lambda: mill.sql("SELECT epoch FROM duties WHERE name = 'reconcile'")[0]["epoch"] >= before[0]["epoch"] + 4
    )
    after = mill.sql("SELECT name, epoch, clock_timestamp() AS at FROM duties WHERE name = 'reconcile'")

    runs = after[0]["epoch"] - before[0]["epoch"]
    # Every 3 s, and a tick may come a fifth of that early.
    assert (runs - 1) * 2.4 <= (after[0]["at"] - before[0]["at"]).total_seconds()


def test_two_migrations_at_once_beside_workers_change_nothing(mill: Mill) -> None:
    directory = mill.write("migrated", "It was there.")
    job = mill.line.json("ingest", str(directory), "--collection", "migrated")["job_id"]

    mill.at_once(("migrate",), ("migrate",))

    assert mill.wait(job).state == "succeeded"
    _assert_every_document_is_there_once(mill, "migrated")


def test_a_job_is_paused_in_the_middle_and_resumed(mill: Mill) -> None:
    # Given a job in the middle
    job_id = mill.enqueue_to_the_middle("paused")

    # When it is paused (in this process: a command takes a second to start, and the job does not wait for it)
    mill.client.pause(job_id, reason="a look at the index")
    told = mill.line.json("pause")

    # Then what is at work ends, and nothing more begins
    assert [(pause["scope"], pause["job_id"], pause["reason"]) for pause in told["paused"]] == [
        ("job", job_id, "a look at the index")
    ]
    eventually(lambda: mill.running(job_id) == 0)
    mill.slow(0)
    before = mill.indexed(job_id)
    assert before < LONG
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
    # Given workers that have all worked before, a backlog, and a job behind it in every respect
    assert mill.finished(mill.enqueue("urgent", "high", documents=40)) == "succeeded"
    mill.line.json("pause", "--all")
    backlog = mill.enqueue("backlog", documents=150)
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
    job_id = mill.enqueue_to_the_middle("cancelled")

    # When it is cancelled
    status = mill.client.cancel(job_id)
    mill.slow(0)

    # Then nothing of it is at work or waits, and every document of it is either indexed or cancelled
    assert status.state == "cancelled"
    assert mill.sql("SELECT count(*) AS n FROM batches WHERE job_id = %(id)s AND ended_at IS NULL", id=job_id) == [
        {"n": 0}
    ]
    documents = mill.line.json("job", job_id, status=1)["documents"]
    assert documents["indexed"] + documents["cancelled"] == LONG
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
