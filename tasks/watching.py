"""Duties by which the system watches itself."""

from __future__ import annotations

from pipeline import alerting
from pipeline.assembly import Services
from pipeline.duties import Bounds
from pipeline.monitoring import memory, storage
from pipeline.observe import logger
from tasks.duty import Counts, Duty

_log = logger("watching")


def evaluate_alerts(opened: Services, bounds: Bounds) -> Counts:
    """Raises, holds and clears alerts, acts where memory is short or something is slow, and tells the callbacks."""
    return alerting.evaluate(opened, bounds, opened.alert_callbacks)


def report_memory(opened: Services, bounds: Bounds) -> Counts:
    """How much memory all processes of ours take, and how many are above the limits."""
    with opened.ledger.transaction() as connection:
        return memory.report(connection, opened.settings.memory).to_json()


def collect(opened: Services, bounds: Bounds) -> Counts:
    """Asks the workers of which a process is above `memory.soft_mb` to collect and trim when they are next idle."""
    with opened.ledger.transaction() as connection:
        asked = memory.ask_large(connection, opened.settings.memory, dry_run=bounds.dry_run)
    return {"workers_asked": len(asked)}


def sample_storage(opened: Services, _: Bounds) -> Counts:
    """Notes how much Postgres, Qdrant and Redis hold, and how much room there is."""
    report = opened.storage.read()
    for store, error in report.errors.items():
        _log.warning("storage of %s is not sampled: %s", store, error)
    return {"samples": storage.sample(opened.ledger, report), "away": len(report.errors)}


DUTIES: tuple[Duty, ...] = (
    Duty("alerts", 30.0, 100, evaluate_alerts, 20.0),
    Duty("memory.report", 30.0, 1, report_memory, 5.0),
    Duty("gc.interpreter", 300.0, 1, collect, 5.0, dry_runs=True),
    Duty("storage.sample", 300.0, 1, sample_storage, 20.0),
)
