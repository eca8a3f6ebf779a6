"""What a job is told to wait for, from the rows of the ledger alone: one state, the first that is true."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from workshop import Workshop, with_work

from pipeline import Settings
from pipeline.ledger import batches, circuits, diagnosis, fleet, jobs
from pipeline.ledger.diagnosis import Waiting

WORKER = "general@here#1"
OWNER = f"{WORKER}/7"


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """With a live worker that consumes every queue."""
    made = Workshop(settings)
    report(made)
    yield made
    made.close()


def report(workshop: Workshop, worker: str = WORKER, queues: str = "high,normal,low", **done: float) -> None:
    """It lives on for all of a test, however slow that is."""
    with workshop.services.ledger.transaction() as connection:
        fleet.report(connection, worker, "here", 1, queues, 2, done)
        connection.execute("UPDATE workers SET seen_at = clock_timestamp() + interval '1 hour'")


def put(workshop: Workshop, count: int = 1, name: str = "a", **options: Any) -> uuid.UUID:
    """A job with so many batches: one that prepares, and others that embed."""
    job = workshop.put({name: f"text {name}"}, **options).job_id
    (batch,) = workshop.sql("SELECT id FROM batches WHERE job_id = %(id)s", id=job)
    workshop.sql(
        """INSERT INTO batches (kind, collection_id, tenant, job_id, priority, provider, size)
           SELECT 'embed', collection_id, tenant, job_id, priority, provider, 1
             FROM batches, generate_series(2, %(count)s) WHERE id = %(id)s""",
        id=batch["id"],
        count=count,
    )
    return job


def ready(workshop: Workshop, job: uuid.UUID) -> list[int]:
    rows = workshop.sql("SELECT id FROM batches WHERE job_id = %(id)s AND state = 'ready' ORDER BY id", id=job)
    return [row["id"] for row in rows]


def claim(workshop: Workshop, job: uuid.UUID, owner: str = OWNER, lease_seconds: float = 600.0) -> batches.Claim:
    """The first ready batch of the job, claimed; and the job made running as a task does."""
    found = workshop.claim(ready(workshop, job)[0], owner, lease_seconds)
    with workshop.services.ledger.transaction() as connection:
        jobs.start(connection, [job])
    return found


def told(workshop: Workshop, job: uuid.UUID) -> Waiting | None:
    """What `job` says; `jobs` and `status` say the same."""
    found = workshop.client.job(job).waiting
    listed = {status.job_id: status.waiting for status in workshop.client.jobs(limit=100)}
    there = listed[job]
    assert (there.state if there else None) == (found.state if found else None)
    return found


def state(workshop: Workshop, job: uuid.UUID) -> str | None:
    found = told(workshop, job)
    return found.state if found else None


# -- each state --------------------------------------------------------------------------------------------------------


def test_a_job_of_which_something_runs_is_at_work(workshop: Workshop) -> None:
    job = put(workshop, 3)
    claim(workshop, job)

    assert told(workshop, job) is None


def test_a_job_is_queued_behind_what_comes_before_it_in_fair_order(workshop: Workshop) -> None:
    # Given five batches of this tenant's and a hundred of another one's, of which each gives way in turn
    put(workshop, 5, "first")
    put(workshop, 100, "theirs", tenant="another")
    workshop.sql("UPDATE batches SET sent_at = NULL")
    job = put(workshop, 2, "mine")
    workshop.sql("UPDATE batches SET sent_at = NULL")

    # Then before its first batch come five of its own tenant's and six of the other's, whose name comes first
    found = told(workshop, job)

    assert found == Waiting("queued behind 11 batches", state="queued", position=11)
    assert found.to_json() == {
        "state": "queued",
        "reason": "queued behind 11 batches",
        "until": None,
        "position": 11,
        "eta_seconds": None,
        "worker": None,
    }


def test_the_time_until_it_starts_is_told_by_what_the_workers_have_done_lately(workshop: Workshop) -> None:
    put(workshop, 60, "first")
    job = put(workshop, 1, "mine")
    report(workshop, normal=1.5, high=70.0)
    report(workshop, "other@here#2", normal=0.5)

    found = told(workshop, job)

    assert found is not None
    assert (found.position, found.eta_seconds) == (60, 30.0)
    assert found.reason == "queued behind 60 batches, about 30 s"


def test_what_is_on_its_way_to_a_worker_comes_first_whoever_waits(workshop: Workshop) -> None:
    put(workshop, 30, "theirs", tenant="zacharias")
    workshop.sql("UPDATE batches SET sent_at = clock_timestamp()")
    job = put(workshop, 1, "mine", tenant="anna")
    workshop.sql("UPDATE batches SET sent_at = NULL WHERE job_id = %(id)s", id=job)

    found = told(workshop, job)

    assert found is not None
    assert found.position == 30


def test_a_position_is_counted_no_further_than_it_helps(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "MOST_COUNTED", 10)
    monkeypatch.setattr(diagnosis, "_LEAST_COUNTED", 10)
    put(workshop, 20, "first")
    job = put(workshop, 1, "mine")

    found = told(workshop, job)

    assert found == Waiting("queued behind more than 10 batches", state="queued", position=10)


def test_the_next_in_line_is_queued_while_every_slot_is_taken_and_between_two_batches_at_work(
    workshop: Workshop,
) -> None:
    job = put(workshop, 3)
    first = claim(workshop, job)
    with workshop.services.ledger.transaction() as connection:
        batches.finish(connection, [first])
        jobs.count(connection, {job: {"chunks_indexed": 1}})
    assert told(workshop, job) is None, "a slot is free, and it got on just now"

    other = put(workshop, 2, "other", tenant="zacharias")
    for child in (7, 8):
        claim(workshop, other, f"{WORKER}/{child}")
    found = told(workshop, job)
    assert found == Waiting("queued", state="queued", position=0)

    workshop.sql("UPDATE batches SET state = 'ready' WHERE job_id = %(id)s", id=other)
    assert told(workshop, job) is None
    workshop.sql("UPDATE jobs SET progressed_at = now() - interval '4 seconds'")
    assert state(workshop, job) == "queued", "what should have come did not"


def test_a_job_whose_queue_no_live_worker_consumes_is_starved(workshop: Workshop) -> None:
    job = put(workshop, 2, priority="low")
    report(workshop)
    assert state(workshop, job) == "queued"

    report(workshop, "express@here#2", "control,high")
    workshop.sql("UPDATE workers SET seen_at = now() - interval '1 minute' WHERE queues LIKE '%%low%%'")

    found = told(workshop, job)
    assert found is not None
    assert found.state == "starved"
    assert found.reason == "no live worker consumes the queue low; start one with `millrace worker`"
    assert "millrace up" in found.remedy


def test_what_failed_waits_for_its_next_attempt_and_says_why(workshop: Workshop) -> None:
    job = put(workshop)
    held = claim(workshop, job)
    patient = with_work(workshop.settings, backoff_seconds=600.0).work
    with workshop.services.ledger.transaction() as connection:
        batches.fail(connection, [held], "ValueError: bad luck", patient)

    found = told(workshop, job)

    assert found is not None
    assert found.state == "waiting"
    assert found.reason == f"attempt 2 of batch {held.id}, after: ValueError: bad luck"
    assert found.until is not None
    assert 0 < (found.until - datetime.now(UTC)).total_seconds() < 1200


def test_a_job_waits_while_the_circuit_of_what_it_needs_is_open_and_not_for_what_it_does_not_need(
    workshop: Workshop,
) -> None:
    job = put(workshop, 3)
    with workshop.services.ledger.transaction() as connection:
        circuits.trip(connection, "qdrant", "Qdrant at here does not answer")
    workshop.sql("UPDATE circuits SET retry_at = clock_timestamp() + interval '1 hour'")
    assert state(workshop, job) == "queued", "there is something to prepare"

    prepared = claim(workshop, job)
    assert told(workshop, job) is None, "preparing needs no index"
    with workshop.services.ledger.transaction() as connection:
        batches.finish(connection, [prepared])
    found = told(workshop, job)
    assert found is not None
    assert (found.state, found.reason) == ("waiting", "Qdrant at here does not answer")
    assert found.until is not None

    workshop.sql("UPDATE circuits SET retry_at = clock_timestamp()")
    with workshop.services.ledger.transaction() as connection:
        assert circuits.take_probe(connection, "qdrant", ready(workshop, job)[0])
    claim(workshop, job)
    assert state(workshop, job) == "waiting", "what runs is the probe"
    with workshop.services.ledger.transaction() as connection:
        circuits.close(connection, "qdrant")
    assert told(workshop, job) is None


def test_a_claim_whose_worker_was_not_seen_or_whose_lease_is_over_has_a_dead_worker(workshop: Workshop) -> None:
    job = put(workshop, 3)
    held = claim(workshop, job)
    claim(workshop, job, "other@here#2/9")
    workshop.sql("UPDATE workers SET seen_at = now() - interval '7 seconds'")

    found = told(workshop, job)

    assert found is not None, "the other claim is at work, but the job cannot end without this one"
    assert (found.state, found.worker) == ("dead_worker", WORKER)
    words = f"worker {WORKER} died with batch {held.id}; to be retaken within "
    assert found.reason.startswith(words)
    assert 500 < int(found.reason.removeprefix(words).partition(" ")[0]) < 620
    assert found.until is not None

    report(workshop)
    assert told(workshop, job) is None
    workshop.sql("UPDATE batches SET lease_until = now() WHERE id = %(id)s", id=held.id)
    over = told(workshop, job)
    assert over is not None
    assert over.reason == f"worker {WORKER} died with batch {held.id}; to be retaken within 3 s"


def test_a_claim_without_progress_is_wedged_until_somebody_takes_it_anew(workshop: Workshop) -> None:
    job = put(workshop)
    held = claim(workshop, job)
    with workshop.services.ledger.transaction() as connection:
        assert fleet.mark_wedged(connection, WORKER, [8], 9.0) == 0
        assert fleet.mark_wedged(connection, WORKER, [7], 9.0) == 1
    found = told(workshop, job)
    assert found is not None
    assert (found.state, found.worker) == ("wedged", WORKER)

    # It gets on after all
    with workshop.services.ledger.transaction() as connection:
        fleet.unmark_wedged(connection, WORKER, [7])
    assert told(workshop, job) is None

    # or is ended: an attempt that says what was wrong
    with workshop.services.ledger.transaction() as connection:
        fleet.mark_wedged(connection, WORKER, [7], 9.0)
        assert fleet.end_leases(connection, WORKER, [7]) == 1
    with workshop.services.ledger.transaction() as connection:
        assert batches.expire(connection, workshop.settings.work, 10)[0] == 1
    row = workshop.sql("SELECT attempts, losses, error, wedged_at FROM batches WHERE id = %(id)s", id=held.id)
    assert row == [{"attempts": 1, "losses": 0, "error": "no progress for 120 s; interrupted", "wedged_at": None}]


def test_only_what_a_child_still_holds_is_kept_for_it(workshop: Workshop) -> None:
    job = put(workshop, 2)
    lost = claim(workshop, job)
    workshop.sql("UPDATE batches SET lease_until = now() - interval '1 second' WHERE id = %(id)s", id=lost.id)
    held = claim(workshop, job)

    with workshop.services.ledger.transaction() as connection:
        assert fleet.keep_leases(connection, WORKER, [7], 60.0) == 1

    left = "SELECT extract(epoch FROM lease_until - now())::float8 AS n FROM batches WHERE id = %(id)s"
    assert workshop.value(left, id=held.id) > 50
    assert workshop.value(left, id=lost.id) < 0


def test_a_pause_is_told_before_anything_else(workshop: Workshop) -> None:
    job = put(workshop, 2)
    workshop.sql("UPDATE workers SET seen_at = now() - interval '1 minute'")
    assert state(workshop, job) == "starved"

    workshop.client.pause(job, reason="the index is being moved")

    found = told(workshop, job)
    assert found == Waiting("paused: the index is being moved", state="paused")
    workshop.client.pause(collection="notes")
    assert told(workshop, job) == Waiting("collection notes is paused", state="paused")
    workshop.client.resume(collection="notes")
    workshop.client.resume(job)
    assert state(workshop, job) == "starved"


def test_a_job_that_is_still_written_is_staging(workshop: Workshop) -> None:
    job = put(workshop)
    workshop.sql("UPDATE jobs SET sealed_at = NULL, seen_at = now() - interval '45 seconds'")
    assert state(workshop, job) == "queued"
    workshop.sql("UPDATE batches SET state = 'indexed', ended_at = now()")

    found = told(workshop, job)

    assert found is not None
    assert found.state == "staging"
    assert re.fullmatch(r"the enqueuer is still adding documents; last heard of (4[5-9]|5\d) s ago", found.reason)


def test_documents_that_another_job_brings_first_are_waited_for(workshop: Workshop) -> None:
    first = workshop.put({"a": "one"}).job_id
    workshop.prepare()
    second = workshop.put({"a": "two"}).job_id
    workshop.prepare()

    found = told(workshop, second)

    assert found == Waiting(f"its documents are being brought by job {first} first", state="queued")


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_the_status_lists_the_unfinished_jobs_with_their_diagnoses(workshop: Workshop) -> None:
    done = workshop.index({"done": "text"}).job_id
    at_work = put(workshop, 2, "busy")
    claim(workshop, at_work)
    starved = put(workshop, 1, "low", priority="low")
    workshop.sql("UPDATE workers SET queues = 'control,high,normal'")

    found = workshop.client.status()

    assert found["unfinished"]["total"] == 2
    shown = {uuid.UUID(job["job_id"]): job for job in found["unfinished"]["jobs"]}
    assert set(shown) == {at_work, starved}
    assert shown[at_work]["waiting"] is None
    assert shown[starved]["waiting"]["state"] == "starved"
    assert done not in shown
    assert found["jobs"]["running"] == 1


def test_every_state_has_a_remedy() -> None:
    assert set(diagnosis.REMEDIES) == set(diagnosis.STATES)
