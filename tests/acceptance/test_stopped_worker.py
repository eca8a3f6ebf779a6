"""A worker that is stopped (SIGSTOP) beyond its lease and then goes on changes nothing: not in Postgres, not in the
index, not in what a search returns, also where it had a request under way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import psutil
import pytest
from command_line import CommandLine, MakeHome, eventually
from holding_proxy import HoldingProxy
from qdrant_client import QdrantClient

from pipeline import Client, Settings
from pipeline.assembly import Services
from pipeline.broker import CONTROL_QUEUE
from pipeline.ingest import contract
from pipeline.settings import load_settings
from workers.programs import READY_VARIABLE

PATIENCE_SECONDS = 90.0
NEVER_SECONDS = 1e8
TESTS = Path(__file__).parent.parent
# Leases are short, and nothing is contracted but by the tests. What Redis gave to a worker that stands still is sent
# again soon.
ENVIRONMENT = {
    "MILLRACE_WORK__RESEND_SECONDS": "2",
    "MILLRACE_WORK__LEASE_SECONDS": "2",
    "MILLRACE_WORK__HEARTBEAT_SECONDS": "0.6",
    "MILLRACE_WORK__CONTRACT_SECONDS": "1000000",
    "MILLRACE_WORK__RECONTRACT_SECONDS": "1000000",
}
TABLES = ("documents", "versions", "chunks", "batches", "jobs", "collections", "staged")


def family(pid: int) -> list[psutil.Process]:
    main = psutil.Process(pid)
    return [main, *main.children(recursive=True)]


def stop(pid: int) -> None:
    for process in family(pid):
        process.send_signal(signal.SIGSTOP)


def go_on(pid: int) -> None:
    for process in family(pid):
        process.send_signal(signal.SIGCONT)


@dataclass(frozen=True)
class Mill:
    """A stack with one general worker, and what is seen of it."""

    line: CommandLine
    directory: Path
    settings: Settings
    client: Client
    services: Services

    def workers(self, queue: str) -> list[int]:
        """The pids of the stack's workers that consume the queue and have shown themselves lately."""

        def found() -> list[dict[str, Any]]:
            with self.services.ledger.transaction() as connection:
                return connection.execute(
                    """SELECT pid FROM workers WHERE %s = ANY(string_to_array(queues, ',')) AND id NOT LIKE 'victim%%'
                          AND seen_at > clock_timestamp() - interval '5 seconds'""",
                    (queue,),
                ).fetchall()

        return [int(row["pid"]) for row in eventually(found, PATIENCE_SECONDS)]

    @contextmanager
    def others_stopped(self, queue: str) -> Iterator[None]:
        """The stack's workers for this queue stand still, so that the victim has the work."""
        pids = self.workers(queue)
        for pid in pids:
            stop(pid)
        try:
            yield
        finally:
            for pid in pids:
                go_on(pid)

    @contextmanager
    def victim(self, queue: str, *places: str, qdrant_port: int | None = None) -> Iterator[Victim]:
        """A further worker, which stops itself at these places, or reaches the vector server by another port."""
        directory = self.directory / f"victim-{len(list(self.directory.iterdir()))}"
        directory.mkdir()
        for place in places:
            (directory / place).touch()
        addresses = self.line.addresses()
        if qdrant_port is not None:
            url = urlsplit(addresses["MILLRACE_QDRANT__URL"])
            addresses["MILLRACE_QDRANT__URL"] = url._replace(netloc=f":{url.password}@127.0.0.1:{qdrant_port}").geturl()
        environment = {
            **self.line.environment(),
            **addresses,
            "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "STOPPING_WORKER_DIRECTORY": str(directory),
            READY_VARIABLE: str(directory / "ready"),
        }
        argv = [sys.executable, "-m", "celery", "-A", "stopping_worker", "worker", "-Q", queue, "-c", "1"]
        argv += ["-n", "victim@%h", "--without-gossip", "--without-mingle", "--loglevel", "INFO"]
        argv += ["--include", "workers.embedded.ready"]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(argv, env=environment, cwd=directory, stdout=log, stderr=log)
        try:
            eventually((directory / "ready").exists, PATIENCE_SECONDS)
            yield Victim(process.pid, directory)
        finally:
            with suppress(psutil.NoSuchProcess):
                for member in family(process.pid):
                    member.kill()
            process.wait()

    def put(self, **texts: str) -> str:
        return str(self.client.ingest(list(texts.items()), collection="notes").job_id)

    def finished(self, job: str) -> None:
        assert self.client.wait(job, timeout=PATIENCE_SECONDS).state == "succeeded"

    def found(self, query: str) -> list[tuple[str, str]]:
        results = self.client.search(query, collection="notes", limit=20).results
        return [(result.uri, result.text) for result in results]

    def state(self) -> dict[str, Any]:
        """Everything: the ledger, the points with payloads and vectors, answers to some questions."""
        with self.services.ledger.transaction() as connection:
            state: dict[str, Any] = {
                table: sorted(map(str, connection.execute(f"SELECT * FROM {table}").fetchall())) for table in TABLES
            }
            state["embeddings"] = connection.execute("SELECT key, vector FROM embeddings ORDER BY key").fetchall()
        state["points"] = self.points()
        state["answers"] = [self.found(query) for query in ("river", "mill", "the second words", "nothing")]
        return state

    def points(self) -> dict[str, Any]:
        with self.services.ledger.transaction() as connection:
            (row,) = connection.execute("SELECT physical FROM collections WHERE name = 'notes'").fetchall()
        url = urlsplit(self.settings.qdrant.url.get_secret_value())
        client = QdrantClient(
            host="127.0.0.1",
            grpc_port=url.port or 0,
            prefer_grpc=True,
            https=False,
            check_compatibility=False,
            headers={"api-key": url.password or ""},
        )
        found, _ = client.scroll(row["physical"], limit=1000, with_payload=True, with_vectors=True)
        client.close()
        # As text, in one order: what comes over the wire has its keys in any.
        return {
            str(point.id): (
                str(sorted((point.payload or {}).items())),
                str(sorted(cast("dict[str, Any]", point.vector).items())),
            )
            for point in found
        }

    def sweep(self, number: int) -> int:
        """The first or the second contraction, now."""
        clocks = (0.0, NEVER_SECONDS) if number == 1 else (NEVER_SECONDS, 0.0)
        return contract(self.services.tools, *clocks, 1000)

    def audit(self) -> dict[str, int]:
        report = self.client.audit("notes").to_json()
        return {name: report[name] for name in ("missing", "orphaned", "duplicate", "stale", "leaving") if report[name]}


