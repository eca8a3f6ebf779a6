"""The audit against damage done with plain qdrant-client: every fault found, counted and named, and no other."""

from __future__ import annotations

import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from damage import Damage, stranger
from qdrant_client.models import Record
from workshop import COLLECTION, Workshop, chunked, paragraph, paragraphs

from pipeline import Document, Settings
from pipeline.audit import AuditReport, _Sample
from pipeline.document import point_id
from pipeline.errors import UnknownCollection

WORDS = ("one", "two", "three", "four", "five", "six")


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(settings))
    yield made
    made.close()


@pytest.fixture
def damage(workshop: Workshop) -> Iterator[Damage]:
    """In the collection, which has a document of six chunks."""
    workshop.index([Document("a", paragraphs(*WORDS), metadata={"lang": "en", "ratio": 1.5, "pages": 3})])
    opened = Damage(workshop.settings.qdrant.url.get_secret_value(), physical(workshop))
    yield opened
    opened.close()


def physical(workshop: Workshop) -> str:
    return str(workshop.value("SELECT physical FROM collections WHERE name = %(name)s", name=COLLECTION))


def payload(record: Record) -> dict[str, Any]:
    return record.payload or {}


def at(records: dict[str, Record], word: str) -> Record:
    """The point of a paragraph."""
    return next(record for record in records.values() if payload(record)["text"] == paragraph(word))


def dense(record: Record) -> list[float]:
    assert isinstance(record.vector, dict)
    vector = record.vector["dense"]
    assert isinstance(vector, list)
    return [float(str(number)) for number in vector]


def test_every_kind_of_damage_is_counted_and_named(workshop: Workshop, damage: Damage) -> None:
    # Given two points lost, one overwritten with another's vector, a copy of one, and two of which nobody knows
    points = damage.points()
    damage.delete(at(points, "one").id, at(points, "two").id)
    damage.put_vector(at(points, "three"), dense(at(points, "four")))
    copy, orphan = stranger(), stranger()
    damage.put(at(points, "five"), copy)
    damage.put(at(points, "six"), orphan, version=4711)
    damage.put(at(points, "six"), 7, document="no number", version=None)

    report = workshop.client.audit(COLLECTION)

    assert workshop.audit() == {
        "expected": 6, "present": 4, "missing": 2, "orphaned": 3, "duplicate": 1, "wrong": 1,
    }  # fmt: skip
    assert {kind: sorted(ids) for kind, ids in report.listed.items()} == {
        "missing": sorted([at(points, "one").id, at(points, "two").id]),
        "orphaned": sorted([copy, orphan, str(uuid.UUID(int=7))]),
        "duplicate": [copy],
        "wrong": [at(points, "three").id],
    }
    assert (report.clean, report.mended, report.compared) == (False, False, 4)


def test_a_point_that_says_something_else_than_the_ledger_is_wrong(workshop: Workshop, damage: Damage) -> None:
    record = at(damage.points(), "one")
    for said in (
        {"text": "other words"},
        {"tenant": "somebody else"},
        {"uri": "elsewhere"},
        {"ordinal": 99},
        {"metadata": {"lang": "de", "ratio": 1.5, "pages": 3}},
        {"metadata": None},
    ):
        damage.put(record, record.id, **said)

        report = workshop.client.audit(COLLECTION)

        assert (report.wrong, report.listed["wrong"], report.missing, report.orphaned) == (1, [record.id], 0, 0), said


def test_a_point_without_its_words_is_wrong(workshop: Workshop, damage: Damage) -> None:
    record = at(damage.points(), "one")
    damage.put(record.model_copy(update={"vector": {"dense": dense(record)}}), record.id)

    assert workshop.client.audit(COLLECTION).listed["wrong"] == [record.id]


def test_a_vector_of_the_same_direction_is_the_same(workshop: Workshop, damage: Damage) -> None:
    # Given what a server that stores half the precision would give back
    for record in damage.points().values():
        damage.put_vector(record, [round(2 * value, 3) for value in dense(record)])

    assert workshop.audit() == {"expected": 6, "present": 6}


