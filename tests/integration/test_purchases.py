"""Who buys a text online, step by step: two that want one at once, and those that die between asking and storing."""

from __future__ import annotations

import pytest
from paid_embedder import PaidEmbedder
from paused_stories import Killed, Story
from purchasing import doubtful, expire, prepared, provider, workshop
from workshop import COLLECTION, Workshop, paragraph, paragraphs

from tasks import base

__all__ = ["provider", "workshop"]


def test_of_two_jobs_that_want_one_text_at_once_one_buys_it_and_the_other_waits_for_that(
    workshop: Workshop, provider: PaidEmbedder
) -> None:
    (first,) = prepared(workshop, {"a": paragraphs("shared", "one")})
    (second,) = prepared(workshop, {"b": paragraphs("shared", "two")}, collection="other")
    story = Story("first", lambda: workshop.perform(first))
    story.advance()
    assert story.seam == "request", "the first is about to ask"

    outcome = workshop.perform(second)

    assert isinstance(outcome, base.Waiting)
    assert paragraph("shared") not in provider.billed
    assert provider.billed[paragraph("two")] == 1, "what it alone wants it has bought meanwhile"
    story.finish()
    workshop.work()
    assert provider.billed == {paragraph(name): 1 for name in ("shared", "one", "two")}
    assert doubtful(workshop) == 0
    rows = workshop.sql("SELECT attempts + losses AS blamed FROM batches WHERE kind = 'embed'")
    assert {row["blamed"] for row in rows} == {0}


@pytest.mark.parametrize("seam", ["request", "answer"])
def test_a_claim_that_dies_before_it_has_stored_what_it_asked_for_is_taken_over_and_told_as_doubtful(
    workshop: Workshop, provider: PaidEmbedder, seam: str
) -> None:
    (batch,) = prepared(workshop, {"a": paragraphs("one", "two")})
    story = Story("killed", lambda: workshop.perform(batch))
    while story.seam != seam:
        story.advance()
    story.advance(Killed())

    expire(workshop)
    workshop.work()

    # Whether the first of them was paid cannot be told from here; the other one was not asked for, nor can that.
    assert doubtful(workshop) == 2
    assert sum(provider.billed.values()) == (3 if seam == "answer" else 2)
    assert workshop.value("SELECT count(*) FROM purchases") == 0
    assert workshop.client.job(workshop.value("SELECT id FROM jobs")).state == "succeeded"
    budget = workshop.sql("SELECT cost_reserved, cost_doubtful > 0 AS told FROM jobs")
    assert budget == [{"cost_reserved": 0.0, "told": True}]


def test_what_a_killed_claim_has_stored_is_not_bought_again(workshop: Workshop, provider: PaidEmbedder) -> None:
    (batch,) = prepared(workshop, {"a": paragraphs("one", "two")})
    story = Story("killed", lambda: workshop.perform(batch))
    for _ in range(3):  # before the first request, before its answer, before the second request
        story.advance()
    assert story.seam == "request"
    story.advance(Killed())

    expire(workshop)
    workshop.work()

    assert sorted(provider.billed.values()) == [1, 1]
    assert doubtful(workshop) == 1


def test_a_claim_that_lost_its_lease_stores_what_it_was_billed_for_all_the_same(
    workshop: Workshop, provider: PaidEmbedder
) -> None:
    (batch,) = prepared(workshop, {"a": paragraphs("one")})
    story = Story("slow", lambda: workshop.perform(batch))
    while story.seam != "answer":
        story.advance()
    expire(workshop)

    assert isinstance(story.finish(), base.Skipped)

    assert workshop.value("SELECT count(*) FROM embeddings") == 1
    workshop.work()
    assert provider.billed == {paragraph("one"): 1}
    assert doubtful(workshop) == 0, "it came after all"


def test_a_claim_that_is_cancelled_between_two_requests_asks_for_nothing_more(
    workshop: Workshop, provider: PaidEmbedder
) -> None:
    (batch,) = prepared(workshop, {"a": paragraphs("one", "two", "three")})
    story = Story("cancelled", lambda: workshop.perform(batch))
    while story.seam != "answer":
        story.advance()
    workshop.client.cancel(workshop.value("SELECT id FROM jobs"))

    story.finish()

    assert sum(provider.billed.values()) <= 3
    assert workshop.value("SELECT count(*) FROM purchases") == 0
    assert workshop.value("SELECT count(*) FROM embeddings") == sum(provider.billed.values())


def test_a_search_for_a_text_that_is_being_bought_waits_for_it(workshop: Workshop, provider: PaidEmbedder) -> None:
    (batch,) = prepared(workshop, {"a": paragraphs("one")})
    story = Story("buyer", lambda: workshop.perform(batch))
    while story.seam != "answer":
        story.advance()
    search = Story("search", lambda: workshop.client.search(paragraph("one"), collection=COLLECTION))
    search._go.set()

    story.finish()
    found = search
    assert found._stopped.wait(60)
    found.finish()

    assert found.error is None
    assert provider.billed == {paragraph("one"): 1}
