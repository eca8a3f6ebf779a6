"""Dead letters tried again, or let go: once, never over something newer, and with nothing read again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from workshop import COLLECTION, PoisonedEmbedder, Workshop, chunked, paragraph, paragraphs, with_work

from pipeline import Document, Settings
from pipeline.document import meta_hash
from pipeline.duties import Bounds
from pipeline.errors import InvalidRequest, UnknownCollection, UnknownDeadLetter, UnknownJob
from pipeline.ledger import dead_letters, staging
from pipeline.retries import Retried
from pipeline.settings import IngestSettings
from tasks.garbage import collect

NEVER = "no text has this word"


@pytest.fixture
def poisoned(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(with_work(settings, backoff_seconds=0.01)), PoisonedEmbedder("poison"))
    yield made
    made.close()


def mend(workshop: Workshop) -> None:
    """What made the documents fail is gone."""
    assert isinstance(workshop.embedder, PoisonedEmbedder)
    workshop.embedder.word = NEVER


def resolutions(workshop: Workshop) -> dict[str, str | None]:
    return {letter.uri: letter.resolution for letter in workshop.client.dead_letters(resolved=True)}


def kept_bytes(workshop: Workshop) -> int:
    """What letters still keep after what is not needed any more was dropped."""
    collect(workshop.services, Bounds(100, 20.0))
    return int(workshop.value("SELECT coalesce(sum(octet_length(content)), 0)::int FROM dead_letters"))


def test_a_document_is_indexed_by_a_retry_when_the_fault_is_gone(poisoned: Workshop) -> None:
    # Given a document with metadata of which one chunk failed, and whose version before is served
    text = paragraphs("first", "poison", "third")
    poisoned.index([Document("bad", paragraphs("first", "old"), metadata={"lang": "de"})])
    old = poisoned.index([Document("bad", text, metadata={"lang": "en", "n": 7})])
    assert old.state == "failed"
    embedded = len(poisoned.embedded())

    # When it is tried again after the fault is gone
    mend(poisoned)
    done = poisoned.client.retry(job=old.job_id)
    (job,) = done.jobs
    assert (done.retried, done.superseded, job.retry_of, job.kind) == (1, 0, old.job_id, "ingest")
    assert (job.documents["total"], job.priority, job.collection) == (1, "normal", COLLECTION)
    assert kept_bytes(poisoned) == len(text), "should the job be cancelled"
    assert poisoned.value("SELECT octet_length(content) FROM staged") == len(text)
    poisoned.work()

    # Then it is as if it had never failed
    assert poisoned.client.job(job.job_id).state == "succeeded"
    assert poisoned.texts() == {"bad": sorted(paragraph(name) for name in ("first", "poison", "third"))}
    (found,) = poisoned.client.documents(collection=COLLECTION)
    assert found["metadata"] == {"lang": "en", "n": 7}
    assert len(poisoned.embedded()) == embedded + 1, "the chunk that failed, and no other"
    assert poisoned.client.job(old.job_id).state == "failed", "what it was stays as it was"
    assert poisoned.client.dead_letters() == []
    collect(poisoned.services, Bounds(100, 20.0))
    (letter,) = poisoned.client.dead_letters(resolved=True)
    assert (letter.resolution, letter.retried_by, letter.size) == ("retried", job.job_id, None)
    assert poisoned.value("SELECT count(*) FROM staged") == 0
    again = poisoned.index([Document("bad", text, metadata={"lang": "en", "n": 7})])
    assert again.documents["unchanged"] == 1, "its hashes are those of the document"
    poisoned.contract()
    assert poisoned.audit() == {"expected": 3, "present": 3}


def test_what_fails_again_has_a_new_letter(poisoned: Workshop) -> None:
    poisoned.index({"bad": "poison"})
    (first,) = poisoned.client.dead_letters()

    (job,) = poisoned.client.retry(first.id).jobs
    poisoned.work()

    (second,) = poisoned.client.dead_letters()
    assert second.id > first.id
    assert second.job_id == job.job_id
    assert poisoned.client.job(job.job_id).state == "failed"
    assert kept_bytes(poisoned) == len("poison")


def test_a_letter_that_is_retried_by_two_at_once_is_staged_once(
    poisoned: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned.index({f"bad{number}": f"poison {number}" for number in range(20)})
    mend(poisoned)
    both = Barrier(2, timeout=60)
    find = dead_letters.page

    def found_by_both(*given: Any, **named: Any) -> Any:
        page = find(*given, **named)
        if page:
            both.wait()  # each has found all of them open
        return page

    monkeypatch.setattr(dead_letters, "page", found_by_both)
    with ThreadPoolExecutor(2) as threads:
        found: list[Retried] = list(threads.map(lambda _: poisoned.client.retry(everything=True), range(2)))
    poisoned.work()

    assert sorted(done.retried for done in found) == [0, 20]
    assert sorted(len(done.jobs) for done in found) == [0, 1], "who finds nothing makes no job"
    assert poisoned.value("SELECT count(*) FROM versions WHERE state = 'published'") == 20
    assert poisoned.value("SELECT count(*) FROM versions") == 40
    assert len(poisoned.texts()) == 20


@pytest.mark.parametrize("meanwhile", ["staged", "open", "published", "deleted", "unchanged"])
def test_a_document_with_a_newer_version_is_left_as_it_is(poisoned: Workshop, meanwhile: str) -> None:
    poisoned.index({"a": "before"})
    failed = poisoned.index({"a": "poison", "b": "poison too"})
    mend(poisoned)
    match meanwhile:
        case "deleted":
            poisoned.remove(["a"])
        case "unchanged":
            poisoned.index({"a": "before"})
        case _:
            poisoned.put({"a": "newer"})
    if meanwhile == "open":
        poisoned.prepare()
    if meanwhile == "published":
        poisoned.work()

    done = poisoned.client.retry(job=failed.job_id)
    poisoned.work()

    assert done.retried == 1
    assert done.superseded == (0 if meanwhile == "unchanged" else 1), "the ingest itself has told"
    assert resolutions(poisoned) == {"a": "superseded", "b": "retried"}
    assert kept_bytes(poisoned) == 0
    wanted = {"deleted": {}, "unchanged": {"a": ["before"]}}.get(meanwhile, {"a": ["newer"]})
    assert poisoned.texts() == {**wanted, "b": ["poison too"]}


def test_an_ingest_after_the_retry_wins(poisoned: Workshop) -> None:
    poisoned.index({"a": "poison"})
    mend(poisoned)
    (job,) = poisoned.client.retry(everything=True).jobs

    poisoned.index({"a": "newest"})

    assert poisoned.texts() == {"a": ["newest"]}
    assert poisoned.client.job(job.job_id).documents["superseded"] == 1


def test_of_a_retry_and_an_ingest_at_once_the_ingest_wins_whichever_is_first(poisoned: Workshop) -> None:
    poisoned.index({f"a{number}": f"poison {number}" for number in range(6)})
    mend(poisoned)
    with ThreadPoolExecutor(2) as threads:
        retried = threads.submit(
            lambda: [poisoned.client.retry(document=f"a{n}", collection=COLLECTION) for n in range(6)]
        )
        for number in reversed(range(6)):
            poisoned.put({f"a{number}": f"newer {number}"})
        retried.result()

    poisoned.work()

    assert poisoned.texts() == {f"a{number}": [f"newer {number}"] for number in range(6)}
    assert poisoned.client.dead_letters() == []


def test_letters_of_several_kinds_go_into_jobs_of_their_own(
    poisoned: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given failures in two collections, of two tenants, and of a deletion
    poisoned.index({"gone": "to be deleted"})
    one = poisoned.index({"a": "poison a", "b": "poison b"}, priority="low")
    two = poisoned.index({"a": "poison a"}, tenant="other")
    three = poisoned.index({"a": "poison a"}, collection="second")

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ledger.versions.open_versions", broken)
        four = poisoned.remove(["gone"])
    mend(poisoned)

    # When everything is tried again
    done = poisoned.client.retry(everything=True)
    poisoned.work()

    # Then each job is as the one that failed
    assert done.retried == 5
    told = {(job.retry_of, job.kind, job.collection, job.tenant, job.priority) for job in done.jobs}
    assert told == {
        (one.job_id, "ingest", COLLECTION, "default", "low"),
        (two.job_id, "ingest", COLLECTION, "other", "normal"),
        (three.job_id, "ingest", "second", "default", "normal"),
        (four.job_id, "delete", COLLECTION, "default", "normal"),
    }
    assert {poisoned.client.job(job.job_id).state for job in done.jobs} == {"succeeded"}
    assert set(poisoned.texts()) == {"a", "b"}
    assert set(poisoned.texts(tenant="other")) == {"a"}


def test_letters_of_several_jobs_alike_are_tried_in_one(poisoned: Workshop) -> None:
    poisoned.index({"a": "poison a"})
    poisoned.index({"b": "poison b"}, priority="low")
    mend(poisoned)

    (job,) = poisoned.client.retry(collection=COLLECTION, priority="high").jobs

    assert (job.retry_of, job.priority, job.documents["total"]) == (None, "high", 2)


def test_a_retry_goes_page_by_page_and_one_that_is_cut_off_is_gone_on_with(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = settings.model_copy(update={"ingest": IngestSettings(group_documents=4, prepare_documents=2)})
    poisoned = Workshop(chunked(with_work(small, backoff_seconds=0.01)), PoisonedEmbedder("poison"))
    poisoned.index({f"bad{number}": f"poison {number}" for number in range(10)})
    mend(poisoned)
    stage = staging.stage
    pages: list[int] = []

    def dies_at_the_second(connection: Any, job: Any, wanted: Any, *others: Any) -> None:
        stage(connection, job, wanted, *others)
        pages.append(len(wanted))
        if len(pages) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging, "stage", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            poisoned.client.retry(everything=True)
    assert pages == [4, 4]
    assert len(poisoned.client.dead_letters()) == 6, "the page that was under way is not staged"

    (job,) = poisoned.client.retry(everything=True).jobs
    poisoned.work()

    assert job.documents["total"] == 6
    assert len(poisoned.texts()) == 10
    assert poisoned.value("SELECT count(*) FROM versions WHERE state = 'published'") == 10
    poisoned.close()


def test_pages_end_by_bytes_too(poisoned: Workshop) -> None:
    poisoned.index({f"bad{number}": "poison " * 10 for number in range(5)})
    with poisoned.services.ledger.transaction() as connection:
        page = dead_letters.page(connection, dead_letters.Selection(), after=0, last=2**62, count=100, size=140)
        rest = dead_letters.page(connection, dead_letters.Selection(), after=0, last=2**62, count=100, size=1)
    assert (len(page), len(rest)) == (2, 1), "a document that is larger than a page goes all the same"


def test_the_chunking_that_was_asked_for_is_kept(settings: Settings) -> None:
    narrow = Workshop(chunked(with_work(settings, backoff_seconds=0.01)), PoisonedEmbedder("poison"))
    narrow.index({"bad": paragraphs("one", "two", "poison")})
    mend(narrow)

    wide = Workshop(settings, narrow.embedder)
    (job,) = wide.client.retry(everything=True).jobs
    wide.work()

    assert wide.client.job(job.job_id).chunks["total"] == 3, "and not one, as the settings here would have it"
    assert narrow.index({"bad": paragraphs("one", "two", "poison")}).documents["unchanged"] == 1
    narrow.close()
    wide.close()


def test_a_retry_that_is_cancelled_leaves_its_letters_open_with_their_content(poisoned: Workshop) -> None:
    # Given two letters that are being tried again
    poisoned.index({"one": "poison one", "two": "poison two"})
    mend(poisoned)
    (job,) = poisoned.client.retry(everything=True).jobs
    poisoned.prepare()
    assert kept_bytes(poisoned) == len("poison one") * 2, "its job has not ended"

    # When the job is cancelled
    poisoned.client.cancel(job.job_id)

    # Then they are as they were, and can be tried again
    assert resolutions(poisoned) == {"one": None, "two": None}
    collect(poisoned.services, Bounds(100, 20.0))
    again = poisoned.client.retry(everything=True)
    poisoned.work()
    assert again.retried == 2
    assert poisoned.texts() == {"one": ["poison one"], "two": ["poison two"]}
    assert kept_bytes(poisoned) == 0
    assert resolutions(poisoned) == {"one": "retried", "two": "retried"}


def test_discarding_resolves_without_trying_and_drops_the_content(poisoned: Workshop) -> None:
    poisoned.index({"a": "before"})
    job = poisoned.index({"a": "poison", "b": "poison too"})
    versions = poisoned.value("SELECT count(*) FROM versions")

    assert poisoned.client.discard(document="a", collection=COLLECTION) == 1
    assert resolutions(poisoned) == {"a": "discarded", "b": None}
    assert poisoned.client.discard(job=job.job_id) == 1
    assert poisoned.client.discard(everything=True) == 0

    assert kept_bytes(poisoned) == 0
    assert poisoned.value("SELECT count(*) FROM versions") == versions
    assert poisoned.texts() == {"a": ["before"]}
    assert poisoned.client.retry(everything=True) == Retried([], 0, 0)


def test_a_letter_without_content_is_listed_and_cannot_be_retried(poisoned: Workshop) -> None:
    poisoned.index({"bad": "poison"})
    poisoned.sql("UPDATE dead_letters SET content = NULL")  # as of a version that an older worker had opened

    assert poisoned.client.retry(everything=True).retried == 0
    (letter,) = poisoned.client.dead_letters()
    assert letter.size is None
    assert poisoned.client.discard(letter.id) == 1


def test_metadata_hashes_survive(poisoned: Workshop) -> None:
    poisoned.index([Document("bad", "poison", metadata={"tags": ["x"]})])
    mend(poisoned)
    poisoned.client.retry(everything=True)
    rows = poisoned.sql("SELECT content_hash, meta_hash, recipe_hash FROM versions ORDER BY id")
    assert rows[0] == rows[1]
    assert rows[0]["meta_hash"] == meta_hash({"tags": ["x"]})


def test_wrong_requests_are_refused(poisoned: Workshop) -> None:
    poisoned.index({"bad": "poison"})
    with pytest.raises(InvalidRequest, match="name the dead letters"):
        poisoned.client.retry()
    with pytest.raises(InvalidRequest, match="name the dead letters"):
        poisoned.client.discard()
    with pytest.raises(UnknownDeadLetter, match="there is no dead letter 999"):
        poisoned.client.retry([999])
    with pytest.raises(UnknownDeadLetter):
        poisoned.client.discard(999)
    with pytest.raises(UnknownJob):
        poisoned.client.retry(job="01890000-0000-7000-8000-000000000000")
    with pytest.raises(UnknownCollection):
        poisoned.client.retry(collection="nowhere")
    with pytest.raises(InvalidRequest, match="urgent"):
        poisoned.client.retry(everything=True, priority="urgent")
    assert len(poisoned.client.dead_letters()) == 1
