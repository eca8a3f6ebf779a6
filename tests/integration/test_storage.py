"""What Postgres, Qdrant and Redis hold: read from the real servers, sampled, and told when one of them is away."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from services import enter
from workshop import Workshop, chunked

from pipeline import Settings
from pipeline.duties import Bounds
from pipeline.ledger import storage as ledger_storage
from pipeline.monitoring import storage
from pipeline.monitoring.storage import bytes_on_disk
from pipeline.monitoring.storage_report import SAMPLES, STORES
from pipeline.monitoring.trend import LEAST_SAMPLES
from pipeline.settings import QdrantSettings, load_settings
from pipeline.vectors.base import Point
from pipeline.vectors.qdrant import QdrantStore
from pipeline.vectors.sizes import RELATIVE_ERROR
from pipeline.vectors.sparse import SparseVector
from tasks.watching import DUTIES
from workers.cli.main import run
from workers.embedded.part import run_alone
from workers.embedded.ports import free_port
from workers.embedded.vectors import EmbeddedVectors

MB = 1024 * 1024


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(settings))
    yield made
    made.close()


def test_the_three_say_what_they_hold(workshop: Workshop) -> None:
    workshop.index({f"notes/{number}": f"Note {number} says a little of storage." for number in range(12)})
    report = workshop.client.storage()

    assert report.errors == {}
    assert report.qdrant is not None
    (notes,) = [found for found in report.qdrant.collections if found.name == "notes"]
    assert notes.description is not None
    assert (notes.description.points, notes.description.vectors, notes.description.dimensions) == (12, 24, 8)
    assert notes.description.health == "green"
    assert notes.description.segments >= 1
    assert {"tenant", "document", "version", "uri"} <= set(notes.description.fields)
    assert report.qdrant.room.measured is False, "of a server elsewhere the files are not seen"
    assert report.postgres is not None
    sizes = {table.name: table for table in report.postgres.tables}
    assert {"documents", "versions", "chunks", "batches", "embeddings", "jobs", "samples"} <= set(sizes)
    assert sizes["chunks"].rows >= 0
    assert sizes["chunks"].bytes > sizes["chunks"].index_bytes > 0
    assert MB / 2 < sum(table.bytes for table in report.postgres.tables) < report.postgres.room.used
    assert report.redis is not None
    assert 0 < report.redis.room.used <= report.redis.peak
    assert report.postgres.room.growth is None, "nothing was sampled yet"
    assert json.loads(json.dumps(report.to_json()))["qdrant"]["collections"]


def test_an_open_transaction_is_told_of(workshop: Workshop) -> None:
    with workshop.services.ledger.transaction() as held:
        held.execute("SELECT 1")
        other = Workshop(workshop.settings)
        try:
            postgres = other.client.storage().postgres
        finally:
            other.close()

    assert postgres is not None
    assert postgres.longest_transaction_seconds is not None
    assert postgres.longest_transaction_seconds >= 0
    assert "idle in transaction" in postgres.longest_transaction


@pytest.mark.parametrize("away", STORES)
def test_one_that_is_away_is_named_and_the_others_are_shown(settings: Settings, away: str) -> None:
    scheme = {"postgres": "postgresql://nobody:secret", "redis": "redis://:secret", "qdrant": "grpc://:secret"}[away]
    port = free_port()
    section = getattr(settings, away).model_copy(
        update={
            "url": type(settings.redis.url)(f"{scheme}@127.0.0.1:{port}{'/none' if away == 'postgres' else ''}"),
            "timeout": 1.0,
        }
    )
    shop = Workshop(settings.model_copy(update={away: section}))
    try:
        report = shop.client.storage()
    finally:
        shop.close()

    assert set(report.errors) == {away}
    assert f"127.0.0.1:{port}" in report.errors[away]  # type: ignore[index]
    assert "secret" not in str(report.errors)
    assert [store for store in STORES if report.room(store) is None] == [away]
    assert report.to_json()[away] is None


def test_samples_are_taken_by_a_duty_and_become_a_trend(workshop: Workshop) -> None:
    (duty,) = [each for each in DUTIES if each.name == "storage.sample"]
    counts = duty.run(workshop.services, Bounds(duty.limit, duty.budget_seconds))
    with workshop.services.ledger.transaction() as connection:
        newest = storage.newest(connection)

    assert counts["away"] == 0
    assert counts["samples"] == len(newest)
    assert set(newest) <= set(SAMPLES)
    assert {"postgres.bytes", "qdrant.bytes", "qdrant.points", "redis.bytes", "redis.keys"} <= set(newest)

    # When Redis has grown by a megabyte an hour for two days, a few samples being far off
    workshop.sql(
        """INSERT INTO samples (name, at, value)
           SELECT 'redis.bytes', now() - make_interval(hours => h),
                  CASE WHEN mod(h, 9) = 0 THEN 1e12 ELSE %(now)s - h * 1048576.0 END
             FROM generate_series(1, 48) AS h""",
        now=newest["redis.bytes"],
    )
    limited = workshop.settings.model_copy(
        update={
            "storage": workshop.settings.storage.model_copy(
                update={"redis_bytes": int(newest["redis.bytes"]) + 240 * MB}
            )
        }
    )
    shop = Workshop(limited)
    try:
        room = shop.client.storage().room("redis")
        duty.run(shop.services, Bounds(duty.limit, duty.budget_seconds))
        with shop.services.ledger.transaction() as connection:
            full = storage.fullness(connection)["redis"]
    finally:
        shop.close()

    # Then that is what it is told to grow by, and it is full in ten days
    assert room is not None
    assert room.growth is not None
    assert room.growth.per_day == pytest.approx(24 * MB, rel=0.05)
    assert room.full_in_days == pytest.approx(10, rel=0.1)
    assert full.full_in_days == pytest.approx(10, rel=0.1)


def test_a_long_history_is_thinned_evenly(workshop: Workshop) -> None:
    workshop.sql(
        """INSERT INTO samples (name, at, value)
           SELECT 'redis.bytes', now() - make_interval(mins => 5 * m), m FROM generate_series(0, 2015) AS m"""
    )
    with workshop.services.ledger.transaction() as connection:
        found = ledger_storage.history(connection, ["redis.bytes", "qdrant.bytes"], 7.0, 100)

    assert LEAST_SAMPLES < len(found["redis.bytes"]) <= 100
    assert found["redis.bytes"][-1][1] == 0, "the newest is among them"
    assert found["redis.bytes"][0][0] == pytest.approx(-7, abs=0.1)
    assert found["qdrant.bytes"] == []


def test_the_command_says_it_in_json_and_in_lines(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter(workshop.settings, monkeypatch)
    workshop.index({"notes/1": "A note."})

    assert run(["storage", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"postgres", "qdrant", "redis", "errors"}
    assert {"used_bytes", "limit_bytes", "growth_bytes_per_day", "full_in_days"} <= set(told["redis"])
    assert run(["storage"]) == 0
    printed = capsys.readouterr().out
    assert "not enough samples yet" in printed
    assert "embeddings\t" in printed


def test_the_estimate_agrees_with_the_files_of_the_embedded_server(tmp_path: Path) -> None:
    # Given a home with a vector server whose collection is like one of real texts
    server = EmbeddedVectors(tmp_path / "qdrant", free_port(), "key")
    chance = np.random.default_rng(7)
    words = [f"word{number}" for number in range(2_000)]
    with run_alone(server.part(), tmp_path / "log"):
        store = QdrantStore(QdrantSettings.model_validate({"url": server.url}))
        store.ensure_collection("notes", 384)
        store.upsert("notes", [_point(chance, words, number) for number in range(2_500)])
        told = store.describe("notes")
        assert told is not None

        # When what its segments take of the disk is looked at, after the server has written it
        deadline = time.monotonic() + 60
        while (found := _segments(tmp_path)) < told.bytes / 2 and time.monotonic() < deadline:
            time.sleep(0.2)

        # Then the estimate is as far off as is said, at most
        assert told.bytes == pytest.approx(found, rel=RELATIVE_ERROR)
        assert told.vector_bytes > 2_500 * 384 * 4

        # And of a home whose stack this is, the files are what is told
        (tmp_path / "run.json").write_text(json.dumps({"settings": {"qdrant": {"url": server.url}}}))
        shop = Workshop(
            load_settings(home=tmp_path, qdrant={"url": server.url}, postgres={"url": ""}, redis={"url": ""})
        )
        try:
            report = shop.client.storage()
        finally:
            shop.close()
        assert report.qdrant is not None
        room = report.qdrant.room
        assert (room.measured, room.told_by) == (True, "disk")
        assert room.used == pytest.approx(bytes_on_disk(tmp_path / "qdrant"), rel=0.1)
        assert room.limit is not None
        assert room.limit > room.used
        assert set(report.errors) == {"postgres", "redis"}
        store.close()


def _point(chance: np.random.Generator, words: list[str], number: int) -> Point:
    vector = chance.standard_normal(384).astype(np.float32)
    terms = sorted({int(term) for term in chance.integers(0, 100_000, 58)})
    payload = {
        "tenant": "default",
        "document": number // 5,
        "version": number,
        "uri": f"file:///docs/{number // 5}.md",
        "text": " ".join(chance.choice(words, 85)),
        "metadata": {"lang": "en"},
    }
    return Point(uuid.uuid4(), vector / np.linalg.norm(vector), SparseVector(terms, [1.0] * len(terms)), payload)


def _segments(home: Path) -> int:
    return sum(bytes_on_disk(found) for found in home.rglob("segments"))