def test_metadata_that_became_filterable_later_is_no_fault(workshop: Workshop, settings: Settings) -> None:
    # Given a collection that takes one field, and takes another when the limit is raised
    limited = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"max_fields": 1})})
    narrow = Workshop(limited)
    narrow.index([Document("a", "words", metadata={"lang": "en", "year": 2001})])
    assert set(narrow.client.collections()[0].fields) == {"lang"}
    narrow.close()

    workshop.index([Document("b", "others", metadata={"lang": "en", "year": 2002})])

    assert set(workshop.client.collections()[0].fields) == {"lang", "year"}
    assert workshop.audit() == {"expected": 2, "present": 2}


def test_only_a_sample_is_compared_unless_all_are_asked_for(workshop: Workshop, damage: Damage) -> None:
    for record in damage.points().values():
        damage.put(record, record.id, text="other words")

    assert workshop.client.audit(COLLECTION, sample=0).clean
    some = workshop.client.audit(COLLECTION, sample=2)
    assert (some.compared, some.wrong) == (2, 2)
    whole = workshop.client.audit(COLLECTION, sample=0, all_vectors=True)
    assert (whole.compared, whole.wrong) == (6, 6)


def test_every_point_has_the_same_chance_to_be_in_the_sample() -> None:
    points = [uuid.uuid4() for _ in range(50)]
    drawn: list[uuid.UUID] = []
    for _ in range(2000):
        sample = _Sample(5)
        for start in range(0, len(points), 7):
            sample.add(points[start : start + 7])
        assert len(set(sample.points)) == 5
        drawn += sample.points
    counts = [drawn.count(point) for point in points]
    # 200 of each are expected, with a standard deviation of 13.4
    assert min(counts) > 120
    assert max(counts) < 280


def test_a_collection_that_qdrant_lost_is_said_to_be_missing(workshop: Workshop, damage: Damage) -> None:
    damage.drop()

    report = workshop.client.audit(COLLECTION)

    assert (report.expected, report.present, report.missing, report.collection_missing) == (6, 0, 6, True)
    assert len(report.listed["missing"]) == 6


def test_a_collection_without_points_is_clean(workshop: Workshop) -> None:
    workshop.put({"a": "words"})  # the ledger has it, Qdrant has not

    assert workshop.audit() == {}
    with pytest.raises(UnknownCollection, match="nowhere"):
        workshop.client.audit("nowhere")


def test_what_was_indexed_and_is_not_published_must_be_there_too(
    workshop: Workshop, damage: Damage, settings: Settings
) -> None:
    # Given a document of two batches, one of which is done
    small = Workshop(
        chunked(settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"embed_chunks": 1})}))
    )
    small.put({"b": paragraphs("uno", "due")})
    small.prepare()
    small.perform(small.ready("embed")[0].id, alone=True)
    assert workshop.audit() == {"expected": 6, "present": 6, "arriving": 1}
    (indexed,) = (id for id, record in damage.points().items() if payload(record)["uri"] == "b")

    # When its point is lost, which nobody would send again
    damage.delete(indexed)

    # Then it is missing
    report = workshop.client.audit(COLLECTION)
    assert report.listed["missing"] == [indexed]
    assert (report.expected, report.present, report.arriving) == (7, 6, 0)
    small.close()


def test_other_collections_of_the_ledger_do_not_matter(workshop: Workshop, damage: Damage) -> None:
    workshop.index({f"other/{number}": paragraph("other") for number in range(50)}, collection="others")

    assert workshop.audit() == {"expected": 6, "present": 6}
    assert workshop.client.audit("others").present == 50


# The ledger itself


