"""Backpressure: where too much is on its way, enqueuers wait for the workers, or are refused; nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from timetable import names, plant, put_schedule, run_due, shown, step_by_step, sync_duty
from workshop import COLLECTION, Workshop

from pipeline import Document, Settings
from pipeline.duties import Bounds
from pipeline.errors import BacklogFull, InvalidRequest
from pipeline.ledger import fleet, intake
from pipeline.status import JobStatus
from tasks import sync
from tasks.base import Done, Waiting
from tasks.maintenance import reconcile

PATIENCE_SECONDS = 60.0
LIMIT = 100  # bytes
TEXT = "x" * 60  # two of these are over the limit


def limited(settings: Settings, **limits: int) -> Settings:
    return settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"group_documents": 1, **limits})})


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """One document a group; two of them fill the backlog."""
    made = Workshop(limited(settings, max_staged_bytes=LIMIT))
    yield made
    made.close()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def documents(*names: str) -> list[Document]:
    return [Document(name, f"{name} {TEXT}") for name in names]


class Told:
    """What an enqueuer was told; `waiting` are the reasons that it waited for."""

    def __init__(self) -> None:
        self.statuses: list[JobStatus] = []

    def __call__(self, status: JobStatus) -> None:
        self.statuses.append(status)

    @property
    def waiting(self) -> list[str]:
        return [status.waiting.reason for status in self.statuses if status.waiting and "full" in status.waiting.reason]


def eventually(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return answer


def enqueuing(threads: ThreadPoolExecutor, workshop: Workshop, *names: str, **options: Any) -> tuple[Future[Any], Told]:
    told = Told()
    return threads.submit(workshop.put, documents(*names), on_staged=told, **options), told


def test_an_enqueuer_waits_and_says_why_and_goes_on_when_workers_have_caught_up(
    workshop: Workshop, threads: ThreadPoolExecutor
) -> None:
    # Given an ingest of more than may be staged
    running, told = enqueuing(threads, workshop, "a", "b", "c", "d")

    # When the backlog is full, it waits, and says for what
    reason = eventually(lambda: told.waiting and told.waiting[-1])
    assert "124 B of 100 B staged (ingest.max_staged_bytes)" in reason
    assert "no worker is alive: start one with `millrace worker`" in reason
    assert reason.endswith("goes on as workers catch up")
    assert workshop.value("SELECT count(*) AS n FROM staged") == 2
    assert told.statuses[-1].stage == "staging"

    # Then it goes on as the work is done, and nothing is missing
    while not running.done():
        workshop.work()
    workshop.work()
    job = workshop.client.job(running.result().job_id)
    assert (job.state, job.documents["indexed"]) == ("succeeded", 4)
    assert sorted(workshop.texts()) == ["a", "b", "c", "d"]


def test_an_enqueuer_that_waits_is_not_taken_for_silent(settings: Settings, threads: ThreadPoolExecutor) -> None:
    # Given an enqueuer that waits
    workshop = Workshop(limited(settings, max_staged_bytes=LIMIT))
    running, told = enqueuing(threads, workshop, "a", "b", "c")
    eventually(lambda: told.waiting)
    (job_id,) = {status.job_id for status in told.statuses}

    # When it was last heard of nearly as long ago as it may be, again and again
    may_be_silent = settings.work.unsealed_seconds
    heard = "SELECT extract(epoch FROM clock_timestamp() - seen_at)::float8 FROM jobs WHERE id = %(id)s"
    for _ in range(3):
        workshop.sql(
            "UPDATE jobs SET seen_at = clock_timestamp() - make_interval(secs => %(s)s) WHERE id = %(id)s",
            s=may_be_silent / 2,
            id=job_id,
        )
        eventually(lambda: workshop.value(heard, id=job_id) < may_be_silent / 4)
        assert reconcile(workshop.services, Bounds(100, 20.0))["silent_jobs"] == 0

    # Then its job is open still
    assert workshop.value("SELECT sealed_at IS NULL AS open FROM jobs WHERE id = %(id)s", id=job_id)
    while not running.done():
        workshop.work()
    workshop.close()


def test_cancelling_its_job_ends_the_waiting(workshop: Workshop, threads: ThreadPoolExecutor) -> None:
    running, told = enqueuing(threads, workshop, "a", "b", "c")
    eventually(lambda: told.waiting)

    # Cancelling makes room, too: the group that comes through then finds the job cancelled
    workshop.client.cancel(told.statuses[-1].job_id)

    with pytest.raises(InvalidRequest, match="was cancelled"):
        running.result(PATIENCE_SECONDS)
    assert workshop.value("SELECT count(*) AS n FROM staged") == 0


def test_everything_paused_and_a_live_worker_are_said(workshop: Workshop, threads: ThreadPoolExecutor) -> None:
    with workshop.services.ledger.transaction() as connection:
        fleet.report(connection, "general1@here#1", "here", 1, "high,normal,low", 2)
    running, told = enqueuing(threads, workshop, "a", "b", "c")

    reason = eventually(lambda: told.waiting and told.waiting[-1])
    assert "worker is alive" not in reason
    assert "paused" not in reason

    workshop.sql("INSERT INTO pauses (collection_id) VALUES (NULL)")
    eventually(lambda: "everything is paused: `millrace resume --all` lets it go on" in told.waiting[-1])

    workshop.sql("DELETE FROM pauses")
    while not running.done():
        workshop.work()


def test_who_does_not_want_to_wait_is_refused_before_anything_is_written(workshop: Workshop) -> None:
    workshop.put(documents("a", "b"))

    with pytest.raises(BacklogFull, match=r"124 B of 100 B staged \(ingest.max_staged_bytes\).*Nothing was"):
        workshop.put(documents("c"), when_full="refuse")

    assert workshop.value("SELECT count(*) AS n FROM jobs") == 1
    with pytest.raises(InvalidRequest, match="when_full is wait or refuse"):
        workshop.put(documents("c"), when_full="never")


def test_a_job_that_is_refused_in_its_middle_keeps_what_it_has_ends_and_goes_on_under_its_key(
    workshop: Workshop,
) -> None:
    # Given an ingest that is refused after two documents
    wanted = documents("a", "b", "c", "d")
    with pytest.raises(BacklogFull, match=r"keeps the 2 documents that are in it; the same request again under its"):
        workshop.put(wanted, when_full="refuse", idempotency_key="k")

    # Then what it has is carried out, and it ends at once
    workshop.work()
    (job,) = workshop.client.jobs()
    assert (job.state, job.documents["indexed"], job.documents["total"]) == ("partial", 2, 2)
    assert "same key" in str(job.error)

    # And the same request goes on with it, in as many steps as it takes
    workshop.put(wanted, when_full="refuse", idempotency_key="k")
    workshop.work()
    done = workshop.client.job(job.job_id)
    assert (done.state, done.documents["indexed"], done.documents["total"]) == ("succeeded", 4, 4)
    assert len(workshop.client.jobs()) == 1
    assert sorted(workshop.embedded()) == sorted(f"{name} {TEXT}" for name in "abcd")


def test_a_request_that_made_its_job_before_is_answered_however_full_it_is(workshop: Workshop) -> None:
    first = workshop.put(documents("a", "b"), idempotency_key="k")

    again = workshop.put(documents("a", "b"), idempotency_key="k", when_full="refuse")

    assert again.job_id == first.job_id


def test_what_is_unchanged_passes_a_full_backlog(workshop: Workshop) -> None:
    workshop.index(documents("a"))
    workshop.put(documents("b", "c"))

    job = workshop.put(documents("a"), when_full="wait")

    assert (job.state, job.documents["unchanged"]) == ("succeeded", 1)


def test_deletions_and_syncs_are_held_back_too(workshop: Workshop, threads: ThreadPoolExecutor, tmp_path: Any) -> None:
    workshop.index(documents("a"))
    workshop.put(documents("b", "c"))
    (tmp_path / "d.txt").write_text(TEXT)

    with pytest.raises(BacklogFull):
        workshop.client.delete(["a"], collection=COLLECTION, when_full="refuse")
    with pytest.raises(BacklogFull):
        workshop.client.sync(tmp_path, collection=COLLECTION, when_full="refuse")
    told = Told()
    running = threads.submit(workshop.client.delete, ["a"], collection=COLLECTION, on_staged=told)
    eventually(lambda: told.waiting)

    while not running.done():
        workshop.work()
    workshop.work()
    assert sorted(workshop.texts()) == ["b", "c"]


def test_ready_batches_are_limited_as_bytes_are(settings: Settings) -> None:
    workshop = Workshop(limited(settings, max_ready_batches=2))
    workshop.put(documents("a", "b"))

    with pytest.raises(BacklogFull, match=r"2 of 2 ready batches \(ingest.max_ready_batches\)"):
        workshop.put(documents("c"), when_full="refuse")

    workshop.work()
    workshop.put(documents("c"), when_full="refuse")
    workshop.close()


def test_batches_of_what_is_paused_count_too(settings: Settings) -> None:
    workshop = Workshop(limited(settings, max_ready_batches=2))
    workshop.put(documents("a", "b"))
    workshop.sql("UPDATE batches SET held = true")

    with pytest.raises(BacklogFull):
        workshop.put(documents("c"), when_full="refuse")
    workshop.close()


def test_an_applications_transaction_is_refused_or_waits_before_anything_is_written_in_it(
    workshop: Workshop, threads: ThreadPoolExecutor
) -> None:
    workshop.put(documents("a", "b"))
    url = workshop.settings.postgres.url.get_secret_value()
    with psycopg.connect(url) as connection:
        with pytest.raises(BacklogFull):
            workshop.put(documents("c", "d", "e"), connection=connection, when_full="refuse")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE, "it was not even asked anything"

        # Where it may wait, it does so before it begins, and then writes all of it without stopping
        running = threads.submit(workshop.put, documents("c", "d", "e"), connection=connection)
        time.sleep(0.5)
        assert not running.done()
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        workshop.work()
        job = running.result(PATIENCE_SECONDS)
        connection.commit()
    workshop.work()
    assert workshop.client.job(job.job_id).documents["indexed"] == 3


def test_several_enqueuers_pass_the_limit_by_a_group_each_at_most(
    settings: Settings, threads: ThreadPoolExecutor
) -> None:
    # Given four applications that enqueue at the same time, each by a connection of its own
    workshops = [Workshop(limited(settings, max_staged_bytes=20 * 62)) for _ in range(4)]
    stop = threading.Event()

    def stream(name: str) -> Iterator[Document]:
        for number in range(100):
            if stop.is_set():
                return
            yield from documents(f"{name}{number:02}"[:3])

    told = [Told() for _ in workshops]
    running = [
        threads.submit(each.put, stream("wxyz"[number]), on_staged=told[number])
        for number, each in enumerate(workshops)
    ]
    eventually(lambda: all(each.waiting for each in told))

    staged = workshops[0].value("SELECT sum(octet_length(content)) AS n FROM staged")
    assert 20 * 62 <= staged <= (20 + 4) * 64

    stop.set()
    while not all(each.done() for each in running):
        workshops[0].work()
    for each in workshops:
        each.close()


def test_a_scheduled_run_in_the_only_slot_makes_way_for_the_work_that_it_waits_for(
    settings: Settings, tmp_path: Any
) -> None:
    # Given a schedule of four documents, room for two, and no other slot than that of the run
    workshop = step_by_step(limited(settings, max_staged_bytes=15))
    put_schedule(workshop, plant(tmp_path))

    # When it runs, then it gives its slot up where the backlog is full, and does not begin again while it is
    outcome = sync.perform(workshop.services, shown(workshop).id)
    assert isinstance(outcome, Waiting)
    assert "ingest.max_staged_bytes" in outcome.reason
    assert shown(workshop).state != "running"
    assert isinstance(sync.perform(workshop.services, shown(workshop).id), Waiting)

    # And with work done in between it comes to its end, in one job
    eventually(lambda: run_due(workshop) == Done(1))
    assert names(workshop) == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert len(workshop.client.jobs()) == 1
    assert sync_duty(workshop)["sent"] == 0
    workshop.close()


def test_a_scheduled_run_beside_other_slots_waits_in_its_own(
    settings: Settings, tmp_path: Any, threads: ThreadPoolExecutor
) -> None:
    workshop = step_by_step(limited(settings, max_staged_bytes=15))
    with workshop.services.ledger.transaction() as connection:
        fleet.report(connection, "general1@here#1", "here", 1, "high,normal,low", 2)
    put_schedule(workshop, plant(tmp_path))

    running = threads.submit(sync.perform, workshop.services, shown(workshop).id)
    eventually(lambda: workshop.value("SELECT count(*) AS n FROM staged") == 2)
    time.sleep(1.0)
    assert not running.done()
    assert shown(workshop).state == "running"

    while not running.done():
        workshop.work()
    workshop.work()
    assert running.result() == Done(1)
    assert names(workshop) == ["a.txt", "b.txt", "c.txt", "d.txt"]
    workshop.close()


def test_how_much_is_staged_is_told_without_reading_it(workshop: Workshop) -> None:
    workshop.sql(
        """INSERT INTO collections (name, physical) VALUES ('c', 'c')""",
    )
    big = limited(workshop.settings, max_staged_bytes=1024**3)
    large = Workshop(big)
    large.put([Document(f"big{number}", "y" * 1_000_000) for number in range(20)])

    with large.services.ledger.transaction() as connection:
        connection.execute("SELECT pg_stat_reset()")
        found = intake.load(connection, 100)
        plan = connection.execute(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT sum(octet_length(content)) FROM staged"
        ).fetchone()
    assert found.staged_bytes == 20_000_000
    assert plan is not None
    (top,) = plan["QUERY PLAN"]
    assert top["Plan"]["Shared Hit Blocks"] + top["Plan"]["Shared Read Blocks"] < 20, "of about 2,500 that it takes"
    large.close()
