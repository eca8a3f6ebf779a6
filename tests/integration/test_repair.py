"""Repair: what was damaged with plain qdrant-client is as it was, and nothing was embedded for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from damage import Damage, stranger
from workshop import COLLECTION, Workshop, chunked, paragraph, paragraphs

from pipeline import Document, Settings
from pipeline.audit import AuditReport, audit
from pipeline.errors import ModelUnavailable, VectorsUnavailable
from pipeline.ledger import collections
from pipeline.patience import Patience
from pipeline.repair import Pace, Repairer
from pipeline.testing import ConstantEmbedder
from pipeline.vectors.base import VectorStore

WORDS = ("one", "two", "three", "four", "five", "six")


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(settings))
    yield made
    made.close()


@pytest.fixture
def damage(workshop: Workshop) -> Iterator[Damage]:
    """In the collection, which has two documents of six chunks each."""
    workshop.index([Document(uri, paragraphs(*WORDS), metadata={"lang": "en", "title": uri}) for uri in ("a", "b")])
    opened = Damage(workshop.settings.qdrant.url.get_secret_value(), physical(workshop))
    yield opened
    opened.close()


def physical(workshop: Workshop) -> str:
    return str(workshop.value("SELECT physical FROM collections WHERE name = %(name)s", name=COLLECTION))


def repair(workshop: Workshop, **options: Any) -> AuditReport:
    return workshop.client.audit(COLLECTION, repair=True, **options)


def repaired(report: AuditReport) -> tuple[int, int, int, int]:
    """Points upserted, deleted and not to be put back, and embeddings computed."""
    done = report.repaired
    assert done is not None
    return done.upserted, done.deleted, done.failed, done.embedded


def found(workshop: Workshop) -> list[tuple[str, str, str]]:
    """Everything that a search finds; among equal scores Qdrant's order is by chance."""
    result = workshop.client.search(paragraph("three"), collection=COLLECTION, filters={"lang": "en"}, limit=50)
    assert result.degraded == ()
    assert result.results[0].text == paragraph("three")
    return sorted((hit.id, hit.uri, hit.text) for hit in result.results)


def contents(damage: Damage) -> dict[str, Any]:
    return {id: (record.vector, record.payload) for id, record in damage.points().items()}


def test_damage_of_every_kind_is_mended_and_nothing_is_embedded(workshop: Workshop, damage: Damage) -> None:
    # Given lost, overwritten, copied and foreign points, and two that should have left
    workshop.remove(["b"])
    workshop.contract()
    before, results, embedded = contents(damage), found(workshop), workshop.embedded()
    records = list(damage.points().values())
    damage.delete(records[0].id, records[1].id)
    damage.put_vector(records[2], [1.0] * 8)
    damage.put(records[3], records[3].id, text="other words")
    damage.put(records[4], stranger())
    damage.put(records[4], stranger(), version=4711)
    damage.put(records[4], 7)

    report = repair(workshop)

    assert repaired(report) == (4, 3, 0, 0)
    assert (report.missing, report.wrong, report.orphaned, report.duplicate) == (2, 2, 3, 2)
    assert (report.clean, report.mended) == (False, True)
    assert contents(damage) == before
    assert found(workshop) == results
    assert workshop.embedded() == embedded
    assert workshop.audit() == {"expected": 6, "present": 6}
    assert repaired(repair(workshop)) == (0, 0, 0, 0)


def test_points_that_should_have_left_are_deleted_and_those_that_are_leaving_or_arriving_are_not(
    workshop: Workshop, damage: Damage, settings: Settings
) -> None:
    # Given a document that was swept once and whose points came back, one that is leaving, and one half indexed
    workshop.index({"c": paragraph("gone")})
    (gone,) = (record for record in damage.points().values() if (record.payload or {})["uri"] == "c")
    workshop.remove(["c"])
    workshop.contract_once()
    damage.put(gone, gone.id)
    workshop.remove(["b"])
    small = Workshop(
        chunked(settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"embed_chunks": 1})}))
    )
    small.put({"d": paragraphs("uno", "due")})
    small.prepare()
    small.perform(small.ready("embed")[0].id, alone=True)
    assert workshop.audit() == {"expected": 6, "present": 6, "stale": 1, "leaving": 6, "arriving": 1}

    assert repaired(repair(workshop)) == (0, 1, 0, 0)

    assert workshop.audit() == {"expected": 6, "present": 6, "leaving": 6, "arriving": 1}
    small.work()
    assert workshop.audit() == {"expected": 8, "present": 8, "leaving": 6}
    small.close()


