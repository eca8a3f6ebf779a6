"""What a job's counters say about how fast it is and how much is left."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.ledger.jobs import COUNTERS, Job
from pipeline.status import average_rate, chunks_expected, job_status, recent_rate, with_rate

MADE = datetime(2026, 1, 1, tzinfo=UTC)


def job(seconds: float = 30.0, indexing_seconds: float | None = 10.0, **counters: int) -> Job:
    """A running job of 100 documents whose work began five seconds after it was made."""
    given: dict[str, Any] = dict.fromkeys(COUNTERS, 0) | {"documents_total": 100} | counters
    return Job(
        id=uuid.UUID(int=1),
        kind="ingest",
        collection_id=1,
        collection="c",
        tenant="t",
        priority=1,
        provider="local",
        state="running",
        recipe={},
        idempotency_key=None,
        error=None,
        created_at=MADE,
        seen_at=MADE,
        progressed_at=None,
        sealed_at=MADE,
        started_at=MADE + timedelta(seconds=5),
        finished_at=None,
        indexed_before=64,
        rate=None,
        best_rate=None,
        seconds=seconds,
        indexing_seconds=indexing_seconds,
        counters=given,
    )


def test_the_rate_leaves_out_the_time_before_the_first_batch_was_in_the_index() -> None:
    assert average_rate(job(chunks_indexed=264)) == pytest.approx(20.0)


def test_of_the_first_batch_the_rate_is_that_since_the_work_began() -> None:
    assert average_rate(job(seconds=9, indexing_seconds=0.2, chunks_indexed=64)) == pytest.approx(16.0)
    assert average_rate(job(seconds=9, indexing_seconds=None)) is None


def test_documents_not_yet_prepared_are_expected_to_have_as_many_chunks_as_the_others() -> None:
    assert chunks_expected(job(documents_prepared=25, chunks_total=50).counters) == pytest.approx(200.0)
    assert chunks_expected(job(documents_unchanged=50, documents_prepared=25, chunks_total=50).counters) == 100.0


def test_the_time_left_is_that_of_the_chunks_left() -> None:
    running = job(documents_prepared=100, chunks_total=464, chunks_indexed=264)

    status = with_rate(job_status(running, (), None), running, average_rate(running))

    assert (status.rate, status.eta_seconds) == (pytest.approx(20.0), pytest.approx(10.0))


def test_samples_of_less_than_a_second_say_nothing() -> None:
    assert recent_rate([]) is None
    assert recent_rate([(10.0, 5)]) is None
    assert recent_rate([(10.0, 5), (10.5, 50)]) is None
    assert recent_rate([(10.0, 5), (12.0, 45)]) == pytest.approx(20.0)
