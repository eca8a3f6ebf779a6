"""What tests of schedules do: making one, running it as a worker does, and ending a run in its middle."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from workshop import COLLECTION, Workshop

from pipeline import Schedule, Settings
from pipeline.duties import Bounds
from pipeline.ledger import schedules
from pipeline.ledger.schedules import RunClaim
from tasks import maintenance, sync
from tasks.base import Outcome


def step_by_step(settings: Settings) -> Workshop:
    """A workshop whose groups are of one document: a run has something between its beginning and its end."""
    ingest = settings.ingest.model_copy(update={"group_documents": 1})
    return Workshop(settings.model_copy(update={"ingest": ingest}))


def plant(path: Path) -> Path:
    """A directory of four documents."""
    directory = path / "tree"
    directory.mkdir()
    for name in "abcd":
        (directory / f"{name}.txt").write_text(f"about {name}")
    return directory


def put_schedule(
    workshop: Workshop, source: Path | str, every: str | float | timedelta = "1h", **options: Any
) -> Schedule:
    return workshop.client.schedule(source, every=every, **{"collection": COLLECTION, **options})


def shown(workshop: Workshop) -> Schedule:
    (schedule,) = workshop.client.schedules()
    return schedule


def run_due(workshop: Workshop) -> Outcome:
    """What a worker does with the schedule's message, and with the work that comes of it."""
    outcome = sync.perform(workshop.services, shown(workshop).id)
    workshop.work()
    return outcome


def claim_run(workshop: Workshop, lease_seconds: float = 9.0) -> RunClaim | None:
    with workshop.services.ledger.transaction() as connection:
        return schedules.claim(connection, shown(workshop).id, "worker@there#1/1", lease_seconds)


def sync_duty(workshop: Workshop) -> dict[str, int]:
    return dict(maintenance.sync(workshop.services, Bounds(100, 20.0)))


def names(workshop: Workshop) -> list[str]:
    return [uri.rpartition("/")[2] for uri in workshop.texts()]


def at_step(monkeypatch: pytest.MonkeyPatch, wanted: int, act: Callable[[], None]) -> None:
    """Something happens in the next run at this step: it takes one for each document that it reads or has staged."""
    steps = 0

    def leaving() -> bool:
        nonlocal steps
        steps += 1
        if steps == wanted:
            act()
        return False

    monkeypatch.setattr(sync, "leaving", leaving)


def die_after(monkeypatch: pytest.MonkeyPatch, documents: int, error: Callable[[], BaseException]) -> None:
    """The next run ends without a word after so many documents, as a killed process does."""

    def die() -> None:
        raise error()

    at_step(monkeypatch, 2 * documents, die)


class Killed(BaseException):
    """Nothing in the run catches this."""
