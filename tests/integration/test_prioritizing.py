"""Another priority for a job at work: its batches and messages follow, and so does what it adds afterwards."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator, Sequence

import pytest
import redis
from workshop import COLLECTION, Workshop, with_work

from pipeline import Document, Settings, ingest
from pipeline.duties import Bounds
from pipeline.errors import InvalidRequest, UnknownJob
from pipeline.ledger.batches import Claim
from pipeline.submission import Request, Submission
from pipeline.tools import Progress, Tools
from tasks import base
from tasks.maintenance import reconcile

WINDOW = 4


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    ingest_settings = settings.ingest.model_copy(update={"prepare_documents": 1, "embed_chunks": 1})
    made = Workshop(with_work(settings.model_copy(update={"ingest": ingest_settings}), window=WINDOW))
    yield made
    made.close()


def _sent(workshop: Workshop, queues: redis.Redis, queue: str) -> list[object]:
    """The jobs of the messages in a queue, the oldest first."""
    ids = [
        json.loads(b64decode(json.loads(raw)["body"]))[0][0]
        for raw in reversed(queues.lrange(f"millrace:{queue}", 0, -1))
    ]
    rows = workshop.sql("SELECT id, job_id FROM batches WHERE id = ANY(%(ids)s)", ids=ids)
    found = {row["id"]: row["job_id"] for row in rows}
    return [found[batch_id] for batch_id in ids]


def _documents(*names: str) -> dict[str, str]:
    return {name: f"about {name}" for name in names}


def _priorities(workshop: Workshop, job_id: object) -> list[int]:
    rows = workshop.sql("SELECT DISTINCT priority FROM batches WHERE job_id = %(id)s ORDER BY 1", id=job_id)
    return [row["priority"] for row in rows]


@pytest.mark.parametrize(("before", "after"), [("low", "high"), ("high", "low")])
def test_the_work_of_a_job_goes_to_the_queue_of_its_new_priority_at_once(
    workshop: Workshop, queues: redis.Redis, before: str, after: str
) -> None:
    job = workshop.put(_documents(*"abcdef"), priority=before)
    assert _sent(workshop, queues, before) == [job.job_id] * WINDOW

    status = workshop.client.prioritize(job.job_id, after)

    assert status.priority == after
    assert _sent(workshop, queues, after) == [job.job_id] * WINDOW
    workshop.work()
    assert _priorities(workshop, job.job_id) == [{"high": 0, "low": 2}[after]], "what it adds later too"
    assert workshop.client.job(job.job_id).state == "succeeded"


def test_a_prioritized_job_comes_before_a_longer_and_older_backlog(workshop: Workshop) -> None:
    workshop.put(_documents(*(f"backlog{number}" for number in range(8))))
    urgent = workshop.put(_documents("urgent"), priority="low")

    workshop.client.prioritize(urgent.job_id, "high")

    rows = workshop.sql(
        "SELECT DISTINCT job_id FROM batches WHERE state = 'ready' AND priority = 0 AND sent_at IS NOT NULL"
    )
    assert rows == [{"job_id": urgent.job_id}]


def test_what_a_claim_of_before_adds_has_the_new_priority(workshop: Workshop) -> None:
    job = workshop.put(_documents("a"), priority="low")
    (prepare,) = workshop.ready()

    def story(tools: Tools, claims: Sequence[Claim], progress: Progress) -> None:
        workshop.client.prioritize(job.job_id, "high")
        assert claims[0].priority == 2
        ingest.prepare(tools, claims[0], progress)

    assert base.perform(workshop.services, prepare.id, story) == base.Done(1)

    assert workshop.sql("SELECT priority FROM batches WHERE kind = 'embed'") == [{"priority": 0}]


def test_what_an_enqueuer_adds_afterwards_has_the_new_priority(workshop: Workshop) -> None:
    submission = Submission(workshop.services, Request("ingest", COLLECTION, "default", "low"))
    workshop.client.prioritize(submission.job.id, "high")

    submission.ingest([Document("a", "about a")], {})

    assert _priorities(workshop, submission.job.id) == [0]


def test_a_version_that_waits_for_another_is_prepared_when_its_job_outranks_that_one(workshop: Workshop) -> None:
    first = workshop.put(_documents("a"))
    workshop.prepare()
    second = workshop.put({"a": "newer"})
    workshop.prepare()
    assert workshop.versions("a") == ["open", "staged"]

    workshop.client.prioritize(second.job_id, "high")
    workshop.prepare()

    assert workshop.versions("a") == ["superseded", "open"]
    workshop.work()
    assert workshop.texts() == {"a": ["newer"]}
    assert workshop.client.job(first.job_id).state == "succeeded"


def test_a_batch_of_before_that_was_committed_afterwards_follows_at_reconcile(workshop: Workshop) -> None:
    job = workshop.put(_documents(*"abcdef"), priority="low")
    workshop.client.prioritize(job.job_id, "high")
    workshop.sql("UPDATE batches SET priority = 2")

    assert reconcile(workshop.services, Bounds(100, 20.0))["prioritized"] == 6

    assert _priorities(workshop, job.job_id) == [0]
    # And after a minute nobody looks any more
    workshop.sql("UPDATE jobs SET prioritized_at = prioritized_at - interval '61 seconds'")
    reconcile(workshop.services, Bounds(100, 20.0))
    assert workshop.value("SELECT prioritized_at FROM jobs") is None


def test_paused_work_follows_too_and_stays_paused(workshop: Workshop) -> None:
    job = workshop.put(_documents(*"abc"))
    workshop.client.pause(job.job_id)

    assert workshop.client.prioritize(job.job_id, "high").state == "paused"

    assert (_priorities(workshop, job.job_id), workshop.ready(), workshop.dispatch()) == ([0], [], 0)
    workshop.client.resume(job.job_id)
    workshop.work()
    assert workshop.client.job(job.job_id).state == "succeeded"


def test_what_has_no_priority_any_more_is_told(workshop: Workshop) -> None:
    job = workshop.index(_documents("a"))

    with pytest.raises(InvalidRequest, match=f"job {job.job_id} is succeeded: its priority matters no more"):
        workshop.client.prioritize(job.job_id, "high")
    with pytest.raises(InvalidRequest, match="priority 'urgent' is none of high, normal, low"):
        workshop.client.prioritize(job.job_id, "urgent")
    with pytest.raises(UnknownJob):
        workshop.client.prioritize("01920000-0000-7000-8000-000000000000", "high")
