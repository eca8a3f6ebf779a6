"""What a job is told to wait for whose embeddings are bought: the Batch API, a limit, a key, money, another job."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from bought_rows import Bought, begin_anew, ordered, packed, shared
from workshop import Workshop

from pipeline.errors import BoughtElsewhere
from pipeline.ledger import batches, budgets, circuits, fleet
from pipeline.ledger.diagnosis import Waiting

__all__ = ["shared"]


@pytest.fixture
def workshop(shared: Workshop) -> Workshop:
    """With a live worker that consumes every queue."""
    begin_anew(shared)
    with shared.services.ledger.transaction() as connection:
        fleet.report(connection, "general@here#1", "here", 1, "high,normal,low", 2, {})
        connection.execute("UPDATE workers SET seen_at = clock_timestamp() + interval '1 hour'")  # alive all the while
    return shared


def told(workshop: Workshop, job: Bought) -> Waiting:
    """What `job` says; `jobs` says the same."""
    found = workshop.client.job(job.job_id).waiting
    listed = {status.job_id: status.waiting for status in workshop.client.jobs(limit=100)}
    later = listed[job.job_id]
    assert found is not None
    assert later is not None
    assert replace(later, reason=found.reason) == found
    assert ageless(later.reason) == ageless(found.reason)
    assert found.state == "waiting"
    return found


def ageless(reason: str) -> str:
    """A moment later what is told of has grown older."""
    return re.sub(r"\d+ s (old|ago)", r"0 s \1", reason)


def rests(workshop: Workshop, cause: str, error: str) -> None:
    """Who embeds for money is asked nothing for a minute."""
    with workshop.services.ledger.transaction() as connection:
        circuits.rest(connection, circuits.OPENAI, error, 60.0, cause)


def ready_online(workshop: Workshop, *names: str) -> Bought:
    job = ordered(workshop, *names, provider="openai")
    workshop.sql("DELETE FROM purchases")
    workshop.sql("UPDATE batches SET state = 'ready' WHERE job_id = %(job)s AND kind = 'embed'", job=job.job_id)
    return job


def test_texts_that_are_not_packed_yet_wait_for_others_to_share_a_batch_with(workshop: Workshop) -> None:
    job = ordered(workshop, "one", "two")
    workshop.sql("UPDATE purchases SET created_at = clock_timestamp() - interval '40 s'")

    assert re.fullmatch(r"2 texts wait to be packed with others, ordered 4\d s ago", told(workshop, job).reason)


def test_the_batches_of_the_batch_api_are_told_with_age_state_and_how_far_they_are(workshop: Workshop) -> None:
    # Given two batches with texts of one job, one of them shared; and a third with none of its
    job, other, stranger = ordered(workshop, "one"), ordered(workshop, "two"), ordered(workshop, "three")
    counts = """jsonb_build_object('request_counts', jsonb_build_object('completed', 1, 'failed', 0, 'total', 2))"""
    packed(workshop, job, other, remote=counts, created_at="clock_timestamp() - interval '3 hours'")
    packed(workshop, Bought(job.job_id, job.batch_ids, []), status="'validating'")
    packed(workshop, stranger)

    found = told(workshop, job)

    assert found.reason == "the Batch API: 2 batches, the oldest 3.0 h old, in progress, validating, 1 of 2 texts"
    assert ageless(told(workshop, stranger).reason) == "the Batch API: 1 batch, 0 s old, in progress, 0 of 1 texts"


def test_a_text_that_another_job_has_ordered_is_waited_for_in_its_name(workshop: Workshop) -> None:
    first = ordered(workshop, "one")
    second = ordered(workshop, "one")
    packed(workshop, first)

    assert told(workshop, second).reason == "another job has its texts on order with the Batch API"


def test_a_job_that_will_be_late_says_so_while_it_waits(workshop: Workshop) -> None:
    job = ordered(workshop, "one")
    packed(workshop, job)
    workshop.sql("UPDATE jobs SET routed = 'openai_batch', route_reason = 'it will be late: it may not cost $2'")

    assert told(workshop, job).reason.endswith("0 of 1 texts; it will be late: it may not cost $2")


@pytest.mark.parametrize(
    ("cause", "error", "reason"),
    [
        (
            "ProviderLimited",
            "too many tokens a minute",
            r"rate-limited until \d\d:\d\d:\d\d UTC: too many tokens a minute",
        ),
        ("KeyRejected", "OpenAI rejects the key", "OpenAI rejects the key"),
        ("QuotaExhausted", "the account is out of credit", "the account is out of credit"),
        ("ProviderUnavailable", "it does not answer", "it does not answer"),
    ],
)
def test_who_takes_nothing_now_is_named_until_when_and_why(
    workshop: Workshop, cause: str, error: str, reason: str
) -> None:
    # Given a job that buys online, one that the Batch API has, and one that needs neither
    online, at_batch = ready_online(workshop, "one"), ordered(workshop, "two")
    packed(workshop, at_batch)
    local = workshop.put({"local": "text"}).job_id

    rests(workshop, cause, error)

    found = told(workshop, online)
    assert re.fullmatch(reason, found.reason)
    assert found.until is not None
    assert re.search(f"0 of 1 texts; {reason}$", told(workshop, at_batch).reason)
    elsewhere = workshop.client.job(local).waiting
    assert elsewhere is None or elsewhere.state == "queued"


def test_a_job_that_has_something_else_to_do_is_not_said_to_wait_for_the_provider(workshop: Workshop) -> None:
    job = ready_online(workshop, "one")
    workshop.sql(
        """INSERT INTO batches (kind, collection_id, tenant, job_id, priority, provider, size)
           SELECT 'prepare', collection_id, tenant, job_id, priority, provider, 1 FROM batches WHERE job_id = %(job)s
            LIMIT 1""",
        job=job.job_id,
    )
    rests(workshop, "KeyRejected", "OpenAI rejects the key")

    found = workshop.client.job(job.job_id).waiting
    assert found is None or found.state == "queued"


def test_that_another_job_buys_the_texts_is_said(workshop: Workshop) -> None:
    job = ready_online(workshop, "one")
    claim = workshop.claim(job.batch_ids[0])
    with workshop.services.ledger.transaction() as connection:
        batches.release(connection, [claim], 60.0, str(BoughtElsewhere()))

    assert told(workshop, job).reason.startswith("Another piece of work buys these texts already")


def test_a_budget_that_paused_a_job_is_the_reason(workshop: Workshop) -> None:
    job = ordered(workshop, "one")
    workshop.client.pause(job.job_id, reason="budget: $2.00 of $2.00 are spent")

    found = workshop.client.job(job.job_id).waiting
    assert found is not None
    assert (found.state, found.reason) == ("paused", "paused: budget: $2.00 of $2.00 are spent")


def test_the_remedy_is_that_of_what_is_waited_for(workshop: Workshop) -> None:
    paused, rejected, at_batch = ordered(workshop, "one"), ready_online(workshop, "two"), ordered(workshop, "three")
    packed(workshop, at_batch)
    # Resuming alone would be paused again: the reason itself says what comes first.
    workshop.client.pause(paused.job_id, reason=f"{budgets.PAUSED}$2.00 spent, of $2.00")
    found = workshop.client.job(paused.job_id).waiting
    assert found is not None
    assert found.remedy == ""
    assert "`millrace batches`" in told(workshop, at_batch).remedy

    rests(workshop, "KeyRejected", "OpenAI rejects the key")

    assert "when they are started again" in told(workshop, rejected).remedy
    assert told(workshop, at_batch).remedy == told(workshop, rejected).remedy


def test_a_time_that_is_past_is_no_time_to_wait_for(workshop: Workshop) -> None:
    at_batch = ordered(workshop, "one")
    packed(workshop, at_batch)
    rests(workshop, "KeyRejected", "OpenAI rejects the key")
    workshop.sql("UPDATE circuits SET retry_at = clock_timestamp() - interval '1 s'")

    assert told(workshop, at_batch).until is None
    assert workshop.client.status()["openai"]["until"] is None

    rests(workshop, "ProviderLimited", "too many tokens a minute")
    workshop.sql("UPDATE circuits SET retry_at = clock_timestamp() - interval '1 s'")
    assert told(workshop, at_batch).reason.endswith(
        "; was rate-limited, may be asked again now: too many tokens a minute"
    )


def test_the_status_tells_of_the_provider_where_somebody_uses_it(workshop: Workshop) -> None:
    assert workshop.client.status()["openai"] is None

    job = ordered(workshop, "one")
    ordered(workshop, "two")
    packed(workshop, job)
    found = workshop.client.status()["openai"]
    assert (found["state"], found["batches"], found["inputs"], found["unpacked"]) == ("well", {"in_progress": 1}, 1, 1)

    rests(workshop, "QuotaExhausted", "no credit")
    found = workshop.client.status()["openai"]
    assert (found["state"], found["error"]) == ("quota exhausted", "no credit")
    assert found["until"]
