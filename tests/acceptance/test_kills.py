"""The real stack, real workers and the real model, killed in the middle: every document is there once all the same."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import slow_ledger
from command_line import CommandLine, MakeHome, eventually

from pipeline import Client
from pipeline.settings import load_settings
from pipeline.status import JobStatus
from workers.drill.plain import Away, Sql

DOCUMENTS = 160
PATIENCE_SECONDS = 90.0
WORKERS, WORKERS_AGAIN = 2, 1
# Until something is killed, so long: a job has a middle of ten seconds then.
STORE_SECONDS = 2.0
# Small batches and short leases: there is something to kill in the middle of, and it is found soon.
ENVIRONMENT = {
    "MILLRACE_INGEST__PREPARE_DOCUMENTS": "20",
    "MILLRACE_INGEST__EMBED_CHUNKS": "8",
    "MILLRACE_EMBEDDING__MAX_WAIT_SECONDS": "0.05",
    "MILLRACE_WORK__LEASE_SECONDS": "6",
    "MILLRACE_WORK__HEARTBEAT_SECONDS": "2",
}


@dataclass(frozen=True)
class Mill:
    """A stack of two general workers of two children each, as its user and as an onlooker see it."""

    line: CommandLine
    directory: Path
    client: Client
    ledger: Sql

    def sql(self, query: str, **given: Any) -> list[dict[str, Any]]:
        try:
            return self.ledger.rows(query, given)
        except Away:  # the connection was one to a Postgres that is gone
            return self.ledger.rows(query, given)

    def start_again(self) -> None:
        """With fewer than before: what was under way goes on with whoever is there."""
        up(self.line, WORKERS_AGAIN)

    def general_workers(self) -> list[str]:
        """The ids of those that have shown themselves lately and consume the queue `normal`."""
        rows = self.sql(
            """SELECT id FROM workers WHERE 'normal' = ANY(string_to_array(queues, ','))
                  AND seen_at > clock_timestamp() - interval '5 seconds' ORDER BY id"""
        )
        return [row["id"] for row in rows]

    def write(self, collection: str) -> list[str]:
        """A directory of short documents, each with a word that no other has. Returns the words, in order."""
        directory = self.directory / collection
        directory.mkdir()
        words = [f"{collection}{number}" for number in range(DOCUMENTS)]
        for word in words:
            text = f"The word {word} stands in this document alone. A mill grinds what the race brings it."
            (directory / f"{word}.txt").write_text(text)
        return words

    def enqueue(self, collection: str) -> str:
        """`millrace ingest`, without waiting. Returns the job's id."""
        return str(self.line.json("ingest", str(self.directory / collection), "--collection", collection)["job_id"])

    def ingest_to_the_middle(self, collection: str, workers: int = WORKERS) -> tuple[str, list[str], int]:
        """An ingest that workers are in the middle of: its job, its words, the embeddings there were before."""
        words = self.write(collection)
        embeddings = self.embeddings()
        eventually(lambda: len(self.general_workers()) == workers, PATIENCE_SECONDS)
        self.slow(STORE_SECONDS)
        job_id = self.enqueue(collection)
        self.await_middle(job_id)
        return job_id, words, embeddings

    def await_middle(self, job_id: str) -> None:
        """Returns when some chunks of the job are indexed, most are not, and a worker is at work on it."""

        def in_the_middle() -> bool:
            (row,) = self.sql(
                """SELECT chunks_indexed, (SELECT count(*) FROM batches b WHERE b.job_id = j.id AND b.state = 'running'
                                              AND b.kind = 'embed') AS running FROM jobs j WHERE id = %(id)s""",
                id=job_id,
            )
            assert row["chunks_indexed"] < DOCUMENTS, "nothing is left to kill: make the documents more"
            return bool(row["chunks_indexed"] and row["running"])

        eventually(in_the_middle, PATIENCE_SECONDS)

    def slow(self, seconds: float) -> None:
        slow_ledger.slow(self.line.addresses()["MILLRACE_POSTGRES__URL"], seconds)

    def finished(self, job_id: str) -> JobStatus:
        self.slow(0)
        return self.client.wait(job_id, timeout=PATIENCE_SECONDS)

    def embeddings(self) -> int:
        (row,) = self.sql("SELECT count(*) AS n FROM embeddings")
        return int(row["n"])

    def assert_every_document_is_there_once(self, job: JobStatus, words: list[str], embeddings_before: int) -> None:
        assert job.state == "succeeded", job
        assert self._of(job.documents, "total", "indexed", "failed") == (DOCUMENTS, DOCUMENTS, 0)
        assert self._of(job.chunks, "total", "embedded", "reused", "indexed") == (DOCUMENTS, DOCUMENTS, 0, DOCUMENTS)
        (rows,) = self.sql(
            """SELECT count(DISTINCT d.id) AS documents, count(v.id) AS versions, count(c.point_id) AS chunks,
                      count(DISTINCT c.embedding_key) AS keys, min(v.pending) AS least, max(v.pending) AS most
                 FROM collections k JOIN documents d ON d.collection_id = k.id
                 JOIN versions v ON v.document_id = d.id AND v.state = 'published' AND v.id = d.published_version
                 JOIN chunks c ON c.born_version = v.id AND c.died_version IS NULL WHERE k.name = %(name)s""",
            name=job.collection,
        )
        assert rows == {"documents": DOCUMENTS, "versions": DOCUMENTS, "chunks": DOCUMENTS, "keys": DOCUMENTS} | {
            "least": 0,
            "most": 0,
        }
        assert self.embeddings() - embeddings_before == DOCUMENTS, "one embedding a text, for ever"
        audit = self.line.json("audit", "--collection", job.collection)
        assert audit["expected"] == audit["present"] == DOCUMENTS
        assert [audit[fault] for fault in ("missing", "orphaned", "duplicate", "stale")] == [0, 0, 0, 0]
        for word in words[:: DOCUMENTS // 8]:
            (best,) = self.client.search(word, collection=job.collection, limit=1).results
            assert best.uri.endswith(f"/{word}.txt"), (word, best)

    @staticmethod
    def _of(counts: Mapping[str, int], *names: str) -> tuple[int, ...]:
        return tuple(counts[name] for name in names)


@pytest.fixture(scope="module")
def mill(make_home: MakeHome) -> Iterator[Mill]:
    line = CommandLine(make_home("kills"), ENVIRONMENT)
    directory = line.home.parent
    up(line, WORKERS)
    settings = load_settings(home=line.home)
    ledger = Sql(settings.postgres.url.get_secret_value())
    slow_ledger.install(settings.postgres.url.get_secret_value())
    with Client(settings) as client:
        yield Mill(line, directory, client, ledger)
    ledger.close()
    line.run("down")


def up(line: CommandLine, workers: int) -> None:
    line.json("up", "--detach", "--workers", str(workers), "--concurrency", "2")


def kill(process: psutil.Process) -> None:
    """SIGKILL for a process and everything below it, at once."""
    family = [process, *process.children(recursive=True)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)


def test_two_workers_of_two_children_each_share_the_work_and_do_nothing_twice(mill: Mill) -> None:
    words = mill.write("shared")
    embeddings = mill.embeddings()
    workers = eventually(lambda: len(found := mill.general_workers()) == WORKERS and found, PATIENCE_SECONDS)

    job = mill.finished(mill.enqueue("shared"))

    mill.assert_every_document_is_there_once(job, words, embeddings)
    rows = mill.sql("SELECT DISTINCT split_part(owner, '/', 1) AS id FROM batches WHERE job_id = %(id)s", id=job.job_id)
    assert sorted(row["id"] for row in rows) == workers, "both took part"
    assert mill.sql("SELECT count(*) AS n FROM batches WHERE attempts + losses > 0") == [{"n": 0}]


def test_a_worker_killed_with_its_children_mid_ingest_costs_no_document_and_no_second_embedding(mill: Mill) -> None:
    # Given an ingest that a general worker is in the middle of
    job_id, words, embeddings = mill.ingest_to_the_middle("killed")

    # When the worker that is at work is killed with all its children
    (victim,) = mill.sql(
        """SELECT w.id, w.pid FROM batches b JOIN workers w ON w.id = split_part(b.owner, '/', 1)
            WHERE b.job_id = %(id)s AND b.kind = 'embed' ORDER BY b.state = 'running' DESC, b.id DESC LIMIT 1""",
        id=job_id,
    )
    kill(psutil.Process(victim["pid"]))

    # Then the others finish its work
    job = mill.finished(job_id)
    mill.assert_every_document_is_there_once(job, words, embeddings)
    rows = mill.sql("SELECT attempts, losses FROM batches WHERE job_id = %(id)s", id=job_id)
    assert sum(row["attempts"] for row in rows) == 0, "nobody is blamed for a lost worker"


def test_a_flush_of_redis_mid_ingest_costs_no_document(mill: Mill) -> None:
    job_id, words, embeddings = mill.ingest_to_the_middle("flushed")

    with redis.Redis.from_url(mill.line.addresses()["MILLRACE_REDIS__URL"]) as client:
        client.flushall()

    mill.assert_every_document_is_there_once(mill.finished(job_id), words, embeddings)


def test_a_stack_that_is_killed_whole_mid_ingest_finishes_the_job_when_it_is_up_again(mill: Mill) -> None:
    # Given an ingest in the middle
    job_id, words, embeddings = mill.ingest_to_the_middle("downed")

    # When the supervisor and everything below it is killed: servers, workers, beat
    kill(psutil.Process(json.loads((mill.line.home / "run.json").read_text())["pid"]))

    # Then the next `up` on the same home takes the job to its end
    mill.start_again()
    mill.assert_every_document_is_there_once(mill.finished(job_id), words, embeddings)
    assert mill.client.search("killed7", collection="killed", limit=1).results[0].uri.endswith("/killed7.txt")
    assert mill.client.audit("killed").clean, "what was there before is there still"


def test_a_stack_that_is_stopped_in_order_mid_ingest_blames_nobody_and_goes_on_when_it_is_up_again(mill: Mill) -> None:
    job_id, words, embeddings = mill.ingest_to_the_middle("stopped", WORKERS_AGAIN)

    mill.line.run("down")
    mill.start_again()

    mill.assert_every_document_is_there_once(mill.finished(job_id), words, embeddings)
    rows = mill.sql(
        "SELECT sum(attempts) AS attempts, sum(losses) AS losses FROM batches WHERE job_id = %(id)s", id=job_id
    )
    assert rows == [{"attempts": 0, "losses": 0}]
