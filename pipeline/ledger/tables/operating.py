"""The tables by which the work is run and watched."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from pipeline.ledger.tables.columns import json, metadata, now, time

duties = Table(
    "duties",
    metadata,
    Column("name", Text, primary_key=True),
    now("due_at"),
    Column("owner", Text),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    time("lease_until"),
    time("ran_at"),
    Column("seconds", Double),
    json("result"),
    Column("failed", Boolean, nullable=False, server_default=text("false")),
    Column("failures", Integer, nullable=False, server_default=text("0")),  # in a row
    json("defaults"),  # interval, limit and budget as the code has them, and what it does; {}: no code knows it
    now("awaited_since"),  # since when it is known, or was last enabled
    time("asked_at"),  # when a worker last asked for it in beat's place
    Column("interval_seconds", Double),  # these three: what an operator set; null: as the code has it
    Column("row_limit", Integer),
    Column("budget_seconds", Double),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    time("seen_at"),  # when `reconcile` last looked for expired leases,
    time("steady_since"),  # and since when it has done so without a gap; null: from the start
)

# How far a duty has come that goes through a table in several runs; no row: it begins anew.
walks = Table(
    "walks",
    metadata,
    Column("step", Text, primary_key=True),
    Column("after", ARRAY(Text), nullable=False),  # the key of the row that was looked at last, by its columns
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),  # name of the worker process
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("queues", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    now("started_at"),
    now("seen_at"),
    time("steady_since"),  # since when it has reported without a gap; null: since it started
    json("rates"),  # {queue: batches per second that it has done of it lately}
    json("processes", "[]"),  # its main process and its children, as each has measured itself
    Column("metrics_url", Text),  # where it serves /metrics; null: nowhere
    time("collect_asked_at"),  # an operator wants its processes to collect garbage
)

schedules = Table(
    "schedules",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("collection", Text, nullable=False),  # by name: made by the first run
    Column("tenant", Text, nullable=False),
    Column("source", Text, nullable=False),  # as `open_source` takes it; paths are absolute
    json("options"),  # SyncOptions
    Column("every_seconds", Double, nullable=False),
    now("next_due"),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("asked", Boolean, nullable=False, server_default=text("false")),  # for one run, paused or not
    time("run_due"),  # when the run that has begun and not ended was due
    time("sent_at"),
    Column("owner", Text),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    time("lease_until"),
    Column("losses", SmallInteger, nullable=False, server_default=text("0")),  # workers lost on this run
    Column("last_job", Uuid),
    time("last_started"),
    time("last_finished"),
    Column("last_error", Text),
    Column("consecutive_failures", Integer, nullable=False, server_default=text("0")),
    now("created_at"),
    UniqueConstraint("collection", "tenant", "source"),
)

# Scopes in which no work is sent or claimed; a job that is paused says so in its own state.
pauses = Table(
    "pauses",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("collection_id", ForeignKey("collections.id")),  # null: everything
    Column("reason", Text),
    now("paused_at"),
    UniqueConstraint("collection_id", postgresql_nulls_not_distinct=True),
)

# Dependencies that were found away, as all workers see them; no row, or opened_at null: closed.
circuits = Table(
    "circuits",
    metadata,
    Column("dependency", Text, primary_key=True),
    time("opened_at"),
    time("retry_at"),  # when the next probe may go
    Column("probe_batch", BigInteger),  # the one batch that may go meanwhile; no key: it may be gone
    Column("failures", Integer, nullable=False, server_default=text("0")),  # in a row
    Column("error", Text),
    Column("cause", Text),  # its class: what is wrong, where one dependency can be away for several reasons
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("collection_id", ForeignKey("collections.id"), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("document_id", ForeignKey("documents.id"), nullable=False),
    Column("version_id", ForeignKey("versions.id"), nullable=False, unique=True),
    Column("kind", Text, nullable=False),  # of the work that failed: prepare, embed, delete
    Column("ordinal", Integer),  # of the chunk that failed, and its text; null where the whole document did
    Column("chunk", Text),
    Column("error", Text, nullable=False),
    Column("traceback", Text),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("losses", SmallInteger, nullable=False, server_default=text("0")),
    Column("media_type", Text),
    Column("content", LargeBinary),  # STORAGE EXTERNAL: what was staged, for `retry`; null once it is resolved
    now("created_at"),
    time("resolved_at"),
    Column("resolution", Text),  # retried, discarded, superseded
    Column("retried_by", Uuid),  # the job that tries it again
)
Index("dead_letters_open_idx", dead_letters.c.id, postgresql_where=dead_letters.c.resolved_at.is_(None))
Index("dead_letters_resolved_idx", dead_letters.c.resolved_at, postgresql_where=dead_letters.c.resolved_at.is_not(None))
Index("dead_letters_job_id_idx", dead_letters.c.job_id)
Index("dead_letters_retried_by_idx", dead_letters.c.retried_by, postgresql_where=dead_letters.c.retried_by.is_not(None))
Index("dead_letters_document_id_idx", dead_letters.c.document_id, postgresql_where=dead_letters.c.resolved_at.is_(None))

# Processes of ours besides workers: beat.
services = Table(
    "services",
    metadata,
    Column("name", Text, primary_key=True),
    Column("host", Text, primary_key=True),
    Column("pid", Integer, primary_key=True, autoincrement=False),
    now("started_at"),
    now("seen_at"),
    json("memory"),  # as of `workers.processes`
)

# Values that an operator, or the system itself, has put in the place of a setting or a default while it runs.
overrides = Table(
    "overrides",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Double, nullable=False),
    Column("reason", Text),
    now("changed_at"),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("type", Text, nullable=False),
    Column("subject", Text, nullable=False, server_default=""),  # what it is about: a queue, an operation, a duty, ...
    Column("severity", Text, nullable=False),  # low, medium, high, critical
    Column("message", Text, nullable=False),
    json("metrics"),
    Column("action", Text),  # what the system did about it
    now("began_at"),  # when it was first seen; it is raised when it has lasted
    time("raised_at"),
    now("seen_at"),  # when it was last seen
    time("gone_at"),  # since when it is not seen any more; null while it is
    time("cleared_at"),
    Column("raise_owed", Boolean, nullable=False, server_default=text("false")),  # callbacks of workers are to be told
    Column("clear_owed", Boolean, nullable=False, server_default=text("false")),
    time("acknowledged_at"),
    Column("acknowledged_by", Text),
)
Index("alerts_open_idx", alerts.c.type, alerts.c.subject, unique=True, postgresql_where=alerts.c.cleared_at.is_(None))
Index("alerts_raised_at_idx", alerts.c.raised_at)
Index("alerts_owed_idx", alerts.c.id, postgresql_where=alerts.c.raise_owed | alerts.c.clear_owed)

# What storage held at a time, for its trend.
samples = Table(
    "samples",
    metadata,
    Column("name", Text, primary_key=True),
    Column("at", DateTime(timezone=True), primary_key=True),
    Column("value", Double, nullable=False),
)

# What is owed to applications that asked to be told; written in the transaction that ends the job.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), unique=True),  # that has ended; or an alert was raised or has cleared
    Column("alert_id", ForeignKey("alerts.id", ondelete="CASCADE")),
    Column("event", Text),  # of an alert: raised, cleared
    Column("url", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="ready"),  # ready, delivered, dead
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    time("lease_until"),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    now("next_attempt_at"),
    Column("status", Integer),  # of the last answer
    Column("error", Text),
    now("created_at"),
    time("ended_at"),
    UniqueConstraint("alert_id", "event"),
    CheckConstraint("num_nonnulls(job_id, alert_id) = 1", name="about"),
)
Index(
    "webhook_deliveries_due_idx",
    webhook_deliveries.c.next_attempt_at,
    postgresql_where=webhook_deliveries.c.state == "ready",
)
