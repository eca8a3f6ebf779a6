"""`millrace sync DIR --every ...` on the real stack: beat, workers, and what a killed one leaves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import CommandLine, MakeHome, eventually

from pipeline import Client
from pipeline.assembly import Services
from pipeline.settings import load_settings

# Groups of one document, and short leases: a listing takes long enough to be killed, and is found soon.
ENVIRONMENT = {
    "MILLRACE_INGEST__GROUP_DOCUMENTS": "1",
    "MILLRACE_WORK__LEASE_SECONDS": "6",
    "MILLRACE_WORK__HEARTBEAT_SECONDS": "2",
}
FILES = 100


@dataclass(frozen=True)
class Mill:
    """A stack of two general workers, and a ledger to look into."""

    line: CommandLine
    directory: Path
    services: Services
    client: Client

    def sql(self, query: str, **given: Any) -> list[dict[str, Any]]:
        with self.services.ledger.transaction() as connection:
            return connection.execute(query, given).fetchall()

    def schedule(self, collection: str) -> dict[str, Any]:
        (found,) = [one for one in self.client.schedules() if one.collection == collection]
        return found.to_json()

    def names(self, collection: str) -> list[str]:
        found = self.client.documents(collection=collection, limit=1000)
        return [document["uri"].rpartition("/")[2] for document in found]


@pytest.fixture(scope="module")
def mill(make_home: MakeHome) -> Iterator[Mill]:
    line = CommandLine(make_home("schedules"), ENVIRONMENT)
    directory = line.home.parent
    line.json("up", "--detach", "--workers", "2", "--concurrency", "1")
    services = Services(load_settings(home=line.home))
    yield Mill(line, directory, services, Client(services=services))
    services.close()
    line.run("down")


def test_a_directory_is_followed_until_its_schedule_is_removed(mill: Mill) -> None:
    # Given a directory that is synchronised as often as can be, named relative to where the person is
    tree = mill.directory / "notes"
    tree.mkdir()
    (tree / "old.txt").write_text("The old wheel turned slowly.")
    (tree / "kept.txt").write_text("The race brings the water to the wheel.")
    made = mill.line.json("sync", "notes", "--every", "10s", "--collection", "notes")
    assert (made["source"], made["every_seconds"]) == (str(tree), 10.0)

    # Then it is there at once
    eventually(lambda: mill.names("notes") == ["kept.txt", "old.txt"], 60)

    # When a file comes and one goes, then the collection follows by itself
    (tree / "new.txt").write_text("The new wheel turns fast.")
    (tree / "old.txt").unlink()
    eventually(lambda: mill.names("notes") == ["kept.txt", "new.txt"], 60)
    shown = mill.schedule("notes")
    assert (shown["error"], shown["consecutive_failures"]) == (None, 0)

    # When the directory goes away, then nothing is deleted, and the schedule and the status say so
    tree.rename(mill.directory / "moved")
    mill.line.run("schedules", "run", "notes")
    assert "does not exist" in eventually(lambda: mill.schedule("notes")["error"], 60)
    assert any("notes" in issue["message"] for issue in mill.line.json("status", status=None)["health"]["issues"])
    assert mill.names("notes") == ["kept.txt", "new.txt"]

    # When it is removed, its documents stay
    assert mill.line.json("schedules", "remove", "notes")["state"] == "removed"
    assert mill.line.json("schedules") == {"schedules": []}
    assert mill.names("notes") == ["kept.txt", "new.txt"]


def test_a_worker_killed_while_it_lists_a_tree_is_replaced_by_another_that_ends_the_same_job(mill: Mill) -> None:
    # Given a run that a worker is in the middle of
    tree = mill.directory / "large"
    tree.mkdir()
    for number in range(FILES):
        (tree / f"{number:04}.txt").write_text("A mill grinds what the race brings it.")
    mill.line.run("sync", str(tree), "--every", "1h", "--collection", "large")

    def in_the_middle() -> dict[str, Any] | None:
        found = mill.sql(
            """SELECT s.last_job, w.pid FROM schedules s JOIN jobs j ON j.id = s.last_job
                 JOIN workers w ON w.id = split_part(s.owner, '/', 1)
                WHERE s.collection = 'large' AND j.documents_total > 5"""
        )
        return found[0] if found else None

    middle = eventually(in_the_middle, 60)

    # When it is killed with its child
    worker = psutil.Process(middle["pid"])
    for process in [worker, *worker.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    (cut,) = mill.sql("SELECT sealed_at, documents_total FROM jobs WHERE id = %(id)s", id=middle["last_job"])
    assert cut["sealed_at"] is None
    assert cut["documents_total"] < FILES

    # Then the other one ends it: one job, every document once
    eventually(lambda: mill.schedule("large")["last_finished"], 60)
    shown = mill.schedule("large")
    assert shown["last_job"]["job_id"] == str(middle["last_job"])
    assert (shown["error"], shown["consecutive_failures"]) == (None, 0)
    job = mill.line.json("wait", shown["last_job"]["job_id"])
    assert (job["state"], job["documents"]["total"], job["documents"]["indexed"]) == ("succeeded", FILES, FILES)
    assert mill.names("large") == sorted(os.listdir(tree))
    assert [job.job_id for job in mill.client.jobs() if job.collection == "large"] == [middle["last_job"]]
