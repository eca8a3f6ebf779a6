"""Vectors that cost money: bought once, stored as they come, waited for where somebody else has them on order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from paid_embedder import PRICE, PaidEmbedder, paying
from workshop import COLLECTION, Workshop, chunked, paragraph, paragraphs

from pipeline import Settings
from pipeline.errors import ProviderLimited, ProviderUnavailable
from tasks import base


@pytest.fixture
def provider(settings: Settings) -> PaidEmbedder:
    return PaidEmbedder(paying(settings).openai)


@pytest.fixture
def workshop(settings: Settings, provider: PaidEmbedder) -> Iterator[Workshop]:
    made = Workshop(chunked(paying(settings)), paid=provider)
    yield made
    made.close()


def usage(workshop: Workshop, provider: str = "openai") -> dict[str, float]:
    """The sums of what was used."""
    (row,) = workshop.sql(
        """SELECT coalesce(sum(texts), 0)::int AS texts, coalesce(sum(tokens), 0)::int AS tokens,
                  coalesce(sum(requests), 0)::int AS requests, coalesce(sum(cost), 0) AS cost,
                  coalesce(sum(cached_texts), 0)::int AS cached, coalesce(sum(doubtful_texts), 0)::int AS doubtful
             FROM usage WHERE provider = %(provider)s""",
        provider=provider,
    )
    return row


def left(workshop: Workshop) -> dict[str, int]:
    """What is still being bought, reserved or waiting."""
    (row,) = workshop.sql(
        """SELECT (SELECT count(*) FROM purchases) AS purchases, (SELECT count(*) FROM reservations) AS reservations,
                  (SELECT count(*) FROM batches WHERE ended_at IS NULL) AS batches"""
    )
    return row


def test_what_is_bought_is_billed_once_stored_with_its_cost_and_found(
    workshop: Workshop, provider: PaidEmbedder
) -> None:
    job = workshop.index({"a": paragraphs("one", "two", "three")}, provider="openai")

    assert job.state == "succeeded"
    assert provider.billed == {paragraph(name): 1 for name in ("one", "two", "three")}
    tokens = sum(provider.count_tokens([paragraph(name) for name in ("one", "two", "three")]))
    cost = tokens * PRICE.online / 1e6
    assert usage(workshop) == {
        "texts": 3, "tokens": tokens, "requests": 2, "cost": pytest.approx(cost), "cached": 0, "doubtful": 0,
    }  # fmt: skip
    assert workshop.value("SELECT sum(cost) FROM embeddings") == pytest.approx(cost)
    assert workshop.value("SELECT cost FROM jobs") == pytest.approx(cost)
    assert job.chunks == {"total": 3, "embedded": 3, "reused": 0, "indexed": 3}
    assert workshop.texts() == {"a": sorted(paragraph(name) for name in ("one", "two", "three"))}
    assert left(workshop) == {"purchases": 0, "reservations": 0, "batches": 0}


def test_what_is_stored_is_not_bought_again_and_told_as_saved(workshop: Workshop, provider: PaidEmbedder) -> None:
    workshop.index({"a": paragraphs("one", "two")}, provider="openai")

    workshop.index({"b": paragraphs("two", "three")}, collection="other", provider="openai")

    assert provider.billed == {paragraph(name): 1 for name in ("one", "two", "three")}
    assert usage(workshop)["cached"] == 1


def test_what_came_before_the_provider_failed_is_stored_and_the_rest_is_bought_later(
    workshop: Workshop, provider: PaidEmbedder
) -> None:
    provider.texts_per_request = 1
    provider.fails["two"] = ProviderUnavailable("it does not answer")
    job = workshop.put({"a": paragraphs("one", "two", "three")}, provider="openai")
    workshop.prepare()
    (batch,) = workshop.ready()

    outcome = workshop.perform(batch.id)

    assert outcome == base.Waiting("it does not answer")
    stored = workshop.value("SELECT count(*) FROM embeddings")
    assert stored == sum(provider.billed.values()) < 3
    assert left(workshop)["purchases"] == 0, "what was not asked for may be bought by anybody"
    provider.fails.clear()
    workshop.work()
    assert provider.billed == {paragraph(name): 1 for name in ("one", "two", "three")}
    assert workshop.client.job(job.job_id).state == "succeeded"
    assert usage(workshop)["doubtful"] == 0
    assert workshop.sql("SELECT attempts, losses FROM batches WHERE kind = 'embed'") == [{"attempts": 0, "losses": 0}]


def test_while_the_provider_asks_to_wait_nothing_is_sent_to_it_and_other_work_goes_on(
    workshop: Workshop, provider: PaidEmbedder
) -> None:
    provider.fails["one"] = ProviderLimited("slower", 30.0)
    workshop.put({"a": paragraphs("one"), "b": paragraphs("two")}, provider="openai")
    workshop.put({"c": paragraphs("three")}, collection="local")
    workshop.prepare()
    bought, computed = workshop.ready()

    assert isinstance(workshop.perform(bought.id), base.Waiting)

    assert isinstance(workshop.perform(bought.id), base.Skipped), "it is not claimed while the circuit is open"
    assert workshop.value("SELECT cause FROM circuits WHERE dependency = 'openai'") == "ProviderLimited"
    rest = workshop.value(
        "SELECT extract(epoch FROM retry_at - clock_timestamp()) FROM circuits WHERE retry_at > now()"
    )
    assert 20 < rest <= 30
    assert isinstance(workshop.perform(computed.id), base.Done)
    assert workshop.texts(collection="local") == {"c": [paragraph("three")]}
    workshop.sql("UPDATE circuits SET retry_at = now()")
    provider.fails.clear()
    workshop.sql("UPDATE batches SET next_attempt_at = NULL")
    assert isinstance(workshop.perform(bought.id), base.Done)
    assert workshop.value("SELECT count(*) FROM circuits WHERE opened_at IS NOT NULL") == 0


def test_collections_keep_their_provider_for_jobs_that_name_none(workshop: Workshop, provider: PaidEmbedder) -> None:
    workshop.index({"a": paragraphs("one")}, provider="openai")

    workshop.index({"b": paragraphs("two")})

    assert sum(provider.billed.values()) == 2
    assert workshop.value("SELECT provider FROM collections WHERE name = %(name)s", name=COLLECTION) == "openai"
    assert workshop.embedder.calls == [], "nothing was embedded here"
