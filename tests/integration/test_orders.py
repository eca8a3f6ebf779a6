"""Texts on order with the Batch API: who waits for them, who takes them, and what is left of those that end."""

from __future__ import annotations

from paid_embedder import PaidEmbedder
from paused_stories import Killed, Story
from purchasing import deliver, doubtful, expire, pack, prepared, provider, states, workshop
from sweeping import collected
from workshop import Workshop, paragraph, paragraphs

from pipeline.duties import Bounds
from pipeline.ledger import cancelling, chunks, orders, purchases
from tasks import base
from tasks.maintenance import reconcile

__all__ = ["provider", "workshop"]


def test_what_is_ordered_is_waited_for_and_found_when_it_is_there(workshop: Workshop, provider: PaidEmbedder) -> None:
    (batch,) = prepared(workshop, {"a": paragraphs("one", "two")}, provider="openai_batch")

    outcome = workshop.perform(batch)

    assert isinstance(outcome, base.Waiting)
    assert states(workshop) == ["waiting"]
    assert workshop.work() == [], "nobody is kept busy by it"
    assert deliver(workshop, "one") == 0
    assert states(workshop) == ["waiting"]
    assert deliver(workshop, "two") == 1
    assert isinstance(workshop.perform(batch), base.Done)
    assert workshop.texts() == {"a": [paragraph("one"), paragraph("two")]}
    # The search has bought its own query.
    assert paragraph("one") not in provider.billed
    assert workshop.value("SELECT count(*) FROM reservations") == 0


def test_two_jobs_order_one_text_once_and_both_go_on_when_it_is_there(workshop: Workshop) -> None:
    (first,) = prepared(workshop, {"a": paragraphs("shared", "one")}, provider="openai_batch")
    (second,) = prepared(workshop, {"b": paragraphs("shared")}, provider="openai_batch", collection="other")
    workshop.perform(first)
    workshop.perform(second)

    assert workshop.value("SELECT count(*) FROM purchases") == 2
    assert deliver(workshop, "shared") == 1
    assert states(workshop) == ["waiting", "ready"]
    assert deliver(workshop, "one") == 1


def test_an_order_that_is_harvested_while_it_is_waited_for_wakes_who_waits(workshop: Workshop) -> None:
    (first,) = prepared(workshop, {"a": paragraphs("shared")}, provider="openai_batch")
    workshop.perform(first)
    (second,) = prepared(workshop, {"b": paragraphs("shared", "two")}, provider="openai_batch", collection="other")
    workshop.perform(second)
    # Given a claim that has found what it lacks on order, and does not wait yet
    (third,) = prepared(workshop, {"c": paragraphs("shared")}, provider="openai_batch", collection="third")
    claim = workshop.claim(third)
    with workshop.services.ledger.transaction() as connection:
        wanted = chunks.wanted_points(connection, [claim])
        assert orders.order(connection, [claim], wanted, b"spec").ordered

    deliver(workshop, "shared")
    with workshop.services.ledger.transaction() as connection:
        gone_on = orders.wait(connection, [claim], [point.embedding_key for point in wanted])

    assert gone_on == [claim]
    assert states(workshop) == ["ready", "waiting", "ready"]


def test_who_buys_online_takes_an_order_that_nobody_has_sent_yet_and_wakes_who_waits_for_it(
    workshop: Workshop, provider: PaidEmbedder
) -> None:
    (slow,) = prepared(workshop, {"a": paragraphs("shared")}, provider="openai_batch")
    workshop.perform(slow)

    (fast,) = prepared(workshop, {"b": paragraphs("shared")}, collection="other")
    assert isinstance(workshop.perform(fast), base.Done)

    assert provider.billed == {paragraph("shared"): 1}
    assert states(workshop) == ["ready", "indexed"]
    assert isinstance(workshop.perform(slow), base.Done)