def test_an_embedding_that_is_lost_is_computed_and_said(workshop: Workshop, damage: Damage) -> None:
    # Given a chunk without an embedding whose point is there, and one without either
    first, second = (record for record in list(damage.points().values()) if (record.payload or {})["ordinal"] == 0)
    workshop.sql(
        "DELETE FROM embeddings WHERE key IN (SELECT embedding_key FROM chunks WHERE point_id = %(id)s)", id=first.id
    )
    damage.delete(second.id)
    embedded = workshop.embedded()
    assert workshop.audit() == {"expected": 12, "present": 11, "missing": 1, "ledger": {"embeddings": 2}}

    report = repair(workshop)

    assert repaired(report) == (1, 0, 0, 1)
    assert report.mended
    assert workshop.embedded() == [*embedded, paragraph("one")]
    assert workshop.audit() == {"expected": 12, "present": 12}


def test_what_cannot_be_embedded_here_is_said_and_the_rest_is_mended(
    workshop: Workshop, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = (record for record in damage.points().values() if (record.payload or {})["uri"] == "a")
    workshop.sql(
        "DELETE FROM embeddings WHERE key IN (SELECT embedding_key FROM chunks WHERE point_id = %(id)s)", id=first.id
    )
    damage.delete(first.id, second.id)

    def elsewhere(*_: Any) -> None:
        raise ModelUnavailable("the model is on another machine")

    monkeypatch.setattr(workshop.embedder, "embed", elsewhere)
    report = repair(workshop)

    assert report.repaired is not None
    assert (report.repaired.upserted, report.mended) == (1, False)
    # The point, and the embedding of the same text in the other document
    assert (report.repaired.failed, report.repaired.error) == (2, "the model is on another machine")
    assert workshop.client.audit(COLLECTION).listed["missing"] == [first.id]


def test_a_chunk_that_is_removed_and_swept_during_its_repair_does_not_come_back(
    workshop: Workshop, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a repair that is held up just before it upserts, until the document is deleted and forgotten
    damage.delete(*damage.points())
    upsert = workshop.services.vectors.upsert

    def paused(*given: Any) -> None:
        monkeypatch.undo()
        workshop.remove(["b"])
        workshop.contract()
        upsert(*given)

    monkeypatch.setattr(workshop.services.vectors, "upsert", paused)

    report = repair(workshop)

    assert repaired(report) == (6, 0, 0, 0)
    assert workshop.audit() == {"expected": 6, "present": 6}
    assert len(damage.points()) == 6


def test_a_point_that_has_become_a_chunk_by_the_time_it_is_deleted_is_put_back(
    workshop: Workshop, damage: Damage
) -> None:
    with workshop.services.ledger.transaction() as connection:
        collection = collections.get(connection, COLLECTION)
    before = contents(damage)
    repairer = Repairer(workshop.services.tools, collection, 4, Patience(1.0))

    repairer.take([UUID(id) for id in before])

    assert contents(damage) == before
    assert (repairer.done.upserted, repairer.done.deleted) == (12, 12)


def test_repairs_at_once_beside_a_running_ingest_leave_everything_whole(settings: Settings) -> None:
    paged = chunked(settings.model_copy(update={"audit": settings.audit.model_copy(update={"page_points": 5})}))
    busy = Workshop(paged)
    busy.index({f"kept/{number}": paragraphs(f"k{number}", "same") for number in range(20)})
    damage = Damage(settings.qdrant.url.get_secret_value(), physical(busy))
    stop = threading.Event()

    def ingest() -> None:
        turn = 0
        while not stop.is_set():
            busy.index({f"turn/{one}": paragraphs(f"t{turn}", f"x{one}") for one in range(5)})
            busy.remove([f"turn/{turn % 5}"])
            busy.contract()
            turn += 1

    def mend(seed: int) -> list[AuditReport]:
        with_own = Workshop(paged, ConstantEmbedder())
        reports = [with_own.client.audit(COLLECTION, repair=True, all_vectors=True) for _ in range(4)]
        assert with_own.embedded() == []
        with_own.close()
        return reports

    # When three repair what is being damaged while documents come and go
    with ThreadPoolExecutor(4) as threads:
        ingesting = threads.submit(ingest)
        mending = [threads.submit(mend, seed) for seed in range(3)]
        for record in list(damage.points().values())[::3]:
            damage.delete(record.id)
            damage.put(record, stranger())
        reports = [report for one in mending for report in one.result()]
        stop.set()
        ingesting.result()

    # Then each left what it should, and after the last one nothing is wrong
    assert all(report.mended for report in reports)
    repair(busy, all_vectors=True)
    final = busy.client.audit(COLLECTION, all_vectors=True)
    assert final.clean, final.to_json(verbose=True)
    assert sum(text == paragraph("same") for texts in busy.texts().values() for text in texts) == 20
    damage.close()
    busy.close()


def test_an_outage_in_the_middle_is_waited_for_and_nothing_is_counted_twice(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given damage, and servers of which every kind of call fails once, at its second time
    paged = chunked(settings.model_copy(update={"audit": settings.audit.model_copy(update={"page_points": 5})}))
    workshop = Workshop(paged)
    workshop.index({f"n/{number}": paragraphs(f"w{number}", f"v{number}") for number in range(20)})
    damage = Damage(settings.qdrant.url.get_secret_value(), physical(workshop))
    before = contents(damage)
    for number, record in enumerate(list(damage.points().values())):
        if number % 4 == 0:
            damage.delete(record.id)
        if number % 4 == 1:
            damage.put(record, stranger(), version=4711)
    failed: set[str] = set()
    for name in ("present", "points", "upsert", "delete"):
        monkeypatch.setattr(workshop.services.vectors, name, _failing(workshop.services.vectors, name, failed))
    scroll = workshop.services.vectors.scroll

    def failing_scroll(*given: Any) -> Iterator[list[UUID]]:
        for number, page in enumerate(scroll(*given)):
            if number == 2 and "scroll" not in failed:
                failed.add("scroll")
                raise VectorsUnavailable("away for a moment")
            yield page

    monkeypatch.setattr(workshop.services.vectors, "scroll", failing_scroll)

    report = repair(workshop, all_vectors=True)

    # Then it went on where it was
    assert failed == {"present", "points", "upsert", "delete", "scroll"}
    assert (report.expected, report.missing, report.orphaned, report.compared) == (40, 10, 10, 30)
    assert repaired(report) == (10, 10, 0, 0)
    assert contents(damage) == before
    damage.close()
    workshop.close()


def _failing(vectors: VectorStore, name: str, failed: set[str]) -> Callable[..., Any]:
    """The method, which fails at its second call alone."""
    method = getattr(vectors, name)
    calls = count()

    def call(*given: Any) -> Any:
        if next(calls) == 1:
            failed.add(name)
            raise VectorsUnavailable("away for a moment")
        return method(*given)

    return call


def test_a_server_that_stays_away_ends_it(workshop: Workshop, damage: Damage, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> Iterator[list[UUID]]:
        raise VectorsUnavailable("Qdrant is away")
        yield []

    monkeypatch.setattr(workshop.services.vectors, "scroll", away)
    impatient = workshop.settings.audit.model_copy(update={"patience_seconds": 0.3})
    with workshop.services.ledger.transaction() as connection:
        collection = collections.get(connection, COLLECTION)

    with pytest.raises(VectorsUnavailable, match="Qdrant is away"):
        audit(workshop.services.tools, collection, impatient)


def test_a_pace_is_kept() -> None:
    started = time.monotonic()
    clock = Pace(1000)
    for _ in range(5):
        clock.spend(20)
    assert time.monotonic() - started >= 0.1

    started = time.monotonic()
    Pace(0).spend(10**9)
    assert time.monotonic() - started < 60
