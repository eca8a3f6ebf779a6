"""Each state that a job can be told to be in, provoked with real workers; that one is told, and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from command_line import eventually
from services import RedisServer
from yard import PATIENCE_SECONDS, Yard, open_yard, reconciling

# Short clocks. Each text is a chunk, and a batch has two.
SECTIONS: dict[str, dict[str, Any]] = {
    "work": {
        "lease_seconds": 6.0,
        "heartbeat_seconds": 1.0,
        "stall_seconds": 2.0,
        "sample_seconds": 1.0,
        "backoff_seconds": 0.1,
    },
    "ingest": {"embed_chunks": 2, "prepare_documents": 100},
    "qdrant": {"timeout": 1.5},
}


@pytest.fixture(scope="module")
def yard(
    tmp_path_factory: pytest.TempPathFactory, module_postgres_url: str, redis_server: RedisServer
) -> Iterator[Yard]:
    with open_yard(tmp_path_factory.mktemp("yard"), module_postgres_url, redis_server, SECTIONS) as made:
        yield made


@pytest.fixture(scope="module")
def general(yard: Yard) -> subprocess.Popen[bytes]:
    """A worker that all tests share; nobody consumes the queue `low`."""
    return yard.start("general", ("high", "normal"))


@pytest.fixture(autouse=True)
def at_ease(yard: Yard) -> Iterator[None]:
    yield
    yard.order("general", "")


@pytest.mark.usefixtures("general")
def test_a_job_that_is_simply_at_work_says_nothing(yard: Yard) -> None:
    yard.order("general", "slow 0.2")
    job = yard.put("plain", 20)
    eventually(lambda: yard.chunks(job) >= 2, PATIENCE_SECONDS)

    # A moment between two batches is told for what it is, and over at once.
    said = []
    with reconciling(yard.workshop):
        while yard.chunks(job) < 12:
            said.append(yard.state(job))
    assert set(said) <= {None, "queued"}
    assert said.count(None) > said.count("queued")
    yard.order("general", "")
    assert yard.finish(job).waiting is None


@pytest.mark.usefixtures("general")
def test_a_job_whose_queue_nobody_consumes_is_starved(yard: Yard) -> None:
    job = yard.put("starved", 2, priority="low")

    found = yard.waiting(job)

    assert found is not None
    assert (found.state, found.until) == ("starved", None)
    assert found.reason == "no live worker consumes the queue low; start one with `millrace worker`"
    yard.workshop.client.cancel(job)


@pytest.mark.usefixtures("general")
def test_a_job_behind_a_long_one_is_queued_and_told_how_long(yard: Yard) -> None:
    # Given a worker that is at work on a long job, and has been for a while
    yard.order("general", "slow 0.2")
    long = yard.put("long", 40)
    eventually(lambda: yard.chunks(long) >= 6, PATIENCE_SECONDS)

    # When another one comes
    job = yard.put("short", 2)

    # Then it is told how many batches are before it, and how long that takes at the worker's rate
    found = eventually(lambda: (told := yard.waiting(job)) and told.eta_seconds and told, PATIENCE_SECONDS)
    assert found.state == "queued"
    assert 1 <= found.position <= 20
    assert 0.1 < found.eta_seconds < 60
    assert yard.state(long) is None
    yard.order("general", "")
    assert {yard.finish(one).state for one in (long, job)} == {"succeeded"}


@pytest.mark.usefixtures("general")
def test_while_the_index_is_away_its_jobs_wait_and_say_until_when(yard: Yard) -> None:
    os.kill(yard.vectors_pid, signal.SIGSTOP)
    try:
        job = yard.put("away", 4)
        before = yard.until(job, "waiting")
        found = yard.waiting(job)
    finally:
        os.kill(yard.vectors_pid, signal.SIGCONT)

    assert before <= {"queued", None}, "until the first request was given up, it was at work"
    assert found is not None
    assert "Qdrant" in found.reason
    assert found.until is not None
    with reconciling(yard.workshop):
        assert yard.finish(job).state == "succeeded"
    assert yard.attempts(job) == [], "and nobody is blamed"


@pytest.mark.usefixtures("general")
def test_a_job_whose_worker_becomes_slow_is_saturated(yard: Yard) -> None:
    # Given a job that has gone well for some time
    yard.order("general", "slow 0.02")
    job = yard.put("slower", 400)
    best = "SELECT best_rate FROM jobs WHERE id = %(id)s"
    with reconciling(yard.workshop):
        eventually(lambda: yard.workshop.value(best, id=job), PATIENCE_SECONDS)
        assert yard.state(job) is None

        # When each text takes its worker twenty times as long
        yard.order("general", "slow 0.4")

        # Then it says so, until it goes well again
        assert yard.until(job, "saturated") <= {None}
        found = yard.waiting(job)
        assert found is not None
        assert "chunks/s, less than half of the" in found.reason
        yard.order("general", "")
        assert yard.finish(job).state == "succeeded"


@pytest.mark.parametrize("order", ["sleep", "hold"], ids=["in Python", "in C, with the interpreter's lock"])
def test_work_that_hangs_is_wedged_then_interrupted_and_counted(
    yard: Yard, general: subprocess.Popen[bytes], order: str
) -> None:
    # Given a worker whose child hangs in the middle of a batch
    child = yard.child(general)
    yard.order("general", order)
    job = yard.put(f"hangs-{order}", 1)
    eventually(lambda: yard.obeyed("general"), PATIENCE_SECONDS)

    with reconciling(yard.workshop):
        # Then the job is at work, and after the time that work may be without progress it is wedged
        assert yard.until(job, "wedged") <= {None, "queued"}

        # and then the child is killed, the attempt counted, and the job done by the next child of the same slot
        assert yard.finish(job).state == "succeeded"
    assert yard.attempts(job) == [(1, 0)]
    assert yard.child(general) not in (child, None)
    assert "obedient_worker.py" in (yard.directory / "general.log").read_text().partition("this is where it is")[2]


def test_a_worker_that_was_stopped_longer_than_work_may_stall_is_not_taken_for_wedged(
    yard: Yard, general: subprocess.Popen[bytes]
) -> None:
    child = yard.child(general)
    yard.order("general", "slow 0.2")
    job = yard.put("stopped", 10)
    eventually(lambda: yard.chunks(job) >= 2, PATIENCE_SECONDS)

    yard.signal(general, signal.SIGSTOP)
    time.sleep(SECTIONS["work"]["stall_seconds"] + 1)  # so long it is stopped
    yard.signal(general, signal.SIGCONT)

    assert yard.finish(job).state == "succeeded"
    assert yard.child(general) == child
    assert yard.attempts(job) == []


def test_a_child_that_dies_is_noticed_at_once(yard: Yard, general: subprocess.Popen[bytes]) -> None:
    child = yard.child(general)
    yard.order("general", "die")
    job = yard.put("dies", 1)
    eventually(lambda: yard.obeyed("general"), PATIENCE_SECONDS)

    # Its lease is over long before it would have run out
    over = """SELECT lease_until < clock_timestamp() AS over FROM batches
               WHERE job_id = %(id)s AND state = 'running'"""
    started = time.monotonic()
    eventually(lambda: yard.workshop.sql(over, id=job) == [{"over": True}], PATIENCE_SECONDS)
    noticed = time.monotonic() - started
    assert yard.state(job) == "dead_worker"

    with reconciling(yard.workshop):
        assert yard.finish(job).state == "succeeded"
    assert yard.attempts(job) == [(1, 0)]
    assert yard.child(general) not in (child, None)
    assert noticed < 5.0


@pytest.mark.usefixtures("general")
def test_a_paused_job_says_who_paused_it(yard: Yard) -> None:
    yard.order("general", "slow 0.2")
    job = yard.put("paused", 20)
    eventually(lambda: yard.chunks(job) >= 2, PATIENCE_SECONDS)

    yard.workshop.client.pause(job)

    assert {yard.state(job) for _ in range(5)} == {"paused"}
    yard.workshop.client.resume(job)
    yard.order("general", "")
    with reconciling(yard.workshop):
        assert yard.finish(job).state == "succeeded"


@pytest.mark.usefixtures("general")
def test_a_job_of_a_killed_worker_says_who_died_and_when_it_is_retaken(yard: Yard) -> None:
    # Given a worker of its own in the middle of a batch
    victim = yard.start("victim", ("low",))
    yard.order("victim", "slow 1.5")
    job = yard.put("killed", 2, priority="low")
    owned = "SELECT epoch, owner FROM batches WHERE job_id = %(id)s AND state = 'running' AND kind = 'embed'"
    (held,) = eventually(lambda: yard.workshop.sql(owned, id=job), PATIENCE_SECONDS)
    assert held["owner"].startswith("victim@")

    # When it is killed with its child, and nobody starts it again
    yard.kill(victim)

    # Then its job is at work as far as anybody knows, and then it is told that its worker died
    assert yard.until(job, "dead_worker") <= {None}
    found = yard.waiting(job)
    assert found is not None
    assert found.worker == held["owner"].partition("/")[0]
    assert "to be retaken within" in found.reason
    assert found.until is not None

    # and another worker ends it: the shared one, which consumes another queue
    with reconciling(yard.workshop):
        # With leases this short the batch is taken back before its worker has missed a report.
        assert yard.until(job, "starved") <= {"dead_worker", "queued"}
        yard.workshop.client.prioritize(job, "normal")
        assert yard.finish(job).state == "succeeded"
    assert yard.attempts(job) == [(0, 1)]
