"""A whole whose workers live, in which alerts are raised: the duty, time that passes, what processes measured."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from workshop import Workshop, chunked

from pipeline import Settings
from pipeline.duties import Bounds
from pipeline.embedding.base import Embedded, Role
from pipeline.ledger import fleet
from pipeline.ledger import services as service_rows
from pipeline.monitoring.batch_share import BatchShare
from pipeline.monitoring.cluster import ClusterStats
from pipeline.observe import Measured, Sketch
from pipeline.settings import load_settings
from pipeline.testing import ConstantEmbedder
from tasks.maintenance import DUTIES as MAINTENANCE
from tasks.watching import DUTIES

ALERTS = next(duty for duty in DUTIES if duty.name == "alerts")
WEBHOOKS = next(duty for duty in MAINTENANCE if duty.name == "webhooks")
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
WORKER = "general1@here#1"
MIB = 1024**2


class TimedEmbedder(ConstantEmbedder):
    """One whose speed is known."""

    @property
    def tokens_per_second(self) -> float | None:
        return 1000.0

    def embed(self, texts: Any, role: Role = "passage", on_progress: Any = None) -> Embedded:
        return super().embed(texts, role, on_progress)


def alerting_workshop(settings: Settings, webhook: str = "") -> Workshop:
    """Its batches are looked after at every look; alerts go to this URL."""
    given = load_settings(
        webhooks={"secret": SECRET, "timeout": 30.0, "backoff_seconds": 0.01}, alerts={"webhook": webhook}
    )
    changes = {
        "webhooks": given.webhooks,
        "alerts": given.alerts,
        "ingest": settings.ingest.model_copy(update={"embed_chunks": 8}),
    }
    made = Workshop(chunked(settings.model_copy(update=changes)), TimedEmbedder(max_tokens=256))
    made.services.batch_share = BatchShare(look_seconds=0.0)
    live(made)
    return made


def live(workshop: Workshop, processes: list[dict[str, Any]] | None = None) -> None:
    """A general worker, an express one and beat report, and are alive for all of a test, however slow that is."""
    with workshop.services.ledger.transaction() as connection:
        fleet.report(connection, WORKER, "here", 1, "high,normal,low", 2, processes=processes or [])
        fleet.report(connection, "express@here#1", "here", 2, "control,high", 1)
        service_rows.report(connection, service_rows.BEAT, "here", 3, {})
        for table in ("workers", "services"):
            connection.execute(f"UPDATE {table} SET seen_at = clock_timestamp() + interval '1 hour'")


def look(workshop: Workshop, after: float = 30.0) -> Mapping[str, int]:
    """The duty, when so many seconds have passed since it last looked; the workers live on."""
    shift = f"interval '{after} seconds'"
    columns = ("began_at", "raised_at", "seen_at", "gone_at")
    workshop.sql(f"UPDATE alerts SET {', '.join(f'{name} = {name} - {shift}' for name in columns)}")
    workshop.sql(f"UPDATE overrides SET changed_at = changed_at - {shift}")
    workshop.sql(f"UPDATE workers SET collect_asked_at = collect_asked_at - {shift}")
    workshop.sql("UPDATE workers SET seen_at = clock_timestamp()")
    workshop.sql("UPDATE services SET seen_at = clock_timestamp()")
    return ALERTS.run(workshop.services, Bounds(100, 20.0))


def deliver(workshop: Workshop) -> None:
    WEBHOOKS.run(workshop.services, Bounds(100, 60.0))
    workshop.services.deliverer.wait(60.0)


def pause(workshop: Workshop, seconds: float = 7200.0) -> None:
    workshop.client.pause(everything=True)
    workshop.sql(f"UPDATE pauses SET paused_at = paused_at - interval '{seconds} seconds'")


def dead_letter(workshop: Workshop) -> None:
    """A document that cannot be indexed."""
    workshop.index({"empty": " "})


def active(workshop: Workshop) -> list[tuple[str, str]]:
    return sorted((alert.type, alert.subject) for alert in workshop.client.alerts())


def record(workshop: Workshop, operation: str, seconds: float, runs: int = 50, errors: int = 0) -> None:
    """What some process measured."""
    sketch = Sketch()
    for _ in range(runs):
        sketch.add(seconds)
    measured = Measured(sketches={("operation_seconds", (operation,)): sketch})
    if errors:
        measured.counts["operation_errors", (operation, "VectorsUnavailable")] = float(errors)
    stats = ClusterStats(workshop.settings.redis)
    stats.add(measured)
    stats.close()
