"""What is on order is neither beyond a budget nor bought although it is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from paid_embedder import PaidEmbedder, paying
from workshop import Workshop, chunked, paragraphs

from pipeline import Settings
from pipeline.errors import ProviderUnavailable
from pipeline.ledger import purchases
from pipeline.openai_batch.packing import pack
from pipeline.testing import ConstantEmbedder


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """With a provider that has the local model, too."""
    paid = paying(settings, same_as={"constant": "constant"})
    local = ConstantEmbedder(8)
    made = Workshop(chunked(paid), local, paid=PaidEmbedder(paid.openai, model=local.spec))
    yield made
    made.close()


def test_what_is_taken_over_from_the_dead_is_ordered_within_the_budget(workshop: Workshop) -> None:
    # Given texts that were asked for online, and were not answered
    provider = workshop.services._given_paid
    assert isinstance(provider, PaidEmbedder)
    lost = ProviderUnavailable("it does not answer")
    lost.__dict__["unanswered"] = (0, 1)
    provider.fails["alder"] = lost
    workshop.put({"first": paragraphs("alder", "birch")}, provider="openai")
    workshop.prepare()
    (batch,) = workshop.ready("embed")
    workshop.perform(batch.id)

    # When a job that may spend nothing would order them
    job = workshop.put({"second": paragraphs("alder", "birch")}, provider="openai_batch", max_cost=0.0)
    workshop.prepare()
    workshop.perform(max(ready.id for ready in workshop.ready("embed")))

    # Then nothing is on order, and the job is paused
    assert workshop.value("SELECT count(*) FROM purchases WHERE epoch IS NULL") == 0
    assert workshop.client.job(job.job_id).state == "paused"


def test_what_was_embedded_here_meanwhile_is_not_bought(workshop: Workshop) -> None:
    # Given a text on order, which another job has embedded here
    workshop.put({"first": paragraphs("alder")}, provider="openai_batch")
    workshop.work()
    workshop.put({"second": paragraphs("alder")}, provider="local")
    workshop.work()

    # When it would be packed, then it is not, and who waits for it goes on
    settings = workshop.settings
    at_once = settings.openai_batch.model_copy(update={"linger_seconds": 0.0})
    assert pack(workshop.services.ledger, settings.openai, at_once) == []
    with workshop.services.ledger.transaction() as connection:
        assert purchases.wake_forgotten(connection, 0, 10) == (1, None)
    workshop.work()
    assert sorted(workshop.texts()) == ["first", "second"]
    assert workshop.value("SELECT sum(cost) FROM usage") in (None, 0.0)
