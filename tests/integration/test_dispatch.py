"""The backlog in Postgres and the window of it in Redis: what is sent, in which order, and what comes back."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import redis
from workshop import Workshop, with_work

from pipeline import Settings
from pipeline.assembly import Services
from pipeline.duties import Bounds
from pipeline.errors import BrokerUnavailable, VectorsUnavailable
from pipeline.ledger import batches, fleet
from tasks import base
from tasks.duties import DUTIES, Duty, run_duty
from tasks.maintenance import reconcile
from workers.embedded.ports import free_port

WINDOW = 4


def _small(settings: Settings, **work: Any) -> Settings:
    """A document a batch, and a small window."""
    ingest = settings.ingest.model_copy(update={"prepare_documents": 1, "embed_chunks": 1})
    return with_work(settings.model_copy(update={"ingest": ingest}), **{"window": WINDOW, **work})


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(_small(settings))
    yield made
    made.close()


def _sent(queues: redis.Redis, queue: str = "normal") -> list[tuple[str, int]]:
    """(task, id) of the messages in a queue, the oldest first."""
    found = []
    for raw in reversed(queues.lrange(f"millrace:{queue}", 0, -1)):
        message = json.loads(raw)
        ((batch_id,), _, _) = json.loads(b64decode(message["body"]))
        found.append((message["headers"]["task"], batch_id))
    return found


def _documents(*names: str) -> dict[str, str]:
    return {name: f"about {name}" for name in names}


def test_the_backlog_stays_in_postgres_and_a_window_of_it_is_sent(workshop: Workshop, queues: redis.Redis) -> None:
    workshop.put(_documents(*"abcdefg"))
    ids = [batch.id for batch in workshop.ready()]

    assert _sent(queues) == [("prepare.batch", batch_id) for batch_id in ids[:WINDOW]]
    assert workshop.dispatch() == 0, "the window is full"
    queues.rpop("millrace:normal", 2)
    assert workshop.dispatch() == 2
    assert _sent(queues) == [("prepare.batch", batch_id) for batch_id in ids[2 : 2 + WINDOW]]
    status = workshop.client.status()["queues"]["normal"]
    assert (status["messages"], status["ready_batches"]) == (WINDOW, 7)


def test_each_priority_has_a_queue_and_a_window_of_its_own(workshop: Workshop, queues: redis.Redis) -> None:
    for priority in ("low", "normal", "high"):
        workshop.put(_documents(*(f"{priority}{number}" for number in range(6))), priority=priority)

    assert [len(_sent(queues, queue)) for queue in ("high", "normal", "low")] == [WINDOW] * 3
    workshop.work()
    assert workshop.value("SELECT count(DISTINCT priority) FROM batches WHERE state = 'indexed'") == 3
    for queue, number in (("high", 0), ("normal", 1), ("low", 2)):
        ids = {batch_id for _, batch_id in _sent(queues, queue)}
        rows = workshop.sql("SELECT DISTINCT priority FROM batches WHERE id = ANY(%(ids)s)", ids=list(ids))
        assert rows == [{"priority": number}], "every task of a job goes to its queue"


def test_tenants_take_turns_however_long_the_backlog_of_one_is(workshop: Workshop, queues: redis.Redis) -> None:
    workshop.put(_documents(*(f"busy{number}" for number in range(20))), tenant="busy")
    queues.flushdb()
    workshop.sql("UPDATE batches SET sent_at = NULL")
    for tenant in ("ann", "zoe"):
        workshop.put(_documents("one", "two"), tenant=tenant)
        queues.flushdb()
        workshop.sql("UPDATE batches SET sent_at = NULL")

    order = []
    while workshop.dispatch():
        ids = [batch_id for _, batch_id in _sent(queues)]
        rows = workshop.sql("SELECT id, tenant FROM batches WHERE id = ANY(%(ids)s)", ids=ids)
        tenants = {row["id"]: row["tenant"] for row in rows}
        order += [tenants[batch_id] for batch_id in ids]
        queues.flushdb()

    assert order[:6] == ["ann", "busy", "zoe", "ann", "busy", "zoe"]
    assert order.count("busy") == 20
    assert len(order) == 24


def test_three_that_dispatch_at_once_send_nothing_twice(workshop: Workshop, queues: redis.Redis) -> None:
    workshop.put(_documents(*(f"d{number}" for number in range(40))))
    queues.flushdb()
    workshop.sql("UPDATE batches SET sent_at = NULL")
    others = [Workshop(workshop.settings) for _ in range(3)]

    threads = [threading.Thread(target=other.dispatch) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for other in others:
        other.close()

    sent = [batch_id for _, batch_id in _sent(queues)]
    assert len(sent) == len(set(sent)) <= 3 * WINDOW


def test_after_a_flush_what_was_sent_is_sent_again_but_nothing_that_is_still_on_its_way(
    workshop: Workshop, queues: redis.Redis
) -> None:
    workshop.put(_documents(*"abc"))
    sent = _sent(queues)
    queues.flushdb()
    workshop.sql("UPDATE batches SET sent_at = clock_timestamp()")

    assert reconcile(workshop.services, Bounds(100, 20.0))["lost_messages"] == 0, "it may be on its way to a worker"
    workshop.sql("UPDATE batches SET sent_at = sent_at - interval '6 seconds'")
    counts = reconcile(workshop.services, Bounds(100, 20.0))

    assert (counts["lost_messages"], counts["sent"]) == (3, 3)
    assert _sent(queues) == sent
    workshop.sql("UPDATE batches SET sent_at = sent_at - interval '6 seconds'")
    assert reconcile(workshop.services, Bounds(100, 20.0))["lost_messages"] == 0, "they are in the queue"


def test_a_message_that_nobody_took_for_a_minute_is_sent_again(workshop: Workshop, queues: redis.Redis) -> None:
    workshop.put(_documents("a"))
    queues.delete("millrace:normal")
    workshop.sql("UPDATE batches SET sent_at = sent_at - interval '30 seconds'")
    assert workshop.dispatch() == 0

    workshop.sql("UPDATE batches SET sent_at = sent_at - interval '31 seconds'")

    assert workshop.dispatch() == 1
    assert workshop.dispatch() == 0


def test_a_second_message_for_a_batch_finds_nothing_to_do(workshop: Workshop) -> None:
    workshop.put(_documents("a"))
    (prepare,) = workshop.ready()

    assert workshop.perform(prepare.id) == base.Done(1)
    assert isinstance(workshop.perform(prepare.id), base.Skipped)
    workshop.work()
    assert workshop.embedded() == ["about a"]


def test_small_batches_share_a_claim_up_to_the_budget_but_not_across_priorities_or_collections(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given embed batches of ten tokens: six of two jobs, one of another priority, one of another collection
    for name in "ab":
        workshop.put({f"{name}{number}": " ".join(f"{name}{number}{x}" for x in range(8)) for number in range(3)})
    workshop.put({"c": "one two three four five six seven eight"}, priority="low")
    workshop.put({"d": "one two three four five six seven eight"}, collection="other")
    workshop.prepare()
    ready = workshop.ready("embed")
    assert len(ready) == 8

    monkeypatch.setattr("tasks.embed._UNMEASURED_TOKENS", 45)
    outcomes = workshop.work()

    assert outcomes == [base.Done(4), base.Done(2), base.Done(1), base.Done(1)]
    assert len(workshop.embedder.calls) == 3, "the text of the last is known from the one before"
    assert [len(texts) for _, texts in workshop.embedder.calls] == [4, 2, 1]


def test_work_that_failed_once_is_done_alone(workshop: Workshop) -> None:
    workshop.put(_documents("a", "b", "c", "d"))
    workshop.prepare()
    failed = workshop.ready("embed")[1]
    workshop.sql("UPDATE batches SET attempts = 1 WHERE id = %(id)s", id=failed.id)
    lost = workshop.ready("embed")[2]
    workshop.sql("UPDATE batches SET losses = 1 WHERE id = %(id)s", id=lost.id)

    assert workshop.perform(failed.id) == base.Done(1)
    assert workshop.work() == [base.Done(2), base.Done(1)]


def test_a_job_says_why_it_waits(workshop: Workshop) -> None:
    first = workshop.put(_documents("a"))
    job = workshop.put(_documents("b"))

    def reason() -> str | None:
        found = workshop.client.job(job.job_id).waiting
        return found.reason if found else None

    assert reason() == "no live worker consumes the queue normal; start one with `millrace worker`"
    with workshop.services.ledger.transaction() as connection:
        fleet.report(connection, "general@here#1", "here", 1, "high,normal,low", 2)
        connection.execute("UPDATE workers SET seen_at = clock_timestamp() + interval '1 hour'")  # alive all the while
    assert reason() == "queued behind 1 batch"
    workshop.perform(workshop.ready()[0].id)
    workshop.client.cancel(first.job_id)
    assert reason() == "queued"
    claim = workshop.claim(workshop.ready()[0].id)
    assert reason() is None
    with workshop.services.ledger.transaction() as connection:
        batches.release(connection, [claim], 60.0, "Qdrant is away")
    waiting = workshop.client.job(job.job_id).waiting
    assert waiting is not None
    assert waiting.reason == "Qdrant is away"
    assert waiting.until is not None


def test_while_redis_is_away_a_job_is_durable_and_its_caller_is_told(settings: Settings) -> None:
    away = settings.model_copy(
        update={"redis": settings.redis.model_copy(update={"url": _secret(f"redis://127.0.0.1:{free_port()}/0")})}
    )
    workshop = Workshop(away)

    job = workshop.put(_documents("a"))

    assert job.waiting is not None
    assert job.waiting.reason.startswith("dispatch is delayed: Redis at redis://127.0.0.1")
    assert job.state == "queued"
    with pytest.raises(BrokerUnavailable):
        workshop.dispatch()
    batch = workshop.ready()[0]
    assert workshop.perform(batch.id) == base.Done(1), "work goes on"
    assert workshop.value("SELECT count(*) FROM batches WHERE sent_at IS NOT NULL") == 0
    back = Workshop(settings)
    assert reconcile(back.services, Bounds(100, 20.0))["sent"] == 1
    back.work()
    assert back.texts() == {"a": ["about a"]}
    workshop.close()
    back.close()


def _secret(url: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(url)


def test_what_could_not_be_sent_is_not_taken_for_sent(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> int:
        raise BrokerUnavailable("Redis is away")

    with monkeypatch.context() as patch:
        patch.setattr(workshop.services.broker, "send", away)
        job = workshop.put(_documents("a", "b"))

    assert job.waiting is not None
    assert job.waiting.reason == "dispatch is delayed: Redis is away"
    assert workshop.value("SELECT count(*) FROM batches WHERE sent_at IS NOT NULL") == 0
    assert workshop.dispatch() == 2


def test_a_job_that_nobody_ended_is_ended_by_reconcile(workshop: Workshop) -> None:
    job = workshop.index(_documents("a"))
    workshop.sql("UPDATE jobs SET state = 'running', finished_at = NULL")

    assert reconcile(workshop.services, Bounds(100, 20.0))["finished_jobs"] == 1

    assert workshop.client.job(job.job_id).state == "succeeded"
    assert not any(reconcile(workshop.services, Bounds(100, 20.0)).values()), "there is nothing else to do"


def _result(workshop: Workshop, name: str) -> dict[str, Any]:
    (row,) = workshop.sql("SELECT result, failed, lease_until FROM duties WHERE name = %(name)s", name=name)
    return row


def test_of_two_beats_one_runs_a_duty_and_not_before_it_is_due(workshop: Workshop) -> None:
    runs: list[int] = []
    at_work, end = threading.Event(), threading.Event()

    def slow(_: Services, bounds: Bounds) -> Mapping[str, int]:
        runs.append(bounds.rows)
        at_work.set()
        assert end.wait(60)
        return {"found": 3}

    duty = Duty("slow", 0.0, 7, slow, 20.0)
    other = Workshop(workshop.settings)
    first = threading.Thread(target=run_duty, args=(workshop.services, duty))
    first.start()
    assert at_work.wait(60)

    assert run_duty(other.services, duty) is None, "it is held"
    end.set()
    first.join(60)
    assert _result(workshop, "slow") == {"result": {"found": 3}, "failed": False, "lease_until": None}
    assert run_duty(other.services, duty) == {"found": 3}, "it is due again"
    hourly = Duty("hourly", 3600.0, 7, lambda *_: {}, 20.0)
    assert run_duty(workshop.services, hourly) == {}
    assert run_duty(other.services, hourly) is None, "it is not due"
    assert runs == [7, 7]
    other.close()


def test_a_duty_that_failed_says_so_and_runs_again(workshop: Workshop) -> None:
    def fails(*_: object) -> Mapping[str, int]:
        raise VectorsUnavailable("Qdrant is away")

    run_duty(workshop.services, Duty("fails", 0.0, 1, fails, 20.0))

    assert _result(workshop, "fails") == {
        "result": {"error": "Qdrant is away"}, "failed": True, "lease_until": None,
    }  # fmt: skip
    assert run_duty(workshop.services, Duty("fails", 0.0, 1, lambda *_: {"found": 1}, 20.0)) == {"found": 1}


def test_a_duty_whose_process_died_is_taken_over_when_its_lease_is_out(workshop: Workshop) -> None:
    def dies(*_: object) -> Mapping[str, int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_duty(workshop.services, Duty("dies", 0.0, 1, dies, 20.0))
    again = Duty("dies", 0.0, 1, lambda *_: {"found": 1}, 20.0)
    assert run_duty(workshop.services, again) is None
    workshop.sql("UPDATE duties SET lease_until = clock_timestamp()")

    assert run_duty(workshop.services, again) == {"found": 1}


def test_contract_is_a_duty_that_does_more_than_one_page_in_a_run(settings: Settings) -> None:
    workshop = Workshop(with_work(settings, contract_seconds=0.001, recontract_seconds=0.001))
    workshop.index(_documents(*"abcdefg"))
    workshop.index({name: f"more about {name}" for name in "abcdefg"})
    (duty,) = [duty for duty in DUTIES if duty.name == "contract"]

    counts = run_duty(workshop.services, Duty(duty.name, duty.interval_seconds, 2, duty.run, 20.0))

    assert counts == {"points": 14}
    assert workshop.audit() == {"expected": 7, "present": 7}
    assert workshop.value("SELECT count(*) FROM chunks") == 7
    workshop.close()


def test_one_lost_message_is_found_among_those_that_workers_have_taken(workshop: Workshop, queues: redis.Redis) -> None:
    workshop.put(_documents(*"abc"))
    waiting, taken, lost = (batch.id for batch in workshop.ready())
    by_id = {
        json.loads(b64decode(json.loads(raw)["body"]))[0][0]: raw for raw in queues.lrange("millrace:normal", 0, -1)
    }
    queues.lrem("millrace:normal", 1, by_id[taken])
    queues.lrem("millrace:normal", 1, by_id[lost])
    # As kombu lays down what a worker has taken; a duty, which carries no id, is among it.
    queues.hset("millrace:unacked", "one", json.dumps([json.loads(by_id[taken]), "", "normal"]))
    queues.hset("millrace:unacked", "two", json.dumps([{"body": "W1tdLCB7fSwge31d"}, "", "control"]))
    fresh = time.time() + 60  # taken a moment ago, however slow this test is
    queues.zadd("millrace:unacked_index", {"one": fresh, "two": fresh})
    workshop.sql("UPDATE batches SET sent_at = sent_at - interval '6 seconds'")

    assert workshop.services.broker.carried() == {waiting, taken}
    assert reconcile(workshop.services, Bounds(100, 20.0))["lost_messages"] == 1
    assert sorted(batch_id for _, batch_id in _sent(queues)) == [waiting, lost]


def test_a_message_that_died_with_the_worker_that_took_it_is_sent_again(
    workshop: Workshop, queues: redis.Redis
) -> None:
    workshop.put(_documents("a"))
    (prepare,) = workshop.ready()
    raw = queues.lpop("millrace:normal")
    queues.hset("millrace:unacked", "dead", json.dumps([json.loads(raw), "", "normal"]))
    queues.zadd("millrace:unacked_index", {"dead": time.time() - 6})
    workshop.sql("UPDATE batches SET sent_at = sent_at - interval '6 seconds'")

    assert reconcile(workshop.services, Bounds(100, 20.0))["lost_messages"] == 1
    assert [batch_id for _, batch_id in _sent(queues)] == [prepare.id]
