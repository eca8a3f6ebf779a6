"""Who is served next: tenants take turns whatever the backlog of one, windows follow the fleet, old work rises."""

from __future__ import annotations

import json
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator

import pytest
import redis
from workshop import Workshop, with_work

from pipeline import Settings
from pipeline.duties import Bounds
from pipeline.ledger import backlog, batches
from pipeline.ledger.batches import Claim
from tasks.maintenance import reconcile

LEAST_WINDOW = 16


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """Batches of one document, and a window that follows the fleet."""
    ingest = settings.ingest.model_copy(update={"prepare_documents": 1, "embed_chunks": 1})
    made = Workshop(settings.model_copy(update={"ingest": ingest}))
    yield made
    made.close()


def _sent(queues: redis.Redis, queue: str = "normal") -> list[int]:
    """The ids of the batches whose messages wait, the oldest first."""
    return [
        json.loads(b64decode(json.loads(raw)["body"]))[0][0]
        for raw in reversed(queues.lrange(f"millrace:{queue}", 0, -1))
    ]


def _backlog(workshop: Workshop, **tenants: int) -> None:
    """So many ready batches of each tenant, in the order given."""
    job = workshop.put({"template": "about it"})
    workshop.sql("DELETE FROM staged")
    workshop.sql("UPDATE batches SET state = 'cancelled', ended_at = now()")
    for tenant, count in tenants.items():
        workshop.sql(
            """INSERT INTO batches (kind, collection_id, tenant, job_id, priority, provider, size, tokens)
               SELECT 'embed', collection_id, %(tenant)s, id, priority, 'local', 1, 10
                 FROM jobs, generate_series(1, %(count)s) WHERE id = %(job)s""",
            tenant=tenant,
            count=count,
            job=job.job_id,
        )


def _pick(workshop: Workshop, room: int = 1) -> list[str]:
    """The tenants of what is sent next."""
    with workshop.services.ledger.transaction() as connection:
        found = backlog.pick(connection, 1, room, workshop.settings.work).sendings
    return [str(workshop.value("SELECT tenant FROM batches WHERE id = %(id)s", id=item.id)) for item in found]


def _finish_one(workshop: Workshop) -> str:
    """A worker takes the oldest message and does it. Returns whose it was."""
    return str(
        workshop.value(
            """UPDATE batches SET state = 'indexed', ended_at = now() WHERE id = (
                 SELECT id FROM batches WHERE state = 'ready' AND sent_at IS NOT NULL ORDER BY sent_at, id LIMIT 1)
               RETURNING tenant"""
        )
    )


def test_topping_up_by_one_after_each_task_serves_tenants_in_turns(workshop: Workshop) -> None:
    _backlog(workshop, ann=30, ben=30, cyd=30)

    served = [tenant for _ in range(30) for tenant in _pick(workshop)]

    assert Counter(served) == {"ann": 10, "ben": 10, "cyd": 10}
    assert all(len(set(served[start : start + 3])) == 3 for start in range(0, 30, 3))


def test_ten_documents_of_one_tenant_wait_a_turn_each_behind_a_long_backlog_of_another(workshop: Workshop) -> None:
    # Given a tenant with a long backlog, whose messages fill the window while a worker does one after the other
    _backlog(workshop, ann=1000)
    _pick(workshop, LEAST_WINDOW)

    # When another comes with ten documents
    job = workshop.value("SELECT id FROM jobs")
    workshop.sql(
        """INSERT INTO batches (kind, collection_id, tenant, job_id, priority, provider, size, tokens)
           SELECT 'embed', collection_id, 'zoe', id, priority, 'local', 1, 10 FROM jobs, generate_series(1, 10)
            WHERE id = %(job)s""",
        job=job,
    )
    order = []
    for _ in range(40):
        order.append(_finish_one(workshop))
        _pick(workshop)

    # Then they come as soon as the window before them is through, and in between at most one of the other's
    first = order.index("zoe")
    assert first <= LEAST_WINDOW
    assert order.count("zoe") == 10
    last = len(order) - 1 - order[::-1].index("zoe")
    assert last - first < 20


def test_what_is_at_work_counts_as_a_turn(workshop: Workshop) -> None:
    _backlog(workshop, ann=10, ben=10)
    workshop.sql(
        """UPDATE batches SET state = 'running', epoch = 1, lease_until = now() + interval '1 minute'
            WHERE id IN (SELECT id FROM batches WHERE tenant = 'ann' ORDER BY id LIMIT 3)"""
    )

    assert _pick(workshop, 5) == ["ben", "ben", "ben", "ann", "ben"]
    assert Counter(_pick(workshop, 4)) == {"ann": 2, "ben": 2}


def test_of_more_tenants_than_one_dispatch_looks_at_every_one_is_served_in_one_round(workshop: Workshop) -> None:
    names = [f"t{number:03}" for number in range(100)]
    _backlog(workshop, **dict.fromkeys(names, 3))

    served = [tenant for _ in range(25) for tenant in _pick(workshop, 4)]
    # The window is emptied: nothing is under way that would tell who was served
    workshop.sql("UPDATE batches SET state = 'indexed', ended_at = now() WHERE sent_at IS NOT NULL")
    again = [tenant for _ in range(50) for tenant in _pick(workshop, 2)]

    assert sorted(served) == names, "each once"
    assert sorted(again) == names