@pytest.mark.parametrize(
    ("harm", "issues"),
    [
        ("DELETE FROM embeddings WHERE key IN (SELECT embedding_key FROM chunks LIMIT 2)", {"embeddings": 2}),
        ("UPDATE documents SET published_version = NULL", {"published": 1}),
        ("DELETE FROM chunks WHERE born_version = (SELECT min(id) FROM versions) AND ordinal = 3", {"chunks": 1}),
        ("UPDATE jobs SET finished_at = now() WHERE finished_at IS NULL", {"jobs": 1}),
        ("UPDATE jobs SET cost = 0.001 WHERE finished_at IS NULL", {"costs": 1}),
        ("UPDATE jobs SET cost_reserved = 0.5 WHERE finished_at IS NULL", {"costs": 1}),
        ("UPDATE versions SET pending = pending + 1 WHERE state = 'open'", {"pending": 1}),
        ("UPDATE versions SET pending = 0 WHERE state = 'open'", {"pending": 1}),
        (
            """DROP INDEX versions_open_key;
               UPDATE versions SET state = 'open' WHERE id = (SELECT min(id) FROM versions)""",
            {"open_twice": 2, "jobs": 1},
        ),
        (
            """UPDATE documents d SET published_version = v.id
                 FROM versions v WHERE v.document_id = d.id AND v.state = 'open'""",
            {"published": 1},
        ),
    ],
)
def test_what_the_ledger_has_wrong_is_named(
    workshop: Workshop, damage: Damage, harm: str, issues: dict[str, int]
) -> None:
    workshop.put({"a": paragraphs(*WORDS, "seven")})
    workshop.prepare()
    assert workshop.client.audit(COLLECTION).ledger == {}

    for statement in harm.split(";"):
        workshop.sql(statement)

    assert workshop.client.audit(COLLECTION).ledger == issues


# Beside work that is under way


class _Turning:
    """Something that goes round and round in a thread until it is stopped; what it raises is raised at the end."""

    def __init__(self, turn: Callable[[int], None]) -> None:
        self._turn = turn
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self.turns = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Turning:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._turn(self.turns)
                self.turns += 1
        except BaseException as error:  # noqa: BLE001 - raised again where the test is
            self._error = error


def test_an_audit_beside_ingest_deletion_and_contraction_reports_no_fault(settings: Settings) -> None:
    # Given small pages, so that there are many windows for things to change in
    paged = settings.model_copy(update={"audit": settings.audit.model_copy(update={"page_points": 7})})
    busy, looking = Workshop(paged), Workshop(paged)
    busy.index({f"kept/{number}": paragraph(f"kept{number}") for number in range(40)})

    def turn(number: int) -> None:
        busy.index({f"turn/{one}": f"{paragraph(f'turn{one}')} {number}" for one in range(12)})
        busy.remove([f"turn/{number % 12}"])
        busy.contract()

    # When it is audited all the while
    with _Turning(turn) as work:
        reports: list[AuditReport] = []
        while work.turns < 6 or len(reports) < 6:
            reports.append(looking.client.audit(COLLECTION, all_vectors=True))

    # Then nothing was ever wrong
    faults = [report.to_json(verbose=True) for report in reports if not report.clean]
    assert faults == []
    assert min(report.expected for report in reports) >= 40
    assert sum(report.arriving + report.leaving for report in reports) >= 0
    busy.close()
    looking.close()


# Memory


def test_memory_does_not_grow_with_the_points(settings: Settings) -> None:
    # Given a collection that is made large behind everybody's back, in the ledger and in the index alike
    workshop = Workshop(settings.model_copy(update={"audit": settings.audit.model_copy(update={"page_points": 500})}))
    workshop.index({"a": "words"})
    small, large = (_peak_of_an_audit(workshop, count) for count in (4_000, 20_000))
    workshop.close()

    # Then five times the points take no more memory: their ids alone would be 1.5 MB
    assert large < small + 300_000


def _peak_of_an_audit(workshop: Workshop, count: int) -> int:
    """Bytes that an audit takes at most, of a collection of so many points."""
    (version,) = workshop.sql("SELECT id, document_id FROM versions WHERE state = 'published'")
    ids = [point_id(version["document_id"], version["id"], ordinal) for ordinal in range(count)]
    workshop.sql(
        """INSERT INTO chunks (point_id, document_id, born_version, batch_id, ordinal, text, chunk_hash, embedding_key,
                               tokens)
           SELECT p.id, c.document_id, c.born_version, c.batch_id, p.place - 1, c.text, c.chunk_hash, c.embedding_key,
                  c.tokens
             FROM unnest(%(ids)s::uuid[]) WITH ORDINALITY AS p (id, place), chunks c WHERE c.ordinal = 0
           ON CONFLICT (point_id) DO NOTHING""",
        ids=ids,
    )
    repaired = workshop.client.audit(COLLECTION, repair=True, sample=0).repaired
    assert repaired is not None
    assert repaired.failed == 0
    tracemalloc.start()
    try:
        report = workshop.client.audit(COLLECTION)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (report.expected, report.present, report.orphaned, report.wrong) == (count, count, 0, 0)
    return peak
