"""The path of a document: in, changed, moved, deleted; what is embedded, what is found, what the job says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from workshop import Workshop, chunked, paragraph, paragraphs

from pipeline import Document, Settings
from pipeline.errors import CollectionMismatch
from pipeline.testing import ConstantEmbedder


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(settings))
    yield made
    made.close()


def test_a_document_goes_in_and_is_found_with_everything_that_is_known_of_it(workshop: Workshop) -> None:
    job = workshop.index([Document("notes/1", "Postgres is the truth.", metadata={"lang": "en", "title": "Truth"})])

    assert job.state == "succeeded"
    assert job.documents == {
        "total": 1, "indexed": 1, "unchanged": 0, "deleted": 0, "failed": 0,
        "superseded": 0, "cancelled": 0, "skipped": 0,
    }  # fmt: skip
    assert job.chunks == {"total": 1, "embedded": 1, "reused": 0, "indexed": 1}
    found = workshop.client.search("truth", collection="notes", filters={"lang": "en"})
    (result,) = found.results
    assert (result.uri, result.text, result.title) == ("notes/1", "Postgres is the truth.", "Truth")
    assert result.metadata["lang"] == "en"
    assert (found.generation, found.degraded) == (1, ())
    assert workshop.audit() == {"expected": 1, "present": 1}
    assert workshop.value("SELECT count(*) FROM staged") == 0


def test_a_document_that_is_ingested_again_unchanged_is_recognised_before_anything_is_staged(
    workshop: Workshop,
) -> None:
    workshop.index({"a": paragraphs("one", "two"), "b": paragraphs("three")})

    job = workshop.put({"a": paragraphs("one", "two"), "b": paragraphs("three")})

    assert workshop.ready() == []
    assert workshop.value("SELECT count(*) FROM versions") == 2
    assert (job.state, job.documents["total"], job.documents["unchanged"]) == ("succeeded", 2, 2)
    assert len(workshop.embedded()) == 3


def test_a_changed_document_embeds_its_new_chunks_alone(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one", "two", "three")})

    job = workshop.index({"a": paragraphs("one", "new", "three")})

    assert workshop.embedded() == [paragraph(name) for name in ("one", "two", "three", "new")]
    assert job.chunks == {"total": 3, "embedded": 1, "reused": 2, "indexed": 3}
    assert workshop.texts() == {"a": sorted(paragraph(name) for name in ("one", "new", "three"))}


def test_removed_chunks_leave_the_search_at_once_and_the_index_when_contracted(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one", "two", "three")})

    workshop.index({"a": paragraphs("one", "three")})

    assert workshop.texts() == {"a": [paragraph("one"), paragraph("three")]}
    assert workshop.audit() == {"expected": 2, "present": 2, "leaving": 1}
    assert workshop.contract() == 2  # one point, twice: a paused writer may have put it back
    assert workshop.audit() == {"expected": 2, "present": 2}
    assert workshop.value("SELECT count(*) FROM chunks") == 2


def test_chunks_that_move_keep_their_points_and_the_order_is_the_new_one(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("one", "two", "three")})
    before = workshop.value("SELECT manifest -> 'points' FROM versions WHERE state = 'published'")

    job = workshop.index({"a": paragraphs("three", "one", "two")})

    assert workshop.value("SELECT manifest -> 'points' FROM versions WHERE id = (SELECT max(id) FROM versions)") == [
        before[2],
        before[0],
        before[1],
    ]
    assert job.chunks == {"total": 3, "embedded": 0, "reused": 3, "indexed": 3}
    assert workshop.audit() == {"expected": 3, "present": 3}


def test_a_text_that_stands_twice_in_a_document_is_embedded_once_and_has_two_points(workshop: Workshop) -> None:
    job = workshop.index({"a": paragraphs("one", "two", "one")})

    assert sorted(workshop.embedded()) == [paragraph("one"), paragraph("two")]
    assert job.chunks == {"total": 3, "embedded": 2, "reused": 1, "indexed": 3}
    workshop.index({"a": paragraphs("one", "two")})
    assert workshop.texts() == {"a": [paragraph("one"), paragraph("two")]}
    workshop.contract()
    assert workshop.audit() == {"expected": 2, "present": 2}


def test_changed_metadata_embeds_nothing_and_changes_what_is_found_and_shown(workshop: Workshop) -> None:
    workshop.index([Document("a", paragraphs("one", "two"), metadata={"lang": "en", "note": {"deep": 1}})])

    job = workshop.index([Document("a", paragraphs("one", "two"), metadata={"lang": "de", "note": {"deep": 1}})])

    assert len(workshop.embedded()) == 2
    assert job.chunks == {"total": 2, "embedded": 0, "reused": 2, "indexed": 2}
    assert workshop.texts(filters={"lang": "en"}) == {}
    assert workshop.texts(filters={"lang": "de"}) == {"a": [paragraph("one"), paragraph("two")]}
    found = workshop.client.search("one", collection="notes").results
    assert {result.metadata["lang"] for result in found} == {"de"}
    workshop.contract()
    assert workshop.audit() == {"expected": 2, "present": 2}


def test_metadata_that_no_filter_can_use_changes_no_point(workshop: Workshop) -> None:
    workshop.index([Document("a", paragraphs("one"), metadata={"note": {"deep": 1}})])

    workshop.index([Document("a", paragraphs("one"), metadata={"note": {"deep": 2}})])

    assert workshop.audit() == {"expected": 1, "present": 1}
    (result,) = workshop.client.search("one", collection="notes").results
    assert result.metadata["note"] == {"deep": 2}


def test_a_new_way_of_chunking_prepares_every_document_again_and_embeds_what_is_new_of_it(settings: Settings) -> None:
    one = Workshop(settings)
    one.index({"a": paragraphs("one"), "b": paragraphs("two", "three")})
    assert one.embedded() == [paragraph("one"), paragraphs("two", "three")]
    one.close()

    other = Workshop(chunked(settings))
    job = other.index({"a": paragraphs("one"), "b": paragraphs("two", "three")})

    assert job.documents["indexed"] == 2
    assert other.embedded() == [paragraph("two"), paragraph("three")]
    assert other.texts() == {"a": [paragraph("one")], "b": [paragraph("three"), paragraph("two")]}
    other.close()


def test_of_a_document_that_comes_twice_in_one_ingest_the_last_one_counts(workshop: Workshop) -> None:
    job = workshop.index([Document("a", paragraphs("first")), Document("a", paragraphs("last"))])

    assert workshop.texts() == {"a": [paragraph("last")]}
    assert workshop.embedded() == [paragraph("last")]
    assert (job.documents["total"], job.documents["indexed"]) == (1, 1)


def test_of_a_document_that_comes_twice_in_two_groups_of_one_ingest_the_last_one_counts(settings: Settings) -> None:
    groups = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"group_documents": 1})})
    workshop = Workshop(groups)

    job = workshop.index([Document("a", "first"), Document("b", "other"), Document("a", "last")])

    assert workshop.texts() == {"a": ["last"], "b": ["other"]}
    assert (job.state, job.documents["total"], job.documents["indexed"]) == ("succeeded", 3, 2)
    assert job.documents["superseded"] == 1
    workshop.close()


def test_tenants_and_collections_do_not_see_each_other_and_share_embeddings(workshop: Workshop) -> None:
    workshop.index({"a": "the same words", "b": "of one"}, tenant="one")
    workshop.index({"a": "the same words", "c": "of two"}, tenant="two")
    workshop.index({"a": "the same words"}, collection="other", tenant="one")

    assert workshop.texts(tenant="one") == {"a": ["the same words"], "b": ["of one"]}
    assert workshop.texts(tenant="two") == {"a": ["the same words"], "c": ["of two"]}
    assert workshop.texts(collection="other", tenant="one") == {"a": ["the same words"]}
    assert workshop.texts(collection="other", tenant="two") == {}
    assert sorted(workshop.embedded()) == ["of one", "of two", "the same words"]
    workshop.remove(["a"], tenant="two")
    assert workshop.texts(tenant="two") == {"c": ["of two"]}
    assert workshop.texts(tenant="one") == {"a": ["the same words"], "b": ["of one"]}
    assert workshop.texts(collection="other", tenant="one") == {"a": ["the same words"]}


def test_a_collection_keeps_the_model_that_it_was_made_with(workshop: Workshop, settings: Settings) -> None:
    workshop.index({"a": "words"})
    other = Workshop(settings, ConstantEmbedder(name="another"))

    with pytest.raises(CollectionMismatch, match=r"made with constant .*, not with another"):
        other.put({"b": "words"})
    assert workshop.value("SELECT count(*) FROM jobs") == 1
    other.close()


def test_a_job_is_partial_where_one_document_failed_and_failed_where_all_did(workshop: Workshop) -> None:
    partial = workshop.index({"good": "words", "empty": "   "})
    failed = workshop.index({"blank": " \n "})
    reread = workshop.client.ingest(
        [Document("good", b"\x00\x01\x02", media_type="application/x-unheard-of")], collection="notes"
    )
    workshop.work()

    assert (partial.state, partial.documents["indexed"], partial.documents["failed"]) == ("partial", 1, 1)
    (error,) = partial.errors
    assert error["uri"] == "empty"
    assert "no text" in error["error"]
    assert (failed.state, failed.documents["failed"]) == ("failed", 1)
    assert workshop.client.job(reread.job_id).state == "failed"
    assert workshop.texts() == {"good": ["words"]}, "the version before stays"
    assert workshop.value("SELECT count(*) FROM staged") == 0


def test_a_document_that_failed_is_tried_again_when_it_comes_again(workshop: Workshop) -> None:
    workshop.index({"a": "  "})

    assert workshop.index({"a": "  "}).state == "failed"
    assert workshop.index({"a": "words"}).state == "succeeded"
    assert workshop.texts() == {"a": ["words"]}
    assert workshop.versions("a") == ["failed", "failed", "published"]


def test_what_a_collection_holds_is_listed(workshop: Workshop) -> None:
    workshop.index([Document("a/1", paragraphs("one", "two"), metadata={"n": 1}), Document("b/1", "text")])

    (collection,) = workshop.client.collections()
    listed = workshop.client.documents(collection="notes", prefix="a/")

    assert (collection.name, collection.documents, collection.chunks, collection.generation) == ("notes", 2, 3, 1)
    assert collection.fields == {"n": "integer"}
    assert [(row["uri"], row["chunks"], row["metadata"]["n"], row["generation"]) for row in listed] == [
        ("a/1", 2, 1, 1)
    ]


def test_client_embed_pays_for_a_text_once_and_shares_with_ingest(workshop: Workshop) -> None:
    workshop.index({"a": "stored words"})

    first = workshop.client.embed(["stored words", "new words", "new words"])
    again = workshop.client.embed(["new words"])

    assert (first.hits, first.misses, again.hits, again.misses) == (2, 1, 1, 0)
    assert (first.vectors[1] == first.vectors[2]).all()
    assert (first.vectors[1] == again.vectors[0]).all()
    assert workshop.embedded() == ["stored words", "new words"]
