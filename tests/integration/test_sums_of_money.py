"""Every sum of what was spent and reserved is the sum of its parts, whatever is killed when, and in any month."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Iterator
from functools import partial

import pytest
from paid_embedder import PaidEmbedder, paying
from paused_stories import Killed as Died
from paused_stories import Story
from till import Killed, Till
from workshop import COLLECTION, Workshop, chunked, paragraphs

from pipeline import Settings
from pipeline.duties import Bounds
from pipeline.errors import LedgerUnavailable
from pipeline.ledger import spending
from pipeline.settings import CostSettings
from pipeline.testing import MemoryVectorStore
from tasks.maintenance import reconcile


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    ingest = settings.ingest.model_copy(update={"embed_chunks": 1})
    made = Workshop(settings.model_copy(update={"ingest": ingest}))
    yield made
    made.close()


@pytest.fixture
def till(workshop: Workshop) -> Till:
    return Till(workshop)


def test_every_sum_agrees_after_anything_in_any_order_and_crashes_between(till: Till) -> None:
    # Given claims of three jobs of two tenants
    for tenant in ("one", "one", "two"):
        till.open(4, tenant)
    chance = random.Random(6)
    till.settings = CostSettings(month_usd=3.0, job_usd=1.5)

    def change() -> None:
        some = chance.sample(till.claims, chance.randint(1, 4))
        match chance.randrange(4):
            case 0:
                till.reserve({claim: chance.uniform(0, 0.2) for claim in some})
            case 1:
                used = [
                    till.used(
                        claim,
                        chance.uniform(0, 0.1),
                        doubtful_texts=1,
                        doubtful_cost=chance.choice([0.0, 0.01]),
                        batch_id=chance.choice([claim.id, None]),
                    )
                    for claim in some
                ]
                till.record(used, [claim.id for claim in chance.sample(some, 1)])
            case 2:
                with till.workshop.services.ledger.transaction() as connection:
                    spending.settle(connection, [claim.id for claim in some])
            case 3:
                till.workshop.sql(
                    "UPDATE batches SET state = %(state)s WHERE id = %(id)s",
                    state=chance.choice(["ready", "running", "waiting"]),
                    id=some[0].id,
                )
                till.sweep()

    # When they spend at random, and every third time the worker is killed before it commits
    for step in range(120):
        before = till.total()
        if step % 3:
            change()
        else:
            with pytest.raises(Killed):
                till.record([till.used(till.claims[0], 0.5)], [till.claims[1].id], killed=True)
            assert till.total() == before
        # Then every sum is that of its parts
        till.check()


def test_nobody_waits_for_each_other_in_a_circle(till: Till) -> None:
    # Given claims of several jobs and tenants, of this month and the last
    for tenant in ("one", "two", "three"):
        till.open(3, tenant)
    till.reserve(dict.fromkeys(till.claims[::2], 0.1))
    till.workshop.sql("UPDATE spending SET month = month - interval '1 month'")
    till.workshop.sql("UPDATE reservations SET created_at = created_at - interval '1 month'")
    errors: list[Exception] = []

    # When several at once reserve, record, give back and sweep, whoever's they are
    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(40):
                some = chance.sample(till.claims, 3)
                match chance.randrange(4):
                    case 0:
                        till.reserve(dict.fromkeys(some, 0.01), held=True)
                    case 1:
                        till.record([till.used(claim, 0.005) for claim in some], [some[0].id])
                    case 2:
                        till.record([till.used(some[0], 0.001, batch_id=some[1].id)])
                    case 3:
                        till.sweep()
        except LedgerUnavailable as error:  # what a deadlock is told as
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # Then nobody was ended for it
    assert errors == []
    till.check()


def test_what_was_reserved_last_month_counts_until_it_is_spent_or_given_back(till: Till) -> None:
    # Given a reservation of the month before (the Batch API takes a day)
    till.settings = CostSettings(month_usd=1.0)
    till.open(2)
    a, b = till.claims
    till.reserve({a: 0.8})
    till.workshop.sql("UPDATE spending SET month = month - interval '1 month'")
    till.workshop.sql("UPDATE reservations SET created_at = created_at - interval '1 month'")

    # Then it counts against this one's budget, in which it will be spent
    (refused,) = till.reserve({b: 0.3})
    assert "$0.80 reserved" in refused.message

    # When it is spent, in part
    till.record([till.used(a, 0.6)], [a.id])

    # Then it is this month's, and the rest is free
    till.check()
    months = till.workshop.sql("SELECT cost, reserved FROM spending WHERE tenant = '' ORDER BY month")
    assert months == [{"cost": 0, "reserved": 0}, {"cost": 0.6, "reserved": 0}]
    assert till.reserve({b: 0.3}) == []


def test_what_is_not_known_to_be_paid_or_not_stays_reserved_and_counts_when_it_is_doubtful(till: Till) -> None:
    # Given a claim whose worker died in the middle of a request
    till.settings = CostSettings(month_usd=1.0)
    till.open(2)
    a, b = till.claims
    till.reserve({a: 0.7})
    sql = till.workshop.sql
    sql("UPDATE batches SET state = 'ready' WHERE id = %(id)s", id=a.id)
    sql(
        """INSERT INTO purchases (key, collection_id, batch_id, epoch, spec_hash, tokens, priority)
           VALUES ('k', 1, %(id)s, 1, '', 10, 1)""",
        id=a.id,
    )

    # Then its reservation stays
    assert till.sweep() == 0

    # When another one takes the text over
    sql("DELETE FROM purchases")
    till.record([till.used(a, 0.0, texts=0, doubtful_texts=1, doubtful_cost=0.7)])

    # Then what may have been paid counts as if it were, and is told apart
    till.check()
    assert till.total() == {"spent": 0, "doubtful": 0.7, "reserved": 0}
    (refused,) = till.reserve({b: 0.4})
    assert "$0.00 spent, $0.70 doubtful" in refused.message
    report = till.workshop.client.cost()
    assert (report.total.doubtful_texts, report.total.doubtful_cost, report.total.cost) == (1, 0.7, 0)


def test_every_sum_agrees_wherever_workers_are_killed(settings: Settings) -> None:
    # Given jobs that want the same texts again and again, in batches that are worked on side by side
    paid = chunked(paying(settings))
    work = paid.work.model_copy(update={"max_losses": 100})
    ingest = paid.ingest.model_copy(update={"prepare_documents": 1})
    provider = PaidEmbedder(paid.openai)
    workshop = Workshop(
        paid.model_copy(update={"work": work, "ingest": ingest}), paid=provider, vectors=MemoryVectorStore()
    )
    chance = random.Random(7)
    names = [f"word{number}" for number in range(12)]
    try:
        for turn in range(8):
            for _ in range(2):
                some = paragraphs(*chance.sample(names, 4))
                workshop.put({f"{turn}-{uuid.uuid4()}": some}, provider="openai", tenant=chance.choice(["one", "two"]))
            workshop.prepare()
            stories = [
                Story(f"{batch.id}", partial(workshop.perform, batch.id, alone=True)) for batch in workshop.ready()
            ]
            # When they go on in turns, and some are killed at whatever they are
            while at_work := [story for story in stories if not story.over]:
                chance.choice(at_work).advance(Died() if chance.random() < 0.15 else None)
            workshop.sql("UPDATE batches SET lease_until = now() - interval '1 minute' WHERE state = 'running'")
            reconcile(workshop.services, Bounds(100, 20.0))
            workshop.sql("UPDATE batches SET next_attempt_at = NULL, sent_at = NULL WHERE state = 'ready'")
            workshop.work()

        # Then what was spent is what the stored vectors have cost, however it is added up
        (row,) = workshop.sql(
            """SELECT (SELECT sum(cost) FROM embeddings) AS stored, (SELECT sum(cost) FROM usage) AS used,
                      (SELECT sum(cost) FROM jobs) AS jobs, (SELECT sum(cost) FROM spending WHERE tenant = '') AS month,
                      (SELECT sum(cost) FROM spending WHERE tenant <> '') AS tenants,
                      (SELECT count(*) FROM embeddings) AS texts, (SELECT sum(texts) FROM usage) AS bought,
                      (SELECT sum(doubtful_texts) FROM usage) AS doubtful, (SELECT sum(reserved) FROM spending) AS held,
                      (SELECT count(*) FROM reservations) AS reservations"""
        )
        for name in ("used", "jobs", "month", "tenants"):
            assert row[name] == pytest.approx(row["stored"]), name
        assert row["texts"] == row["bought"] == len(provider.billed)
        # and what was paid twice is among what is told as doubtful
        assert 0 < provider.billed.total() - len(provider.billed) <= row["doubtful"]
        assert (row["held"], row["reservations"]) == (0, 0)
        assert workshop.client.audit(COLLECTION).ledger == {}
    finally:
        workshop.close()
