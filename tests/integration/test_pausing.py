"""Pausing and resuming a job, a collection, everything: what is begun, what waits, and what comes back."""

from __future__ import annotations

import json
import random
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from command_line import eventually
from timetable import put_schedule, sync_duty
from workshop import COLLECTION, Workshop, chunked, paragraphs, with_work

from pipeline import Document, Settings, ingest
from pipeline.duties import Bounds
from pipeline.errors import InvalidRequest, UnknownCollection, UnknownJob
from pipeline.ledger import batches, pauses
from pipeline.ledger.batches import Claim
from pipeline.submission import Request, Submission
from pipeline.tools import Progress, Tools
from tasks import base
from tasks.maintenance import contract, reconcile

WINDOW = 4
HAMMERING_SECONDS = 3.0
SCOPES: tuple[dict[str, Any], ...] = ({"collection": "one"}, {"collection": "two"}, {"everything": True})


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    ingest = settings.ingest.model_copy(update={"prepare_documents": 1, "embed_chunks": 1})
    made = Workshop(with_work(settings.model_copy(update={"ingest": ingest}), window=WINDOW))
    yield made
    made.close()


def _sent(queues: redis.Redis, queue: str = "normal") -> list[int]:
    """The ids of the batches whose messages wait, the oldest first."""
    found = []
    for raw in reversed(queues.lrange(f"millrace:{queue}", 0, -1)):
        ((batch_id,), _, _) = json.loads(b64decode(json.loads(raw)["body"]))
        found.append(batch_id)
    return found


def _documents(*names: str) -> dict[str, str]:
    return {name: f"about {name}" for name in names}


def _held(workshop: Workshop) -> int:
    return int(workshop.value("SELECT count(*) FROM batches WHERE held"))


def _reason(workshop: Workshop, job_id: object) -> str | None:
    waiting = workshop.client.job(str(job_id)).waiting
    return waiting.reason if waiting else None


def test_nothing_of_a_paused_job_is_begun_until_it_is_resumed(workshop: Workshop, queues: redis.Redis) -> None:
    # Given a job in the middle, some of whose messages are with the broker, and another
    job = workshop.put(_documents(*"abcdef"))
    workshop.perform(workshop.ready()[0].id)
    other = workshop.put(_documents("x"))
    sent = _sent(queues)

    # When it is paused
    (pause,) = workshop.client.pause(job.job_id, reason="a hot fix")

    # Then only the other one is worked on, and the messages that were on their way find nothing to claim
    assert (pause.scope, pause.job_id, pause.collection, pause.reason) == ("job", job.job_id, COLLECTION, "a hot fix")
    for batch_id in sent[:3]:
        assert isinstance(workshop.perform(batch_id), base.Skipped)
    workshop.work()
    assert workshop.client.job(other.job_id).state == "succeeded"
    assert workshop.embedded() == ["about x"]
    status = workshop.client.job(job.job_id)
    assert status.state == "paused"
    assert _reason(workshop, job.job_id) == "paused: a hot fix"
    assert workshop.client.status()["paused"] == [pause.to_json()]
    assert workshop.value("SELECT paused_at IS NOT NULL FROM jobs WHERE id = %(id)s", id=job.job_id)

    # And when it is resumed, it is dispatched at once, and ends
    queues.flushdb()
    assert workshop.client.resume(job.job_id) == []
    assert len(_sent(queues)) == WINDOW
    assert workshop.client.job(job.job_id).state == "running"
    workshop.work()
    status = workshop.client.job(job.job_id)
    assert (status.state, status.documents["indexed"], _held(workshop)) == ("succeeded", 6, 0)
    rows = workshop.sql("SELECT paused_at, pause_reason FROM jobs WHERE id = %(id)s", id=job.job_id)
    assert rows == [{"paused_at": None, "pause_reason": None}]


def test_a_job_that_had_not_begun_is_queued_again_when_it_is_resumed(workshop: Workshop) -> None:
    job = workshop.put(_documents("a"))

    workshop.client.pause(job.job_id)
    workshop.client.pause(job.job_id, reason="twice is once")
    assert workshop.client.job(job.job_id).state == "paused"

    workshop.client.resume(job.job_id)
    workshop.client.resume(job.job_id)
    assert workshop.client.job(job.job_id).state == "queued"


