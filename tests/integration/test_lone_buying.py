"""The ledger goes away when a text that no batch wants was answered: what is paid is kept, and who asked goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from paid_embedder import PRICE, PaidEmbedder, paying
from tcp_proxy import Proxy, proxied
from workshop import COLLECTION, Workshop, chunked, paragraphs

from pipeline import Settings, lone_buying
from pipeline.deals import Part
from pipeline.embedding.base import Role
from pipeline.errors import LedgerUnavailable
from pipeline.ledger.engine import Connection

AWAY_SECONDS = 1.0


class InterruptedEmbedder(PaidEmbedder):
    """Does something when a request is billed, before its answer is told; then forgets it."""

    after_billing: Callable[[], object] | None = None

    def buy(
        self,
        texts: Sequence[str],
        role: Role,
        on_part: Callable[[Part], None],
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        def told(part: Part) -> None:
            then, self.after_billing = self.after_billing, None
            if then is not None:
                then()
            on_part(part)

        super().buy(texts, role, told, on_progress)


@dataclass
class Site:
    """A workshop whose ledger is reached through a proxy, and one that always reaches it."""

    workshop: Workshop
    onlooker: Workshop
    provider: InterruptedEmbedder
    network: Proxy

    def usage(self) -> dict[str, Any]:
        (row,) = self.onlooker.sql(
            """SELECT coalesce(sum(texts), 0)::int AS texts, coalesce(sum(tokens), 0)::int AS tokens,
                      coalesce(sum(cost), 0) AS cost, coalesce(sum(doubtful_texts), 0)::int AS doubtful FROM usage"""
        )
        return row

    def bill(self) -> dict[str, Any]:
        """What the ledger has to say of it, where nothing is doubtful."""
        texts = list(self.provider.billed.elements())
        tokens = sum(self.provider.count_tokens(texts))
        cost = pytest.approx(tokens * PRICE.online / 1e6)
        return {"texts": len(texts), "tokens": tokens, "cost": cost, "doubtful": 0}


@pytest.fixture
def site(settings: Settings) -> Iterator[Site]:
    paid = chunked(paying(settings))
    paid = paid.model_copy(update={"embedding": paid.embedding.model_copy(update={"provider": "openai"})})
    provider = InterruptedEmbedder(paid.openai)
    with proxied(paid.postgres.url.get_secret_value()) as (network, url):
        postgres = paid.postgres.model_copy(
            update={"url": type(paid.postgres.url)(url), "connect_timeout": 1.0, "timeout": 2.0}
        )
        workshop = Workshop(paid.model_copy(update={"postgres": postgres}), paid=provider)
        onlooker = Workshop(paid, paid=provider)
        yield Site(workshop, onlooker, provider, network)
        network.restore()
        workshop.close()
        onlooker.close()


def test_a_ledger_that_is_away_for_a_moment_gets_what_was_paid_for(site: Site) -> None:
    site.workshop.client.embed(["known"])
    timer = threading.Timer(AWAY_SECONDS, site.network.restore)

    def away() -> None:
        site.network.refuse()
        timer.start()

    site.provider.after_billing = away
    vectors = site.workshop.client.embed(["one", "two", "three"]).vectors
    timer.join()

    assert len(vectors) == 3
    assert site.usage() == site.bill()
    assert site.onlooker.client.embed(["one", "two", "three"]).hits == 3
    assert site.onlooker.value("SELECT count(*) FROM purchases") == 0
    assert site.onlooker.value("SELECT count(*) FROM reservations") == 0


def test_a_search_gets_its_vector_though_the_ledger_stays_away_and_the_next_one_tells_of_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(lone_buying._STORE_PATIENCE_SECONDS, "query", 0.5)
    site.workshop.index({"a": paragraphs("one", "two")}, provider="openai")
    site.workshop.client.search("known", collection=COLLECTION)
    before = site.usage()
    site.provider.after_billing = site.network.refuse

    found = site.workshop.client.search("what is one about", collection=COLLECTION)

    assert found.degraded == ("unverified",), "by its vector too, and not by words alone"
    assert len(found.results) == 2
    assert "1 texts were bought" in caplog.text
    # Given that it is taken for lost by now
    site.onlooker.sql("UPDATE purchases SET lease_until = now() - interval '1 s'")
    assert site.usage() == before
    assert site.onlooker.client.search("what is one about", collection=COLLECTION).degraded == ()
    after = site.usage()
    assert (after["texts"] - before["texts"], after["doubtful"] - before["doubtful"]) == (1, 1)
    assert site.provider.billed["what is one about"] == 2


def test_nothing_more_is_bought_that_the_ledger_does_not_see(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lone_buying._STORE_PATIENCE_SECONDS, "passage", 0.5)
    site.workshop.client.embed(["known"])
    site.provider.after_billing = site.network.refuse

    with pytest.raises(LedgerUnavailable):
        site.workshop.client.embed(["one", "two", "three"])

    assert sum(site.provider.billed.values()) == 1 + site.provider.texts_per_request, "one request, and no second one"


def test_what_is_bought_for_no_job_is_one_row_a_day_however_often(site: Site) -> None:
    for number in range(5):
        site.workshop.client.embed([f"text {number}"])

    assert site.usage() == site.bill()
    assert site.onlooker.value("SELECT count(*) FROM usage") == 1


@pytest.mark.parametrize("alone", [True, False])
def test_a_commit_whose_answer_is_lost_is_not_counted_twice(
    site: Site, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    ledger = site.workshop.services.ledger
    transaction = ledger.transaction
    left = 2

    @contextmanager
    def unanswered() -> Iterator[Connection]:
        nonlocal left
        with transaction() as connection:
            yield connection
        left -= 1
        if left == 0:
            monkeypatch.undo()
        raise LedgerUnavailable("the connection broke when it was committed")

    def lose_answers() -> None:
        monkeypatch.setattr(ledger, "transaction", unanswered)

    if alone:
        site.provider.after_billing = lose_answers
        site.workshop.client.embed(["one", "two"])
    else:
        site.workshop.put({"a": paragraphs("one", "two")}, provider="openai")
        site.workshop.prepare()
        site.provider.after_billing = lose_answers
        site.workshop.work()

    assert left == 0
    assert site.usage() == site.bill()
    assert len(site.provider.billed) == 2
