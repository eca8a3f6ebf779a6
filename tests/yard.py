"""Real workers that a test starts, orders about and kills, on servers of the test run, and an application beside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from command_line import eventually
from services import RedisServer, Services
from workshop import Workshop

from pipeline import Document
from pipeline.duties import Bounds
from pipeline.errors import Unavailable
from pipeline.ledger.diagnosis import Waiting
from pipeline.settings import load_settings
from tasks.maintenance import reconcile
from workers.embedded.stack import address_variables
from workers.programs import beat_argv, worker_argv

TESTS = Path(__file__).parent
PATIENCE_SECONDS = 60.0


@dataclass
class Yard:
    """Servers, an application, and workers that the test starts and orders about."""

    workshop: Workshop
    directory: Path
    environment: dict[str, str]
    vectors_pid: int
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    # -- workers -------------------------------------------------------------------------------------------------

    def start(self, name: str, queues: Sequence[str]) -> subprocess.Popen[bytes]:
        """A worker with one pool child; returns when it shows itself."""
        orders = self.directory / f"{name}.orders"
        argv = ["obedient_worker" if word == "workers.app" else word for word in worker_argv(name, queues, 1)]
        with (self.directory / f"{name}.log").open("ab") as log:
            worker = subprocess.Popen(
                argv,
                env=self.environment | {"OBEDIENT_WORKER_FILE": str(orders)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running.append(worker)
        eventually(lambda: self.child(worker) and self.seen(name), PATIENCE_SECONDS)
        return worker

    def start_beat(self) -> subprocess.Popen[bytes]:
        """The clock of the duties."""
        directory = self.directory / "beat"
        directory.mkdir()
        with (self.directory / "beat.log").open("ab") as log:
            beat = subprocess.Popen(
                beat_argv(directory), env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.running.append(beat)
        return beat

    def seen(self, name: str) -> bool:
        return bool(
            self.workshop.value(
                """SELECT count(*) AS n FROM workers WHERE id LIKE %(name)s
                      AND seen_at > clock_timestamp() - interval '4 seconds'""",
                name=f"{name}@%",
            )
        )

    def order(self, name: str, order: str) -> None:
        path = self.directory / f"{name}.orders"
        path.with_suffix(".new").write_text(order)
        path.with_suffix(".new").replace(path)

    def obeyed(self, name: str) -> bool:
        return (self.directory / f"{name}.orders").read_text() == ""

    def child(self, worker: subprocess.Popen[bytes]) -> int | None:
        """The pid of its pool child, where it has one that lives."""
        children = psutil.Process(worker.pid).children()
        alive = [child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return alive[0] if len(alive) == 1 else None

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """SIGKILL for all of it at once."""
        self.signal(worker, signal.SIGSTOP, signal.SIGKILL)
        worker.wait()
        self.running.remove(worker)

    def signal(self, worker: subprocess.Popen[bytes], *signals: signal.Signals) -> None:
        """Sends these to all of it, one signal after another."""
        main = psutil.Process(worker.pid)
        family = [main, *main.children(recursive=True)]
        for number in signals:
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.send_signal(number)

    def stop(self) -> None:
        for worker in list(self.running):
            self.kill(worker)

    def logs(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in self.directory.glob("*.log"))

    # -- jobs ----------------------------------------------------------------------------------------------------

    def put(self, name: str, count: int, **options: Any) -> Any:
        """Enqueues so many documents. Returns the job's id."""
        documents = [Document(f"{name}/{number}", f"{name} number {number}") for number in range(count)]
        return self.workshop.put(documents, **options).job_id

    def waiting(self, job_id: Any) -> Waiting | None:
        return self.workshop.client.job(job_id).waiting

    def state(self, job_id: Any) -> str | None:
        waiting = self.waiting(job_id)
        return waiting.state if waiting else None

    def until(self, job_id: Any, state: str) -> set[str | None]:
        """Returns, when the job is told to be in the state, what it was told to be in before."""
        seen: set[str | None] = set()

        def found() -> bool:
            now = self.state(job_id)
            seen.add(now)
            return now == state

        eventually(found, PATIENCE_SECONDS)
        return seen - {state}

    def chunks(self, job_id: Any) -> int:
        return int(self.workshop.client.job(job_id).chunks["indexed"])

    def finish(self, job_id: Any) -> Any:
        """Nobody hinders the workers any more: the job comes to its end."""
        return self.workshop.client.wait(job_id, timeout=PATIENCE_SECONDS)

    def attempts(self, job_id: Any) -> list[tuple[int, int]]:
        """(attempts, losses) of the job's batches that have any."""
        rows = self.workshop.sql(
            "SELECT attempts, losses FROM batches WHERE job_id = %(id)s AND attempts + losses > 0", id=job_id
        )
        return [(row["attempts"], row["losses"]) for row in rows]


@contextmanager
def reconciling(workshop: Workshop) -> Iterator[None]:
    """Reconcile runs all the while, as beat and an express worker see to."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(0.3):
            with suppress(Unavailable):
                reconcile(workshop.services, Bounds(500, 20.0))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@contextmanager
def open_yard(
    directory: Path, postgres_url: str, redis_server: RedisServer, sections: Mapping[str, Mapping[str, Any]]
) -> Iterator[Yard]:
    """Servers under the settings of these sections, with an index of its own, and no workers yet."""
    redis_server.flush()
    own = Services(directory / "servers")
    own.directory.mkdir()
    before = set(psutil.Process().children())
    addresses = {
        "postgres": {"url": postgres_url},
        "redis": {"url": redis_server.url},
        "qdrant": {"url": own.qdrant()},
    }
    (vectors,) = [process for process in psutil.Process().children() if process not in before]
    given = {name: {**sections.get(name, {}), **addresses.get(name, {})} for name in {**sections, **addresses}}
    settings = load_settings(home=directory / "home", **given)
    variables = address_variables(
        {
            section: {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
            for section, values in given.items()
        }
    )
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    environment = {**ours, **variables, "MILLRACE_HOME": str(directory / "home"), "PYTHONPATH": str(TESTS)}
    workshop = Workshop(settings)
    made = Yard(workshop, directory, environment, vectors.pid)
    try:
        yield made
    finally:
        made.stop()
        sys.stderr.write(made.logs()[-20_000:])
        workshop.close()
        own.stop()
