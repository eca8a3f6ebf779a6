"""What the system does by itself when memory is short or something is too slow, on a real ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alert_scene import MIB, WORKER, active, alerting_workshop, live, look, record
from workshop import Workshop, chunked, paragraphs

from pipeline import Settings, alerting
from pipeline.health import gather
from pipeline.ledger import overrides
from pipeline.monitoring.batch_share import BatchShare
from pipeline.monitoring.facts import Facts
from pipeline.monitoring.triggers import SHARE, STEP_SECONDS, TUNING
from tasks.embed import token_budget


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = alerting_workshop(settings)
    yield made
    made.close()


def large(mib: int) -> list[dict[str, Any]]:
    """What a pool child of so many MiB reports."""
    return [{"slot": 0, "pid": 7, "rss": mib * MIB}]


def sizes(workshop: Workshop, name: str) -> list[int]:
    """The sizes of the embed batches of a document of 16 chunks."""
    words = [f"{name}{letter}" for letter in "abcdefghijklmnop"]
    job = workshop.put({name: paragraphs(*words)})
    workshop.prepare()
    rows = workshop.sql(
        "SELECT size FROM batches WHERE job_id = %(job)s AND kind = 'embed' ORDER BY id", job=job.job_id
    )
    return [row["size"] for row in rows]


def budget(workshop: Workshop) -> int:
    batch = workshop.ready("embed")[-1].id
    claim = workshop.claim(batch)
    with workshop.services.ledger.transaction() as connection:
        return token_budget(workshop.services, connection, claim)


def share(workshop: Workshop) -> float | None:
    with workshop.services.ledger.transaction() as connection:
        return overrides.read(connection).get(SHARE)


def test_short_memory_shrinks_batches_and_asks_for_collection_and_it_is_undone_in_steps(workshop: Workshop) -> None:
    # Given batches as the settings have them
    before, tokens = sizes(workshop, "k"), budget(workshop)

    # When a child has more than 80 % of what it may have, for long enough
    live(workshop, large(800))
    look(workshop)
    assert look(workshop)["resized"] == 1

    # Then batches are smaller, here and wherever somebody claims, its worker is asked to collect, and the alert says so
    (alert,) = [alert for alert in workshop.client.alerts() if alert.type == "memory_pressure"]
    assert alert.subject == "general1@here child 0"
    assert alert.action == f"batches shrunk to 50% of their size; asked {WORKER} to give memory back"
    assert share(workshop) == 0.5
    assert workshop.value(f"SELECT collect_asked_at IS NOT NULL FROM workers WHERE id = '{WORKER}'")
    smaller, half = sizes(workshop, "l"), budget(workshop)
    assert len(smaller) >= len(before)
    assert half == tokens // 2

    # And no further before the effect can be seen, nor below the floor
    assert look(workshop)["resized"] == 0
    assert look(workshop, STEP_SECONDS)["resized"] == 1
    assert share(workshop) == 0.25
    assert look(workshop, STEP_SECONDS)["resized"] == 0
    assert share(workshop) == 0.25

    # When it is over, it goes back as it came
    live(workshop, large(300))
    look(workshop)
    assert share(workshop) == 0.25
    shares = []
    for seconds in (130.0, 130.0, STEP_SECONDS, STEP_SECONDS, STEP_SECONDS):
        look(workshop, seconds)
        shares.append(share(workshop))
    assert shares == [0.5, 0.5, 1.0, None, None]
    assert sizes(workshop, "m") == before


def test_prepare_cuts_smaller_batches_while_they_are_shrunk(settings: Settings) -> None:
    ingest = settings.ingest.model_copy(update={"embed_chunks": 8})
    made = Workshop(chunked(settings.model_copy(update={"ingest": ingest})))  # its speed is not known
    made.services.batch_share = BatchShare(look_seconds=0.0)
    try:
        assert sizes(made, "k") == [8, 8]
        with made.services.ledger.transaction() as connection:
            overrides.set(connection, SHARE, 0.5, "a test")
        assert sizes(made, "l") == [4, 4, 4, 4]
        with made.services.ledger.transaction() as connection:
            overrides.set(connection, SHARE, 0.0001, "nobody may go below the floor")
        assert sizes(made, "m") == [2] * 8
    finally:
        made.close()


def test_a_process_looks_for_the_share_no_more_often_than_it_may(workshop: Workshop) -> None:
    rested = BatchShare(look_seconds=60.0)
    with workshop.services.ledger.transaction() as connection:
        assert rested.read(connection) == 1.0
        overrides.set(connection, SHARE, 0.5, "a test")
        assert rested.read(connection) == 1.0
        assert BatchShare().read(connection) == 0.5


def test_a_slow_search_asks_for_tuning_and_slow_embedding_shrinks_batches(workshop: Workshop) -> None:
    record(workshop, "search.retrieve", 2.0)
    record(workshop, "embed.compute", 20.0)
    for _ in range(3):
        look(workshop)
    found = {alert.subject: alert for alert in workshop.client.alerts() if alert.type == "slow_operation"}
    assert found["search.retrieve"].action == "tuning of the index asked for"
    assert found["embed.compute"].action == "batches shrunk to 50% of their size"
    with workshop.services.ledger.transaction() as connection:
        asked = overrides.get(connection, TUNING)
    assert asked is not None
    assert "p95 of search.retrieve" in (asked.reason or "")


def test_errors_of_an_operation_are_an_alert_and_wrong_requests_are_none(workshop: Workshop) -> None:
    record(workshop, "search", 0.01, runs=100, errors=20)
    for _ in range(3):
        look(workshop)
    (alert,) = workshop.client.alerts()
    assert (alert.type, alert.subject, alert.severity) == ("error_rate", "search", "high")
    assert alert.metrics["error_rate"] == 0.2


def test_where_redis_is_away_what_it_knows_is_unknown_and_its_alerts_are_held(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(workshop, "search", 0.01, runs=100, errors=20)
    for _ in range(3):
        look(workshop)
    whole = gather(workshop.services)
    away = Facts(
        **{name: getattr(whole, name) for name in Facts.__slots__}
        | {"operations": None, "broker_error": "Redis does not answer"}
    )
    monkeypatch.setattr(alerting, "gather", lambda _: away)
    for _ in range(6):
        look(workshop)
    assert active(workshop) == [("error_rate", "search"), ("redis_away", "redis")]
