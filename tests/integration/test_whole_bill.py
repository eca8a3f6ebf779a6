"""What `millrace cost` says is what the server bills: also of texts that nobody asked for, which only try something."""

from __future__ import annotations

from typing import Any

import pytest
from openai_server import OpenAIServer
from turned_embedder import TurnedEmbedder
from workshop import COLLECTION, Workshop, chunked, paragraphs

from pipeline import Settings
from pipeline.errors import BudgetExhausted
from pipeline.settings import CostSettings, OpenAISettings, Price
from pipeline.testing import ConstantEmbedder

MODEL = "text-embedding-3-small"
PRICE = Price(online=2.0, batch=1.0)


def workshop_of(
    settings: Settings, server: OpenAIServer, embedder: ConstantEmbedder | None = None, **openai: Any
) -> Workshop:
    account = OpenAISettings.model_validate({"api_key": server.key, "base_url": server.url, "batch": "on", **openai})
    cost = CostSettings(prices=dict.fromkeys((MODEL, "constant"), PRICE))
    return Workshop(chunked(settings.model_copy(update={"openai": account, "cost": cost})), embedder)


def here_and_there(
    settings: Settings, server: OpenAIServer, embedder: ConstantEmbedder | None = None, **openai: Any
) -> Workshop:
    """With a collection of a local model that the server has, too."""
    made = workshop_of(settings, server, embedder or ConstantEmbedder(), same_as={"constant": "constant"}, **openai)
    made.index({"z": paragraphs("zero")}, provider="local")
    return made


def compare(workshop: Workshop, server: OpenAIServer, *, doubtful: int = 0) -> None:
    """The sums of costs, and the budget of the month, with the server's bill."""
    bill = server.control.billing()
    total = workshop.client.cost().total
    tokens = sum(entry.tokens for entry in bill)
    assert total.texts + doubtful == sum(entry.times for entry in bill) > 0
    assert total.doubtful_texts == doubtful
    if not doubtful:
        assert total.tokens == tokens
        assert total.cost == pytest.approx(tokens * PRICE.online / 1e6)
    budget = workshop.client.budgets()[0]
    assert budget.spent == pytest.approx(total.cost)
    assert budget.doubtful == pytest.approx(total.doubtful_cost)
    assert budget.spent + budget.doubtful == pytest.approx(tokens * PRICE.online / 1e6)


def test_what_compares_a_model_that_is_here_and_there_is_on_the_bill(
    settings: Settings, openai_server: OpenAIServer
) -> None:
    # Two processes, each of which compares
    for name in ("a", "b"):
        workshop = here_and_there(settings, openai_server)
        workshop.index({name: paragraphs(name)}, provider="openai")
        compare(workshop, openai_server)
        workshop.close()
    assert {entry.times for entry in openai_server.control.billing()} == {1, 2}


@pytest.mark.parametrize("provider", ["openai", "openai_batch"])
def test_also_where_it_is_found_to_be_another_one(
    settings: Settings, openai_server: OpenAIServer, provider: str
) -> None:
    workshop = here_and_there(settings, openai_server, TurnedEmbedder())
    workshop.put({"a": paragraphs("one")}, provider=provider)
    workshop.prepare()

    workshop.perform(workshop.ready("embed")[0].id)

    compare(workshop, openai_server)
    workshop.close()


def test_a_comparison_whose_answer_is_lost_is_doubtful(settings: Settings, openai_server: OpenAIServer) -> None:
    openai_server.control.fault("embeddings", "drop")
    workshop = here_and_there(settings, openai_server, patience_seconds=0.0)
    workshop.put({"a": paragraphs("one")}, provider="openai")
    workshop.prepare()

    workshop.perform(workshop.ready("embed")[0].id)

    compare(workshop, openai_server, doubtful=sum(entry.times for entry in openai_server.control.billing()))
    workshop.close()


def test_what_a_reembedding_asks_its_model_first_is_paid_by_who_wants_it(
    settings: Settings, openai_server: OpenAIServer
) -> None:
    workshop = workshop_of(settings, openai_server)
    workshop.index({"a": paragraphs("one")})
    workshop.client.set_budget(0.0)
    with pytest.raises(BudgetExhausted):
        workshop.client.reembed(COLLECTION, MODEL)
    assert openai_server.control.billing() == []
    workshop.client.clear_budget()

    workshop.client.reembed(COLLECTION, MODEL)

    compare(workshop, openai_server)
    assert workshop.sql("SELECT tenant, collection, job_id FROM usage") == [
        {"tenant": "default", "collection": COLLECTION, "job_id": None}
    ]
    workshop.close()


def test_what_shows_that_the_server_is_well_is_on_the_bill(settings: Settings, openai_server: OpenAIServer) -> None:
    openai_server.control.fault("embeddings", "status", times=None, code=500, match="poison")
    workshop = workshop_of(settings, openai_server, patience_seconds=20.0)

    workshop.index({"bad": paragraphs("poison"), "good": paragraphs("two")}, provider="openai")

    assert workshop.client.dead_letters(), "it was tried whether it is the text or the server"
    compare(workshop, openai_server)
    workshop.close()