def test_a_tenant_whose_work_cannot_be_sent_now_stops_nobody(workshop: Workshop) -> None:
    _backlog(workshop, **{f"t{number:03}": 1 for number in range(60)}, zoe=1)
    workshop.sql("UPDATE batches SET next_attempt_at = now() + interval '1 hour' WHERE tenant <> 'zoe'")

    assert _pick(workshop) == ["zoe"]


def test_a_claim_takes_along_work_of_its_own_tenant_before_others(workshop: Workshop) -> None:
    _backlog(workshop, zoe=3, ann=5, ben=5)
    (first,) = workshop.sql("SELECT id FROM batches WHERE tenant = 'ann' AND state = 'ready' ORDER BY id LIMIT 1")
    claim = workshop.claim(first["id"])

    with workshop.services.ledger.transaction() as connection:
        taken = batches.coalesce(connection, claim, "worker@here#1/1", 9.0, 75)

    assert Counter(other.tenant for other in taken) == {"ann": 4, "ben": 2}
    assert isinstance(taken[0], Claim)


@pytest.mark.parametrize(("slots", "given", "window"), [(0, None, 16), (2, None, 16), (5, None, 20), (5, 3, 3)])
def test_the_window_of_a_queue_follows_the_slots_that_consume_it(
    settings: Settings, queues: redis.Redis, slots: int, given: int | None, window: int
) -> None:
    workshop = Workshop(with_work(settings, window=given))
    if slots:
        workshop.sql(
            """INSERT INTO workers (id, host, pid, queues, slots)
               VALUES ('general', 'here', 1, 'high,low,normal', %(slots)s),
                      ('express', 'here', 2, 'control,high', 40)""",
            slots=slots,
        )
    _backlog(workshop, ann=100)
    queues.flushdb()

    workshop.dispatch()

    assert len(_sent(queues)) == window
    workshop.close()


def test_old_work_gets_a_share_of_the_next_higher_queue_and_keeps_its_priority(
    settings: Settings, queues: redis.Redis
) -> None:
    # Given a queue that nobody consumes, full, with much behind it: some of it old; and a busy higher queue
    ingest = settings.ingest.model_copy(update={"prepare_documents": 1, "embed_chunks": 1})
    workshop = Workshop(settings.model_copy(update={"ingest": ingest}))
    old = workshop.put({f"old{number}": f"about {number}" for number in range(20)}, priority="low")
    young = workshop.put(
        {f"young{number}": f"about {number} too" for number in range(20)}, priority="low", tenant="zoe"
    )
    workshop.put({f"busy{number}": f"about {number}" for number in range(20)})
    workshop.sql(
        "UPDATE batches SET created_at = created_at - interval '601 seconds' WHERE job_id = %(id)s", id=old.job_id
    )

    # When reconcile comes round, however often
    for _ in range(3):
        reconcile(workshop.services, Bounds(100, 20.0))

    # Then a fourth of the higher window is work of before, the oldest first, and of the old job alone
    sent = _sent(queues, "normal")
    rows = workshop.sql("SELECT id, job_id, priority FROM batches WHERE id = ANY(%(ids)s)", ids=sent)
    risen = [row for row in rows if row["priority"] == 2]
    assert (len(sent), len(risen)) == (LEAST_WINDOW + 4, 4)
    assert {row["job_id"] for row in risen} == {old.job_id}
    assert young.job_id not in {row["job_id"] for row in rows}
    assert min(row["id"] for row in risen) == workshop.value(
        "SELECT min(id) FROM batches WHERE job_id = %(id)s", id=old.job_id
    )

    # And its message is as good as any, and makes room for the next
    workshop.perform(risen[0]["id"])
    message = queues.lrange("millrace:normal", 0, -1)[sent[::-1].index(risen[0]["id"])]
    queues.lrem("millrace:normal", 1, message)  # type: ignore[arg-type]
    reconcile(workshop.services, Bounds(100, 20.0))
    rows = workshop.sql("SELECT id FROM batches WHERE id = ANY(%(ids)s) AND priority = 2", ids=_sent(queues, "normal"))
    assert len(rows) == 4
    workshop.close()


def test_no_old_work_rises_while_it_is_paused(workshop: Workshop, queues: redis.Redis) -> None:
    job = workshop.put({"a": "about a"}, priority="low")
    workshop.sql("UPDATE batches SET created_at = created_at - interval '1 hour'")
    workshop.client.pause(job.job_id)
    reconcile(workshop.services, Bounds(100, 20.0))
    assert _sent(queues, "normal") == []

    workshop.sql("UPDATE batches SET held = false")
    workshop.client.pause(everything=True)
    reconcile(workshop.services, Bounds(100, 20.0))
    assert _sent(queues, "normal") == []
    assert workshop.value("SELECT count(*) FROM batches WHERE held") == 0

    workshop.client.resume(everything=True)
    reconcile(workshop.services, Bounds(100, 20.0))
    assert workshop.value("SELECT count(*) FROM batches WHERE held") == 1
    assert _sent(queues, "normal") == []
