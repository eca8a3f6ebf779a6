"""The sections of the settings by which the system watches itself. Thresholds can also be changed while it runs
(`millrace alerts set`, `millrace duties set`); what is set there wins until it is taken back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from pipeline.settings.base import Section
from pipeline.settings.secrets import url_of

Severity = Literal["low", "medium", "high", "critical"]


class LogSettings(Section):
    format: Literal["json", "text"] = Field(
        "json", description="how workers, beat and the servers of the embedded stack write their logs"
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged, from this on")
    slow_seconds: float = Field(1.0, ge=0, description="an operation that takes longer is logged; 0: none is")


class MetricsSettings(Section):
    enabled: bool = Field(True, description="measure operations, and count what happens")
    report_seconds: float = Field(10.0, ge=0.5, description="seconds between two reports of a process")
    server: bool = Field(True, description="serve Prometheus at /metrics, in each worker")
    address: str = Field("127.0.0.1", description="address on which a worker serves /metrics")
    port: int = Field(0, ge=0, le=65535, description="port on which a worker serves /metrics; 0: one that is free")
    cluster: bool = Field(True, description="sum the figures of all processes in Redis, for `millrace stats`")


class MemorySettings(Section):
    """Resident memory (RSS) in MiB."""

    soft_mb: int = Field(800, ge=50, description="of one process, above which it collects and trims when it is idle")
    hard_mb: int = Field(900, ge=100, description="of a pool child, above which it is replaced after its work")
    ingest_mb: int = Field(
        500, ge=50, description="of a process that enqueues, above which it stages smaller groups of documents"
    )
    sample_seconds: float = Field(10.0, ge=0.5, description="seconds between two measurements of a process")
    collect_seconds: float = Field(
        300.0, ge=1, description="seconds between two collections of a process that is above `soft_mb`"
    )


class GarbageSettings(Section):
    """What is kept for how long; nothing that a live document or unfinished work needs is ever taken."""

    embeddings_days: float = Field(
        90.0, ge=0, description="days after which an embedding that nothing needs goes; 0: never"
    )
    paid_embeddings_days: float = Field(
        0.0, ge=0, description="the same for one that was paid for; 0: never, so that nothing is paid for twice"
    )
    embeddings_mb: int = Field(
        0, ge=0, description="MiB of embeddings above which the longest unused that nothing needs go; 0: no limit"
    )
    jobs_days: float = Field(30.0, gt=0, description="days that finished jobs are kept")
    dead_letters_days: float = Field(7.0, gt=0, description="days that resolved dead letters are kept")
    alerts_days: float = Field(30.0, gt=0, description="days that alerts are kept after they have cleared")
    samples_days: float = Field(30.0, gt=0, description="days that samples of storage are kept")


# These work on many documents or chunks at one time, or wait for somebody else.
_OPERATION_TIMES_MS = {
    "prepare": 60_000.0,
    "extract": 60_000.0,
    "chunk": 30_000.0,
    "prepare.open": 10_000.0,
    "delete": 10_000.0,
    "embed": 120_000.0,  # what is bought waits for limits; `embed.compute` is what is embedded here
    "embed.compute": 5_000.0,
    "embed.texts": 10_000.0,
    "upsert": 5_000.0,
    "complete": 5_000.0,
    "contract": 60_000.0,
    "ingest.stage": 10_000.0,
    "delete.stage": 10_000.0,
    "sync.run": 600_000.0,
    # These wait for somebody else's server, or for its limits.
    "embed.buy": 120_000.0,
    "buying.begin": 5_000.0,
    "buying.order": 5_000.0,
    "openai.request": 10_000.0,
    "openai.limit": 120_000.0,
    "openai.batch": 600_000.0,
    "openai.pack": 10_000.0,
    "openai.render": 60_000.0,
    "openai.upload": 300_000.0,
    "openai.create": 30_000.0,
    "openai.look": 30_000.0,
    "openai.harvest": 10_000.0,
    "webhook": 15_000.0,
}


class AlertSettings(Section):
    webhook: Annotated[SecretStr, url_of("http", "https")] = Field(
        SecretStr(""), description="URL that is told of every alert, signed with webhooks.secret; empty: none"
    )
    webhook_severity: Severity = Field("medium", description="the least severity that the webhook is told of")
    operation_time_ms: float = Field(1000.0, gt=0, description="p95 of an operation above which there is an alert")
    operation_times_ms: dict[str, float] = Field(
        _OPERATION_TIMES_MS,
        description="the same for operations that take their time by design, as JSON, by name; duties have budgets "
        "of their own",
    )
    memory_usage_mb: float = Field(800.0, gt=0, description="resident memory of a process, the same")
    queue_size: float = Field(500.0, gt=0, description="messages and ready batches of one queue, the same")
    queue_age_seconds: float = Field(3600.0, gt=0, description="age of the oldest ready batch of one queue, the same")
    error_rate: float = Field(0.05, gt=0, le=1, description="share of an operation's runs that fail, the same")
    memory_percent: float = Field(
        80.0,
        gt=0,
        le=100,
        description="of a machine's memory, or of memory.hard_mb in one process; above it the system acts",
    )
    disk_percent: float = Field(90.0, gt=0, le=100, description="of the room of Postgres, Qdrant or Redis, the same")
    disk_days: float = Field(3.0, ge=0, description="days until one is full, below which there is an alert")
    budget_percent: float = Field(
        80.0, gt=0, le=100, description="of a month's budget, spent or held back, above which there is an alert"
    )


class StorageSettings(Section):
    """What there is room for, in bytes, where it cannot be measured; 0: it is measured, or not known."""

    postgres_bytes: int = Field(0, ge=0, description="room of Postgres")
    qdrant_bytes: int = Field(0, ge=0, description="room of Qdrant")
    redis_bytes: int = Field(0, ge=0, description="room of Redis; by default its maxmemory")
