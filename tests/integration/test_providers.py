"""Who embeds, by name: OpenAI's server (the stand-in), through the whole path of a document; and who may not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from openai_server import OpenAIServer
from turned_embedder import TurnedEmbedder
from workshop import COLLECTION, Workshop, chunked, paragraph, paragraphs

from pipeline import Settings
from pipeline.errors import CollectionMismatch, InvalidRequest
from pipeline.settings import CostSettings, OpenAISettings, Price
from pipeline.testing import ConstantEmbedder
from tasks import base

MODEL = "text-embedding-3-small"
DIMENSIONS = 16


def served_by(settings: Settings, server: OpenAIServer, **openai: Any) -> Settings:
    """Settings of somebody with an account there."""
    given = {"api_key": server.key, "base_url": server.url, "dimensions": DIMENSIONS, "batch": "on", **openai}
    cost = CostSettings(prices={MODEL: Price(online=2.0, batch=1.0), "constant": Price(online=2.0, batch=1.0)})
    return settings.model_copy(update={"openai": OpenAISettings.model_validate(given), "cost": cost})


@pytest.fixture
def workshop(settings: Settings, openai_server: OpenAIServer) -> Iterator[Workshop]:
    made = Workshop(chunked(served_by(settings, openai_server)))
    yield made
    made.close()


def test_documents_are_embedded_there_and_every_text_is_billed_once(
    workshop: Workshop, openai_server: OpenAIServer
) -> None:
    job = workshop.index({"a": paragraphs("one", "two"), "b": paragraphs("two", "three")}, provider="openai")

    assert job.state == "succeeded"
    assert job.chunks["embedded"] == 3
    assert [openai_server.control.billed(paragraph(name)) for name in ("one", "two", "three")] == [1, 1, 1]
    bill = openai_server.control.billing()
    assert {entry.dimensions for entry in bill} == {DIMENSIONS}
    tokens = sum(entry.tokens for entry in bill)
    (used,) = workshop.sql("SELECT sum(texts)::int AS texts, sum(tokens)::int AS tokens, sum(cost) AS cost FROM usage")
    assert used == {"texts": 3, "tokens": tokens, "cost": pytest.approx(tokens * 2e-6)}
    assert workshop.value("SELECT sum(tokens)::int FROM chunks WHERE document_id = 1 OR ordinal = 1") == tokens
    found = workshop.client.search("what is this paragraph two about", collection=COLLECTION, limit=1)
    assert found.degraded == ()


def test_a_query_is_paid_for_once_and_told_without_a_job(workshop: Workshop, openai_server: OpenAIServer) -> None:
    workshop.index({"a": paragraphs("one")}, provider="openai")

    for _ in range(3):
        assert workshop.client.search("what is it about", collection=COLLECTION).degraded == ()

    assert openai_server.control.billed("what is it about") == 1
    assert workshop.value("SELECT sum(texts)::int FROM usage WHERE job_id IS NULL") == 1


def test_while_the_server_is_away_a_search_goes_by_words_alone_unless_the_query_is_known(
    workshop: Workshop, openai_server: OpenAIServer
) -> None:
    workshop.index({"a": paragraphs("one"), "b": paragraphs("two")}, provider="openai")
    workshop.client.search("known", collection=COLLECTION)
    openai_server.control.fault("embeddings", "status", times=None, code=401)

    found = workshop.client.search("paragraph two", collection=COLLECTION, limit=1)

    assert found.degraded == ("keywords",)
    assert [result.uri for result in found.results] == ["b"]
    openai_server.control.clear_faults()


@pytest.mark.parametrize(("state", "cause"), [("revoked", "KeyRejected"), ("exhausted", "QuotaExhausted")])
def test_a_key_that_is_no_good_stops_the_work_at_once_with_its_reason_and_it_goes_on_with_a_good_one(
    workshop: Workshop, openai_server: OpenAIServer, state: str, cause: str
) -> None:
    openai_server.control.set_key(openai_server.key, state)
    job = workshop.put({"a": paragraphs("one", "two")}, provider="openai")
    workshop.prepare()
    (batch,) = workshop.ready()

    assert isinstance(workshop.perform(batch.id), base.Waiting)

    (circuit,) = workshop.sql(
        """SELECT cause, error, extract(epoch FROM retry_at - clock_timestamp())::float8 AS rest FROM circuits
            WHERE dependency = 'openai' AND opened_at IS NOT NULL"""
    )
    assert circuit["cause"] == cause
    assert openai_server.key not in circuit["error"]
    assert 50 < circuit["rest"] <= 60
    assert isinstance(workshop.perform(batch.id), base.Skipped), "nobody asks again meanwhile"
    assert workshop.sql("SELECT attempts, losses FROM batches WHERE id = %(id)s", id=batch.id) == [
        {"attempts": 0, "losses": 0}
    ]
    openai_server.control.set_key(openai_server.key, "valid")
    workshop.sql("UPDATE circuits SET retry_at = now()")
    workshop.work()
    assert workshop.client.job(job.job_id).state == "succeeded"
    assert workshop.value("SELECT count(*) FROM circuits WHERE opened_at IS NOT NULL") == 0
    assert {entry.times for entry in openai_server.control.billing()} == {1}


def test_a_worker_without_a_key_says_nothing_about_the_keys_of_the_others(
    settings: Settings, openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given OpenAI's own server (as far as anybody can tell by its name), a worker with a key, and one without
    found = socket.getaddrinfo
    here = {"api.openai.com": "127.0.0.1"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: found(here.get(host, host), *more, **named))
    address = openai_server.url.replace("127.0.0.1", "api.openai.com")
    workshop = Workshop(chunked(served_by(settings, openai_server, base_url=address)))
    keyless = Workshop(chunked(served_by(settings, openai_server, base_url=address, api_key="")))
    job = workshop.put({"a": paragraphs("one", "two")}, provider="openai")
    workshop.prepare()
    (batch,) = workshop.ready()

    # When the one without takes the work
    outcome = keyless.perform(batch.id)

    # Then it hands it back and names the setting, without an attempt, and nobody else is told to rest
    assert isinstance(outcome, base.Waiting)
    assert "Set MILLRACE_OPENAI__API_KEY" in outcome.reason
    assert workshop.sql("SELECT state, attempts FROM batches WHERE kind = 'embed'") == [
        {"state": "ready", "attempts": 0}
    ]
    assert workshop.value("SELECT count(*) FROM circuits WHERE opened_at IS NOT NULL") == 0

    # And the one with a key does it as soon as it comes by
    workshop.sql("UPDATE batches SET next_attempt_at = NULL")
    assert isinstance(workshop.perform(batch.id), base.Done)
    assert workshop.client.job(job.job_id).state == "succeeded"
    assert {entry.times for entry in openai_server.control.billing()} == {1}
    keyless.close()
    workshop.close()


def test_an_answer_that_is_lost_is_told_as_doubtful_and_asked_for_again(
    workshop: Workshop, openai_server: OpenAIServer
) -> None:
    openai_server.control.fault("embeddings", "drop")

    job = workshop.index({"a": paragraphs("one", "two")}, provider="openai")

    assert job.state == "succeeded"
    billed = sum(entry.times for entry in openai_server.control.billing())
    (used,) = workshop.sql("SELECT sum(texts)::int AS texts, sum(doubtful_texts)::int AS doubtful FROM usage")
    assert used["texts"] + used["doubtful"] == billed, "what was billed twice, the ledger shows"


def test_a_text_that_the_server_refuses_fails_its_document_alone(
    workshop: Workshop, openai_server: OpenAIServer
) -> None:
    openai_server.control.fault("embeddings", "status", times=None, code=400, match="poison")

    job = workshop.index({"bad": paragraphs("poison", "one"), "good": paragraphs("two")}, provider="openai")

    assert (job.state, job.documents["indexed"], job.documents["failed"]) == ("partial", 1, 1)
    (letter,) = workshop.client.dead_letters()
    assert (letter.uri, letter.chunk) == ("bad", paragraph("poison"))
    assert openai_server.control.billed(paragraph("one")) == 1


def test_a_local_model_that_the_server_has_too_is_embedded_by_either_and_shares_its_vectors(
    settings: Settings, openai_server: OpenAIServer
) -> None:
    workshop = Workshop(
        chunked(served_by(settings, openai_server, dimensions=None, same_as={"constant": "constant"})),
        ConstantEmbedder(),
    )
    workshop.index({"a": paragraphs("one", "two")})

    workshop.index({"b": paragraphs("two", "three")}, provider="openai")

    assert workshop.texts() == {
        "a": [paragraph("one"), paragraph("two")],
        "b": sorted([paragraph("two"), paragraph("three")]),
    }
    assert openai_server.control.billed(paragraph("two")) == 0
    assert openai_server.control.billed(paragraph("three")) == 1
    assert workshop.audit() == {"expected": 4, "present": 4}
    workshop.close()


@pytest.mark.parametrize("provider", ["openai", "openai_batch"])
def test_a_model_that_is_only_said_to_be_the_same_is_not_bought_and_no_document_is_blamed(
    settings: Settings, openai_server: OpenAIServer, provider: str
) -> None:
    there = served_by(settings, openai_server, dimensions=None, same_as={"constant": "constant"})
    workshop = Workshop(chunked(there), TurnedEmbedder())
    workshop.index({"z": paragraphs("zero")})

    job = workshop.put({"a": paragraphs("one")}, provider=provider)
    workshop.prepare()
    (batch,) = workshop.ready("embed")
    outcome = workshop.perform(batch.id)

    assert isinstance(outcome, base.Waiting)
    assert "is not constant" in outcome.reason
    assert "MILLRACE_OPENAI__SAME_AS" in outcome.reason
    assert workshop.client.job(job.job_id).documents["failed"] == 0
    assert openai_server.control.billed(paragraph("one")) == 0
    assert workshop.value("SELECT count(*) FROM purchases") == 0
    workshop.close()


def test_a_collection_refuses_another_model_other_dimensions_and_another_endpoint_naming_both(
    settings: Settings, openai_server: OpenAIServer
) -> None:
    mine = served_by(settings, openai_server)
    workshop = Workshop(mine)
    workshop.put({"a": "words"}, provider="openai")
    url = openai_server.url.rstrip("/")

    with pytest.raises(CollectionMismatch, match=rf"{MODEL} \(openai, 16 dim.*, not with text-embedding-3-large"):
        workshop.put({"b": "words"}, model="text-embedding-3-large")
    with pytest.raises(CollectionMismatch, match=r"16 dimensions, .*, not with .* 32 dimensions"):
        workshop.put({"b": "words"}, dimensions=32)
    with pytest.raises(CollectionMismatch, match=rf"of {url}.*, not with constant \(local"):
        workshop.put({"b": "words"}, provider="local")
    workshop.put({"c": "words"}, provider="openai", model=MODEL, dimensions=DIMENSIONS)
    elsewhere = Workshop(served_by(settings, openai_server, base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(CollectionMismatch, match=rf"of {url}.*, not with .* of http://127.0.0.1:9/v1"):
        elsewhere.put({"b": "words"})
    elsewhere.put({"b": "words"}, provider="local", collection="local")
    with pytest.raises(CollectionMismatch, match=rf"made with constant \(local.*, not with {MODEL} \(openai"):
        elsewhere.put({"b": "words"}, provider="openai", collection="local")
    assert workshop.value("SELECT count(*) FROM jobs") == 3
    elsewhere.close()
    workshop.close()


def test_what_cannot_be_is_refused_before_anything_is_written(settings: Settings, openai_server: OpenAIServer) -> None:
    workshop = Workshop(served_by(settings, openai_server, batch="off"))
    keyless = Workshop(settings)

    with pytest.raises(InvalidRequest, match="'cohere' is none of local, openai, openai_batch, auto"):
        workshop.put({"a": "words"}, provider="cohere")
    with pytest.raises(InvalidRequest, match="Batch API"):
        workshop.put({"a": "words"}, provider="openai_batch")
    with pytest.raises(InvalidRequest, match="MILLRACE_OPENAI__API_KEY"):
        keyless.put({"a": "words"}, provider="openai")
    with pytest.raises(InvalidRequest, match="not an interval"):
        workshop.put({"a": "words"}, need_by="soon")
    with pytest.raises(InvalidRequest, match="US dollars"):
        workshop.put({"a": "words"}, max_cost=float("nan"))
    with pytest.raises(InvalidRequest, match="dimensions"):
        workshop.put({"a": "words"}, provider="openai", dimensions=0)
    assert workshop.value("SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM collections)") == 0
    keyless.close()
    workshop.close()


def test_when_it_is_needed_and_what_it_may_cost_is_kept_with_the_job(workshop: Workshop) -> None:
    workshop.put({"a": "words"}, provider="openai", need_by="2h", max_cost=0.5)
    workshop.put({"b": "words"}, need_by="2099-01-01T00:00:00+00:00")

    rows = workshop.sql(
        "SELECT extract(epoch FROM need_by - created_at)::float8 AS seconds, max_cost, provider FROM jobs ORDER BY id"
    )
    assert rows[0]["seconds"] == pytest.approx(7200, abs=10)
    assert [(row["max_cost"], row["provider"]) for row in rows] == [(0.5, "openai"), (None, "openai")]
    assert rows[1]["seconds"] > 1e9


def test_a_job_over_its_budget_is_paused_and_buys_nothing_more(workshop: Workshop, openai_server: OpenAIServer) -> None:
    job = workshop.put({"a": paragraphs("one", "two")}, provider="openai", max_cost=1e-9)
    workshop.work()

    status = workshop.client.job(job.job_id)
    assert status.state == "paused"
    assert openai_server.control.billing() == []
    assert workshop.value("SELECT count(*) FROM purchases") == 0
    workshop.client.set_budget(1.0, job_id=job.job_id)
    workshop.client.resume(job.job_id)
    workshop.work()
    assert workshop.client.job(job.job_id).state == "succeeded"
    assert workshop.value("SELECT cost_reserved FROM jobs") == 0


def test_an_embedding_that_is_lost_is_bought_again_by_a_repair_and_told(
    workshop: Workshop, openai_server: OpenAIServer
) -> None:
    workshop.index({"a": paragraphs("one", "two")}, provider="openai")
    workshop.sql("DELETE FROM embeddings WHERE key = (SELECT embedding_key FROM chunks ORDER BY ordinal LIMIT 1)")

    report = workshop.client.rebuild(COLLECTION, fresh=True)

    assert report.repaired.to_json() == {"upserted": 2, "deleted": 0, "embedded": 1, "failed": 0, "error": None}
    assert openai_server.control.billed(paragraph("one")) == 2
    assert workshop.value("SELECT sum(texts)::int FROM usage WHERE job_id IS NULL") == 1
    assert workshop.value("SELECT count(*) FROM purchases") == 0


def test_auto_is_decided_when_the_documents_are_cut_and_carried_out(
    workshop: Workshop, openai_server: OpenAIServer
) -> None:
    fast = workshop.put({"a": paragraphs("one")}, provider="auto", need_by="10m")
    workshop.work()
    slow = workshop.put({"b": paragraphs("two")}, provider="auto")
    workshop.work()

    assert workshop.client.job(fast.job_id).state == "succeeded"
    rows = workshop.sql("SELECT provider, routed FROM jobs ORDER BY id")
    assert rows == [{"provider": "auto", "routed": "openai"}, {"provider": "auto", "routed": "openai_batch"}]
    assert workshop.value("SELECT state FROM batches WHERE job_id = %(id)s AND kind = 'embed'", id=slow.job_id) == (
        "waiting"
    )
    assert openai_server.control.billed(paragraph("two")) == 0
