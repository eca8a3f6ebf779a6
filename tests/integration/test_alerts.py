"""Alerts on a real ledger: raised, told, acknowledged, cleared."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from alert_scene import MIB, SECRET, active, alerting_workshop, dead_letter, deliver, live, look, pause
from webhook_endpoint import Endpoint, status
from workshop import Workshop, paragraphs

from pipeline import AsyncClient, Settings, alerting
from pipeline.duties import Bounds
from pipeline.errors import InvalidRequest
from pipeline.health import gather
from pipeline.ledger.alerts import Alert
from pipeline.monitoring.callbacks import GROUP, Callbacks
from pipeline.webhooks import verify


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


@pytest.fixture
def workshop(settings: Settings, endpoint: Endpoint) -> Iterator[Workshop]:
    made = alerting_workshop(settings, endpoint.url)
    yield made
    made.close()


def test_a_whole_that_is_well_raises_nothing(workshop: Workshop) -> None:
    assert look(workshop) == {"score": 100, "active": 0, "raised": 0, "cleared": 0, "resized": 0, "told": 0}
    assert workshop.client.status()["health"] == {"score": 100, "issues": [], "unknown": []}


def test_an_alert_is_raised_told_signed_held_and_cleared(workshop: Workshop, endpoint: Endpoint) -> None:
    # When a document cannot be indexed
    dead_letter(workshop)
    assert look(workshop)["raised"] == 1
    assert look(workshop)["raised"] == 0
    deliver(workshop)

    # Then the webhook is told once, signed
    (message,) = endpoint.got
    told = verify(message.headers, message.body, SECRET)
    (alert,) = workshop.client.alerts()
    assert told["type"] == "alert.raised"
    assert told["alert"] | {"seen_at": 0} == alert.to_json() | {"seen_at": 0}
    assert (alert.type, alert.severity, alert.state) == ("dead_letters", "medium", "active")
    assert alert.message == "1 documents could not be indexed"
    assert dict(alert.metrics) == {"open": 1}

    # And when it is resolved, that it is over, after a while
    workshop.client.discard(everything=True)
    assert [look(workshop)["cleared"] for _ in range(5)] == [0, 0, 0, 0, 1]
    deliver(workshop)
    assert [json.loads(got.body)["type"] for got in endpoint.got] == ["alert.raised", "alert.cleared"]
    assert workshop.client.alerts() == []
    (kept,) = workshop.client.alerts(cleared=True)
    assert kept.state == "cleared"


def test_a_webhook_that_is_not_taken_is_tried_again(workshop: Workshop, endpoint: Endpoint) -> None:
    endpoint.answers = [status(500), status(200)]
    dead_letter(workshop)
    look(workshop)
    deadline = time.monotonic() + 60
    while workshop.value("SELECT state FROM webhook_deliveries") != "delivered":
        assert time.monotonic() < deadline
        deliver(workshop)
    first, second = endpoint.got
    assert first.id == second.id


def test_a_severity_that_rises_is_told_again(workshop: Workshop, endpoint: Endpoint) -> None:
    live(workshop, [{"slot": 0, "pid": 7, "rss": 850 * MIB}])
    workshop.client.set_threshold("memory_percent", 100.0)
    for _ in range(3):
        look(workshop)
    deliver(workshop)
    live(workshop, [{"slot": 0, "pid": 7, "rss": 950 * MIB}])
    assert look(workshop)["told"] >= 1
    deliver(workshop)
    told = [json.loads(got.body) for got in endpoint.got]
    usage = [(one["type"], one["alert"]["severity"]) for one in told if one["alert"]["type"] == "memory_usage"]
    assert usage == [("alert.raised", "medium"), ("alert.raised", "high")]
    assert len({got.id for got in endpoint.got}) == len(endpoint.got)


def test_only_what_is_severe_enough_goes_to_the_webhook(workshop: Workshop, endpoint: Endpoint) -> None:
    pause(workshop)  # severity low
    look(workshop)
    workshop.sql("UPDATE alerts SET began_at = began_at - interval '1 hour'")
    assert look(workshop)["raised"] == 1
    deliver(workshop)
    assert active(workshop) == [("everything_paused", "")]
    assert endpoint.got == []


def test_what_a_killed_worker_did_not_tell_the_next_one_tells(
    workshop: Workshop, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Alert] = []
    pagers = types.ModuleType("pagers_of_test_alerts")
    pagers.page = got.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, pagers.__name__, pagers)
    callbacks = Callbacks(60.0, [EntryPoint("page", f"{pagers.__name__}:page", GROUP)])

    # Given a worker that is killed when it has raised, and before it has told
    dead_letter(workshop)
    alerting.decide(workshop.services, gather(workshop.services))
    assert got == []

    # When the next one looks, then it tells, once; and the webhook was owed all along
    bounds = Bounds(100, 20.0)
    assert alerting.evaluate(workshop.services, bounds, callbacks)["told"] == 1
    assert alerting.evaluate(workshop.services, bounds, callbacks)["told"] == 0
    assert [(alert.type, alert.event) for alert in got] == [("dead_letters", "alert.raised")]
    deliver(workshop)
    assert len(endpoint.got) == 1

    # And one that is killed in the middle of telling tells it again
    workshop.sql("UPDATE alerts SET raise_owed = true")

    class Killed(BaseException):
        pass

    def killed(alert: Alert) -> Any:
        raise Killed

    dying = Callbacks(60.0, [])
    monkeypatch.setattr(dying, "tell", killed)
    with pytest.raises(Killed):
        alerting.evaluate(workshop.services, bounds, dying)
    assert alerting.evaluate(workshop.services, bounds, callbacks)["told"] == 1
    assert len(got) == 2


def test_one_that_was_cleared_before_it_was_told_is_told_as_both(workshop: Workshop) -> None:
    dead_letter(workshop)
    alerting.decide(workshop.services, gather(workshop.services))
    workshop.client.discard(everything=True)
    for _ in range(5):
        workshop.sql("UPDATE alerts SET gone_at = gone_at - interval '60 seconds'")
        alerting.decide(workshop.services, gather(workshop.services))
    told: list[tuple[str, str]] = []
    callbacks = Callbacks(1.0, [])
    callbacks.tell = lambda alert: told.append((alert.type, alert.event)) or []  # type: ignore[method-assign,func-returns-value]
    alerting.tell(workshop.services, Bounds(100, 20.0), callbacks)
    assert told == [("dead_letters", "alert.raised"), ("dead_letters", "alert.cleared")]


def test_two_that_look_at_one_time_raise_one_alert(workshop: Workshop) -> None:
    dead_letter(workshop)
    facts = gather(workshop.services)
    raised: list[int] = []
    threads = [
        threading.Thread(target=lambda: raised.append(alerting.decide(workshop.services, facts)["raised"]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(raised) == [0, 1]
    assert len(workshop.client.alerts()) == 1


def test_a_threshold_is_in_effect_with_the_next_look(workshop: Workshop) -> None:
    workshop.put({f"n/{n}": paragraphs("alpha", "bravo") for n in range(3)})
    client = workshop.client
    client.set_threshold("queue_size.normal", 0.5)
    look(workshop)
    look(workshop)
    assert look(workshop)["raised"] == 1
    assert active(workshop) == [("queue_size", "normal")]
    (shown,) = [one for one in client.thresholds() if one.name == "queue_size.normal"]
    assert (shown.value, shown.changed) == (0.5, True)

    assert client.unset_threshold("queue_size.normal")
    assert not client.unset_threshold("queue_size.normal")
    assert [look(workshop)["cleared"] for _ in range(5)][-1] == 1
    with pytest.raises(InvalidRequest, match="no threshold"):
        client.set_threshold("queue_sise", 1.0)


def test_alerts_are_acknowledged_until_they_clear(workshop: Workshop) -> None:
    dead_letter(workshop)
    pause(workshop)
    look(workshop)
    workshop.sql("UPDATE alerts SET began_at = began_at - interval '1 hour'")
    look(workshop)
    client = workshop.client
    letters, paused = sorted(client.alerts(), key=lambda alert: alert.type)
    assert client.status()["alerts"] == {"medium": 1, "low": 1}

    assert client.acknowledge(letters.id, by="ada") == [letters.id]
    assert client.acknowledge(letters.id, by="bob") == []
    (seen,) = [alert for alert in client.alerts() if alert.id == letters.id]
    assert (seen.state, seen.acknowledged_by) == ("acknowledged", "ada")
    assert [alert.type for alert in client.alerts(severity="medium")] == ["dead_letters"]
    assert client.acknowledge(everything=True) == [paused.id]
    with pytest.raises(InvalidRequest, match="no alert 4711"):
        client.acknowledge([4711])
    with pytest.raises(InvalidRequest, match="by id"):
        client.acknowledge()
    with pytest.raises(InvalidRequest, match="severity"):
        client.alerts(severity="bad")  # type: ignore[arg-type]


def test_since_shows_what_has_cleared_meanwhile(workshop: Workshop) -> None:
    dead_letter(workshop)
    look(workshop)
    workshop.client.discard(everything=True)
    look(workshop)
    look(workshop, 130.0)
    assert workshop.client.alerts() == []
    assert [alert.type for alert in workshop.client.alerts(since="1h")] == ["dead_letters"]
    workshop.sql("UPDATE alerts SET cleared_at = cleared_at - interval '2 hours'")
    assert workshop.client.alerts(since="1h") == []
    assert len(workshop.client.alerts(since="3h")) == 1


def test_the_awaited_client_has_them_too(workshop: Workshop) -> None:
    dead_letter(workshop)
    look(workshop)

    async def story() -> tuple[list[Alert], list[int]]:
        client = AsyncClient(services=workshop.services)
        found = await client.alerts()
        return found, await client.acknowledge([alert.id for alert in found])

    found, seen = asyncio.run(story())
    assert seen == [alert.id for alert in found]