def test_what_is_finished_or_unknown_or_not_one_thing_is_told(workshop: Workshop) -> None:
    job = workshop.index(_documents("a"))

    with pytest.raises(InvalidRequest, match=f"job {job.job_id} is succeeded: there is nothing left to pause"):
        workshop.client.pause(job.job_id)
    with pytest.raises(InvalidRequest, match="nothing left to resume"):
        workshop.client.resume(job.job_id)
    with pytest.raises(UnknownJob, match="there is no job"):
        workshop.client.pause("01920000-0000-7000-8000-000000000000")
    with pytest.raises(UnknownCollection, match="nowhere"):
        workshop.client.pause(collection="nowhere")
    with pytest.raises(InvalidRequest, match="name one thing"):
        workshop.client.pause(job.job_id, everything=True)
    with pytest.raises(InvalidRequest, match="name one thing"):
        workshop.client.resume()


def test_a_claim_that_runs_while_its_job_is_paused_goes_on_and_may_end_the_job(workshop: Workshop) -> None:
    job = workshop.put(_documents("a"))
    workshop.prepare()
    (embed,) = workshop.ready()

    def story(tools: Tools, claims: Sequence[Claim], progress: Progress) -> None:
        workshop.client.pause(job.job_id)
        assert workshop.client.job(job.job_id).state == "paused"
        ingest.embed(tools, claims, progress)

    assert base.perform(workshop.services, embed.id, story) == base.Done(1)

    assert workshop.client.job(job.job_id).state == "succeeded"
    assert workshop.client.paused() == []
    assert workshop.texts() == {"a": ["about a"]}


def test_what_a_running_claim_adds_to_a_paused_job_is_held(workshop: Workshop, queues: redis.Redis) -> None:
    job = workshop.put(_documents("a"))
    (prepare,) = workshop.ready()

    def story(tools: Tools, claims: Sequence[Claim], progress: Progress) -> None:
        workshop.client.pause(job.job_id)
        ingest.prepare(tools, claims[0], progress)

    assert base.perform(workshop.services, prepare.id, story) == base.Done(1)

    assert (_held(workshop), workshop.ready(), workshop.dispatch()) == (1, [], 0)
    workshop.client.resume(job.job_id)
    workshop.work()
    assert workshop.client.job(job.job_id).state == "succeeded"


def test_a_paused_collection_waits_with_all_its_jobs_and_schedules_and_takes_in_more(
    workshop: Workshop, queues: redis.Redis, tmp_path: Path
) -> None:
    # Given a collection with a job of its own pause, another job, and a schedule; and another collection
    first = workshop.put(_documents("a"))
    second = workshop.put(_documents("b"))
    workshop.client.pause(first.job_id)
    (tmp_path / "c.txt").write_text("about c")
    schedule = put_schedule(workshop, tmp_path)
    workshop.put(_documents("x"), collection="other")

    # When it is paused
    workshop.client.pause(collection=COLLECTION, reason="reindexing")
    third = workshop.put(_documents("d"))

    # Then only the other collection moves, whatever comes into it meanwhile, and no run of its schedule begins
    workshop.work()
    assert workshop.embedded() == ["about x"]
    assert _held(workshop) == 3
    workshop.sql("UPDATE schedules SET sent_at = NULL")
    assert sync_duty(workshop)["sent"] == 0
    (paused,) = workshop.client.schedules()
    assert (paused.id, paused.state) == (schedule.id, "paused")
    assert _reason(workshop, second.job_id) == f"collection {COLLECTION} is paused: reindexing"
    assert [pause.what for pause in workshop.client.paused()] == [f"collection {COLLECTION}", f"job {first.job_id}"]

    # And when it is resumed, all goes on but what has a pause of its own
    workshop.client.resume(collection=COLLECTION)
    assert sync_duty(workshop)["sent"] == 1
    workshop.work()
    assert [workshop.client.job(job.job_id).state for job in (first, second, third)] == [
        "paused",
        "succeeded",
        "succeeded",
    ]
    assert _held(workshop) == 1
    workshop.client.resume(first.job_id)
    workshop.work()
    assert workshop.texts() == {name: [f"about {name}"] for name in "abd"}


