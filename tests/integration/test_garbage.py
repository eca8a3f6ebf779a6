"""What nothing needs goes, kind by kind; what something needs stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from uuid import uuid4

import numpy as np
import pytest
from sweeping import NEVER, collected, enough, expired, kept, with_ages
from workshop import COLLECTION, PoisonedEmbedder, Workshop, paragraph, paragraphs, with_work

from pipeline import Document, Settings
from pipeline.duties import Bounds
from pipeline.errors import VectorsUnavailable
from pipeline.ledger import garbage as rows
from pipeline.vectors.base import Point
from pipeline.vectors.sparse import SparseVector
from tasks import garbage


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    """Everything is old enough to go, but for jobs and dead letters."""
    hasty = with_work(settings, backoff_seconds=0.001, max_attempts=1)
    made = Workshop(kept(hasty, embeddings_days=NEVER), PoisonedEmbedder("poison"))
    yield made
    made.close()


def tables(workshop: Workshop) -> dict[str, int]:
    names = ("staged", "batches", "versions", "chunks", "embeddings", "jobs", "dead_letters")
    return {name: workshop.value(f"SELECT count(*) FROM {name}") for name in names}


def contents(workshop: Workshop) -> Mapping[str, list[str]]:
    names = [row["name"] for row in workshop.sql("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")]
    return {name: sorted(map(str, workshop.sql(f"SELECT * FROM {name}"))) for name in names}


def test_nothing_that_a_live_document_needs_is_garbage(workshop: Workshop) -> None:
    workshop.index({"a": paragraphs("ash", "birch"), "b": "cedar"})
    collected(workshop)
    before = contents(workshop)

    assert (collected(workshop), expired(workshop)) == ({}, {})

    assert contents(workshop) == before
    assert workshop.audit() == {"expected": 3, "present": 3}


def test_versions_that_were_replaced_go_when_their_chunks_are_contracted(workshop: Workshop) -> None:
    # Given a document in its third content, and one that is deleted
    for words in (("ash", "birch"), ("birch", "cedar"), ("cedar", "elm")):
        workshop.index({"a": paragraphs(*words), "b": words[0]})
    workshop.remove(["b"])
    assert "versions" not in collected(workshop), "the points of what was replaced may still be in the index"

    # When what was replaced has left the index
    workshop.contract()

    # Then the versions before go, but for the one of which a chunk lives on, with what nothing else needs
    assert collected(workshop) == {"versions": 4, "embeddings": 5}
    left = {"staged": 0, "batches": 0, "versions": 3, "chunks": 2, "embeddings": 2, "jobs": 4, "dead_letters": 0}
    assert tables(workshop) == left
    assert workshop.texts() == {"a": [paragraph("cedar"), paragraph("elm")]}
    assert workshop.audit() == {"expected": 2, "present": 2}
    assert workshop.index({"a": paragraphs("cedar", "elm")}).documents["unchanged"] == 1


def test_what_an_open_version_removes_stays_until_it_is_published(workshop: Workshop) -> None:
    # Given a version that is half embedded, and replaces all that is served
    workshop.index({"a": paragraphs("ash", "birch")})
    embedded = len(workshop.embedded())
    job = workshop.put({"a": paragraphs("cedar", "elm")})
    workshop.prepare()
    workshop.contract()
    collected(workshop)
    expired(workshop)

    # When it is cancelled
    workshop.client.cancel(job.job_id)
    workshop.contract()
    collected(workshop)

    # Then what was served is, with its embeddings
    assert workshop.texts() == {"a": [paragraph("ash"), paragraph("birch")]}
    assert workshop.audit() == {"expected": 2, "present": 2}
    assert workshop.client.rebuild(COLLECTION, fresh=True).repaired.embedded == 0
    assert len(workshop.embedded()) == embedded
    assert tables(workshop)["embeddings"] == 2


def test_batches_of_a_job_that_goes_on_stay(settings: Settings) -> None:
    ingest = settings.ingest.model_copy(update={"embed_chunks": 1})
    workshop = Workshop(kept(settings.model_copy(update={"ingest": ingest}), embeddings_days=NEVER))
    workshop.put({"a": paragraphs("ash", "birch")})
    workshop.prepare()
    workshop.perform(workshop.ready("embed")[0].id, alone=True)
    before = tables(workshop)
    assert before["batches"] == 3

    assert collected(workshop) == {}

    assert tables(workshop) == before
    assert workshop.audit() == {"arriving": 1}
    workshop.work()
    assert collected(workshop) == {"batches": 3}
    workshop.close()


def test_a_version_that_a_search_may_still_show_stays(settings: Settings) -> None:
    workshop = Workshop(kept(settings, settled_seconds=900.0))
    workshop.index({"a": "ash"})
    workshop.index({"a": "birch"})
    workshop.contract()
    assert "versions" not in collected(workshop)

    workshop.sql("UPDATE versions SET ended_at = ended_at - interval '901 seconds'")
    workshop.sql("UPDATE batches SET ended_at = ended_at - interval '901 seconds'")
    assert collected(workshop)["versions"] == 1
    workshop.close()


def test_what_a_job_has_to_tell_of_its_failures_stays_as_long_as_the_job(workshop: Workshop) -> None:
    job = workshop.index({"good": "ash", "bad": "poison", "empty": " "})
    workshop.client.discard(everything=True)
    assert len(job.errors) == 2
    workshop.contract()
    collected(workshop)
    assert workshop.client.job(job.job_id).errors == job.errors

    workshop.index({"good": "birch"})
    workshop.contract()
    with_ages(workshop, jobs_days=NEVER, dead_letters_days=NEVER)
    while collected(workshop):
        pass

    assert [found.job_id for found in workshop.client.jobs()] != [job.job_id]
    assert tables(workshop)["versions"] == tables(workshop)["jobs"] == 1, "the published version, and its job"


def test_an_open_dead_letter_keeps_what_it_is_about(workshop: Workshop) -> None:
    job = workshop.index({"bad": "poison"})
    workshop.contract()
    with_ages(workshop, jobs_days=NEVER, dead_letters_days=NEVER)
    while collected(workshop):
        pass

    (letter,) = workshop.client.dead_letters()
    assert (letter.job_id, letter.uri, letter.size) == (job.job_id, "bad", len("poison"))
    assert isinstance(workshop.embedder, PoisonedEmbedder)
    workshop.embedder.word = "nothing"
    workshop.client.retry(everything=True)
    workshop.work()
    assert workshop.texts() == {"bad": ["poison"]}


def test_a_letter_stays_outdated_by_a_version_that_was_the_same_as_published(workshop: Workshop) -> None:
    # Given a letter whose document is wanted as it was before
    workshop.index({"a": "ash"})
    workshop.index({"a": "poison"})
    workshop.sql("UPDATE documents SET newest_version = NULL")  # staged and compared, rather than found unchanged
    workshop.index({"a": "ash"})
    workshop.sql("UPDATE dead_letters SET resolved_at = NULL, resolution = NULL, content = 'poison'")
    assert workshop.versions("a") == ["published", "failed", "unchanged"]

    # When only versions are collected
    with workshop.services.ledger.transaction() as connection:
        given = rows.ages(workshop.services.settings.garbage, 0.0)
        page = rows.page(connection, rows.KINDS["versions"], given, after=None, rows=10, dry_run=False)

    # Then the one that says so stays until the letter is resolved
    assert page.taken == 0
    assert collected(workshop)["superseded_letters"] == 1
    collected(workshop)
    assert workshop.versions("a") == ["published", "failed"]


def test_a_job_goes_when_nothing_refers_to_it_and_its_key_can_be_used_again(workshop: Workshop) -> None:
    first = workshop.index({"a": "ash"}, idempotency_key="monday")
    workshop.index({"a": "birch"})
    workshop.contract()
    with_ages(workshop, jobs_days=NEVER)
    assert collected(workshop)["jobs"] == 1, "the other's version is published"

    again = workshop.index({"a": "cedar"}, idempotency_key="monday")

    assert again.job_id != first.job_id
    assert again.documents["indexed"] == 1


def test_a_job_that_another_tries_again_goes_after_it(workshop: Workshop) -> None:
    first = workshop.index({"a": "poison"})
    assert isinstance(workshop.embedder, PoisonedEmbedder)
    workshop.embedder.word = "nothing"
    (second,) = workshop.client.retry(everything=True).jobs
    workshop.work()
    workshop.contract()
    with_ages(workshop, jobs_days=NEVER, dead_letters_days=NEVER)
    while collected(workshop):
        pass

    assert {job.job_id for job in workshop.client.jobs()} == {first.job_id, second.job_id}
    assert workshop.client.job(second.job_id).retry_of == first.job_id


def test_chunks_without_a_version_go_and_then_their_points(workshop: Workshop) -> None:
    # Given chunks of a version that is gone, as nothing but a hand makes them, with their points
    workshop.index({"a": paragraphs("ash", "birch"), "b": "cedar"})
    workshop.sql("UPDATE chunks SET born_version = -born_version WHERE text LIKE 'ash%%' OR text LIKE 'birch%%'")
    assert workshop.audit()["orphaned"] == 2

    # When garbage is collected
    found = collected(workshop)

    # Then the rows go, and their points, of which nobody knows any more
    assert (found["chunks"], found["points"]) == (2, 2)
    assert "orphaned" not in workshop.audit()


def point(version: object, number: int = 1) -> Point:
    payload = {"tenant": "", "document": 1, "version": version, "ordinal": 9, "uri": "x", "text": "x"}
    return Point(uuid4(), np.eye(1, 8, number, dtype=np.float32)[0], SparseVector([], []), payload)


def test_points_that_no_row_explains_go_when_nobody_can_come_back_to_their_version(workshop: Workshop) -> None:
    # Given points of a version that is gone, of one that goes on, of one that was never given, and of somebody else
    workshop.index({"a": "ash"})
    workshop.index({"a": "birch"})
    workshop.contract()
    gone, published = 1, workshop.value("SELECT published_version FROM documents")
    assert collected(workshop)["versions"] == 1
    workshop.put({"c": "cedar"})
    unfinished = workshop.value("SELECT max(id) FROM versions")
    dimensions = workshop.embedder.spec.dimensions
    physical = workshop.value("SELECT physical FROM collections")
    points = {version: point(version) for version in (gone, published, unfinished, 10**6, "1", None)}
    for made in points.values():
        made.dense.resize(dimensions, refcheck=False)
    workshop.services.vectors.upsert(physical, list(points.values()))

    # When garbage is collected
    assert garbage.collect(workshop.services, Bounds(100, 20.0, dry_run=True))["points"] == 2
    assert collected(workshop)["points"] == 2

    # Then those are gone that no worker can write again, and the rest is for an audit to tell
    left = {points[version].id for version in (unfinished, 10**6, "1", None)}
    assert workshop.services.vectors.present(physical, [made.id for made in points.values()]) == left
    assert workshop.texts() == {"a": ["birch"]}


def test_a_dry_run_says_what_would_go_and_changes_nothing(workshop: Workshop) -> None:
    for words in ("ash", "birch", "poison"):
        workshop.index({"a": words, "b": words + " too"})
    workshop.contract()
    workshop.client.discard(everything=True)
    before = contents(workshop)

    told = garbage.collect(workshop.services, Bounds(1, 20.0, dry_run=True))

    assert contents(workshop) == before
    assert {name: count for name, count in told.items() if count} == {"batches": 8, "versions": 2, "embeddings": 2}
    assert collected(workshop) == {name: count for name, count in told.items() if count}


def test_a_run_ends_when_its_time_is_over_and_the_next_one_goes_on(workshop: Workshop) -> None:
    with_ages(workshop, embeddings_days=0.0)
    workshop.index({f"a{number}": "ash" for number in range(5)})
    batches = tables(workshop)["batches"]
    assert batches > 1

    runs = 0
    while tables(workshop)["batches"]:
        runs += 1
        assert sum(garbage.collect(workshop.services, Bounds(1, 0.0)).values()) <= 1, "a page of one row"
        if runs > 200:
            break
        garbage.collect(workshop.services, Bounds(1, 0.01))
    assert tables(workshop)["batches"] == 0


def test_a_walk_that_was_interrupted_is_gone_on_with(workshop: Workshop) -> None:
    workshop.index({f"a{number}": "ash" for number in range(5)})
    given = garbage._given(workshop.services)
    from pipeline.garbage import _rows

    kind = rows.KINDS["versions"]
    pages = _rows("versions", kind, given, Bounds(2, 20.0))
    next(pages), next(pages)
    pages.close()

    assert workshop.sql("SELECT step, after FROM walks") == [{"step": "versions", "after": ["4"]}]
    looked = list(_rows("versions", kind, given, Bounds(2, 20.0)))
    assert len(looked) == 1 + 3, "what is left, and everything from the beginning"
    assert workshop.sql("SELECT * FROM walks") == []


def test_a_kind_that_cannot_be_collected_does_not_keep_the_others_waiting(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.index({"a": "ash"})

    def away(*_: object) -> None:
        raise VectorsUnavailable("Qdrant is away")

    monkeypatch.setattr(workshop.services.vectors, "scroll", away)
    with pytest.raises(VectorsUnavailable, match="Qdrant is away"):
        garbage.collect(workshop.services, enough())
    assert tables(workshop)["batches"] == 0


def test_staged_leftovers_and_rows_of_who_is_gone_go(workshop: Workshop) -> None:
    workshop.index({"a": "ash"})
    workshop.sql("INSERT INTO staged (version_id, content) SELECT id, 'x' FROM versions")
    workshop.sql(
        """INSERT INTO workers (id, host, pid, queues, slots, seen_at) VALUES
             ('old', 'here', 1, 'normal', 1, now() - interval '25 hours'), ('new', 'here', 2, 'normal', 1, now())"""
    )
    workshop.sql(
        """INSERT INTO services (name, host, pid, seen_at) VALUES
             ('beat', 'there', 1, now() - interval '25 hours'), ('beat', 'here', 2, now())"""
    )
    workshop.sql(
        """INSERT INTO alerts (type, severity, message, cleared_at) VALUES
             ('a', 'low', 'old', now() - interval '31 days'), ('a', 'low', 'new', now()), ('a', 'low', 'open', NULL)"""
    )
    workshop.sql(
        """INSERT INTO samples (name, at, value) SELECT 'size', now() - make_interval(days => n), n
             FROM generate_series(1, 60) AS n"""
    )

    for state, hours in (("delivered", 25), ("delivered", 23), ("dead", 25), ("dead", 721)):
        job = workshop.index({"b": f"birch {state} {hours}"})
        workshop.sql(
            """INSERT INTO webhook_deliveries (job_id, url, state, ended_at)
               VALUES (%(job)s, 'https://here', %(state)s, now() - make_interval(hours => %(hours)s))""",
            job=job.job_id,
            state=state,
            hours=hours,
        )

    found = collected(workshop, Bounds(7, 20.0))

    assert found["webhooks"] == 2
    assert {name: found[name] for name in ("staged", "workers", "services", "alerts", "samples")} == {
        **{"staged": 1, "workers": 1, "services": 1, "alerts": 1},
        "samples": 31,
    }
    assert workshop.value("SELECT max(value) FROM samples") == 29
    assert [row["message"] for row in workshop.sql("SELECT message FROM alerts ORDER BY id")] == ["new", "open"]


def test_documents_are_as_they_were_for_who_asks(workshop: Workshop) -> None:
    document = Document("a", paragraphs("ash", "birch"), metadata={"language": "de"})
    workshop.index([document])
    workshop.index([Document("a", paragraphs("ash", "birch"), metadata={"language": "en"})])
    before = workshop.client.documents(collection=COLLECTION)
    workshop.contract()
    collected(workshop)
    assert workshop.client.documents(collection=COLLECTION) == before
