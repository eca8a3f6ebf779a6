"""A real worker with two pool children: what they measure, added up in one place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from command_line import eventually
from prometheus_client.parser import text_string_to_metric_families
from workshop import Workshop

from pipeline import Settings
from pipeline.ledger.fleet import ALIVE_SECONDS
from pipeline.monitoring.cluster import ClusterStats
from pipeline.monitoring.metrics import METRICS
from workers.embedded.stack import address_variables
from workers.programs import worker_argv

PATIENCE_SECONDS = 40.0


@dataclass
class Worker:
    """A worker of two children, each of which is replaced after three tasks."""

    process: subprocess.Popen[bytes]
    workshop: Workshop

    @property
    def url(self) -> str:
        return str(self.workshop.value("SELECT max(metrics_url) AS url FROM workers"))

    def scrape(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """(name, labels) -> value."""
        answer = httpx.get(self.url, timeout=10.0).raise_for_status()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.scrape().get((name, frozenset(labels.items())), 0.0)

    def embedded(self) -> float:
        """Batches of chunks that its children have done."""
        return self.value("millrace_work_total", kind="embed", outcome="done")

    def children(self) -> set[int]:
        found = psutil.Process(self.process.pid).children()
        return {child.pid for child in found if child.status() != psutil.STATUS_ZOMBIE}


@pytest.fixture
def worker(settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Worker]:
    """It reports every half second, or as often as the test says."""
    seconds = getattr(request, "param", "0.5")
    addresses = {
        section: {"url": getattr(settings, section).url.get_secret_value()}
        for section in ("postgres", "redis", "qdrant")
    }
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    environment = {
        **ours,
        **address_variables(addresses),
        "MILLRACE_HOME": str(settings.home),
        "MILLRACE_METRICS__REPORT_SECONDS": seconds,
        "MILLRACE_MEMORY__SAMPLE_SECONDS": seconds,
        "MILLRACE_WORKER__MAX_TASKS_PER_CHILD": "3",
        "OBEDIENT_WORKER_FILE": str(tmp_path / "orders"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    argv = [
        "obedient_worker" if word == "workers.app" else word
        for word in worker_argv("general", ("control", "high", "normal", "low"), 2)
    ]
    workshop = Workshop(settings)
    log = tmp_path / "worker.log"
    with log.open("wb") as file:
        process = subprocess.Popen(argv, env=environment, stdout=file, stderr=file, start_new_session=True)
    made = Worker(process, workshop)
    try:
        eventually(lambda: workshop.value("SELECT count(metrics_url) AS n FROM workers"), PATIENCE_SECONDS)
        yield made
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        sys.stderr.write(log.read_text(errors="replace")[-10_000:])
        workshop.close()


def put(worker: Worker, name: str, jobs: int) -> int:
    """Enqueues one document in each of so many jobs, and waits for them; returns how many batches were done by then
    since the beginning."""
    made = [worker.workshop.put({f"{name}/{number}": f"{name} {number}"}) for number in range(jobs)]
    for job in made:
        assert worker.workshop.client.wait(job.job_id, timeout=PATIENCE_SECONDS).state == "succeeded"
    return int(worker.workshop.value("SELECT count(*) FROM batches WHERE kind = 'embed' AND state = 'indexed'"))


def test_children_are_added_up_and_none_that_ends_takes_its_counts_along(worker: Worker, settings: Settings) -> None:
    # Given a worker whose children do some work, and are replaced meanwhile
    first = worker.children()
    done = put(worker, "first", 8)

    # When they have reported, then the worker tells of all of it, to the batch
    eventually(lambda: worker.embedded() == done, PATIENCE_SECONDS)
    assert worker.children().isdisjoint(first), "none was replaced, and nothing was tried here"

    # And when a child is killed that has reported, then nothing goes back, and what is done later is added
    os.kill(max(worker.children()), signal.SIGKILL)
    done = put(worker, "second", 4)
    eventually(lambda: worker.embedded() == done, PATIENCE_SECONDS)

    # And the figures of the cluster say the same
    stats = ClusterStats(settings.redis)
    eventually(lambda: stats.read(5).counts.get(("work", ("embed", "done"))) == done, PATIENCE_SECONDS)
    assert stats.read(5).operations["embed"].count == worker.value(
        "millrace_operation_seconds_count", operation="embed"
    )
    stats.close()


@pytest.mark.parametrize("worker", ["3600"], indirect=True)
def test_a_worker_that_is_stopped_reports_what_its_children_did_since_the_last_time(
    worker: Worker, settings: Settings
) -> None:
    # Given a worker that reports once an hour, and has done something in this one
    done = put(worker, "work", 2)
    stats = ClusterStats(settings.redis)
    assert not stats.read(5).counts

    # When it is told to stop, then everything is reported
    worker.process.send_signal(signal.SIGTERM)
    worker.process.wait(PATIENCE_SECONDS)
    found = stats.read(5)
    assert found.counts["work", ("embed", "done")] == done
    assert found.counts["process_cpu_seconds", ()] > 0
    stats.close()


def test_what_prometheus_reads_is_in_the_table_and_tells_of_the_ledger(worker: Worker) -> None:
    # Given a worker that has done something, and a backlog that it may not touch
    put(worker, "done", 2)
    worker.workshop.client.pause(everything=True)
    worker.workshop.put({f"waiting/{number}": "text" for number in range(3)})

    # When it is asked
    found = eventually(lambda: all_is_seen(worker.scrape()), PATIENCE_SECONDS)

    # Then every name is one of the table, with its labels, of the worker's own processes and of the whole
    known = {metric.exposed: metric for metric in METRICS}
    for name, labels in found:
        plain = next(
            name.removesuffix(end) for end in ("_bucket", "_count", "_sum", "") if name.removesuffix(end) in known
        )
        assert {label for label, _ in labels} - {"le"} == set(known[plain].labels), name
    assert found["millrace_cluster_workers", frozenset()] == 1.0
    # And buckets of a histogram grow, up to all
    buckets = [
        (float(dict(labels)["le"]), value)
        for (name, labels), value in found.items()
        if name == "millrace_operation_seconds_bucket" and dict(labels)["operation"] == "ledger.transaction"
    ]
    assert sorted(buckets) == sorted(buckets, key=lambda bucket: (bucket[1], bucket[0]))
    assert (
        max(buckets)[1] == found["millrace_operation_seconds_count", frozenset({("operation", "ledger.transaction")})]
    )

    # And nothing else is served
    for path, method in (("/", "GET"), ("/metrics/x", "GET"), ("/metrics", "POST"), ("/metrics", "DELETE")):
        assert httpx.request(method, worker.url.removesuffix("/metrics") + path).status_code in (404, 501)


def test_a_scrape_that_hangs_and_duties_that_are_locked_do_not_make_a_worker_look_dead(
    worker: Worker, settings: Settings
) -> None:
    # Given a ledger in which whoever asks for duties waits, and whoever reads the figures for a scrape
    with psycopg.connect(settings.postgres.url.get_secret_value()) as holding, ThreadPoolExecutor() as scraping:
        holding.execute("LOCK TABLE dead_letters, duties IN ACCESS EXCLUSIVE MODE")
        asked = [scraping.submit(httpx.get, worker.url, timeout=60.0) for _ in range(3)]

        # When that has gone on for longer than one look of either, then the worker reports as ever
        for _ in range(3):
            eventually(partial(has_reported_since, worker, last_report(worker)), ALIVE_SECONDS)

        # And who asked for the figures is answered, with those that could be had
        holding.rollback()
        assert {answer.result().status_code for answer in asked} == {200}


def last_report(worker: Worker) -> object:
    return worker.workshop.value("SELECT seen_at FROM workers")


def has_reported_since(worker: Worker, before: object) -> bool:
    return last_report(worker) != before


def all_is_seen(
    found: dict[tuple[str, frozenset[tuple[str, str]]], float],
) -> dict[tuple[str, frozenset[tuple[str, str]]], float] | None:
    """What waits, and all three processes of the worker, each of which reports in its own time."""
    depth = found.get(("millrace_cluster_queue_ready_batches", frozenset({("queue", "normal")})))
    slots = {dict(labels)["process"] for name, labels in found if name == "millrace_process_resident_bytes"}
    return found if depth == 1.0 and slots == {"main", "0", "1"} else None
