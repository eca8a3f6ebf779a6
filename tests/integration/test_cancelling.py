"""Cancelling a job: its work stops, its points leave the index, and whoever cancels may be killed in the middle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from workshop import COLLECTION, Workshop, with_work

from pipeline import Settings, ingest
from pipeline.duties import Bounds
from pipeline.ledger import cancelling
from pipeline.ledger.batches import Claim
from pipeline.tools import Progress, Tools
from tasks import base
from tasks.maintenance import reconcile


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    ingest_settings = settings.ingest.model_copy(update={"prepare_documents": 2, "embed_chunks": 1})
    made = Workshop(settings.model_copy(update={"ingest": ingest_settings}))
    yield made
    made.close()


def _documents(*names: str) -> dict[str, str]:
    return {name: f"about {name}" for name in names}


def _points(workshop: Workshop) -> int:
    physical = workshop.value("SELECT physical FROM collections WHERE name = %(name)s", name=COLLECTION)
    return workshop.services.vectors.count(physical)


def _left(workshop: Workshop) -> dict[str, Any]:
    (row,) = workshop.sql(
        """SELECT (SELECT count(*) FROM batches WHERE ended_at IS NULL) AS batches,
                  (SELECT count(*) FROM versions WHERE state IN ('staged', 'open')) AS versions,
                  (SELECT count(*) FROM staged) AS staged"""
    )
    return row


def test_running_work_stops_within_a_heartbeat_of_being_cancelled(settings: Settings) -> None:
    # Given a claim that gets on and on, whose lease lasts for long
    workshop = Workshop(with_work(settings, heartbeat_seconds=0.1, lease_seconds=600.0))
    job = workshop.put(_documents("a"))
    workshop.prepare()
    (embed,) = workshop.ready()
    stopped_after: list[float] = []

    def story(tools: Tools, claims: Sequence[Claim], progress: Progress) -> None:
        workshop.client.cancel(job.job_id)
        cancelled = time.monotonic()
        try:
            while time.monotonic() < cancelled + 120:
                progress()
                time.sleep(0.005)
        finally:
            stopped_after.append(time.monotonic() - cancelled)

    # When its job is cancelled
    outcome = base.perform(workshop.services, embed.id, story)

    # Then it stops at its next step after the next heartbeat
    assert isinstance(outcome, base.Skipped)
    assert stopped_after[0] < 60.0
    assert workshop.client.job(job.job_id).state == "cancelled"
    assert _left(workshop) == {"batches": 0, "versions": 0, "staged": 0}
    workshop.close()


def test_what_it_had_published_stays_and_what_was_on_its_way_leaves_the_index(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an update in the middle: one document is published, one is in the index and not published
    workshop.index(_documents("old"))
    job = workshop.put(_documents(*"abcd"))
    workshop.prepare()
    first, second, *_ = workshop.ready()
    workshop.perform(first.id, alone=True)

    # When it is cancelled between the upsert and its completion
    upsert = workshop.services.vectors.upsert

    def upsert_and_cancel(*given: Any) -> None:
        upsert(*given)
        workshop.client.cancel(job.job_id)

    monkeypatch.setattr(workshop.services.vectors, "upsert", upsert_and_cancel)
    outcome = workshop.perform(second.id, alone=True)

    # Then that one completes nothing, and its point is there, unseen, until it is contracted
    assert isinstance(outcome, base.Skipped)
    status = workshop.client.job(job.job_id)
    assert (status.state, status.documents["indexed"], status.documents["cancelled"]) == ("cancelled", 1, 3)
    assert len(workshop.texts()) == 2
    assert _points(workshop) == 3
    workshop.contract()
    assert _points(workshop) == 2
    assert workshop.audit() == {"expected": 2, "present": 2}
    assert _left(workshop) == {"batches": 0, "versions": 0, "staged": 0}


def test_a_cancel_that_was_killed_in_the_middle_is_ended_by_reconcile(workshop: Workshop) -> None:
    # Given a cancel that died after its first steps
    job = workshop.put(_documents(*"abcdefgh"))
    workshop.perform(workshop.ready()[0].id)
    ledger = workshop.services.ledger
    with ledger.transaction() as connection:
        assert cancelling.begin(connection, job.job_id)
    with ledger.transaction() as connection:
        cancelling.end_batches(connection, job.job_id, 1)
    with ledger.transaction() as connection:
        cancelling.end_versions(connection, job.job_id, 1)

    # Then nothing of it is claimed
    for batch in workshop.ready():
        assert isinstance(workshop.perform(batch.id), base.Skipped)

    # And reconcile ends it, and counts each document once
    assert reconcile(workshop.services, Bounds(100, 20.0))["cancelled_jobs"] == 1
    status = workshop.client.job(job.job_id)
    assert (status.state, status.documents["cancelled"], status.finished) == ("cancelled", 8, True)
    assert workshop.value("SELECT finished_at IS NOT NULL FROM jobs")
    assert _left(workshop) == {"batches": 0, "versions": 0, "staged": 0}
    assert reconcile(workshop.services, Bounds(100, 20.0))["cancelled_jobs"] == 0


def test_what_was_coalesced_with_a_cancelled_job_is_handed_back_unblamed(settings: Settings) -> None:
    workshop = Workshop(with_work(settings, heartbeat_seconds=0.1))
    cancelled = workshop.put(_documents("a"))
    other = workshop.put(_documents("b"))
    workshop.prepare()
    first, second = workshop.ready()

    def story(tools: Tools, claims: Sequence[Claim], progress: Progress) -> None:
        assert [claim.id for claim in claims] == [first.id, second.id]
        workshop.client.cancel(cancelled.job_id)
        ingest.embed(tools, claims, progress)

    base.perform(workshop.services, first.id, story, lambda connection, claim: 4096)

    assert workshop.sql("SELECT state, attempts, losses FROM batches WHERE id = %(id)s", id=second.id) == [
        {"state": "ready", "attempts": 0, "losses": 0}
    ]
    workshop.work()
    assert workshop.client.job(other.job_id).state == "succeeded"
    assert workshop.texts() == {"b": ["about b"]}
    workshop.close()


def test_a_paused_job_is_cancelled_with_all_that_was_held(workshop: Workshop) -> None:
    job = workshop.put(_documents(*"abcd"))
    workshop.client.pause(job.job_id)

    assert workshop.client.cancel(job.job_id).state == "cancelled"

    assert workshop.value("SELECT count(*) FROM batches WHERE held OR ended_at IS NULL") == 0
    assert workshop.client.paused() == []


def test_a_finished_job_stays_as_it_is(workshop: Workshop) -> None:
    job = workshop.index(_documents("a"))

    assert workshop.client.cancel(job.job_id).state == "succeeded"
    assert workshop.texts() == {"a": ["about a"]}


def test_no_step_of_a_cancel_is_larger_than_asked(workshop: Workshop) -> None:
    job = workshop.put(_documents(*(f"d{number}" for number in range(20))))
    ledger = workshop.services.ledger
    with ledger.transaction() as connection:
        cancelling.begin(connection, job.job_id)

    with ledger.transaction() as connection:
        assert cancelling.end_batches(connection, job.job_id, 3) == 3
    with ledger.transaction() as connection:
        assert cancelling.end_versions(connection, job.job_id, 7) == 7

    assert _left(workshop) == {"batches": 7, "versions": 13, "staged": 13}