def test_who_buys_online_waits_for_what_the_batch_api_has_already(workshop: Workshop, provider: PaidEmbedder) -> None:
    (slow,) = prepared(workshop, {"a": paragraphs("shared")}, provider="openai_batch")
    workshop.perform(slow)
    pack(workshop)

    (fast,) = prepared(workshop, {"b": paragraphs("shared", "own")}, collection="other")
    assert isinstance(workshop.perform(fast), base.Waiting)

    assert provider.billed == {paragraph("own"): 1}
    assert states(workshop) == ["waiting", "waiting"]
    assert deliver(workshop, "shared") == 2


def test_what_was_to_come_from_the_batch_api_and_has_to_be_sent_again_is_bought_by_who_buys_online(
    workshop: Workshop, provider: PaidEmbedder
) -> None:
    (slow,) = prepared(workshop, {"a": paragraphs("shared")}, provider="openai_batch")
    workshop.perform(slow)
    pack(workshop)
    (fast,) = prepared(workshop, {"b": paragraphs("shared")}, collection="other")
    workshop.perform(fast)
    assert states(workshop) == ["waiting", "waiting"]

    workshop.sql("UPDATE purchases SET remote_batch_id = NULL")  # it expired unfinished
    reconcile(workshop.services, Bounds(100, 20.0))

    assert states(workshop) == ["waiting", "ready"]
    assert isinstance(workshop.perform(fast), base.Done)
    assert states(workshop) == ["ready", "indexed"]
    assert provider.billed == {paragraph("shared"): 1}


def test_a_claim_that_dies_when_it_has_ordered_and_before_it_waits_finds_its_orders(workshop: Workshop) -> None:
    (batch,) = prepared(workshop, {"a": paragraphs("one")}, provider="openai_batch")
    claim = workshop.claim(batch)
    with workshop.services.ledger.transaction() as connection:
        orders.order(connection, [claim], chunks.wanted_points(connection, [claim]), b"spec")

    expire(workshop)
    workshop.perform(batch)

    assert states(workshop) == ["waiting"]
    assert workshop.value("SELECT count(*) FROM purchases") == 1
    assert doubtful(workshop) == 0


def test_a_text_that_the_batch_api_gives_up_fails_its_document_alone(workshop: Workshop) -> None:
    (batch,) = prepared(
        workshop, {"bad": paragraphs("wrong", "one"), "good": paragraphs("two")}, provider="openai_batch"
    )
    workshop.perform(batch)
    deliver(workshop, "one", "two")
    with workshop.services.ledger.transaction() as connection:
        connection.execute("UPDATE purchases SET attempts = 3, error = 'no such thing'")
        (key,) = [bytes(row["key"]) for row in connection.execute("SELECT key FROM purchases").fetchall()]
        assert purchases.wake(connection, [key]) == 1

    assert isinstance(workshop.perform(batch), base.Done)

    job = workshop.client.job(workshop.value("SELECT id FROM jobs"))
    assert job.state == "partial"
    assert job.errors == [{"uri": "bad", "error": "no such thing"}]
    (letter,) = workshop.client.dead_letters()
    assert letter.chunk == paragraph("wrong")
    assert workshop.value("SELECT count(*) FROM purchases") == 0, "who tries it again may order it again"


def test_cancelling_a_job_ends_what_waits_and_takes_back_orders_that_nobody_else_wants(workshop: Workshop) -> None:
    (first,) = prepared(workshop, {"a": paragraphs("shared", "own")}, provider="openai_batch")
    workshop.perform(first)
    (second,) = prepared(workshop, {"b": paragraphs("shared")}, provider="openai_batch", collection="other")
    workshop.perform(second)
    job, other = [row["id"] for row in workshop.sql("SELECT id FROM jobs ORDER BY id")]

    workshop.client.cancel(job)

    assert states(workshop) == ["cancelled", "waiting"]
    (row,) = workshop.sql("SELECT p.text, b.job_id FROM purchases p JOIN batches b ON b.id = p.batch_id")
    assert row == {"text": paragraph("shared"), "job_id": other}, "and the other job pays for it"
    deliver(workshop, "shared")
    assert isinstance(workshop.perform(second), base.Done)


