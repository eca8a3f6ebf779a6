"""Re-embedding: a collection gets the vectors of another model, while it is searched and added to."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from two_models import Model, TwoModels
from workshop import COLLECTION, chunked, paragraph, paragraphs, with_work

from pipeline import Settings
from pipeline.errors import InvalidRequest, ModelUnavailable, UnknownCollection
from pipeline.ledger import garbage
from pipeline.settings import GarbageSettings
from tasks import base

DOCUMENTS = {f"n/{name}": paragraphs(f"a{name}", f"b{name}") for name in "abcdef"}


@pytest.fixture
def small(settings: Settings) -> Settings:
    """Batches of two chunks, chunks of a paragraph."""
    pairs = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"embed_chunks": 2})})
    return with_work(chunked(pairs), backoff_seconds=0.01)


@pytest.fixture
def workshop(small: Settings) -> Iterator[TwoModels]:
    made = TwoModels(small)
    made.index(DOCUMENTS)
    yield made
    made.close()


def texts(documents: dict[str, str]) -> dict[str, list[str]]:
    return {uri: sorted(text.split("\n\n")) for uri, text in sorted(documents.items())}


def test_a_collection_gets_the_vectors_of_another_model(workshop: TwoModels) -> None:
    before = workshop.physical()

    began = workshop.begin()
    ended = workshop.finish()

    assert (began.state, began.chunks["total"], began.chunks["left"]) == ("building", 12, 12)
    assert (began.before["name"], began.model["name"], began.model["dimensions"]) == ("old", "new", 12)
    assert (ended.state, ended.error, ended.audit["present"]) == ("done", None, 12)
    assert ended.chunks == {"total": 12, "done": 12, "left": 0, "failed": 0}
    assert (workshop.model(), workshop.physical() != before) == ("new", True)
    job = workshop.client.job(ended.job_id)
    assert (job.kind, job.state, job.chunks["indexed"], job.chunks["embedded"]) == ("reembed", "succeeded", 12, 12)
    assert workshop.texts() == texts(DOCUMENTS)
    assert workshop.audit() == {"expected": 12, "present": 12}
    assert workshop.value("SELECT count(*) FROM reembed_chunks") == 0


def test_what_was_ingested_before_is_unchanged_afterwards(small: Settings) -> None:
    """Also where the new model takes longer chunks, and who ingests says nothing of their size."""
    models = Model(12, name="new", max_tokens=400), Model(8, name="old", max_tokens=16)
    unsaid = small.model_copy(update={"chunking": small.chunking.model_copy(update={"max_tokens": None})})
    workshop = TwoModels(unsaid, *models)
    workshop.index(DOCUMENTS)
    workshop.put({"n/late": paragraphs("late", "later")})  # enqueued before the switch, and carried out after it
    workshop.begin()
    workshop.switch()
    workshop.finish()
    embedded = len(workshop.passages())
    everything = {**DOCUMENTS, "n/late": paragraphs("late", "later")}

    again = workshop.index(everything)

    assert (again.documents["unchanged"], again.documents["indexed"]) == (7, 0)
    assert len(workshop.passages()) == embedded
    assert workshop.texts()["n/a"] == [paragraph("aa"), paragraph("ba")]
    # What is changed from then on is cut and embedded as the new model has it.
    changed = workshop.index({"n/a": paragraphs("aa", "other", "more")})
    assert (changed.documents["indexed"], workshop.texts()["n/a"]) == (1, [paragraphs("aa", "other", "more")])
    assert workshop.audit() == {"expected": 12, "present": 12, "leaving": 2}

    # And back again: nothing is embedded that was before.
    embedded = len(workshop.old.texts)
    with pytest.raises(
        InvalidRequest, match="1 chunk of collection 'notes' is longer than the 16 tokens that old takes"
    ):
        workshop.begin("old")
    workshop.index({"n/a": paragraph("aa")})
    workshop.contract()
    workshop.begin("old")
    workshop.finish()
    assert len(workshop.old.texts) == embedded + 1
    assert workshop.index({"n/b": DOCUMENTS["n/b"]}).documents["unchanged"] == 1
    assert workshop.audit() == {"expected": 12, "present": 12}
    workshop.close()


def test_a_batch_that_an_older_worker_took_for_done_is_done_again(workshop: TwoModels) -> None:
    workshop.index(DOCUMENTS)
    workshop.begin()
    workshop.step()
    # As one does that has never heard of re-embedding: it finds no chunk of the batch, and ends it.
    ended = workshop.sql(
        """UPDATE batches SET state = 'indexed', ended_at = now()
            WHERE reembedding_id IS NOT NULL AND state = 'ready' RETURNING id"""
    )
    assert ended

    workshop.finish()

    assert workshop.model() == "new"
    assert workshop.audit() == {"expected": 12, "present": 12}


def test_it_is_refused_where_it_makes_no_sense(workshop: TwoModels, small: Settings) -> None:
    with pytest.raises(InvalidRequest, match=r"has the vectors of old \(8 dimensions\) already"):
        workshop.begin("old")
    with pytest.raises(UnknownCollection):
        workshop.client.reembed("nowhere", "new")
    with pytest.raises(ModelUnavailable):
        workshop.begin("none")
    with pytest.raises(InvalidRequest, match="never re-embedded"):
        workshop.status()
    workshop.begin()
    with pytest.raises(InvalidRequest, match="is being re-embedded with new already"):
        workshop.begin()
    narrow = TwoModels(small, Model(12, name="narrow", max_tokens=8))
    narrow.client.cancel_reembedding(COLLECTION)
    narrow.step()
    with pytest.raises(InvalidRequest) as refused:
        narrow.begin("narrow")
    assert "12 chunks of collection 'notes' are longer than the 8 tokens that narrow takes" in str(refused.value)
    assert "the longest has 9 (of n/" in str(refused.value)
    narrow.close()


def test_a_text_that_fails_keeps_it_from_switching_until_it_is_tried_again(workshop: TwoModels) -> None:
    workshop.new.poison = "bc "
    began = workshop.begin()
    for _ in range(4):
        workshop.step(100)
        workshop.work()
    workshop.step(100)

    stuck = workshop.status()
    assert (stuck.state, stuck.stuck, stuck.chunks["failed"], stuck.chunks["left"]) == ("building", True, 1, 1)
    assert stuck.error is not None
    assert stuck.error.startswith("1 text could not be embedded")
    assert [(error["uri"], error["ordinal"]) for error in stuck.errors] == [("n/c", 1)]
    (letter,) = workshop.client.dead_letters()
    assert (letter.uri, letter.job_id, letter.chunk) == ("n/c", began.job_id, paragraph("bc"))
    assert workshop.texts() == texts(DOCUMENTS)

    workshop.new.poison = None
    tried = workshop.client.retry(letter.id)

    assert (tried.retried, [job.job_id for job in tried.jobs]) == (1, [began.job_id])
    assert workshop.finish().state == "done"
    assert workshop.client.dead_letters() == []
    assert workshop.audit() == {"expected": 12, "present": 12}


def test_a_text_that_fails_is_no_obstacle_once_its_document_was_changed(workshop: TwoModels) -> None:
    workshop.new.poison = "bc "
    workshop.begin()
    for _ in range(4):
        workshop.step(100)
        workshop.work()
    assert workshop.status().chunks["failed"] == 1

    workshop.index({"n/c": paragraphs("ac", "other")})

    assert workshop.finish().state == "done"
    assert workshop.texts()["n/c"] == sorted(paragraphs("ac", "other").split("\n\n"))
    assert workshop.audit() == {"expected": 12, "present": 12}


def test_chunks_that_come_meanwhile_and_are_too_long_keep_it_from_switching(small: Settings) -> None:
    unsaid = small.model_copy(update={"chunking": small.chunking.model_copy(update={"max_tokens": None})})
    workshop = TwoModels(unsaid, Model(12, name="narrow", max_tokens=16))
    workshop.index({"n/a": "few words"})
    workshop.begin("narrow")
    workshop.index({"n/b": " ".join(["word"] * 20)})
    for _ in range(4):
        workshop.step(100)
        workshop.work()
    found = workshop.status()
    assert (found.state, found.chunks["failed"]) == ("building", 1)
    assert "the text has 22 tokens, narrow takes 16" in found.errors[0]["error"]
    workshop.close()


def test_an_empty_collection_is_switched_too(small: Settings) -> None:
    workshop = TwoModels(small)
    workshop.index({"a": "words"})
    workshop.remove(["a"])
    workshop.begin()
    workshop.finish()
    assert (workshop.model(), workshop.texts()) == ("new", {})
    workshop.index(DOCUMENTS)
    assert workshop.texts() == texts(DOCUMENTS)
    assert workshop.old.texts == ["words"]
    workshop.close()


def test_damage_to_the_new_vectors_is_mended_before_they_are_used(workshop: TwoModels) -> None:
    workshop.begin()
    workshop.reach("built")
    physical = workshop.row()["physical"]
    points = sorted(workshop.sql("SELECT point_id FROM chunks"), key=lambda row: row["point_id"].int)
    found = workshop.services.vectors.points(physical, [row["point_id"] for row in points])
    workshop.services.vectors.delete(physical, [points[0]["point_id"]])
    stranger = uuid.uuid4()
    workshop.services.vectors.upsert(physical, [type(found[points[1]["point_id"]])(stranger, *_of(found, points[1]))])

    assert workshop.finish().state == "done"

    assert workshop.audit() == {"expected": 12, "present": 12}
    # So are they where Qdrant has lost all of them.
    workshop.begin("old")
    workshop.reach("auditing")
    workshop.services.vectors.drop_collection(workshop.row()["physical"])
    assert workshop.finish().state == "done"
    assert workshop.audit() == {"expected": 12, "present": 12}
    assert workshop.texts() == texts(DOCUMENTS)


def _of(found: Any, row: dict[str, Any]) -> tuple[Any, ...]:
    point = found[row["point_id"]]
    return point.dense, point.sparse, point.payload


def test_the_old_vectors_go_when_no_search_is_in_them_any_more(workshop: TwoModels) -> None:
    before = workshop.physical()
    workshop.begin()
    workshop.finish()
    names = workshop.services.vectors.names
    workshop.step()
    assert before in names(), "somebody may be searching there"

    workshop.sql("UPDATE reembeddings SET doomed_at = doomed_at - interval '2 minutes'")
    workshop.step()
    assert before not in names()
    # A writer that was stopped for long may make it again: it is dropped once more.
    workshop.services.vectors.ensure_collection(before, 8)
    workshop.step()
    assert before in names()
    workshop.sql("UPDATE reembeddings SET doomed_at = doomed_at - interval '20 minutes'")
    workshop.step()
    assert (before in names(), workshop.row()["drops"]) == (False, 2)
    assert workshop.texts() == texts(DOCUMENTS)
    assert workshop.value("SELECT lost_at FROM collections") is None


def test_new_embeddings_are_not_collected_while_they_are_needed(workshop: TwoModels) -> None:
    workshop.begin()
    workshop.reach("built")
    ages = garbage.ages(GarbageSettings(), 900.0)

    def excess() -> int:
        with workshop.services.ledger.transaction() as connection:
            return garbage.page(connection, garbage.EXCESS, ages, after=None, rows=1000, dry_run=True).taken

    assert excess() == 0
    workshop.switch()
    assert excess() == 0, "of chunks that have their new key beside them only"
    workshop.finish()
    assert excess() == 12, "the old ones"


def test_a_pause_holds_it_up(workshop: TwoModels) -> None:
    began = workshop.begin()
    workshop.client.pause(began.job_id)
    workshop.step(100)
    assert workshop.sql("SELECT 1 FROM batches WHERE reembedding_id IS NOT NULL") == []
    workshop.client.resume(began.job_id)
    workshop.client.pause(collection=COLLECTION)
    workshop.step(100)
    assert workshop.sql("SELECT 1 FROM batches WHERE reembedding_id IS NOT NULL") == []
    workshop.client.resume(collection=COLLECTION)
    assert workshop.finish().state == "done"


def test_while_the_last_chunks_are_caught_up_with_nothing_else_is_completed_and_not_for_long(
    workshop: TwoModels,
) -> None:
    # Given a document that comes when everything else is done, and another that is about to
    workshop.begin()
    workshop.reach("switching")
    workshop.index({"n/g": paragraph("ag")})
    workshop.put({"n/h": paragraph("ah")})
    workshop.prepare()

    # While something is away that it may need, nobody is held up for it
    workshop.sql("UPDATE circuits SET opened_at = now(), retry_at = now() + interval '1 h' WHERE dependency = 'qdrant'")
    workshop.step()
    assert workshop.row()["held_until"] is None
    workshop.sql("UPDATE circuits SET opened_at = NULL")

    # When what is left is looked for, it is held, and then what is left is in a batch
    workshop.step()
    assert workshop.status().state == "switching"
    (waiting,) = [batch for batch in workshop.ready("embed") if not _again(workshop, batch.id)]
    outcome = workshop.perform(waiting.id)
    assert isinstance(outcome, base.Waiting)
    assert "is about to get the vectors of another model" in outcome.reason
    workshop.step()
    assert workshop.value("SELECT priority FROM batches WHERE reembedding_id IS NOT NULL AND state = 'ready'") == 0

    # A hold ends by itself, and then the others have their turn
    workshop.sql("UPDATE reembeddings SET held_until = clock_timestamp() - interval '1 s'")
    workshop.step()
    workshop.sql("UPDATE batches SET next_attempt_at = NULL")
    assert isinstance(workshop.perform(waiting.id), base.Done)
    assert (workshop.status().state, workshop.row()["holds"]) == ("switching", 1)
    workshop.sql("UPDATE reembeddings SET rest_until = NULL")

    workshop.finish()
    assert workshop.texts()["n/h"] == [paragraph("ah")]
    assert workshop.audit() == {"expected": 14, "present": 14}


def _again(workshop: TwoModels, batch_id: int) -> bool:
    return bool(workshop.value("SELECT reembedding_id IS NOT NULL FROM batches WHERE id = %(id)s", id=batch_id))
