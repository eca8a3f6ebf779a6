"""What was spent and saved, as jobs and reports tell it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai_server import OpenAIServer
from paid_embedder import MODEL, PRICE, PaidEmbedder, paying
from remote_scene import batch_settings
from till import price, provider, workshop
from workshop import COLLECTION, Workshop, chunked, paragraph, paragraphs

from pipeline import Document, Settings
from pipeline.errors import BudgetExhausted, ProviderUnavailable, UnknownJob
from pipeline.ledger.usage import BY
from pipeline.openai_batch.packing import pack
from pipeline.settings import CostSettings
from pipeline.status import JobStatus
from tasks.openai_batch import perform

__all__ = ["price", "provider", "workshop"]


def spent(job: JobStatus) -> float:
    assert job.cost is not None
    return job.cost.spent


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_what_a_job_costs_is_told_while_it_is_at_work_and_exact_when_it_has_ended(
    workshop: Workshop, provider: PaidEmbedder, price: Callable[..., float]
) -> None:
    # Given a job of which the provider takes one text and then breaks off
    provider.texts_per_request = 1
    provider.fails["two"] = ProviderUnavailable("away")
    job = workshop.put({"a": paragraphs("one"), "b": paragraphs("two")}, provider="openai", max_cost=1.0)
    workshop.prepare()
    for batch in workshop.ready():
        workshop.perform(batch.id, alone=True)

    # Then what it has cost so far is told
    told = workshop.client.job(job.job_id)
    assert spent(told) == pytest.approx(price("one"))
    assert told.to_json()["cost"]["max"] == 1.0
    assert (told.usage.texts, told.usage.requests) == (1, 1)

    # When it has ended, it is exact
    provider.fails.clear()
    workshop.work()
    told = workshop.client.job(job.job_id)
    assert told.state == "succeeded"
    assert spent(told) == pytest.approx(price("one", "two"))
    assert told.to_json()["cost"] == {
        "spent": spent(told), "reserved": 0.0, "doubtful": 0.0, "max": 1.0,
        "saved_by_cache": 0.0, "saved_by_batch": 0.0,
    }  # fmt: skip
    assert told.to_json()["usage"] == {
        "requests": 2, "texts": 2, "tokens": sum(provider.count_tokens([paragraph("one"), paragraph("two")])),
        "cached_texts": 0, "cached_tokens": 0, "doubtful_texts": 0,
    }  # fmt: skip

    # And what the next one finds there is told as saved
    again = workshop.index({"c": paragraphs("one")})
    assert again.usage.cached_texts == 1
    assert again.to_json()["cost"]["saved_by_cache"] == pytest.approx(price("one"))
    assert spent(again) == 0
    # in lists and in what is sent to webhooks too
    assert workshop.client.jobs()[0].to_json()["cost"] == again.to_json()["cost"]


def test_a_job_over_its_budget_stops_before_it_pays_and_goes_on_when_it_may(
    workshop: Workshop, provider: PaidEmbedder, price: Callable[..., float]
) -> None:
    # Given a job that may pay for one of its three texts
    texts = {name: paragraphs(name) for name in ("one", "two", "three")}
    most = max(price(name) for name in texts) * 1.1
    job = workshop.put(texts, provider="openai", max_cost=most)
    workshop.prepare()

    # When it is worked on
    for batch in workshop.ready():
        workshop.perform(batch.id, alone=True)

    # Then it has paid for one, and is paused and says why
    told = workshop.client.job(job.job_id)
    assert sum(provider.billed.values()) == 1
    assert 0 < spent(told) <= most
    assert told.state == "paused"
    assert told.waiting is not None
    assert "millrace cost --set-budget USD --job" in told.waiting.reason
    assert workshop.value("SELECT count(*) FROM purchases") == 0

    # While everybody else goes on: what is embedded here, and what is paid for already
    assert workshop.index({"x": "text x"}, collection="local").state == "succeeded"
    known = next(iter(provider.billed)).split(" ", 1)[0]
    assert workshop.index({"y": paragraphs(known)}, collection="other", provider="openai").state == "succeeded"

    # When it may spend more
    workshop.client.set_budget(1.0, job_id=job.job_id)
    workshop.client.resume(job.job_id)
    workshop.work()

    # Then it has paid for each text once
    assert workshop.client.job(job.job_id).state == "succeeded"
    assert set(provider.billed.values()) == {1}
    assert spent(workshop.client.job(job.job_id)) == pytest.approx(price("one", "two", "three"))


def test_the_month_of_a_tenant_stops_its_jobs_and_no_others(
    workshop: Workshop, provider: PaidEmbedder, price: Callable[..., float]
) -> None:
    workshop.client.set_budget(price("one") / 2, tenant="poor")
    poor = workshop.put({"a": paragraphs("one")}, provider="openai", tenant="poor")
    rich = workshop.put({"a": paragraphs("two")}, provider="openai", tenant="rich")

    workshop.work()

    assert workshop.client.job(poor.job_id).state == "paused"
    assert workshop.client.job(rich.job_id).state == "succeeded"
    assert provider.billed == {paragraph("two"): 1}
    assert [line.split(" is paused: ")[0] for line in workshop.client.over_budget()] == [f"job {poor.job_id}"]


def test_what_is_embedded_for_no_job_keeps_to_the_budgets_too_also_side_by_side(
    settings: Settings, provider: PaidEmbedder
) -> None:
    paid = paying(settings)
    embedding = paid.embedding.model_copy(update={"provider": "openai"})
    workshop = Workshop(paid.model_copy(update={"embedding": embedding}), paid=provider)
    try:
        _embed_side_by_side(workshop, provider)
    finally:
        workshop.close()


def _embed_side_by_side(workshop: Workshop, provider: PaidEmbedder) -> None:
    # Given a month in which no more than about ten of forty texts may be paid for
    workshop.index({"a": paragraphs("one")}, provider="openai")
    words = [f"text {number}" for number in range(40)]
    each = provider.count_tokens(words[:1])[0] * PRICE.online / 1e6
    most = workshop.client.budgets()[0].spent + 10.5 * each
    workshop.client.set_budget(most)

    # When four at once embed them one by one
    refused: list[str] = []

    def embed(mine: Sequence[str]) -> int:
        done = 0
        for text in mine:
            try:
                workshop.client.embed([text])
                done += 1
            except BudgetExhausted as error:
                refused.append(str(error))
        return done

    with ThreadPoolExecutor(4) as threads:
        done = sum(threads.map(embed, [words[start::4] for start in range(4)]))

    # Then no more was spent, and nothing is held back
    budget = workshop.client.budgets()[0]
    assert 8 <= done <= 10
    assert all("`millrace cost --set-budget USD`" in words for words in refused)
    assert most - 2.6 * each < budget.spent <= most
    assert budget.reserved == 0
    # while searches go on by words
    found = workshop.client.search("what is one?", collection=COLLECTION)
    assert found.degraded == ("keywords",)
    assert [result.uri for result in found.results] == ["a"]


def test_what_the_batch_api_embeds_is_reserved_until_it_comes_and_then_exact_to_the_token(
    settings: Settings, openai_server: OpenAIServer
) -> None:
    # Given a job whose texts the Batch API is to embed, and that may cost no more than they will
    paid = chunked(batch_settings(settings, openai_server))
    paid = paid.model_copy(update={"cost": CostSettings(prices={MODEL: PRICE})})
    workshop = Workshop(paid)
    texts = {"a": paragraphs("one", "two"), "b": paragraphs("three")}
    try:
        (best,) = (
            offer.cost
            for offer in workshop.client.estimate([Document(*item) for item in texts.items()], provider="auto").offers
            if offer.provider == "openai_batch"
        )
        job = workshop.put(texts, provider="openai_batch", max_cost=best)
        workshop.work()

        # Then that is held back while it waits
        waiting = workshop.client.job(job.job_id).to_json()["cost"]
        assert waiting["reserved"] == pytest.approx(best)
        assert (waiting["spent"], waiting["max"]) == (0.0, best)

        # When it has come
        until_harvested(workshop, openai_server)
        workshop.work()

        # Then it is what the server has billed, and half of what it would have cost online
        tokens = sum(bill.tokens for bill in openai_server.control.billing())
        told = workshop.client.job(job.job_id)
        assert told.state == "succeeded"
        assert told.usage.tokens == tokens
        assert told.to_json()["cost"] == {
            "spent": pytest.approx(tokens * PRICE.batch / 1e6), "reserved": 0.0, "doubtful": 0.0, "max": best,
            "saved_by_cache": 0.0, "saved_by_batch": pytest.approx(tokens * (PRICE.online - PRICE.batch) / 1e6),
        }  # fmt: skip
        assert spent(told) == pytest.approx(best), "the estimate was right"
        assert workshop.client.budgets()[0].reserved == 0
        assert workshop.client.audit(COLLECTION).ledger == {}
    finally:
        workshop.close()


def until_harvested(workshop: Workshop, server: OpenAIServer) -> None:
    """Goes on with what is on order, as the duty and the workers do, until all of it has come."""
    settings = workshop.settings
    deadline = time.monotonic() + 60.0
    while workshop.value("SELECT count(*) FROM purchases"):
        assert time.monotonic() < deadline, workshop.sql("SELECT state, error FROM remote_batches")
        pack(workshop.services.ledger, settings.openai, settings.openai_batch)
        workshop.sql("UPDATE remote_batches SET next_at = now() WHERE closed_at IS NULL")
        server.control.finish()
        for row in workshop.sql("SELECT id FROM remote_batches WHERE closed_at IS NULL"):
            perform(workshop.services, row["id"])


# -- reports ----------------------------------------------------------------------------------------------------------


def test_reports_add_up_however_they_are_cut(workshop: Workshop, price: Callable[..., float]) -> None:
    # Given two tenants' jobs, and a search
    one = workshop.index({"a": paragraphs("one", "two")}, provider="openai", tenant="one")
    workshop.index({"a": paragraphs("two", "three")}, tenant="two")
    workshop.client.search("what is one?", collection=COLLECTION, tenant="one")

    # Then every cut has the same sum
    whole = workshop.client.cost()
    assert whole.total.texts == 4
    assert whole.total.cached_texts == 1
    assert whole.total.cost > price("one", "two", "three")
    for by in BY:
        report = workshop.client.cost(by=by)
        assert sum(usage.cost for _, usage in report.rows) == pytest.approx(whole.total.cost)
        json.dumps(report.to_json(), allow_nan=False)
    assert [name for name, _ in workshop.client.cost(by="job").rows].count(None) == 1
    assert [name for name, _ in workshop.client.cost(by="model").rows] == [MODEL]
    month, _ = workshop.client.cost(by="month").rows[0]
    assert workshop.client.cost(month=month).total == whole.total
    assert workshop.client.cost(month="2001-02").total.texts == 0
    # and a part of it is that part
    assert workshop.client.cost(job_id=one.job_id).total.cost == pytest.approx(price("one", "two"))
    assert workshop.client.cost(job_id=one.job_id).budgets[0].spent == pytest.approx(price("one", "two"))
    assert workshop.client.cost(tenant="two").total.cost == pytest.approx(price("three"))
    assert workshop.client.cost(collection="none").total.texts == 0
    # which is what the month's sums say
    (budget, *_) = workshop.client.budgets()
    assert budget.spent == pytest.approx(whole.total.cost)


def test_what_a_job_cost_is_known_when_it_is_gone(workshop: Workshop) -> None:
    job = workshop.index({"a": paragraphs("one")}, provider="openai")
    workshop.sql("UPDATE usage SET job_id = %(other)s", other="00000000-0000-0000-0000-000000000001")

    assert workshop.client.cost(job_id="00000000-0000-0000-0000-000000000001").total.texts == 1
    assert workshop.client.cost(job_id=job.job_id).total.texts == 0
    with pytest.raises(UnknownJob):
        workshop.client.cost(job_id="00000000-0000-0000-0000-000000000002")
