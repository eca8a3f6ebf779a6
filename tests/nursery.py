"""A Millrace whose only worker dies as it is told, again and again (tests/dying_worker.py), and the stand-in for
OpenAI's servers. The duties are the test's own: `pump` runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from openai_server import OpenAIServer
from services import addresses_of

from pipeline import Client, Document, Settings
from pipeline.assembly import Services
from pipeline.ledger import remote
from pipeline.ledger.remote import RemoteBatch
from tasks.duties import run_now

PATIENCE_SECONDS = 240.0
MODEL = "text-embedding-3-small"
# Of what a worker needs to go on: leases of the dead, lost messages, what is due.
DUTIES = ("reconcile", "openai.poll")
OPENAI_ENVIRONMENT = {
    "MILLRACE_OPENAI__BATCH": "on",
    "MILLRACE_OPENAI__TIMEOUT": "5",
    "MILLRACE_OPENAI__REQUESTS_PER_MINUTE": "60000",
    "MILLRACE_OPENAI__TOKENS_PER_MINUTE": "60000000",
    "MILLRACE_OPENAI__REQUEST_INPUTS": "5",
    "MILLRACE_OPENAI_BATCH__LINGER_SECONDS": "0",
    "MILLRACE_OPENAI_BATCH__POLL_SECONDS": "0.2",
    "MILLRACE_OPENAI_BATCH__POLL_MOST_SECONDS": "1",
    "MILLRACE_OPENAI_BATCH__GRACE_SECONDS": "0.2",
    "MILLRACE_OPENAI_BATCH__HARVEST_LINES": "5",
}


class Nursery:
    """One database, and whoever works on it. directory: births, worker.log and plans/."""

    def __init__(self, directory: Path, settings: Settings, server: OpenAIServer) -> None:
        self.directory = directory
        self.plans = directory / "plans"
        self.plans.mkdir()
        self.settings = settings
        self.server = server
        self.services = Services(settings)
        self.client = Client(services=self.services)

    def close(self) -> None:
        self.client.close()

    @contextmanager
    def workers(self, **more: str) -> Iterator[None]:
        """One after the other, until it ends."""
        tests = Path(__file__).parent
        openai = self.settings.openai
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")},
            **addresses_of(self.settings),
            **OPENAI_ENVIRONMENT,
            "MILLRACE_OPENAI__API_KEY": openai.api_key.get_secret_value(),
            "MILLRACE_OPENAI__BASE_URL": openai.base_url,
            "DYING_WORKER_DIRECTORY": str(self.plans),
            "PYTHONPATH": os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])]),
            **more,
        }
        with (self.directory / "nursery.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dying_worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.directory,
            )
        assert process.stdin is not None
        try:
            yield
        finally:
            process.stdin.close()
            try:
                process.wait(PATIENCE_SECONDS)
            finally:
                process.kill()

    # -- what is done ------------------------------------------------------------------------------------------------

    def put(self, name: str, provider: str, number: int, dimensions: int) -> tuple[str, list[str]]:
        """A job of so many documents of one chunk, in a collection of its own; its id, and the texts. Jobs of other
        dimensions share no remote batch with it."""
        texts = [f"{name} is told of in document {name}{place:02} and in others" for place in range(number)]
        documents = [Document(f"{name}{place:02}", text) for place, text in enumerate(texts)]
        job = self.client.ingest(documents, collection=name, provider=provider, dimensions=dimensions)
        return str(job.job_id), texts

    def plan(self, who: str, *places: str) -> None:
        """Who works on this dies there, in any order, once at each place."""
        for place in places:
            (self.plans / f"{place}@{who}").touch()

    def planned(self) -> list[str]:
        """Deaths that were not died yet."""
        return sorted(file.name for file in self.plans.iterdir())

    def births(self) -> int:
        return len((self.directory / "births").read_text().splitlines())

    def pump(self, until: Callable[[], bool]) -> None:
        """Runs the duties until something is so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not until():
            if time.monotonic() > deadline:
                raise AssertionError(self.story())
            for duty in DUTIES:
                run = run_now(self.services, duty)
                assert not run.error, run.error
            time.sleep(0.25)

    def finish(self, jobs: Sequence[str]) -> None:
        """Until the jobs have succeeded, and nothing is left at the provider."""

        def ended() -> bool:
            states = {self.client.job(job).state for job in jobs}
            assert states <= {"pending", "running", "succeeded", "enqueuing", "queued"}, states
            return states == {"succeeded"} and all(row.closed_at is not None for row in self.rows())

        self.pump(ended)

    # -- what is seen ------------------------------------------------------------------------------------------------

    def sql(self, query: str, **given: Any) -> list[dict[str, Any]]:
        with self.services.ledger.transaction() as connection:
            cursor = connection.execute(query, given)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, **given: Any) -> Any:
        (row,) = self.sql(query, **given)
        (found,) = row.values()
        return found

    def rows(self) -> list[RemoteBatch]:
        with self.services.ledger.transaction() as connection:
            return remote.listing(connection)[::-1]

    def row_of(self, job: str) -> RemoteBatch:
        (row,) = [row for row in self.rows() if job in row.jobs]
        return row

    def times_billed(self, texts: Sequence[str]) -> Mapping[int, int]:
        """How many of the texts were paid for how often."""
        times = {entry.hash: entry.times for entry in self.server.control.billing()}
        return Counter(times.get(sha256(text.encode()).hexdigest(), 0) for text in texts)

    def doubtful(self, job: str) -> int:
        """Texts of a job that the ledger says may have been paid for besides."""
        return int(
            self.value("SELECT coalesce(sum(doubtful_texts), 0)::int AS n FROM usage WHERE job_id = %(job)s", job=job)
        )

    def found(self, name: str) -> int:
        """How many documents of a job a search for its word finds."""
        found = self.client.search(name, collection=name, limit=100)
        assert found.degraded == ()
        return len({result.uri for result in found.results})

    def story(self) -> str:
        """Where it stands, for a failure's report."""
        rows = [f"{r.id} {r.state} {r.status} owner={r.owner} due={r.due_seconds} {r.error}" for r in self.rows()]
        batches = [str(row) for row in self.sql("SELECT id, kind, state, owner, error FROM batches")]
        lines = (self.directory / "worker.log").read_text(errors="replace").splitlines()
        log = [line[:400] for line in lines if "understudy" not in line and '"level"' in line][-40:]
        return "\n".join(["not in time", *self.planned(), *rows, *batches, *log])


@contextmanager
def opened(
    directory: Path,
    addresses: Mapping[str, str],
    server: OpenAIServer,
    monkeypatch: pytest.MonkeyPatch,
    key: str | None = None,
) -> Iterator[Nursery]:
    """addresses: of the servers, as an environment. key: instead of the server's first one."""
    from pipeline.settings import load_settings

    given = {
        "MILLRACE_HOME": str(directory / "home"),
        "MILLRACE_MEMORY__INGEST_MB": "100000",
        "MILLRACE_OPENAI__API_KEY": key or server.key,
        "MILLRACE_OPENAI__BASE_URL": server.url,
        **OPENAI_ENVIRONMENT,
        **addresses,
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    nursery = Nursery(directory, load_settings(), server)
    yield nursery
    nursery.close()