@dataclass(frozen=True)
class Victim:
    pid: int
    directory: Path

    def await_stop(self, place: str) -> None:
        """Until it has stopped itself there."""
        eventually((self.directory / f"{place}.stopped").exists, PATIENCE_SECONDS)
        # A child of the pool child, which reads documents, is idle.
        worker = [psutil.Process(self.pid), *psutil.Process(self.pid).children()]
        eventually(lambda: {process.status() for process in worker} == {psutil.STATUS_STOPPED})

    def go_on_to_the_end_of(self, task: str) -> None:
        """Lets it go on, until the task that it was stopped in has ended."""
        ended = self.directory / f"ended-{task}"
        ended.unlink(missing_ok=True)
        go_on(self.pid)
        eventually(ended.exists, PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def mill(make_home: MakeHome) -> Iterator[Mill]:
    line = CommandLine(make_home("stopped"), ENVIRONMENT)
    directory = line.home.parent
    line.json("up", "--detach", "--workers", "1", "--concurrency", "1")
    settings = load_settings(home=line.home)
    services = Services(settings)
    made = Mill(line, directory, settings, Client(services=services), services)
    made.finished(made.put(first="The first words, about a mill."))
    yield made
    services.close()
    line.run("down")


def _replaced_by(mill: Mill, name: str) -> str:
    """A document with a published version, and its next one staged; nobody works. Returns the job."""
    mill.finished(mill.put(**{name: f"Of {name}: the mill stands at the river."}))
    return mill.put(**{name: f"Of {name}: the second words."})


@pytest.mark.parametrize(("place", "task"), [("extract", "prepare.batch"), ("embed", "embed.batch")])
def test_a_worker_that_was_stopped_in_the_middle_of_its_work_changes_nothing(mill: Mill, place: str, task: str) -> None:
    # Given a worker that is stopped in the middle of an update, and others that did it meanwhile
    name = f"stopped-{place}"
    mill.finished(mill.put(**{name: f"Of {name}: the mill stands at the river."}))
    with mill.victim("normal", place) as victim:
        with mill.others_stopped("normal"):
            job = mill.put(**{name: f"Of {name}: the second words."})
            victim.await_stop(place)
        mill.finished(job)
        before = mill.state()
        assert (name, f"Of {name}: the second words.") in before["answers"][2]

        # When it goes on
        victim.go_on_to_the_end_of(task)

        # Then everything is as it was, and as it should be
        assert mill.state() == before
    mill.sweep(1)
    mill.sweep(2)
    assert mill.audit() == {}


def test_a_request_that_a_stopped_worker_had_under_way_changes_nothing_when_it_arrives(mill: Mill) -> None:
    # Given a worker that is stopped while its points are on their way to the vector server, and others that did it all
    mill.finished(mill.put(held="Of held: the mill stands at the river."))
    proxy = _proxy(mill)
    with mill.victim("normal", qdrant_port=proxy.port) as victim:
        with mill.others_stopped("normal"):
            proxy.hold(b"Of held: the second words")
            job = mill.put(held="Of held: the second words.")
            assert proxy.held.wait(PATIENCE_SECONDS)
            stop(victim.pid)
        mill.finished(job)
        before = mill.state()

        # When the request arrives, and when its sender goes on
        proxy.release()
        assert proxy.delivered.wait(PATIENCE_SECONDS)
        victim.go_on_to_the_end_of("embed.batch")

        # Then everything is as it was
        assert mill.state() == before
    proxy.close()


def test_points_that_arrive_after_they_were_contracted_are_seen_by_nobody_and_go_with_the_second_sweep(
    mill: Mill,
) -> None:
    # Given a worker that is stopped while its points are on their way; others did its work, and the next version, and
    # the points of the version between have left the index
    mill.finished(mill.put(swept="Of swept: the mill stands at the river."))
    proxy = _proxy(mill)
    with mill.victim("normal", qdrant_port=proxy.port) as victim:
        with mill.others_stopped("normal"):
            proxy.hold(b"Of swept: the second words")
            job = mill.put(swept="Of swept: the second words.")
            assert proxy.held.wait(PATIENCE_SECONDS)
            stop(victim.pid)
        mill.finished(job)
        mill.finished(mill.put(swept="Of swept: the third and last words."))
        mill.sweep(1)
        before = mill.state()
        assert mill.audit() == {}

        # When the points arrive late
        proxy.release()
        assert proxy.delivered.wait(PATIENCE_SECONDS)
        eventually(lambda: len(mill.points()) == len(before["points"]) + 1)

        # Then they are in the index, and nobody sees them, also when their sender goes on
        victim.go_on_to_the_end_of("embed.batch")
        after = mill.state()
        for state in (before, after):
            # A point that nobody sees still counts among those that results are ranked by.
            state["answers"] = [sorted(answers) for answers in state["answers"]]
        assert {**after, "points": None} == {**before, "points": None}
        assert {point: after["points"][point] for point in before["points"]} == before["points"]
        assert mill.audit() == {"stale": 1}

    # And the second sweep takes them
    mill.sweep(2)
    assert mill.points() == before["points"]
    assert mill.audit() == {}
    proxy.close()


def test_a_duty_that_was_stopped_in_the_middle_changes_nothing_when_it_goes_on(mill: Mill) -> None:
    # Given a contraction that is stopped before it deletes, and one that another has made since
    mill.finished(_replaced_by(mill, "duty"))
    mill.sweep(1)
    mill.sweep(2)
    mill.finished(mill.put(duty="Of duty: the third words."))
    with mill.victim(CONTROL_QUEUE, "delete") as victim:
        with mill.others_stopped(CONTROL_QUEUE):
            # Not before: beat asks for it on its timer, and a worker that runs would do it.
            with mill.services.ledger.transaction() as connection:
                connection.execute("UPDATE versions SET ended_at = ended_at - interval '100 days'")
                connection.execute("UPDATE duties SET due_at = clock_timestamp() WHERE name = 'contract'")
            # Redis gives the first ones to the workers that waited for them and are stopped.
            for _ in range(5):
                mill.services.broker._celery().send_task("duty.contract", queue=CONTROL_QUEUE, ignore_result=True)
            victim.await_stop("delete")
            assert mill.audit() == {"leaving": 1}
        mill.sweep(1)
        mill.sweep(2)
        assert mill.audit() == {}
        mill.finished(mill.put(duty="Of duty: the fourth words."))
        before = mill.state()

        # When it goes on
        victim.go_on_to_the_end_of("duty.contract")

        # Then everything is as it was
        assert mill.state() == before


def _proxy(mill: Mill) -> HoldingProxy:
    url = urlsplit(mill.settings.qdrant.url.get_secret_value())
    return HoldingProxy("127.0.0.1", url.port or 0)
