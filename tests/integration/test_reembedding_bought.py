"""Re-embedding by OpenAI, online and by the Batch API: every text is paid for once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from hashlib import sha256

import pytest
from openai_server import OpenAIServer
from remote_scene import batch_settings
from workshop import COLLECTION, Workshop, chunked, paragraph, paragraphs

from pipeline import Document, Settings
from pipeline.duties import Bounds
from pipeline.errors import InvalidRequest, KeyRejected, ModelUnavailable
from pipeline.ledger import remote
from pipeline.openai_batch.packing import pack
from pipeline.reembedding import ReembeddingStatus, advance
from tasks import openai_batch

MODEL = "text-embedding-3-small"
DOCUMENTS = {f"n/{name}": paragraphs(f"a{name}", f"b{name}") for name in "abcde"}


@pytest.fixture
def workshop(settings: Settings, openai_server: OpenAIServer) -> Iterator[Workshop]:
    """Of a collection of a local model."""
    made = Workshop(chunked(batch_settings(settings, openai_server)))
    made.index(DOCUMENTS)
    yield made
    made.close()


def go_on(workshop: Workshop, server: OpenAIServer) -> ReembeddingStatus:
    """The duty, the workers and the Batch API in turns, until the collection is switched and all is cleared away."""
    settings = workshop.settings
    for _ in range(60):
        found = workshop.client.reembedding(COLLECTION)
        if found.ended_at is not None:
            return found
        advance(workshop.services, Bounds(100, 5.0), moment_seconds=0.0)
        workshop.work()
        pack(workshop.services.ledger, settings.openai, settings.openai_batch)
        with workshop.services.ledger.transaction() as connection:
            unfinished = [row for row in remote.listing(connection) if row.closed_at is None]
        if unfinished:
            server.control.advance(60.0)
            workshop.sql("UPDATE remote_batches SET next_at = clock_timestamp() WHERE closed_at IS NULL")
        for row in unfinished:
            openai_batch.perform(workshop.services, row.id)
    raise AssertionError(f"it does not end: {found}")


def billed(server: OpenAIServer, texts: list[str]) -> Counter[int]:
    times = {entry.hash: entry.times for entry in server.control.billing()}
    return Counter(times.get(sha256(text.encode()).hexdigest(), 0) for text in texts)


def passages(documents: dict[str, str]) -> list[str]:
    return sorted({text for document in documents.values() for text in document.split("\n\n")})


@pytest.mark.parametrize("provider", ["openai", "openai_batch"])
def test_a_local_collection_gets_the_vectors_of_openai(
    workshop: Workshop, openai_server: OpenAIServer, provider: str
) -> None:
    began = workshop.client.reembed(COLLECTION, MODEL, provider=provider, dimensions=8)
    advance(workshop.services, Bounds(100, 5.0), moment_seconds=0.0)
    workshop.work()
    assert workshop.value("SELECT count(*) FROM batches WHERE state = 'waiting'") == (provider == "openai_batch")
    # What comes meanwhile is embedded as before, and by the new model too: online, since it is little.
    workshop.index({"n/late": paragraphs("late")}, provider="local")
    documents = {**DOCUMENTS, "n/late": paragraphs("late")}

    ended = go_on(workshop, openai_server)

    assert (ended.state, ended.provider, ended.model["dimensions"]) == ("done", provider, 8)
    assert billed(openai_server, passages(documents)) == {1: 11}
    status = workshop.client.job(began.job_id)
    assert (status.state, status.chunks["indexed"], status.chunks["embedded"]) == ("succeeded", 11, 11)
    assert status.cost is not None
    assert ended.cost == pytest.approx(status.cost.spent)
    assert ended.cost > 0
    assert workshop.value("SELECT provider FROM collections") == provider
    assert workshop.value("SELECT count(*) FROM purchases") == 0
    assert workshop.texts() == {uri: sorted(text.split("\n\n")) for uri, text in sorted(documents.items())}
    assert workshop.audit() == {"expected": 11, "present": 11}

    # What is unchanged stays so, and what changes is bought from then on.
    given = [Document(uri, text) for uri, text in documents.items()]
    assert workshop.client.estimate(given, collection=COLLECTION).documents["unchanged"] == 6
    assert workshop.index(documents).documents["unchanged"] == 6
    assert billed(openai_server, passages(documents)) == {1: 11}
    assert workshop.embedder.texts.count(paragraph("late")) == 1


def test_work_that_was_begun_for_the_local_model_is_done_by_who_has_the_new_one(
    workshop: Workshop, openai_server: OpenAIServer
) -> None:
    # Given one document that is prepared, and one that is only enqueued, when the collection is switched
    workshop.put({"n/prepared": paragraph("prepared")}, provider="local")
    workshop.prepare()
    workshop.put({"n/enqueued": paragraph("enqueued")}, provider="local")
    waiting = {batch.id for batch in workshop.ready()}
    workshop.client.reembed(COLLECTION, MODEL, provider="openai", dimensions=8)
    while not workshop.client.reembedding(COLLECTION).switched:
        advance(workshop.services, Bounds(100, 5.0), moment_seconds=0.0)
        for batch in workshop.ready("embed"):
            if batch.id not in waiting:
                workshop.perform(batch.id)

    assert go_on(workshop, openai_server).state == "done"
    workshop.work()

    documents = {**DOCUMENTS, "n/enqueued": paragraph("enqueued"), "n/prepared": paragraph("prepared")}
    assert workshop.texts() == {uri: sorted(text.split("\n\n")) for uri, text in sorted(documents.items())}
    assert billed(openai_server, passages(documents)) == {1: 12}
    assert {job.state for job in workshop.client.jobs()} == {"succeeded"}
    assert workshop.value("SELECT max(attempts) FROM batches") == 0
    assert workshop.audit() == {"expected": 12, "present": 12}


def test_what_was_bought_is_not_bought_again_after_it_was_cancelled(
    workshop: Workshop, openai_server: OpenAIServer
) -> None:
    workshop.client.reembed(COLLECTION, MODEL, provider="openai", dimensions=8)
    advance(workshop.services, Bounds(4, 5.0), moment_seconds=0.0)
    workshop.work()
    workshop.client.cancel_reembedding(COLLECTION)
    advance(workshop.services, Bounds(100, 5.0))
    assert workshop.client.reembedding(COLLECTION).state == "cancelled"

    workshop.client.reembed(COLLECTION, MODEL, dimensions=8)
    go_on(workshop, openai_server)

    assert billed(openai_server, passages(DOCUMENTS)) == {1: 10}


def test_a_wrong_key_or_a_budget_of_nothing_is_told_and_the_collection_stays(
    workshop: Workshop, openai_server: OpenAIServer
) -> None:
    began = workshop.client.reembed(COLLECTION, MODEL, provider="openai", dimensions=8, max_cost=0.0)
    advance(workshop.services, Bounds(100, 5.0), moment_seconds=0.0)
    workshop.perform(workshop.ready("embed")[0].id)

    status = workshop.client.job(began.job_id)
    assert status.state == "paused"
    assert billed(openai_server, passages(DOCUMENTS)) == {0: 10}
    assert workshop.texts().keys() == DOCUMENTS.keys()
    workshop.client.cancel_reembedding(COLLECTION)
    advance(workshop.services, Bounds(100, 5.0))

    with pytest.raises(InvalidRequest, match="max_cost"):
        workshop.client.reembed(COLLECTION, MODEL, provider="openai", max_cost=-1.0)
    # Nothing is begun with what the provider would refuse.
    with pytest.raises(ModelUnavailable, match="text-embedding-none"):
        workshop.client.reembed(COLLECTION, "text-embedding-none", provider="openai", dimensions=8)
    openai_server.control.set_key(openai_server.key, "revoked")
    with pytest.raises(KeyRejected):
        workshop.client.reembed(COLLECTION, "text-embedding-3-large", provider="openai", dimensions=8)
    assert workshop.client.reembedding(COLLECTION).state == "cancelled"