def test_while_everything_is_paused_nothing_is_sent_or_claimed_and_duties_go_on(
    workshop: Workshop, queues: redis.Redis, tmp_path: Path
) -> None:
    workshop.index({"old": paragraphs("one")})
    workshop.index({"old": paragraphs("two")})
    queues.flushdb()
    workshop.put(_documents(*"abcdef"))
    sent = _sent(queues)

    workshop.client.pause(everything=True, reason="maintenance")

    (tmp_path / "c.txt").write_text("about c")
    put_schedule(workshop, tmp_path)
    assert [isinstance(workshop.perform(batch_id), base.Skipped) for batch_id in sent] == [True] * WINDOW
    queues.flushdb()
    workshop.sql("UPDATE batches SET sent_at = sent_at - interval '6 seconds'")
    assert reconcile(workshop.services, Bounds(100, 20.0))["sent"] == 0
    assert _sent(queues) == []
    assert _held(workshop) == 0, "no batch is touched for it"
    job = workshop.put(_documents("late"))
    assert job.waiting is not None
    assert job.waiting.reason == "everything is paused: maintenance"
    workshop.sql("UPDATE versions SET ended_at = ended_at - interval '1 day'")
    assert contract(workshop.services, Bounds(100, 20.0))["points"] > 0

    assert workshop.client.resume(everything=True) == []
    assert len(_sent(queues)) == WINDOW, "at once"
    workshop.work()
    assert len(workshop.texts()) == 8


def test_a_newer_version_does_not_wait_for_one_of_a_job_that_is_paused_meanwhile(settings: Settings) -> None:
    # Given a document whose version is open, and a newer one that waits for it
    workshop = Workshop(chunked(settings))
    old = workshop.put({"a": paragraphs("old")})
    workshop.prepare()
    new = workshop.put({"a": paragraphs("new")})
    workshop.prepare()
    assert workshop.versions("a") == ["open", "staged"]

    # When the job of the open one is paused
    workshop.client.pause(old.job_id)

    # Then the newer one takes its place, and the old one is found to be superseded when its job goes on
    workshop.work()
    assert workshop.client.job(new.job_id).state == "succeeded"
    assert workshop.client.job(old.job_id).state == "succeeded", "its last version has ended"
    assert workshop.versions("a") == ["superseded", "published"]
    workshop.work()
    assert workshop.audit().get("missing") is None
    assert len(workshop.texts()["a"]) == 1
    workshop.close()


def test_a_claim_that_waited_for_its_row_while_the_job_was_paused_does_not_get_it(workshop: Workshop) -> None:
    # Given somebody who holds the row of a batch
    job = workshop.put(_documents("a"))
    (batch,) = workshop.ready()
    got: list[batches.Claim | None] = []

    def claim() -> None:
        with workshop.services.ledger.transaction() as connection:
            got.append(batches.claim(connection, batch.id, "worker@here#1/1", 9.0))

    onlooker = Workshop(workshop.settings)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with workshop.services.ledger.transaction() as connection:
        pauses.pause_job(connection, job.job_id, None)
        pauses.hold(connection, job.job_id, 10)

        # When a claim waits for it, begun before the pause was committed
        claiming = threading.Thread(target=claim)
        claiming.start()
        eventually(lambda: onlooker.value(waiting))
    claiming.join(60)
    onlooker.close()

    # Then the pause is what it finds
    assert got == [None]


def test_a_batch_that_became_ready_unnoticed_is_held_by_the_dispatch_that_meets_it(
    workshop: Workshop, queues: redis.Redis
) -> None:
    paused = workshop.put(_documents(*"abcdef"))
    workshop.client.pause(paused.job_id)
    other = workshop.put(_documents("x"))
    queues.flushdb()
    workshop.sql("UPDATE batches SET held = false, sent_at = NULL")

    assert workshop.dispatch() == 1

    (sent,) = _sent(queues)
    assert workshop.value("SELECT job_id FROM batches WHERE id = %(id)s", id=sent) == other.job_id
    assert _held(workshop) == 6
    assert workshop.dispatch() == 0


