"""What is reserved and spent never exceeds a budget; who would exceed one is paused, and told how to go on."""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest
from till import MODEL, Till
from workshop import COLLECTION, Workshop

from pipeline import Settings
from pipeline.errors import UnknownJob
from pipeline.ledger import spending
from pipeline.ledger.batches import Claim
from pipeline.ledger.spending import Used
from pipeline.settings import CostSettings
from tasks import base


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    ingest = settings.ingest.model_copy(update={"embed_chunks": 1})
    made = Workshop(settings.model_copy(update={"ingest": ingest}))
    yield made
    made.close()


@pytest.fixture
def till(workshop: Workshop) -> Till:
    return Till(workshop)


# -- a hard stop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"month_usd": 1.0}, 1.0),
        ({"tenant_month_usd": 0.5}, 1.0),  # two tenants
        ({"job_usd": 0.25}, 1.0),  # four jobs
    ],
)
def test_several_workers_at_once_never_spend_beyond_a_budget(
    workshop: Workshop, limits: dict[str, float], most: float
) -> None:
    # Given four jobs of two tenants, and two workers at each of them that have more to buy than may be spent
    till = Till(workshop, CostSettings(**limits))
    for tenant in ("one", "one", "two", "two"):
        till.open(1, tenant)
    first, ids = list(till.claims), count(1_000_000)

    def work(claim: Claim, seed: int) -> None:
        chance = random.Random(seed)
        while True:
            mine = replace(claim, id=next(ids))
            cost = chance.uniform(0.005, 0.03)
            if till.reserve({mine: cost}):
                return
            # It costs what was expected, or less; one in ten is killed before anybody knows
            if chance.random() > 0.1:
                till.record([till.used(mine, cost * chance.choice([1, 1, 0.5]))], [mine.id])

    threads = [threading.Thread(target=work, args=(claim, seed)) for seed, claim in enumerate([*first, *first])]

    # When they are all at it, at every moment what is spent and reserved is within the limit
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        now = till.total()
        assert now["spent"] + now["reserved"] <= most + 1e-9
        threads[0].join(0.01)

    # Then they have come as far as they could, and all jobs are paused
    whole = till.total()
    assert most * 0.85 < whole["spent"] + whole["reserved"] <= most + 1e-9
    till.check()
    assert {row["state"] for row in workshop.sql("SELECT state FROM jobs")} == {"paused"}

    # And what the killed ones held back is given back when nobody is at their batches
    while till.sweep():
        pass
    assert till.total()["reserved"] == 0
    till.check()


def test_a_job_that_would_exceed_a_budget_is_paused_and_says_how_to_go_on_and_the_others_go_on(
    workshop: Workshop,
) -> None:
    # Given a job that has spent nearly what it may, and another
    till = Till(workshop)
    poor, rich = till.open(3, max_cost=0.05), till.open(1)
    a, b, c, d = till.claims
    assert till.reserve({a: 0.02, b: 0.02, d: 7.0}) == []
    till.record([till.used(a, 0.015)])

    # When it is about to spend more
    (refused,) = till.reserve({c: 0.02})

    # Then it is paused, and says what is spent, what the limit is and how to go on
    assert refused.claim == c
    for words in (f"{c.id} would cost $0.020 more", "$0.015 spent", "$0.025 reserved", "of $0.050"):
        assert words in refused.message
    told = workshop.client.job(poor)
    assert told.state == "paused"
    assert told.waiting is not None
    for words in (f"`millrace cost --set-budget USD --job {poor}`", f"`millrace resume {poor}`", "over budget"):
        assert words in told.waiting.reason
    assert workshop.client.over_budget() == [f"job {poor} is paused: {refused.message}"]
    assert workshop.client.job(rich).state != "paused"
    assert till.reserve({d: 8.0}) == []

    # When the budget is raised and it is resumed, it may
    assert workshop.client.set_budget(0.06, job_id=poor).limit == 0.06
    workshop.client.resume(poor)
    assert till.reserve({c: 0.02}) == []
    assert workshop.client.over_budget() == []
    till.check()


def test_of_claims_together_only_those_are_refused_that_no_money_is_left_for(till: Till) -> None:
    till.settings = CostSettings(tenant_month_usd=0.05)
    till.open(2, "one")
    till.open(1, "two")
    a, b, c = till.claims

    refused = till.reserve({a: 0.04, b: 0.02, c: 0.05})

    assert [item.claim for item in refused] == [b]
    assert "tenant one's budget of" in refused[0].message
    assert "--set-budget USD --tenant one" in refused[0].message
    assert till.total()["reserved"] == pytest.approx(0.09)


