"""The path of a document: in, changed, moved, deleted; what is embedded, what is found, what the job says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from workshop import Workshop, chunked, paragraph, paragraphs

from pipeline import Document, Settings


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(settings))
    yield made
    made.close()


def test_a_document_goes_in_and_is_found_with_everything_that_is_known_of_it(workshop: Workshop) -> None:
    job = workshop.index([Document("notes/1", "Postgres is the truth.", metadata={"lang": "en", "title": "Truth"})])

    assert job.state == "succeeded"
    assert job.documents == {
        "total": 1, "indexed": 1, "unchanged": 0, "deleted": 0, "failed": 0, "superseded": 0, "cancelled": 0,
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
