"""Workers that are told to stop hand their work back at once: a rolling restart of all of them costs an ingest nothing
but the restarts, and blames nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import CommandLine, MakeHome, eventually
from waiting_reader import NEVER_ENDS

from pipeline import Client
from pipeline.settings import load_settings
from workers.programs import READY_VARIABLE

DOCUMENTS = 120
GRIST = "A mill grinds what comes. " * 8
TESTS = Path(__file__).parent.parent
PATIENCE_SECONDS = 90.0
# From the signal until no work of the worker's is held any more: what others wait for; nothing like the lease, whatever
# else the machine does. That its process ends and is started again takes a few seconds on a quiet machine, most of them
# Celery's own, and many on a busy one.
HAND_BACK_SECONDS = 20.0
END_SECONDS = 60.0
BACK_SECONDS = 90.0
LEASE_SECONDS = 120
# The rescue that would hide work that was left behind comes much later than what is measured.
ENVIRONMENT = {
    "MILLRACE_INGEST__PREPARE_DOCUMENTS": "20",
    "MILLRACE_INGEST__EMBED_CHUNKS": "8",
    "MILLRACE_WORK__LEASE_SECONDS": f"{LEASE_SECONDS}",
    "MILLRACE_WORK__HEARTBEAT_SECONDS": "5",
}


@dataclass(frozen=True)
class Mill:
    """A stack of two general workers."""

    line: CommandLine
    directory: Path
    client: Client

    def sql(self, query: str, **given: Any) -> list[dict[str, Any]]:
        with self.client._services.ledger.transaction() as connection:
            return connection.execute(query, given).fetchall()

    def general_workers(self) -> dict[str, int]:
        """Name -> pid of the general workers that have shown themselves lately."""
        rows = self.sql(
            """SELECT split_part(id, '@', 1) AS name, id, pid FROM workers
                WHERE 'normal' = ANY(string_to_array(queues, ',')) AND id LIKE 'general%%'
                  AND seen_at > clock_timestamp() - interval '5 seconds'"""
        )
        return {row["name"]: row["pid"] for row in rows}

    def held(self, pid: int) -> int:
        """How many batches the children of a worker hold."""
        rows = self.sql(
            """SELECT count(*) AS n FROM batches b JOIN workers w ON w.id = split_part(b.owner, '/', 1)
                WHERE b.state = 'running' AND w.pid = %(pid)s""",
            pid=pid,
        )
        return int(rows[0]["n"])

    def restart(self, name: str) -> None:
        """Tells a worker that is at work to stop: it hands back what it holds, ends, and is there again, at once."""
        pid = self.general_workers()[name]
        eventually(lambda: self.held(pid), PATIENCE_SECONDS)
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not self.held(pid), HAND_BACK_SECONDS)
        eventually(lambda: gone(pid), END_SECONDS)
        eventually(lambda: self.general_workers().get(name, pid) != pid, BACK_SECONDS)

    def ingest(self, name: str, texts: list[str], **options: Any) -> str:
        directory = self.directory / name
        directory.mkdir()
        for number, text in enumerate(texts):
            (directory / f"{number}.txt").write_text(text)
        return str(self.client.ingest(directory, collection=name, **options).job_id)

    def assert_all_is_there_once_and_nobody_is_blamed(self, job_id: str, name: str, documents: int) -> None:
        job = self.client.wait(job_id, timeout=PATIENCE_SECONDS)
        assert job.state == "succeeded", job
        assert job.documents["indexed"] == documents
        assert job.chunks["embedded"] == job.chunks["total"] == documents
        rows = self.sql(
            "SELECT sum(attempts) AS attempts, sum(losses) AS losses, bool_or(alone) AS alone FROM batches "
            "WHERE job_id = %(id)s",
            id=job_id,
        )
        assert rows == [{"attempts": 0, "losses": 0, "alone": False}]
        assert self.client.audit(name).clean


@pytest.fixture(scope="module")
def mill(make_home: MakeHome) -> Iterator[Mill]:
    line = CommandLine(make_home("rolling"), ENVIRONMENT)
    directory = line.home.parent
    line.json("up", "--detach", "--workers", "2", "--concurrency", "1")
    with Client(load_settings(home=line.home)) as client:
        yield Mill(line, directory, client)
    line.run("down")


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_rolling_restart_of_all_workers_twice_costs_an_ingest_nothing_but_the_restarts(mill: Mill) -> None:
    # Given two workers, and more and more to do for them
    eventually(lambda: len(mill.general_workers()) == 2, PATIENCE_SECONDS)
    jobs = {}
    for turn, name in enumerate(("general1", "general2") * 2):
        collection = f"rolled{turn}"
        texts = [f"The word {collection}x{number} stands here alone. {GRIST}" for number in range(DOCUMENTS)]
        jobs[collection] = mill.ingest(collection, texts)

        # When each is told to stop in the middle of it, one after the other, twice
        mill.restart(name)

    # Then every document is there once, and nobody is blamed
    for collection, job_id in jobs.items():
        mill.assert_all_is_there_once_and_nobody_is_blamed(job_id, collection, DOCUMENTS)


def test_a_document_that_is_never_read_to_its_end_does_not_keep_a_worker_that_is_told_to_stop(mill: Mill) -> None:
    # Given a further worker in whose hands some documents are never read to their end
    directory = mill.directory / "waiting"
    directory.mkdir()
    environment = {
        **mill.line.environment(),
        **mill.line.addresses(),
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        READY_VARIABLE: str(directory / "ready"),
    }
    argv = [sys.executable, "-m", "celery", "-A", "waiting_worker", "worker", "-Q", "high,normal,low", "-c", "1"]
    argv += ["-n", "waiting@%h", "--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    argv += ["--include", "workers.embedded.ready"]
    with (directory / "log").open("wb") as log:
        worker = subprocess.Popen(argv, env=environment, cwd=directory, stdout=log, stderr=log)
    try:
        eventually((directory / "ready").exists, PATIENCE_SECONDS)
        count = 12 * 20
        job_id = mill.ingest("unread", [f"unread{number} and {NEVER_ENDS}" for number in range(count)])
        eventually(lambda: mill.held(worker.pid), PATIENCE_SECONDS)
        eventually(lambda: _reader_of(worker.pid), PATIENCE_SECONDS)

        # When that worker is told to stop
        told = time.monotonic()
        worker.send_signal(signal.SIGTERM)

        # Then its work is in other hands at once, and it ends
        eventually(lambda: not mill.held(worker.pid), HAND_BACK_SECONDS)
        assert worker.wait(END_SECONDS) == 0
        mill.assert_all_is_there_once_and_nobody_is_blamed(job_id, "unread", count)
        assert time.monotonic() - told < LEASE_SECONDS, "nobody waited for a lease to run out"
    finally:
        for process in psutil.Process(worker.pid).children(recursive=True) if worker.poll() is None else ():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        worker.kill()
        worker.wait()


def _reader_of(pid: int) -> bool:
    """Whether a process that reads documents runs below this one."""
    return any("waiting_reader" in " ".join(child.cmdline()) for child in psutil.Process(pid).children(recursive=True))
