"""Rebuild: a collection that Qdrant lost is made again from the ledger alone."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, eventually
from damage import Damage, stranger
from services import addresses_of, enter
from workshop import COLLECTION, Workshop, chunked, paragraph, paragraphs

from pipeline import AsyncClient, Document, Settings
from pipeline.audit import AuditReport
from pipeline.errors import UnknownCollection
from workers.cli import main

DOCUMENTS = 40


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(settings))
    yield made
    made.close()


@pytest.fixture
def damage(workshop: Workshop) -> Iterator[Damage]:
    """In the collection, which has forty documents of two chunks."""
    workshop.index([Document(f"n/{n}", paragraphs(f"w{n}", f"v{n}"), metadata={"number": n}) for n in range(DOCUMENTS)])
    physical = workshop.value("SELECT physical FROM collections WHERE name = %(name)s", name=COLLECTION)
    opened = Damage(workshop.settings.qdrant.url.get_secret_value(), physical)
    yield opened
    opened.close()


def found(workshop: Workshop) -> list[tuple[str, str, str]]:
    """What a search finds that needs the payload index of a field; among equal scores Qdrant's order is by chance."""
    result = workshop.client.search(paragraph("w7"), collection=COLLECTION, filters={"number": [6, 7, 8]}, limit=20)
    assert result.degraded == ()
    assert result.results[0].text == paragraph("w7")
    return sorted((hit.id, hit.uri, hit.text) for hit in result.results)


def issues(workshop: Workshop) -> list[str]:
    found = workshop.client.status()["health"]["issues"]
    return [f"{issue['message']}; {issue['remedy']}" for issue in found if "collection" in issue["message"]]


LOST = (
    f"collection {COLLECTION} was found missing in Qdrant; run `millrace rebuild {COLLECTION}`: it puts everything "
    "back without embedding anything again"
)


def test_a_dropped_collection_is_rebuilt_without_embedding_anything(workshop: Workshop, damage: Damage) -> None:
    before, results, embedded = damage.points(), found(workshop), workshop.embedded()
    assert issues(workshop) == []
    damage.drop()
    assert issues(workshop) == [LOST]
    progress: list[tuple[float, int]] = []

    def tell(done: float, report: AuditReport) -> None:
        assert report.repaired is not None
        progress.append((done, report.repaired.upserted))

    rebuilt = workshop.client.rebuild(COLLECTION, on_progress=tell)

    assert (rebuilt.points, rebuilt.whole, rebuilt.collection) == (2 * DOCUMENTS, True, COLLECTION)
    assert rebuilt.to_json() == {
        "collection": COLLECTION, "points": 80, "upserted": 80, "deleted": 0, "embedded": 0, "failed": 0,
        "error": None, "ledger": {}, "seconds": rebuilt.to_json()["seconds"],
        "points_per_second": rebuilt.to_json()["points_per_second"],
    }  # fmt: skip
    assert progress[-1] == (1.0, 80)
    assert damage.points() == before
    assert found(workshop) == results
    assert workshop.embedded() == embedded
    assert workshop.audit() == {"expected": 80, "present": 80}
    assert issues(workshop) == []


def test_workers_that_make_a_lost_collection_again_leave_word_of_it(workshop: Workshop, damage: Damage) -> None:
    # Given a collection that is lost while documents come in
    damage.drop()
    workshop.index({"new": paragraph("new")})

    # Then it is there again, almost empty, and that is said
    assert len(damage.points()) == 1
    assert issues(workshop) == [LOST]
    assert workshop.client.search("new", collection=COLLECTION).degraded == ("lost",)

    rebuilt = workshop.client.rebuild(COLLECTION)

    assert (rebuilt.points, rebuilt.repaired.upserted) == (81, 80)
    assert issues(workshop) == []
    assert workshop.client.search("new", collection=COLLECTION).degraded == ()
    assert workshop.audit() == {"expected": 81, "present": 81}


def test_a_first_collection_is_not_taken_for_a_lost_one(workshop: Workshop) -> None:
    workshop.index({"a": "words"})

    assert workshop.value("SELECT lost_at FROM collections") is None
    assert issues(workshop) == []


def test_a_fresh_rebuild_drops_what_is_there_first(workshop: Workshop, damage: Damage) -> None:
    # Given what an audit of a sample may not see, and a point of nobody
    before = damage.points()
    for record in before.values():
        damage.put(record, record.id, text="other words")
    damage.put(next(iter(before.values())), stranger())

    rebuilt = workshop.client.rebuild(COLLECTION, fresh=True)

    assert (rebuilt.repaired.upserted, rebuilt.repaired.deleted) == (80, 0)
    assert damage.points() == before


def test_points_that_do_not_belong_there_are_deleted(workshop: Workshop, damage: Damage) -> None:
    record = next(iter(damage.points().values()))
    damage.put(record, stranger())

    rebuilt = workshop.client.rebuild(COLLECTION)

    assert (rebuilt.points, rebuilt.repaired.upserted, rebuilt.repaired.deleted) == (80, 0, 1)


