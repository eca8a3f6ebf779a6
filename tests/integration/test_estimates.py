"""What an ingest would cost is told before anything is enqueued, and nothing is written for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from paid_embedder import DIMENSIONS, MODEL, PRICE, PaidEmbedder, paying
from workshop import COLLECTION, Workshop, chunked, paragraph, paragraphs

from pipeline import Document, Settings
from pipeline.embedding.openai.tokens import count_tokens
from pipeline.errors import CollectionMismatch, InvalidRequest
from pipeline.estimates import Estimate, Offer
from pipeline.settings import OpenAISettings
from pipeline.testing import ConstantEmbedder


class ManyDimensions(ConstantEmbedder):
    """Another model than the one of the other tests."""

    def __init__(self) -> None:
        super().__init__(16)


@pytest.fixture
def provider(settings: Settings) -> PaidEmbedder:
    return PaidEmbedder(paying(settings).openai)


@pytest.fixture
def workshop(settings: Settings, provider: PaidEmbedder) -> Iterator[Workshop]:
    made = Workshop(chunked(paying(settings)), paid=provider)
    yield made
    made.close()


def documents(**texts: str) -> list[Document]:
    return [Document(uri, text) for uri, text in texts.items()]


def offer(found: Estimate, provider: str) -> Offer:
    (one,) = (item for item in found.offers if item.provider == provider)
    return one


def written(workshop: Workshop) -> dict[str, Any]:
    """Everything that is in the ledger, and the collections of the index."""
    tables = [
        row["name"]
        for row in workshop.sql(
            "SELECT quote_ident(tablename) AS name FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
        )
    ]
    return {
        name: workshop.value(f"SELECT md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {name} t")
        for name in tables
    }


# -- what is counted --------------------------------------------------------------------------------------------------


def test_an_estimate_tells_what_the_ingest_then_does_and_writes_nothing(
    workshop: Workshop, provider: PaidEmbedder
) -> None:
    # Given a collection with two documents, one of which changes
    workshop.index({"a": paragraphs("one", "two"), "b": paragraphs("three")}, provider="openai")
    given = documents(
        a=paragraphs("one", "two"),
        b=paragraphs("three", "four"),
        c=paragraphs("four", "five", "one"),
        d="",
    )
    before, billed = written(workshop), provider.billed.copy()

    # When it is asked what it would cost to ingest them
    found = workshop.client.estimate(given, collection=COLLECTION)

    # Then nothing was written or bought
    assert written(workshop) == before
    assert provider.billed == billed
    # and every text is counted once: new, stored, or repeated
    assert dict(found.documents) == {
        "total": 4, "new": 2, "unchanged": 1, "failed": 1, "deleted": 0, "skipped": 0,
    }  # fmt: skip
    tokens = {name: provider.count_tokens([paragraph(name)])[0] for name in ("one", "three", "four", "five")}
    assert (found.new.texts, found.new.tokens) == (2, tokens["four"] + tokens["five"])
    assert (found.cached.texts, found.cached.tokens) == (2, tokens["three"] + tokens["one"])
    assert (found.repeated.texts, found.repeated.tokens) == (1, tokens["four"])
    assert (found.chunks.texts, found.ordered.texts) == (5, 0)
    assert [error["uri"] for error in found.errors] == ["d"]
    assert "d is empty" in found.errors[0]["error"]
    assert found.saved_by_cache == pytest.approx(found.cached.tokens * PRICE.online / 1e6)

    # When they are ingested
    job = workshop.index(given)

    # Then it was right, to the token
    assert provider.billed - billed == {paragraph("four"): 1, paragraph("five"): 1}
    assert job.cost is not None
    assert job.cost.spent == pytest.approx(offer(found, "openai").cost)
    assert (job.usage.texts, job.usage.tokens) == (found.new.texts, found.new.tokens)
    assert job.documents["failed"] == 1


def test_a_collection_that_is_missing_is_not_made_and_needs_no_key(workshop: Workshop, settings: Settings) -> None:
    # Given somebody without a key who wonders what OpenAI's model would cost
    keyless = Workshop(settings)
    text = "The lighthouse keeper wrote down every ship that passed. " * 200
    try:
        before = written(keyless)
        found = keyless.client.estimate(documents(a=text), collection="new", provider="openai_batch")
    finally:
        keyless.close()

    # Then it is told to the token, by the price table
    assert written(keyless) == before
    assert not found.exists
    assert (found.model["name"], found.model["dimensions"], found.provider) == (MODEL, 1536, "openai_batch")
    assert found.chunks.texts > 3
    assert found.exact_tokens
    assert found.new + found.repeated == found.chunks
    assert abs(found.chunks.tokens - count_tokens([text], OpenAISettings(), MODEL)[0]) < 2 * found.chunks.texts
    assert offer(found, "openai").cost == pytest.approx(found.new.tokens * 0.02 / 1e6)
    assert offer(found, "openai_batch").cost == pytest.approx(found.new.tokens * 0.01 / 1e6)
    assert not offer(found, "local").available
    assert "model of OpenAI's" in offer(found, "local").basis


def test_what_is_being_bought_already_is_told_apart(workshop: Workshop) -> None:
    workshop.put({"a": paragraphs("one", "two")}, provider="openai_batch")
    workshop.work()
    assert workshop.value("SELECT count(*) FROM purchases") == 2

    found = workshop.client.estimate(documents(b=paragraphs("two", "three")), collection=COLLECTION)

    assert (found.new.texts, found.ordered.texts, found.cached.texts) == (1, 1, 0)


def test_a_sync_tells_what_it_would_delete(workshop: Workshop, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.txt").write_text(paragraph(name))
    workshop.client.sync(tmp_path, collection=COLLECTION)
    workshop.work()
    (tmp_path / "two.txt").unlink()
    (tmp_path / "three.txt").write_text(paragraph("four"))

    found = workshop.client.estimate(tmp_path, sync=True, collection=COLLECTION)

    assert dict(found.documents) == {
        "total": 2, "new": 1, "unchanged": 1, "failed": 0, "deleted": 1, "skipped": 0,
    }  # fmt: skip
    assert found.new.texts == 1
    assert len(workshop.client.uris(collection=COLLECTION)) == 3
    with pytest.raises(InvalidRequest, match="a path, a URL or a Source"):
        workshop.client.estimate(documents(a="text"), sync=True)


def test_documents_are_read_a_few_at_a_time(settings: Settings) -> None:
    # Given groups of ten
    small = settings.ingest.model_copy(update={"group_documents": 10, "prepare_documents": 5})
    workshop = Workshop(settings.model_copy(update={"ingest": small}))
    read, furthest = 0, 0

    def stream() -> Iterator[Document]:
        nonlocal read
        for number in range(100):
            read += 1
            yield Document(f"{number}", f"text {number}")

    def on_progress(documents: int, chunks: int) -> None:
        nonlocal furthest
        assert documents == chunks
        furthest = max(furthest, read - documents)

    # When a hundred are estimated
    try:
        found = workshop.client.estimate(stream(), on_progress=on_progress)
    finally:
        workshop.close()

    # Then no more than a group was read ahead
    assert found.new.texts == 100
    assert 0 < furthest <= 10


# -- what it would cost -----------------------------------------------------------------------------------------------


def test_local_time_is_measured_where_jobs_say_how_fast_it_is(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one")})
    given = documents(b=paragraphs("two", "three"))
    before = offer(workshop.client.estimate(given, collection=COLLECTION), "local")
    workshop.sql("UPDATE jobs SET chunks_embedded = 1000, started_at = finished_at - interval '100 seconds'")

    after = offer(workshop.client.estimate(given, collection=COLLECTION), "local")

    assert "assumed" in before.basis
    assert "measured: 10 chunks a second" in after.basis
    assert after.cost == 0.0
    assert after.seconds == pytest.approx(0.2)


def test_online_time_is_that_of_the_limits_and_batches_of_the_window(settings: Settings) -> None:
    # Given limits that make the tokens of a book take a while
    paid = paying(settings, tokens_per_minute=10, requests_per_minute=10)
    paid = paid.model_copy(
        update={"openai_batch": paid.openai_batch.model_copy(update={"enqueued_tokens": 10, "linger_seconds": 0})}
    )
    workshop = Workshop(chunked(paid), paid=PaidEmbedder(paid.openai))
    try:
        found = workshop.client.estimate(documents(a=paragraphs("one", "two")), provider="openai")
    finally:
        workshop.close()

    tokens = found.new.tokens
    assert offer(found, "openai").seconds == pytest.approx(60 * tokens / 10 + 1, rel=0.01)
    assert "10 tokens a minute" in offer(found, "openai").basis
    assert "assumed" not in offer(found, "openai").basis
    rounds = -(-tokens // 10)
    # And the margin, as routing counts it: the dry run would else promise the Batch API where the job goes online.
    assert offer(found, "openai_batch").seconds == rounds * 86_400 + paid.openai_batch.margin_seconds
    assert f"{rounds} times: 10 tokens" in offer(found, "openai_batch").basis


def test_what_the_budgets_leave_is_told_of_every_provider(workshop: Workshop) -> None:
    given = documents(a=paragraphs("one", "two"))
    tokens = workshop.client.estimate(given, provider="openai").new.tokens
    dear = tokens * PRICE.online / 1e6

    def affordable(**options: Any) -> dict[str, bool]:
        found = workshop.client.estimate(given, provider="openai", **options)
        return {item.provider: item.within_budget for item in found.offers if item.available}

    assert affordable() == {"openai": True, "openai_batch": True}
    assert affordable(max_cost=dear * 0.6) == {"openai": False, "openai_batch": True}
    workshop.client.set_budget(dear * 0.1, tenant="default")
    assert affordable() == {"openai": False, "openai_batch": False}
    assert affordable(tenant="another") == {"openai": True, "openai_batch": True}


@pytest.mark.parametrize("as_time", [False, True])
def test_whom_auto_would_choose_is_told_with_the_reason(workshop: Workshop, *, as_time: bool) -> None:
    given = documents(a=paragraphs("one"))

    def chosen(seconds: float | None) -> str:
        need_by = datetime.now(UTC) + timedelta(seconds=seconds) if as_time and seconds else seconds
        found = workshop.client.estimate(given, collection="x", provider="openai", need_by=need_by)
        assert found.auto is not None
        return found.auto[0]

    late = workshop.client.estimate(given, collection="x", provider="openai_batch", need_by=3600.0)
    in_time = {item.provider: item.to_json()["in_time"] for item in late.offers if item.available}
    assert in_time == {"openai": True, "openai_batch": False}
    assert chosen(None) == "openai_batch"
    assert chosen(3600.0) == "openai"
    assert chosen(200_000.0) == "openai_batch"


def test_what_is_all_stored_is_done_at_once_and_never_too_late(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one")}, provider="openai")

    found = workshop.client.estimate(documents(b=paragraphs("one")), collection="x", provider="openai", need_by=60.0)

    told = [(item.provider, item.cost, item.seconds, item.in_time) for item in found.offers if item.available]
    assert told == [("openai", 0.0, 0.0, True), ("openai_batch", 0.0, 0.0, True)]


def test_a_model_that_is_here_and_served_too_can_be_embedded_any_way(settings: Settings) -> None:
    paid = paying(settings, same_as={"served": "constant"})
    workshop = Workshop(paid)
    try:
        found = workshop.client.estimate(documents(a="text"), collection="x")
        # What nobody has measured here is not relied on where there is another way: as the job will decide it.
        hurried = workshop.client.estimate(documents(a="text"), collection="x", provider="auto", need_by=600.0)
        job = workshop.put({"a": "text"}, provider="auto", need_by=600.0)
        workshop.prepare()
        (route,) = workshop.sql("SELECT routed, route_reason FROM jobs WHERE id = %(job)s", job=job.job_id)
    finally:
        workshop.close()

    assert hurried.auto is not None
    assert hurried.auto[0] == route["routed"] == "openai"
    assert hurried.auto[1].partition("; ")[2] == route["route_reason"].partition("; ")[2] != ""

    assert [item.available for item in found.offers] == [True, True, True]
    assert [item.cost for item in found.offers] == [0.0, 0.0, 0.0], "its name there has no price"


# -- bad input --------------------------------------------------------------------------------------------------------


def test_what_ingest_would_refuse_is_refused(workshop: Workshop, settings: Settings) -> None:
    workshop.index({"a": "text"})
    client = workshop.client
    for wrong in (
        {"provider": "elsewhere"},
        {"collection": "a/b"},
        {"dimensions": 0},
        {"max_cost": -1.0},
        {"need_by": "soon"},
        {"provider": "openai", "collection": COLLECTION},
    ):
        with pytest.raises((InvalidRequest, CollectionMismatch)):
            client.estimate(documents(b="text"), **wrong)
    other = Workshop(settings, embedder=ManyDimensions())
    try:
        with pytest.raises(CollectionMismatch, match="16 dimensions"):
            other.client.estimate(documents(b="text"), collection=COLLECTION)
    finally:
        other.close()
    assert DIMENSIONS != 16
