"""`millrace alerts`, on a real ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from alert_scene import SECRET, alerting_workshop, dead_letter, look
from services import enter
from webhook_endpoint import Endpoint, status
from workshop import Workshop

from pipeline import Settings
from pipeline.webhooks import verify
from workers.cli.main import run as command


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


@pytest.fixture
def environment(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line on the workshop's servers."""
    settings = workshop.settings
    enter(settings, monkeypatch)
    monkeypatch.setenv("MILLRACE_ALERTS__WEBHOOK", settings.alerts.webhook.get_secret_value())
    monkeypatch.setenv("MILLRACE_WEBHOOKS__SECRET", SECRET)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    assert command(["alerts", *arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("environment")
def test_the_commands_of_an_operator(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    dead_letter(workshop)
    look(workshop)
    (shown,) = said(capsys)["alerts"]
    assert (shown["type"], shown["state"]) == ("dead_letters", "active")
    assert "millrace dead" in shown["remedy"]
    assert said(capsys, "--severity", "high") == {"alerts": []}
    assert said(capsys, "ack", str(shown["id"]), "--by", "ada") == {"acknowledged": [shown["id"]]}
    assert said(capsys, "--all", "--since", "2h")["alerts"][0]["acknowledged_by"] == "ada"
    assert said(capsys, "ack", "--all") == {"acknowledged": []}
    assert said(capsys, "set", "operation_time_ms.search", "300")["value"] == 300.0
    listed = {one["name"]: one["value"] for one in said(capsys, "thresholds")["thresholds"]}
    assert (listed["operation_time_ms.search"], listed["operation_time_ms"]) == (300.0, 1000.0)
    assert said(capsys, "unset", "operation_time_ms.search") == {"name": "operation_time_ms.search", "changed": True}

    assert command(["alerts"]) == 0
    assert "dead_letters" in capsys.readouterr().out
    for wrong in (["ack"], ["ack", "x"], ["set", "queue_size"], ["set", "queue_size", "many"], ["--by", "ada"]):
        assert command(["alerts", *wrong]) == 2, wrong
    capsys.readouterr()


@pytest.mark.usefixtures("environment")
def test_a_test_alert_goes_through_every_callback(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "test")
    assert told["callbacks"] == [
        {"callback": "log", "ok": True, "error": None},
        {"callback": "webhook", "ok": True, "error": None},
    ]
    (message,) = endpoint.got
    assert verify(message.headers, message.body, SECRET)["alert"]["type"] == "test"

    endpoint.answers = [status(503, b"not now")]
    told = said(capsys, "test", status=1)
    assert "answered 503 not now" in told["callbacks"][-1]["error"]
