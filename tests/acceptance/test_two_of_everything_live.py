"""Two beats, two control workers, two general workers, two commands at once: all of it as if there were one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, eventually

from pipeline import Client
from pipeline.assembly import Services
from pipeline.settings import load_settings

DOCUMENTS = 60
PATIENCE_SECONDS = 60.0
ENVIRONMENT = {"MILLRACE_INGEST__PREPARE_DOCUMENTS": "10", "MILLRACE_INGEST__GROUP_DOCUMENTS": "10"}


@dataclass(frozen=True)
class Mill:
    line: CommandLine
    directory: Path
    services: Services
    client: Client

    def sql(self, query: str, **given: Any) -> list[dict[str, Any]]:
        with self.services.ledger.transaction() as connection:
            return connection.execute(query, given).fetchall()

    def at_once(self, *commands: tuple[str, ...]) -> list[Any]:
        """Runs commands at the same moment; each must end well. Returns what they printed, as JSON where it is that."""
        running = [
            subprocess.Popen(
                self.line.argv(*command),
                env=self.line.environment(),
                cwd=self.directory,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for command in commands
        ]
        told = [process.communicate(timeout=PATIENCE_SECONDS) for process in running]
        assert [process.returncode for process in running] == [0] * len(running), told
        return [json.loads(out) if out.startswith("{") else out for out, _ in told]

    def write(self, name: str, words: str) -> Path:
        """A directory of documents, which say these words and each a word of its own."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        for number in range(DOCUMENTS):
            (directory / f"{name}{number}.txt").write_text(f"The word {name}{number} stands here alone. {words}")
        return directory

    def wait(self, job_id: str) -> Any:
        return self.client.wait(job_id, timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    """A stack, and beside it another beat, another control worker and another general one."""
    directory = tmp_path_factory.mktemp("two")
    line = CommandLine(directory / "home", ENVIRONMENT)
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
    services = Services(load_settings(home=line.home))
    made = Mill(line, directory, services, Client(services=services))
    alive = "SELECT count(*) AS n FROM workers WHERE seen_at > clock_timestamp() - interval '5 seconds'"
    eventually(lambda: made.sql(alive) == [{"n": 4}], PATIENCE_SECONDS)
    yield made
    for process in running:
        process.terminate()
    for process in running:
        process.wait(30)
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
