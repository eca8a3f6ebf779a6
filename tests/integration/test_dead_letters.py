"""Documents that fail in a worker leave a dead letter: why, where, after how much, and what to try again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hostile_extraction import PROGRAM, hostile
from workshop import COLLECTION, PoisonedEmbedder, Workshop, chunked, paragraph, paragraphs, with_work

from pipeline import Document, Settings, ingest
from pipeline.drafts import Draft
from pipeline.duties import Bounds
from pipeline.errors import UnknownCollection, UnknownDeadLetter, UnknownJob
from pipeline.extract.isolation.extractor import Extractor
from pipeline.ledger import dead_letters
from pipeline.ledger.dead_letters import DeadLetter
from pipeline.settings import ExtractionSettings
from pipeline.sources.base import Rejected
from tasks.garbage import collect
from tasks.maintenance import reconcile

# Of no format that is told from its content: the extractor says so.
UNREADABLE = b"\x00\x01\x02\x03 no text at all"


@pytest.fixture
def poisoned(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(with_work(settings, backoff_seconds=0.01)), PoisonedEmbedder("poison"))
    yield made
    made.close()


def unreadable(uri: str) -> Document:
    return Document(uri, UNREADABLE, media_type="application/pdf", metadata={"lang": "en"})


def only(letters: list[DeadLetter]) -> DeadLetter:
    (letter,) = letters
    return letter


def test_a_document_that_cannot_be_extracted_leaves_a_letter_with_its_content(poisoned: Workshop) -> None:
    job = poisoned.index([Document("good", "good words"), unreadable("bad")])

    letter = only(poisoned.client.dead_letters())
    assert (letter.uri, letter.collection, letter.tenant, letter.job_id) == ("bad", COLLECTION, "default", job.job_id)
    assert (letter.step, letter.attempts, letter.losses) == ("prepare", 1, 0)
    assert letter.error == job.errors[0]["error"]
    assert "bad" in letter.error
    assert (letter.ordinal, letter.chunk, letter.traceback) == (None, None, None)
    assert (letter.media_type, letter.size) == ("application/pdf", len(UNREADABLE))
    assert (letter.resolved_at, letter.resolution, letter.retried_by) == (None, None, None)
    assert poisoned.value("SELECT content FROM dead_letters") == UNREADABLE
    assert job.dead_letters == 1
    assert job.to_json()["dead_letters"] == 1
    assert poisoned.client.dead_letter(letter.id) == letter
    assert poisoned.value("SELECT count(*) FROM staged") == 0


def test_a_chunk_that_cannot_be_embedded_is_named_with_its_text_and_traceback(poisoned: Workshop) -> None:
    text = paragraphs("first", "poison", "third")
    poisoned.index({"bad": text, "good": paragraphs("fine")})

    letter = only(poisoned.client.dead_letters(document="bad", collection=COLLECTION))
    assert (letter.step, letter.attempts) == ("embed", 3)
    assert (letter.ordinal, letter.chunk) == (1, paragraph("poison"))
    assert letter.error == "RuntimeError: cannot embed poison"
    assert letter.traceback is not None
    assert letter.traceback.startswith("Traceback (most recent call last):")
    assert letter.traceback.endswith("RuntimeError: cannot embed poison\n")
    assert poisoned.value("SELECT content FROM dead_letters") == text.encode(), "all of it, though one chunk failed"


def test_what_dies_with_its_process_says_so_and_how_often(poisoned: Workshop) -> None:
    poisoned.put({"bad": "one chunk"})
    poisoned.prepare()
    (batch,) = poisoned.ready("embed")
    for _ in range(3):
        poisoned.claim(batch.id, owner="worker@here#1/7")
        poisoned.sql(
            """INSERT INTO workers (id, host, pid, queues, slots, started_at)
               VALUES ('worker@here#1', 'here', 1, 'normal', 1, now() - interval '1 hour')
               ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()"""
        )
        poisoned.sql("UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms' WHERE state = 'running'")
        reconcile(poisoned.services, Bounds(100, 20.0))

    letter = only(poisoned.client.dead_letters())
    assert (letter.step, letter.attempts, letter.losses, letter.traceback) == ("embed", 3, 0, None)
    assert "process died" in letter.error
    assert letter.chunk == "one chunk"


def test_the_step_that_breaks_a_deletion_is_named(poisoned: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned.index({"a": "about a"})

    def broken(*_: object) -> None:
        raise RuntimeError("broken by \x00 postgresql://user:secret@host/db")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ledger.versions.open_versions", broken)
        poisoned.remove(["a"])

    letter = only(poisoned.client.dead_letters())
    assert (letter.step, letter.uri, letter.attempts, letter.size) == ("delete", "a", 3, 0)
    assert letter.error == "RuntimeError: broken by \ufffd postgresql://user:***@host/db"
    assert letter.traceback is not None
    assert "secret" not in letter.traceback


def test_a_document_that_its_enqueuer_cannot_read_is_an_error_of_the_job_and_no_letter(poisoned: Workshop) -> None:
    class Source:
        scope = None

        def __iter__(self) -> Iterator[Any]:
            yield Document("good", "good words")
            yield Rejected("bad", "bad is locked")

    job = poisoned.index(Source())

    assert (job.state, job.documents["failed"], job.dead_letters) == ("partial", 1, 0)
    assert poisoned.client.dead_letters() == []


def test_content_is_staged_until_its_version_ends_and_no_longer(poisoned: Workshop) -> None:
    poisoned.put({"a": "about a", "b": "poison"})
    poisoned.prepare()
    assert poisoned.value("SELECT count(*) FROM staged") == 2, "open versions keep theirs"
    poisoned.dispatch()
    assert poisoned.ready("prepare") == [], "what is open does not count as waiting for its turn"

    poisoned.work()

    assert poisoned.versions("a") == ["published"]
    assert poisoned.versions("b") == ["failed"]
    assert poisoned.value("SELECT count(*) FROM staged") == 0


@pytest.mark.parametrize("ending", ["cancelled", "superseded"])
def test_an_open_version_that_ends_otherwise_leaves_no_content(poisoned: Workshop, ending: str) -> None:
    job = poisoned.put({"a": "about a"}, priority="low")
    poisoned.prepare()
    if ending == "cancelled":
        poisoned.client.cancel(job.job_id)
    else:
        poisoned.put({"a": "newer"}, priority="high")
        poisoned.prepare()
    assert poisoned.versions("a")[0] == ending
    assert poisoned.value("SELECT count(*) FROM staged") == (0 if ending == "cancelled" else 1)
    poisoned.work()
    assert poisoned.value("SELECT count(*) FROM staged") == 0
    assert poisoned.client.dead_letters() == []


def test_a_document_that_fails_again_and_again_has_one_open_letter(poisoned: Workshop) -> None:
    for number in range(3):
        poisoned.index({"bad": f"poison {number}"})

    letter = only(poisoned.client.dead_letters())
    assert letter.chunk == "poison 2"
    everything = poisoned.client.dead_letters(resolved=True)
    assert [(found.resolution, found.size is None) for found in everything] == [
        (None, False),
        ("superseded", True),
        ("superseded", True),
    ]


def test_a_letter_is_outdated_when_its_document_is_published_anew(poisoned: Workshop) -> None:
    job = poisoned.index({"bad": "poison"})
    assert only(poisoned.client.dead_letters(job=job.job_id)).uri == "bad"

    poisoned.index({"bad": "mended"})

    assert poisoned.client.dead_letters() == []
    assert poisoned.client.job(job.job_id).dead_letters == 0
    assert collect(poisoned.services, Bounds(100, 20.0))["superseded_letters"] == 1
    assert only(poisoned.client.dead_letters(resolved=True)).resolution == "superseded"
    assert poisoned.value("SELECT content FROM dead_letters") is None


def test_a_letter_is_outdated_when_the_published_content_is_wanted_again(poisoned: Workshop) -> None:
    poisoned.index({"a": "old"})
    poisoned.index({"a": "poison"})
    assert only(poisoned.client.dead_letters()).uri == "a"

    job = poisoned.index({"a": "old"})

    assert job.documents["unchanged"] == 1
    assert poisoned.client.dead_letters() == []


def test_a_letter_is_outdated_when_its_document_is_not_wanted_any_more(poisoned: Workshop) -> None:
    poisoned.index({"a": "poison", "b": "fine"})
    assert only(poisoned.client.dead_letters()).uri == "a"

    job = poisoned.remove(["a"])

    assert job.documents["unchanged"] == 1, "it was never published: there is nothing to delete"
    assert poisoned.client.dead_letters() == []


def test_letters_are_listed_newest_first_page_by_page_and_by_what_they_belong_to(poisoned: Workshop) -> None:
    first = poisoned.index({f"bad{number}": f"poison {number}" for number in range(3)})
    other = poisoned.index({"else": "poison"}, collection="others", tenant="tenant")

    page = poisoned.client.dead_letters(limit=2)
    assert page[0].uri == "else"
    assert [letter.id for letter in page] == sorted((letter.id for letter in page), reverse=True)
    rest = poisoned.client.dead_letters(limit=2, after=page[-1].id)
    assert {letter.uri for letter in page + rest} == {"bad0", "bad1", "bad2", "else"}
    assert len(poisoned.client.dead_letters(job=first.job_id)) == 3
    assert only(poisoned.client.dead_letters(collection="others")).job_id == other.job_id
    assert only(poisoned.client.dead_letters(tenant="tenant")).uri == "else"
    assert only(poisoned.client.dead_letters(document="bad1", collection=COLLECTION)).uri == "bad1"
    with pytest.raises(UnknownJob):
        poisoned.client.dead_letters(job="01890000-0000-7000-8000-000000000000")
    with pytest.raises(UnknownCollection, match="nowhere"):
        poisoned.client.dead_letters(collection="nowhere")
    with pytest.raises(UnknownDeadLetter, match="there is no dead letter 999999"):
        poisoned.client.dead_letter(999999)


def test_resolved_letters_are_dropped_after_a_week_and_open_ones_stay(poisoned: Workshop) -> None:
    poisoned.index({f"bad{number}": f"poison {number}" for number in range(4)})
    letters = poisoned.client.dead_letters()
    assert poisoned.client.discard([letter.id for letter in letters[:3]]) == 3
    for letter, age in zip(letters, (timedelta(days=6), timedelta(days=8), timedelta(days=9)), strict=False):
        poisoned.sql(
            "UPDATE dead_letters SET resolved_at = clock_timestamp() - %(age)s WHERE id = %(id)s",
            age=age,
            id=letter.id,
        )
    poisoned.sql("UPDATE dead_letters SET created_at = clock_timestamp() - interval '1 year'")

    assert collect(poisoned.services, Bounds(1, 20.0))["dead_letters"] == 2, "a letter at a time"
    assert {letter.id for letter in poisoned.client.dead_letters(resolved=True)} == {letters[0].id, letters[3].id}


def test_a_letter_that_cannot_be_written_fails_nothing_by_half(
    poisoned: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("no room")

    poisoned.put([unreadable("bad"), Document("good", "good words")])
    (batch,) = poisoned.ready("prepare")
    with monkeypatch.context() as patch:
        patch.setattr(dead_letters, "write", breaks)
        poisoned.perform(batch.id)
    assert poisoned.versions("bad") == ["staged"], "version and letter are one transaction"
    poisoned.work()

    assert only(poisoned.client.dead_letters()).attempts == 2
    assert set(poisoned.texts()) == {"good"}


@pytest.mark.parametrize(
    ("reader", "said"), [("segfault", "SIGSEGV"), ("eats_memory", "MILLRACE_EXTRACTION__MEMORY_MB")]
)
def test_a_document_that_takes_its_reader_down_is_a_letter_among_indexed_ones_and_served_as_before(
    settings: Settings, reader: str, said: str
) -> None:
    # Given a document that is published, and 63 others on their way in one batch with its next version
    workshop = Workshop(settings, extractor=Extractor(ExtractionSettings(cpu_seconds=5, memory_mb=150), PROGRAM))
    workshop.index({"notes/bad": "The version before."})
    documents = [Document(f"notes/{number}", f"Note number {number}.") for number in range(63)]
    documents.insert(31, Document("notes/bad", b"x", media_type=hostile(reader)))

    # When the child that reads it really dies, or really is out of memory
    job = workshop.index(documents)

    # Then only it failed
    assert (job.state, job.documents["indexed"], job.documents["failed"]) == ("partial", 63, 1)
    letter = only(workshop.client.dead_letters(job=job.job_id))
    assert (letter.uri, letter.step, letter.attempts) == ("notes/bad", "prepare", 1)
    assert said in letter.error
    assert workshop.texts()["notes/bad"] == ["The version before."]
    assert len(workshop.texts()) == 64
    workshop.close()


def test_an_error_before_a_document_is_cut_names_the_document(
    poisoned: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = ingest._diff

    def fragile(draft: Draft, *others: Any) -> Any:
        if draft.staged.uri == "bad":
            raise RuntimeError("the comparison broke")
        return compare(draft, *others)

    monkeypatch.setattr(ingest, "_diff", fragile)
    poisoned.index({**{f"good{number}": f"words {number}" for number in range(3)}, "bad": "text"})

    letter = only(poisoned.client.dead_letters())
    assert (letter.uri, letter.step, letter.attempts, letter.chunk) == ("bad", "prepare", 3, None)
    assert letter.traceback is not None
    assert "fragile" in letter.traceback