def test_what_costs_nothing_is_never_refused(till: Till) -> None:
    till.settings = CostSettings(month_usd=0.01)
    till.open(2)
    a, b = till.claims
    till.record([till.used(a, 0.01)])

    assert till.reserve({b: 0.0}) == []
    assert till.workshop.value("SELECT count(*) FROM reservations") == 0
    assert [item.claim for item in till.reserve({b: 0.001})] == [b]


def test_a_paused_job_is_not_worked_on_and_its_batch_is_handed_back(till: Till) -> None:
    # Given a worker whose claim is refused
    till.settings = CostSettings(month_usd=0.001)
    job = till.open(1)
    workshop, (claim,) = till.workshop, till.claims
    assert till.reserve({claim: 1.0})

    # When it hands it back
    workshop.sql("UPDATE batches SET state = 'ready', lease_until = NULL WHERE id = %(id)s", id=claim.id)

    # Then nobody gets it until the job is resumed
    assert isinstance(workshop.perform(claim.id), base.Skipped)
    workshop.client.resume(job)
    assert isinstance(workshop.perform(claim.id), base.Done)


# -- budgets ----------------------------------------------------------------------------------------------------------


def test_an_operators_budget_counts_instead_of_the_settings_until_it_is_cleared(till: Till) -> None:
    client = till.workshop.client
    till.settings = CostSettings(month_usd=1.0)
    till.open(1)
    (claim,) = till.claims

    assert client.set_budget(0.0, reason="a holiday").to_json()["limit"] == 0.0
    assert till.reserve({claim: 0.001})
    assert client.set_budget(float("inf")).to_json()["limit"] is None
    assert till.reserve({claim: 2.0}) == []
    assert client.set_budget(3.0, tenant="default").limit == 3.0
    assert till.reserve({claim: 4.0})
    assert client.clear_budget(tenant="default").limit is None
    assert client.clear_budget().source == "settings"
    assert "$1.00" in till.reserve({claim: 4.0})[0].message


def test_budgets_are_listed_with_what_is_spent_and_reserved(till: Till) -> None:
    client = till.workshop.client
    till.open(2, "one")
    a, b = till.claims
    client.set_budget(2.5, tenant="one", reason="agreed")
    till.reserve({a: 0.5, b: 0.25})
    till.record([till.used(a, 0.5)], [a.id])

    whole, one = client.budgets()

    assert (whole.scope, whole.limit, whole.spent, whole.reserved) == ("month", None, 0.5, 0.25)
    assert (one.tenant, one.limit, one.left, one.source, one.reason) == ("one", 2.5, 1.75, "operator", "agreed")
    json.dumps([whole.to_json(), one.to_json()], allow_nan=False)


def test_a_budget_of_a_job_that_is_not_there_is_told_so(till: Till) -> None:
    with pytest.raises(UnknownJob):
        till.workshop.client.set_budget(1.0, job_id=uuid.uuid4())


def test_a_query_is_refused_when_the_month_is_spent_and_only_then(till: Till) -> None:
    till.settings = CostSettings(month_usd=0.5)
    till.open(1)
    (claim,) = till.claims

    def refusal(cost: float, number: int = 7) -> str | None:
        with till.workshop.services.ledger.transaction() as connection:
            return spending.reserve_alone(connection, number, "default", cost, till.settings)

    # What it costs is held back while it is asked for, and free again what it did not cost
    assert refusal(0.2) is None
    till.check()
    assert till.total()["reserved"] == 0.2
    assert refusal(0.3, 8) is None
    assert refusal(0.1, 9) is not None
    used = Used(None, "default", COLLECTION, "openai", MODEL, 1, 5, 0.1, 1, batch_id=spending.stand_in(7))
    till.record([used], [spending.stand_in(7), spending.stand_in(8)])
    till.check()
    assert till.total() == {"spent": 0.1, "doubtful": 0, "reserved": 0}

    # When the month is spent, there is none any more
    till.record([till.used(claim, 0.4)])
    assert "`millrace cost --set-budget USD`" in (refusal(1e-7) or "")
    assert refusal(0.0) is None


def test_what_a_search_held_back_that_died_is_given_back_after_its_lease(till: Till) -> None:
    with till.workshop.services.ledger.transaction() as connection:
        assert spending.reserve_alone(connection, 7, "default", 0.2, till.settings) is None
    assert till.sweep() == 0, "it may be about to ask"
    sql = till.workshop.sql
    sql("UPDATE reservations SET created_at = now() - interval '2 minutes'")
    sql(
        """INSERT INTO purchases (key, collection_id, batch_id, epoch, spec_hash, tokens, priority, lease_until)
           VALUES ('k', 1, 0, 7, '', 10, 1, now() + interval '1 minute')"""
    )
    assert till.sweep() == 0, "it is at it"
    sql("UPDATE purchases SET lease_until = now() - interval '1 second'")

    assert till.sweep() == 1
    assert till.total()["reserved"] == 0