def test_what_a_worker_had_upserted_and_not_completed_is_not_lost(
    workshop: Workshop, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker that has upserted its points when all of the collection is dropped and rebuilt
    workshop.put({"late": paragraphs("late", "later")})
    workshop.prepare()
    vectors = workshop.services.vectors
    upsert = vectors.upsert

    def overtaken(*given: Any) -> None:
        monkeypatch.undo()
        upsert(*given)
        workshop.client.rebuild(COLLECTION, fresh=True)

    monkeypatch.setattr(vectors, "upsert", overtaken)
    workshop.work()

    # Then they are there when it completes
    assert workshop.audit() == {"expected": 82, "present": 82}
    assert workshop.texts()["late"] == sorted([paragraph("late"), paragraph("later")])


def test_a_collection_that_nobody_knows_cannot_be_rebuilt(workshop: Workshop) -> None:
    with pytest.raises(UnknownCollection, match="there is no collection 'nowhere'"):
        workshop.client.rebuild("nowhere")


async def _rebuilt(workshop: Workshop) -> int:
    async with AsyncClient(workshop.settings, services=workshop.services) as client:
        assert (await client.audit(COLLECTION, sample=3)).compared == 3
        return (await client.rebuild(COLLECTION)).points


def test_the_asynchronous_client_does_the_same(workshop: Workshop, damage: Damage) -> None:
    assert asyncio.run(_rebuilt(workshop)) == 80


def test_a_rebuild_that_is_killed_goes_on_where_it_was(workshop: Workshop, damage: Damage, tmp_path: Path) -> None:
    # Given a lost collection, and a command that rebuilds it slowly
    before = damage.points()
    damage.drop()
    slow = CommandLine(
        tmp_path / "home",
        {
            **addresses_of(workshop.settings),
            "MILLRACE_AUDIT__PAGE_POINTS": "4",
            "MILLRACE_AUDIT__POINTS_PER_SECOND": "40",
        },
    )
    rebuilding = subprocess.Popen(slow.argv("rebuild", COLLECTION), env=slow.environment(), stderr=subprocess.DEVNULL)

    # When it is killed in the middle
    eventually(lambda: workshop.services.vectors.count(damage.collection) >= 8, 60)
    rebuilding.send_signal(signal.SIGKILL)
    rebuilding.wait()
    there = len(damage.points())
    assert 8 <= there < 80
    assert issues(workshop) == [LOST]

    # Then the next one puts back the rest
    rebuilt = workshop.client.rebuild(COLLECTION)
    assert (rebuilt.points, rebuilt.repaired.upserted, rebuilt.repaired.embedded) == (80, 80 - there, 0)
    assert damage.points() == before
    assert workshop.audit() == {"expected": 80, "present": 80}
    assert issues(workshop) == []


def test_the_commands_say_what_they_found_and_did(
    workshop: Workshop,
    damage: Damage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    enter(workshop.settings, monkeypatch)

    def said(*arguments: str, status: int = 0) -> tuple[str, str]:
        assert main.run(list(arguments)) == status
        return capsys.readouterr()

    clean = "notes: clean, 80 of 80 expected points are there\n"
    assert said("audit", "--collection", COLLECTION)[0] == clean
    damage.drop()
    report = said("audit", "--all", status=1)[0].splitlines()
    assert report[0] == "notes: not clean, 0 of 80 expected points are there"
    assert report[1] == "  Qdrant has no such collection"
    assert report[-1] == "  `millrace rebuild notes` makes it again"
    assert "mended: 80 put back, 0 deleted, 0 embedded" in said("audit", "--repair")[0]
    nothing = {"upserted": 0, "deleted": 0, "embedded": 0, "failed": 0}
    assert json.loads(said("audit", "--repair", "--json")[0])["repaired"] == nothing
    assert said("audit", "--all-vectors")[0] == clean
    assert "give --yes" in said("rebuild", COLLECTION, "--fresh", status=2)[1]
    fresh = said("rebuild", COLLECTION, "--fresh", "--yes")[0]
    assert fresh.startswith("notes: rebuilt, 80 points\n  80 put back, 0 deleted, 0 embedded in ")
    again = json.loads(said("rebuild", COLLECTION, "--json")[0])
    assert (again["collection"], again["points"], again["upserted"], again["embedded"]) == ("notes", 80, 0, 0)
    everything = json.loads(said("audit", "--json")[0])
    assert {name: everything[name] for name in ("expected", "present", "missing", "wrong", "compared", "ledger")} == {
        "expected": 80, "present": 80, "missing": 0, "wrong": 0, "compared": 80, "ledger": {},
    }  # fmt: skip
    assert "there is no collection 'nowhere'" in said("rebuild", "nowhere", status=2)[1]
    assert "exclude each other" in said("audit", "--all", "--collection", COLLECTION, status=2)[1]
