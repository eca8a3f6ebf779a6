"""The tables of the ledger. Migrations make them; the SQL beside the code that needs it reads and writes them.

Sizes are in bytes, times are timestamptz by the database's clock, hashes are sha256 (32 bytes).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    }
)


def _now(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=func.now())


def _time(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True))


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def _json(name: str, default: str = "{}") -> Column[object]:
    return Column(name, JSONB, nullable=False, server_default=text(f"'{default}'::jsonb"))


collections = Table(
    "collections",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("physical", Text, nullable=False, unique=True),  # the Qdrant name; re-embedding switches it
    _json("model"),  # ModelSpec
    _json("sparse"),  # BM25 configuration
    _json("fields"),  # declared filter fields: {key: type}
    _count("generation"),  # grows with every change that a search can see
    _time("lost_at"),  # when it was found missing in Qdrant with points in it; null once it is rebuilt
    _now("created_at"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),  # uuid7, made by the client
    Column("kind", Text, nullable=False),  # ingest, delete, sync
    Column("collection_id", ForeignKey("collections.id"), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),  # 0 high, 1 normal, 2 low
    Column("provider", Text, nullable=False),
    Column("state", Text, nullable=False),
    _json("recipe"),  # how documents of this job are extracted and chunked
    Column("idempotency_key", Text),
    Column("request_hash", LargeBinary),
    Column("correlation_id", Text),
    Column("error", Text),
    _now("created_at"),
    _now("seen_at"),  # when the enqueuer last added something
    _time("sealed_at"),  # nothing more will be added
    _time("started_at"),
    _time("indexing_since"),  # the first batch of chunks was in the index
    _count("indexed_before"),  # chunks_indexed at that moment
    _time("finished_at"),
    *(_count(f"documents_{name}") for name in ("total", "indexed", "unchanged", "deleted", "failed", "superseded")),
    _count("documents_cancelled"),
    _count("documents_skipped"),
    _count("documents_prepared"),
    *(_count(f"chunks_{name}") for name in ("total", "embedded", "indexed")),
    _time("paused_at"),
    Column("pause_reason", Text),
    _time("prioritized_at"),  # its priority was changed, and batches may still have the one before
    Column("webhook", Text),  # told when the job has ended
    Column("retry_of", Uuid),  # the job whose dead letters this one tries again; null where they are of several
    _time("sampled_at"),  # when `rate` was last measured,
    _count("sampled_chunks"),  # and chunks_indexed at that moment
    Column("rate", Double),  # chunks per second, lately
    Column("best_rate", Double),  # and when it was highest
    _time("progressed_at"),  # a counter changed
    UniqueConstraint("tenant", "idempotency_key"),
)
Index("jobs_unfinished_idx", jobs.c.id, postgresql_where=jobs.c.finished_at.is_(None))

documents = Table(
    "documents",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("collection_id", ForeignKey("collections.id"), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("uri", Text, nullable=False),
    Column("newest_version", BigInteger),
    Column("published_version", BigInteger),
    UniqueConstraint("collection_id", "tenant", "uri"),
)

versions = Table(
    "versions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("document_id", ForeignKey("documents.id"), nullable=False),
    Column("collection_id", ForeignKey("collections.id"), nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("kind", Text, nullable=False),  # ingest, delete
    Column("state", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),  # its job's when it was staged; the job's own counts
    Column("content_hash", LargeBinary),
    Column("meta_hash", LargeBinary),
    Column("recipe_hash", LargeBinary),
    Column("title", Text, nullable=False, server_default=""),
    _json("metadata"),
    Column("base_version", BigInteger),  # what was published when this one opened
    Column("published_gen", BigInteger),  # the collection's generation that made it visible
    Column("pending", Integer, nullable=False, server_default=text("0")),  # chunks not yet indexed
    Column("manifest", JSONB),  # {"points": [id in order of the text], "sections": [heading path], "pages": [number]}
    Column("contracted", SmallInteger, nullable=False, server_default=text("0")),  # sweeps done, of 2
    Column("error", Text),
    _now("created_at"),
    _time("ended_at"),
    Column("validators", JSONB),  # what its source said of it: an ETag, a time; null where it said nothing
)
Index("versions_open_key", versions.c.document_id, unique=True, postgresql_where=versions.c.state == "open")
Index("versions_staged_key", versions.c.document_id, unique=True, postgresql_where=versions.c.state == "staged")
Index("versions_document_id_published_gen_idx", versions.c.document_id, versions.c.published_gen.desc())
Index("versions_job_unfinished_idx", versions.c.job_id, postgresql_where=versions.c.state.in_(("staged", "open")))
Index("versions_job_id_idx", versions.c.job_id)
Index("versions_job_failed_idx", versions.c.job_id, postgresql_where=versions.c.state == "failed")
Index(
    "versions_contract_idx",
    versions.c.ended_at,
    postgresql_where=(versions.c.contracted < 2) & versions.c.ended_at.is_not(None),
)

batches = Table(
    "batches",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),  # prepare, embed, delete
    Column("collection_id", ForeignKey("collections.id"), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("provider", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="ready"),
    Column("size", Integer, nullable=False),  # documents or chunks
    Column("tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    Column("owner", Text),
    _time("lease_until"),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("losses", SmallInteger, nullable=False, server_default=text("0")),
    Column("shared", Boolean, nullable=False, server_default=text("false")),  # claimed together with others
    Column("alone", Boolean, nullable=False, server_default=text("false")),  # failed in company: not coalesced again
    _time("next_attempt_at"),
    _time("sent_at"),
    Column("error", Text),
    _now("created_at"),
    _time("ended_at"),
    # Its job or collection is paused: out of the index of what can be sent, however much it is.
    Column("held", Boolean, nullable=False, server_default=text("false")),
    _time("wedged_at"),  # since when the claim has been held without progress; null while it gets on
    postgresql_with={"fillfactor": 70},
)
Index(
    "batches_ready_idx",
    batches.c.priority,
    batches.c.tenant,
    batches.c.id,
    postgresql_where=(batches.c.state == "ready") & ~batches.c.held,
)
Index("batches_held_idx", batches.c.job_id, postgresql_where=batches.c.held)
Index(
    "batches_sent_idx",
    batches.c.sent_at,
    postgresql_where=(batches.c.state == "ready") & batches.c.sent_at.is_not(None),
)
Index("batches_lease_idx", batches.c.lease_until, postgresql_where=batches.c.state == "running")
Index("batches_job_unfinished_idx", batches.c.job_id, batches.c.held, postgresql_where=batches.c.ended_at.is_(None))

# Of each queue, the tenant that was served last: the next turn begins behind it.
turns = Table(
    "turns",
    metadata,
    Column("priority", SmallInteger, primary_key=True, autoincrement=False),
    Column("tenant", Text, nullable=False),
)

staged = Table(
    "staged",
    metadata,
    Column("version_id", ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
    Column("batch_id", ForeignKey("batches.id")),  # null: waits for the document's open version to end
    Column("media_type", Text),
    Column("content", LargeBinary, nullable=False),  # STORAGE EXTERNAL: written once, read once, not worth compressing
    postgresql_with={"toast_tuple_target": 128},
)
Index("staged_batch_id_idx", staged.c.batch_id)

chunks = Table(
    "chunks",
    metadata,
    Column("point_id", Uuid, primary_key=True),
    Column("document_id", BigInteger, nullable=False),
    Column("born_version", BigInteger, nullable=False),
    Column("died_version", BigInteger),  # born = died: the version was abandoned before it was published
    Column("batch_id", BigInteger),
    Column("ordinal", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("chunk_hash", LargeBinary, nullable=False),  # text and filterable metadata: what the point holds
    Column("embedding_key", LargeBinary, nullable=False),
    Column("tokens", Integer, nullable=False),
)
Index("chunks_live_idx", chunks.c.document_id, postgresql_where=chunks.c.died_version.is_(None))
Index("chunks_born_version_idx", chunks.c.born_version)
Index("chunks_died_version_idx", chunks.c.died_version, postgresql_where=chunks.c.died_version.is_not(None))
Index("chunks_batch_id_idx", chunks.c.batch_id)
Index("chunks_embedding_key_idx", chunks.c.embedding_key)

embeddings = Table(
    "embeddings",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("vector", LargeBinary, nullable=False),  # little-endian float32[dimensions], L2-normalised
    Column("tokens", Integer, nullable=False),
    Column("cost", Double, nullable=False, server_default=text("0")),  # US dollars
    _now("created_at"),
    _now("last_used"),
    postgresql_with={"fillfactor": 90},
)

duties = Table(
    "duties",
    metadata,
    Column("name", Text, primary_key=True),
    _now("due_at"),
    Column("owner", Text),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    _time("lease_until"),
    _time("ran_at"),
    Column("seconds", Double),
    _json("result"),
    Column("failed", Boolean, nullable=False, server_default=text("false")),
    _time("seen_at"),  # when `reconcile` last looked for expired leases,
    _time("steady_since"),  # and since when it has done so without a gap; null: from the start
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),  # name of the worker process
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("queues", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    _now("started_at"),
    _now("seen_at"),
    _time("steady_since"),  # since when it has reported without a gap; null: since it started
    _json("rates"),  # {queue: batches per second that it has done of it lately}
)

schedules = Table(
    "schedules",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("collection", Text, nullable=False),  # by name: made by the first run
    Column("tenant", Text, nullable=False),
    Column("source", Text, nullable=False),  # as `open_source` takes it; paths are absolute
    _json("options"),  # SyncOptions
    Column("every_seconds", Double, nullable=False),
    _now("next_due"),
    Column("paused", Boolean, nullable=False, server_default=text("false")),
    Column("asked", Boolean, nullable=False, server_default=text("false")),  # for one run, paused or not
    _time("run_due"),  # when the run that has begun and not ended was due
    _time("sent_at"),
    Column("owner", Text),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    _time("lease_until"),
    Column("losses", SmallInteger, nullable=False, server_default=text("0")),  # workers lost on this run
    Column("last_job", Uuid),
    _time("last_started"),
    _time("last_finished"),
    Column("last_error", Text),
    Column("consecutive_failures", Integer, nullable=False, server_default=text("0")),
    _now("created_at"),
    UniqueConstraint("collection", "tenant", "source"),
)

# Scopes in which no work is sent or claimed; a job that is paused says so in its own state.
pauses = Table(
    "pauses",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("collection_id", ForeignKey("collections.id")),  # null: everything
    Column("reason", Text),
    _now("paused_at"),
    UniqueConstraint("collection_id", postgresql_nulls_not_distinct=True),
)

# Dependencies that were found away, as all workers see them; no row, or opened_at null: closed.
circuits = Table(
    "circuits",
    metadata,
    Column("dependency", Text, primary_key=True),
    _time("opened_at"),
    _time("retry_at"),  # when the next probe may go
    Column("probe_batch", BigInteger),  # the one batch that may go meanwhile; no key: it may be gone
    Column("failures", Integer, nullable=False, server_default=text("0")),  # in a row
    Column("error", Text),
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
    _now("created_at"),
    _time("resolved_at"),
    Column("resolution", Text),  # retried, discarded, superseded
    Column("retried_by", Uuid),  # the job that tries it again
)
Index("dead_letters_open_idx", dead_letters.c.id, postgresql_where=dead_letters.c.resolved_at.is_(None))
Index("dead_letters_resolved_idx", dead_letters.c.resolved_at, postgresql_where=dead_letters.c.resolved_at.is_not(None))
Index("dead_letters_job_id_idx", dead_letters.c.job_id)
Index("dead_letters_document_id_idx", dead_letters.c.document_id, postgresql_where=dead_letters.c.resolved_at.is_(None))

# What is owed to applications that asked to be told; written in the transaction that ends the job.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("url", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="ready"),  # ready, delivered, dead
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    _time("lease_until"),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    _now("next_attempt_at"),
    Column("status", Integer),  # of the last answer
    Column("error", Text),
    _now("created_at"),
    _time("ended_at"),
)
Index(
    "webhook_deliveries_due_idx",
    webhook_deliveries.c.next_attempt_at,
    postgresql_where=webhook_deliveries.c.state == "ready",
)
