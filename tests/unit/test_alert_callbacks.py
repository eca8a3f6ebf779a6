"""Whom an alert is told: whatever a callback does, the others are told, and nobody waits for long."""

from __future__ import annotations

import logging
import sys
import threading
import time
import types
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import EntryPoint

import pytest

from pipeline.ledger.alerts import Alert
from pipeline.monitoring.callbacks import GROUP, Callbacks

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ALERT = Alert(
    7, "queue_size", "low", "high", "many wait", {"size": 501.0}, None, NOW, NOW, NOW, None, None, None
)  # fmt: skip
SECONDS = 2.0  # so long does who hangs hold up the others, and may who does not be kept from running by the machine


class Pagers(types.ModuleType):
    """A module of some package."""

    def __init__(self) -> None:
        super().__init__("pagers_of_a_test")
        self.got: list[Alert] = []
        self.release = threading.Event()

    def page(self, alert: Alert) -> None:
        self.got.append(alert)

    def breaks(self, alert: Alert) -> None:
        raise RuntimeError("no network")

    def hangs(self, alert: Alert) -> None:
        self.release.wait(120)


@pytest.fixture
def pagers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pagers]:
    made = Pagers()
    monkeypatch.setitem(sys.modules, made.__name__, made)
    yield made
    made.release.set()


def points(pagers: Pagers, *names: str) -> list[EntryPoint]:
    return [EntryPoint(name, f"{pagers.__name__}:{name}", GROUP) for name in names]


def test_the_log_is_told_with_the_alerts_fields(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="millrace.alert"):
        (told,) = Callbacks(SECONDS, []).tell(ALERT)

    assert (told.callback, told.error) == ("log", "")
    (record,) = caplog.records
    assert record.name == "millrace.alert"
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "alert.raised (high) queue_size low: many wait"
    assert (record.__dict__["alert_id"], record.__dict__["severity"]) == (7, "high")


def test_a_callback_that_raises_or_hangs_holds_up_nobody(pagers: Pagers, caplog: pytest.LogCaptureFixture) -> None:
    callbacks = Callbacks(SECONDS, points(pagers, "hangs", "breaks", "page"))

    began = time.monotonic()
    told = {one.callback: one.error for one in callbacks.tell(ALERT)}
    assert time.monotonic() - began < 60

    assert pagers.got == [ALERT]
    assert told["page"] == ""
    assert told["breaks"] == "RuntimeError: no network"
    assert "did not return within" in told["hangs"]
    assert "callback hangs of alerts" in caplog.text
    assert "callback breaks of alerts" in caplog.text

    # And while it hangs it is not called again; the others are
    again = {one.callback: one.error for one in callbacks.tell(ALERT)}
    assert "still at an earlier alert" in again["hangs"]
    assert len(pagers.got) == 2


def test_a_callback_that_cannot_be_loaded_is_told_of(pagers: Pagers) -> None:
    (_, told) = Callbacks(SECONDS, points(pagers, "missing")).tell(ALERT)
    assert "AttributeError" in told.error
