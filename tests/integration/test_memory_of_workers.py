"""Two real workers of two pool children each: what all six measure of themselves, give back, and are replaced for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import eventually
from services import RedisServer
from workshop import COLLECTION, Workshop

from pipeline.assembly import Services
from pipeline.duties import Bounds
from pipeline.ledger import fleet
from pipeline.monitoring import memory
from pipeline.monitoring.process import ProcessMemory
from pipeline.resident import MIB
from pipeline.settings import MemorySettings, load_settings
from tasks.maintenance import reconcile
from tasks.watching import collect, report_memory
from workers.embedded.part import Part, run_alone, tail
from workers.embedded.stack import address_variables
from workers.programs import APP, GENERAL_QUEUES, worker_argv
from workers.reporting_service import ReportingService

TESTS = Path(__file__).parents[1]
NAMES = ("one", "two")
PATIENCE_SECONDS = 60.0
HARD_MB = 300
# Nothing is collected but what is asked for, and at the hard limit.
ENVIRONMENT = {
    "MILLRACE_INGEST__EMBED_CHUNKS": "1",
    "MILLRACE_MEMORY__SOFT_MB": "3000",
    "MILLRACE_MEMORY__HARD_MB": str(HARD_MB),
    "MILLRACE_MEMORY__SAMPLE_SECONDS": "0.5",
}


@dataclass(frozen=True)
class Mill:
    """The ledger of real workers. pids: of their main processes, by name."""

    workshop: Workshop
    pids: dict[str, int]
    logs: Path

    def running(self) -> set[int]:
        """The pids of all main processes and pool children that live."""
        found = set()
        for pid in self.pids.values():
            main = psutil.Process(pid)
            children = [child for child in main.children() if child.status() != psutil.STATUS_ZOMBIE]
            found |= {pid, *(child.pid for child in children)}
        return found

    def reported(self) -> dict[int, dict[str, Any]]:
        """What each process last said of itself, by pid."""
        rows = self.workshop.sql("SELECT processes FROM workers")
        return {process["pid"]: process for row in rows for process in row["processes"]}

    def all_report(self) -> bool:
        return self.running() == set(self.reported()) and len(self.reported()) == 3 * len(NAMES)


@pytest.fixture(scope="module")
def mill(
    module_postgres_url: str, redis_server: RedisServer, qdrant_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mill]:
    redis_server.flush()
    directory = tmp_path_factory.mktemp("memory")
    addresses = {
        "postgres": {"url": module_postgres_url},
        "redis": {"url": redis_server.url},
        "qdrant": {"url": qdrant_url},
    }
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    environment = {
        **ours,
        **address_variables(addresses),
        **ENVIRONMENT,
        "MILLRACE_HOME": str(directory / "home"),
        "PYTHONPATH": str(TESTS),
    }
    settings = load_settings(home=directory / "home", **addresses)
    workshop = Workshop(settings)
    pids = {}
    with ExitStack() as stack:
        stack.callback(workshop.close)
        for name in NAMES:
            argv = ["leaking_worker" if word == APP else word for word in worker_argv(name, GENERAL_QUEUES, 2)]
            part = Part(name, tuple(argv), directory, environment)
            pids[name] = stack.enter_context(run_alone(part, directory / f"{name}.log")).pid
        stack.callback(lambda: sys.stderr.write("\n".join(tail(directory / "one.log") + tail(directory / "two.log"))))
        made = Mill(workshop, pids, directory)
        eventually(made.all_report, PATIENCE_SECONDS)
        yield made


def test_all_six_processes_of_two_workers_report_what_they_take(mill: Mill) -> None:
    # When each process has measured itself, and its worker has reported to the ledger
    reported = mill.reported()

    # Then each is there with figures that the system confirms
    assert set(reported) == mill.running()
    for pid, found in reported.items():
        told = ProcessMemory.from_json({name: value for name, value in found.items() if name != "slot"})
        seen = psutil.Process(pid).memory_info().rss
        assert abs(told.rss - seen) < 50 * MIB, (told, seen)
        assert told.peak >= told.rss
        assert told.cpu_seconds > 0
        assert told.threads >= 2
    with mill.workshop.services.ledger.transaction() as connection:
        whole = memory.report(connection, mill.workshop.settings.memory)
        names = [
            process.name.partition("@")[0] + process.name.rpartition("@")[2].partition(" ")[2]
            for process in memory.processes(connection)
        ]
    assert sorted(names) == sorted(f"{name}{part}" for name in NAMES for part in ("main", "child 0", "child 1"))
    assert whole.processes == 6
    assert whole.total >= 6 * 20 * MIB
    assert (whole.above_soft, whole.above_hard) == (0, 0)
    # And the client's status shows them
    shown = [process["pid"] for worker in mill.workshop.client.status()["workers"] for process in worker["processes"]]
    assert set(shown) == set(reported)


def test_all_processes_collect_when_they_are_asked_to(mill: Mill) -> None:
    # Given two children that hold cycles of 40 MB, which nothing has made Python look for
    before = {pid: found["collected"] for pid, found in mill.reported().items()}

    # When an operator, or the duty, asks all workers to collect
    with mill.workshop.services.ledger.transaction() as connection:
        asked = fleet.ask_to_collect(connection)

    # Then each process has, and says what that gave
    def all_have() -> bool:
        now = {pid: found["collected"] for pid, found in mill.reported().items()}
        return set(now) == set(before) and all(now[pid] not in (None, before[pid]) for pid in now)

    assert len(asked) == 2
    eventually(all_have, PATIENCE_SECONDS)
    assert {found["collected"]["why"] for found in mill.reported().values()} == {"asked"}


def test_children_at_the_hard_limit_are_replaced_after_their_work_and_nothing_counts_as_lost(mill: Mill) -> None:
    # Given pool children
    children = mill.running() - set(mill.pids.values())
    workshop = mill.workshop

    # When every text costs their process 40 MB for good
    job = workshop.put({f"leak/{number}": f"leaking text number {number}" for number in range(40)})
    done = workshop.client.wait(job.job_id, PATIENCE_SECONDS)

    # Then all is indexed, at the first attempt, and no process died with work
    assert (done.state, done.documents["indexed"]) == ("succeeded", 40)
    assert workshop.sql("SELECT id, attempts, losses FROM batches WHERE attempts + losses > 0") == []
    reconcile(workshop.services, Bounds(500, 20.0))
    # And children were replaced, some more than once; whoever is there now is below the limit
    eventually(lambda: mill.all_report() and not children & mill.running(), PATIENCE_SECONDS)
    said = "".join((mill.logs / f"{name}.log").read_text() for name in NAMES)
    assert said.count("this pool child is replaced") >= 4
    assert "died with" not in said
    assert "takes the place" not in said
    assert max(found["rss"] for found in mill.reported().values()) < (HARD_MB + 50) * MIB
    assert workshop.texts(limit=100).keys() >= {f"leak/{number}" for number in range(40)}
    assert COLLECTION in {info.name for info in workshop.client.collections()}


def test_a_child_whose_garbage_can_be_collected_is_not_replaced(mill: Mill) -> None:
    # Given pool children, each with a peak far above what it has now
    before = mill.running()
    workshop = mill.workshop

    # When texts leave 40 MB each in cycles, which go over the hard limit together
    job = workshop.put({f"cycle/{number}": f"cyclic text number {number}" for number in range(40)})
    done = workshop.client.wait(job.job_id, PATIENCE_SECONDS)

    # Then the collection at the limit was enough
    assert done.state == "succeeded"
    assert mill.running() == before
    eventually(
        lambda: any((found["collected"] or {}).get("why") == "hard" for found in mill.reported().values()),
        PATIENCE_SECONDS,
    )


def test_a_service_that_is_no_worker_is_among_them_while_it_lives(mill: Mill) -> None:
    # Given a process such as Flower, that reports
    flower = ReportingService("flower", mill.workshop.settings.postgres, every_seconds=0.2)
    flower.start()

    def names() -> list[str]:
        with mill.workshop.services.ledger.transaction() as connection:
            return [process.name for process in memory.processes(connection) if process.worker is None]

    # Then it is there with what it takes, and gone with its end
    eventually(lambda: [name.partition("@")[0] for name in names()] == ["flower"], PATIENCE_SECONDS)
    flower.stop()
    assert names() == []


def test_the_duties_report_the_memory_of_all_and_ask_those_above_the_soft_limit_to_collect(mill: Mill) -> None:
    # Given workers of which every process is above the soft limit, as this process has it, and none above the hard one
    services = mill.workshop.services
    tight = services.settings.model_copy(update={"memory": MemorySettings(soft_mb=50, hard_mb=2000)})
    opened = Services(tight, embedder=mill.workshop.embedder)
    before = {pid: found["collected"] for pid, found in mill.reported().items()}

    # When the duties run
    counts = report_memory(opened, Bounds(1, 5.0))
    would = collect(opened, Bounds(1, 5.0, dry_run=True))
    asked = collect(opened, Bounds(1, 5.0))
    opened.close()

    # Then they count all, and ask both workers
    assert (counts["processes"], counts["above_soft"], counts["above_hard"]) == (6, 6, 0)
    assert counts["total_mb"] > counts["greatest_mb"] > 50
    assert would == asked == {"workers_asked": 2}
    eventually(
        lambda: all(found["collected"] != before.get(pid) for pid, found in mill.reported().items()), PATIENCE_SECONDS
    )