def test_reconcile_lets_go_what_a_resume_left_behind(workshop: Workshop, queues: redis.Redis) -> None:
    job = workshop.put(_documents(*"abcdef"))
    workshop.client.pause(job.job_id)
    queues.flushdb()
    workshop.sql("UPDATE jobs SET state = 'queued'")  # and then whoever resumed it was killed

    counts = reconcile(workshop.services, Bounds(100, 20.0))

    assert (counts["released"], counts["sent"], _held(workshop)) == (6, WINDOW, 0)


def test_whoever_pauses_resumes_enqueues_and_works_at_once_loses_nothing(settings: Settings) -> None:
    # Given four that do each of it, as fast as they can, on two collections
    ingest = settings.ingest.model_copy(update={"prepare_documents": 2, "embed_chunks": 2})
    shop = Workshop(settings.model_copy(update={"ingest": ingest}))
    dice = random.Random(20261121)
    shop.put(_documents("first"), collection="one")
    shop.put(_documents("first"), collection="two")
    over = threading.Event()
    errors: list[BaseException] = []
    jobs: list[object] = []

    def every(step: Callable[[Workshop], object]) -> threading.Thread:
        def run() -> None:
            own = Workshop(shop.settings)
            try:
                while not over.is_set():
                    step(own)
            except BaseException as error:  # noqa: BLE001 - told by the test
                errors.append(error)
            finally:
                own.close()

        return threading.Thread(target=run)

    def control(own: Workshop) -> None:
        what: dict[str, Any] = dice.choice([*SCOPES, {"job": None}])
        if "job" in what:
            unfinished = own.sql("SELECT id FROM jobs WHERE finished_at IS NULL ORDER BY random() LIMIT 1")
            what = {"job_id": unfinished[0]["id"]} if unfinished else {"collection": "one"}
        try:
            (own.client.pause if dice.random() < 0.5 else own.client.resume)(**what)
        except InvalidRequest as error:
            assert "there is nothing left to" in str(error)  # noqa: PT017

    def enqueue(own: Workshop) -> None:
        number = len(jobs)
        texts = {f"{number}/{place}": f"about {number} and {place}" for place in range(6)}
        jobs.append(own.put(texts, collection=dice.choice(["one", "two"])).job_id)
        time.sleep(0.02)

    def work(own: Workshop) -> None:
        found = own.sql("SELECT id FROM batches WHERE state = 'ready' ORDER BY random() LIMIT 1")
        if found:
            own.perform(found[0]["id"])

    threads = [every(step) for step in (control, control, enqueue, work, work)]
    for thread in threads:
        thread.start()
    time.sleep(HAMMERING_SECONDS)
    eventually(lambda: len(jobs) > 5 or errors)
    over.set()
    for thread in threads:
        thread.join(60)
    assert errors == []

    # When all is resumed
    for scope in SCOPES:
        shop.client.resume(**scope)
    for row in shop.sql("SELECT id FROM jobs WHERE state = 'paused'"):
        shop.client.resume(row["id"])
    reconcile(shop.services, Bounds(500, 20.0))

    # Then nothing is held, and everything arrives
    assert _held(shop) == 0
    shop.work()
    assert shop.sql("SELECT state, count(*) AS n FROM jobs GROUP BY state") == [
        {"state": "succeeded", "n": len(jobs) + 2}
    ]
    assert shop.value("SELECT count(*) FROM documents WHERE published_version IS NOT NULL") == 6 * len(jobs) + 2
    shop.close()


def test_documents_are_staged_into_a_paused_job_while_its_enqueuer_goes_on(workshop: Workshop) -> None:
    submission = Submission(workshop.services, Request("ingest", COLLECTION, "default", "normal"))
    workshop.client.pause(submission.job.id)

    submission.ingest([Document("a", "about a")], {})
    status = submission.seal()

    assert (status.state, _held(workshop), workshop.dispatch()) == ("paused", 1, 0)
    workshop.client.resume(status.job_id)
    workshop.work()
    assert workshop.client.job(status.job_id).state == "succeeded"
