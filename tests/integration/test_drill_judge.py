"""That the judge of a drill can say no: whatever is done to a clean index, he counts it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from damage import Damage
from workshop import Workshop

from pipeline import Document, Settings
from workers.drill.corpus import Content, Corpus, Record, Write
from workers.drill.judge import Verdict, judge
from workers.drill.searcher import matches

COLLECTION = "drilled"
WRITES = 6
FAULTS = (
    *("lost", "duplicate", "stale", "half_documents", "wrong_vectors", "wrong_metadata", "embedded_twice", "failed"),
)


class Drilled:
    """A corpus that was written without a fault, the record of it, and the index laid bare."""

    def __init__(self, settings: Settings) -> None:
        self.workshop = Workshop(settings)
        self.record = Record()
        corpus = Corpus("d", 3, 20)
        for _ in range(WRITES):
            self.write(corpus.next())
        self.workshop.contract()
        physical = self.workshop.value("SELECT physical FROM collections WHERE name = %(name)s", name=COLLECTION)
        self.damage = Damage(settings.qdrant.url.get_secret_value(), physical)

    def write(self, write: Write) -> None:
        self.record.begin(write)
        if write.deletes:
            self.workshop.client.delete(list(write.contents), collection=COLLECTION, idempotency_key=write.key)
        else:
            documents = [
                Document(uri, content.text, "text/plain", {"label": content.label})
                for uri, content in write.contents.items()
                if content is not None
            ]
            self.workshop.client.ingest(documents, collection=COLLECTION, idempotency_key=write.key)
        self.workshop.work()
        self.record.acknowledge(write)

    def verdict(self) -> Verdict:
        settings = self.workshop.settings
        return judge(
            settings.postgres.url.get_secret_value(),
            settings.qdrant.url.get_secret_value(),
            COLLECTION,
            self.record.newest(),
        )

    def found(self) -> dict[str, int]:
        """What the judge counts against the index, where it is not zero."""
        verdict = self.verdict()
        return {name: getattr(verdict, name) for name in FAULTS if getattr(verdict, name)}

    def document(self, suits: Callable[[int], bool]) -> tuple[str, list[str]]:
        """A document with a number of chunks that suits, and the ids of its points."""
        points: dict[str, list[str]] = {}
        for point, record in self.damage.points().items():
            points.setdefault((record.payload or {})["uri"], []).append(point)
        return next((uri, ids) for uri, ids in sorted(points.items()) if suits(len(ids)))


@pytest.fixture
def drilled(settings: Settings) -> Iterator[Drilled]:
    made = Drilled(settings)
    yield made
    made.damage.close()
    made.workshop.close()


def test_an_index_that_nobody_harmed_is_clean(drilled: Drilled) -> None:
    verdict = drilled.verdict()

    assert verdict.clean, verdict
    assert verdict.documents > 10
    assert verdict.points > verdict.documents
    assert verdict.leaving == 0


def test_the_only_point_of_a_document_gone_is_a_document_lost(drilled: Drilled) -> None:
    _, (point,) = drilled.document(lambda chunks: chunks == 1)

    drilled.damage.delete(point)

    assert drilled.found() == {"lost": 1}


def test_a_point_among_several_gone_is_half_a_document(drilled: Drilled) -> None:
    _, points = drilled.document(lambda chunks: chunks > 2)

    drilled.damage.delete(points[1])

    assert drilled.found() == {"half_documents": 1}


def test_a_point_twice_under_two_ids_is_a_duplicate(drilled: Drilled) -> None:
    point, record = next(iter(drilled.damage.points().items()))

    drilled.damage.put(record, str(uuid.uuid4()))

    assert drilled.found() == {"duplicate": 1}, point


def test_an_older_text_is_stale_and_so_is_a_document_of_nobody(drilled: Drilled) -> None:
    record = next(iter(drilled.damage.points().values()))

    drilled.damage.put(record, str(uuid.uuid4()), text="what it said before")
    drilled.damage.put(record, str(uuid.uuid4()), uri="d/never-asked-for")

    assert drilled.found() == {"stale": 2}


def test_a_changed_text_is_a_document_lost_and_a_text_that_is_stale(drilled: Drilled) -> None:
    _, (point,) = drilled.document(lambda chunks: chunks == 1)

    drilled.damage.put(drilled.damage.points()[point], point, text="something else")

    assert drilled.found() == {"lost": 1, "stale": 1, "wrong_vectors": 1}


def test_two_vectors_that_changed_places_are_two_that_are_wrong(drilled: Drilled) -> None:
    points = drilled.damage.points()
    (_, (one,)), (_, several) = (
        drilled.document(lambda chunks: chunks == 1),
        drilled.document(lambda chunks: chunks > 2),
    )
    vectors: list[Any] = [points[point].vector for point in (one, several[0])]

    drilled.damage.put_vector(points[one], vectors[1]["dense"])
    drilled.damage.put_vector(points[several[0]], vectors[0]["dense"])

    assert drilled.found() == {"wrong_vectors": 2}


def test_another_label_is_wrong_metadata(drilled: Drilled) -> None:
    point, record = next(iter(drilled.damage.points().items()))

    drilled.damage.put(record, point, metadata={"label": 77})

    assert drilled.found() == {"wrong_metadata": 1}


def test_an_acknowledged_write_that_did_nothing_is_found(drilled: Drilled) -> None:
    """The record alone says what must be there; the ledger knows nothing of these."""
    uri, points = drilled.document(lambda chunks: chunks == 1)
    there, _ = drilled.document(lambda chunks: chunks > 2)
    for write in (Write("w1", {uri: Content("A text that nobody wrote.", 0)}), Write("w2", {there: None})):
        drilled.record.begin(write)
        drilled.record.acknowledge(write)

    found = drilled.found()

    assert (found["lost"], found["stale"] > len(points)) == (1, True)


def test_a_second_embedding_of_a_text_is_counted(drilled: Drilled) -> None:
    drilled.workshop.sql(
        """INSERT INTO chunks (point_id, document_id, born_version, died_version, ordinal, text, chunk_hash,
                               embedding_key, tokens)
           SELECT gen_random_uuid(), document_id, born_version, born_version, 9999, text, chunk_hash, '\\x00', tokens
             FROM chunks LIMIT 1"""
    )

    assert drilled.found() == {"embedded_twice": 1}


def test_the_searcher_tells_whole_documents_from_mixed_ones(drilled: Drilled) -> None:
    uri, points = drilled.document(lambda chunks: chunks > 2)
    answer = drilled.workshop.client.search("mill", collection=COLLECTION, filters={"uri": uri}, limit=200)
    newest = drilled.record.newest()[uri]
    results = list(answer.results)

    assert len(results) == len(points)
    assert matches(results, [None, newest], whole=True)
    assert matches(results[1:], [newest], whole=False)
    assert not matches(results[1:], [newest], whole=True), "a part of it"
    assert not matches([*results, results[0]], [newest], whole=True), "a part of it twice"
    assert not matches([*results[1:], replace(results[0], text="older")], [newest], whole=False), "two versions"
    assert not matches(results, [None], whole=True), "it is deleted"
    assert not matches([], [newest], whole=True), "it is there"
    assert matches([], [None], whole=True)