def test_a_batch_that_waits_for_nothing_any_more_is_found(workshop: Workshop) -> None:
    (batch,) = prepared(workshop, {"a": paragraphs("one")}, provider="openai_batch")
    workshop.perform(batch)
    workshop.sql("DELETE FROM purchases")  # whoever had it was killed before it said so

    reconcile(workshop.services, Bounds(100, 20.0))

    assert states(workshop) == ["ready"]
    workshop.perform(batch)
    assert states(workshop) == ["waiting"], "and it was ordered again"
    assert workshop.value("SELECT count(*) FROM purchases") == 1


def test_a_newer_version_of_a_document_ends_the_wait_of_the_older_one(workshop: Workshop) -> None:
    (batch,) = prepared(workshop, {"a": paragraphs("old")}, provider="openai_batch", priority="low")
    workshop.perform(batch)

    (newer,) = prepared(workshop, {"a": paragraphs("new")}, provider="openai_batch", priority="high")
    reconcile(workshop.services, Bounds(100, 20.0))

    assert workshop.versions("a") == ["superseded", "open"]
    assert isinstance(workshop.perform(batch), base.Done), "there is nothing in it any more"
    workshop.perform(newer)
    assert states(workshop) == ["indexed", "waiting"]


def test_a_job_that_is_paused_while_it_waits_goes_on_when_it_is_resumed(workshop: Workshop) -> None:
    (batch,) = prepared(workshop, {"a": paragraphs("one")}, provider="openai_batch")
    workshop.perform(batch)
    job = workshop.value("SELECT id FROM jobs")
    workshop.client.pause(job)

    assert deliver(workshop, "one") == 1
    assert isinstance(workshop.perform(batch), base.Skipped)
    workshop.client.resume(job)
    workshop.work()

    assert workshop.client.job(job).state == "succeeded"


def test_the_priority_of_a_job_goes_to_what_it_has_on_order(workshop: Workshop) -> None:
    (batch,) = prepared(workshop, {"a": paragraphs("one")}, provider="openai_batch", priority="low")
    workshop.perform(batch)

    workshop.client.prioritize(workshop.value("SELECT id FROM jobs"), "high")

    assert workshop.value("SELECT priority FROM purchases") == 0
    assert workshop.value("SELECT priority FROM batches WHERE kind = 'embed'") == 0
    assert states(workshop) == ["waiting"]


def test_what_nobody_wants_any_more_is_collected_and_what_may_have_been_paid_for_is_told(
    workshop: Workshop, provider: PaidEmbedder
) -> None:
    (bought,) = prepared(workshop, {"a": paragraphs("one")})
    story = Story("killed", lambda: workshop.perform(bought))
    while story.seam != "answer":
        story.advance()
    story.advance(Killed())
    (ordered,) = prepared(workshop, {"b": paragraphs("two")}, provider="openai_batch", collection="other")
    workshop.perform(ordered)
    for row in workshop.sql("SELECT id FROM jobs"):
        with workshop.services.ledger.transaction() as connection:
            cancelling.begin(connection, row["id"])
    workshop.sql("UPDATE batches SET state = 'cancelled', epoch = epoch + 1, ended_at = now() WHERE ended_at IS NULL")
    workshop.sql("UPDATE purchases SET created_at = now() - interval '1 hour'")

    assert collected(workshop, Bounds(100, 20.0, dry_run=True))["purchases"] == 2
    assert collected(workshop)["purchases"] == 2
    assert workshop.value("SELECT count(*) FROM purchases") == 0
    assert doubtful(workshop) == 1
    assert workshop.value("SELECT sum(cost_doubtful) FROM jobs") > 0
