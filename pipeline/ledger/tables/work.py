"""The tables of documents and of the work on them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
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
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from pipeline.ledger.tables.columns import count, json, metadata, now, time

collections = Table(
    "collections",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("physical", Text, nullable=False),  # the Qdrant name; re-embedding switches it
    json("model"),  # ModelSpec
    json("former", "[]"),  # and those that it had before: what was made with them still counts
    Column("provider", Text, nullable=False, server_default="local"),  # of jobs that name none
    json("sparse"),  # BM25 configuration
    json("fields"),  # declared filter fields: {key: type}
    count("generation"),  # grows with every change that a search can see
    time("lost_at"),  # when it was found missing in Qdrant with points in it; null once it is rebuilt
    now("created_at"),
    # Deferrable, so that Postgres does not take it for a key: who switches it waits for nobody that refers to the row.
    UniqueConstraint("physical", deferrable=True),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),  # uuid7, made by the client
    Column("kind", Text, nullable=False),  # ingest, delete, sync, reembed
    Column("collection_id", ForeignKey("collections.id"), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),  # 0 high, 1 normal, 2 low
    Column("provider", Text, nullable=False),
    Column("state", Text, nullable=False),
    json("recipe"),  # how documents of this job are extracted and chunked
    Column("recipe_also", ARRAY(LargeBinary)),  # hashes of recipes that count as the same; null: none
    Column("idempotency_key", Text),
    Column("request_hash", LargeBinary),
    Column("correlation_id", Text),
    Column("error", Text),
    now("created_at"),
    now("seen_at"),  # when the enqueuer last added something
    time("sealed_at"),  # nothing more will be added
    time("started_at"),
    time("indexing_since"),  # the first batch of chunks was in the index
    count("indexed_before"),  # chunks_indexed at that moment
    time("finished_at"),
    *(count(f"documents_{name}") for name in ("total", "indexed", "unchanged", "deleted", "failed", "superseded")),
    count("documents_cancelled"),
    count("documents_skipped"),
    count("documents_prepared"),
    *(count(f"chunks_{name}") for name in ("total", "embedded", "indexed")),
    time("paused_at"),
    Column("pause_reason", Text),
    time("prioritized_at"),  # its priority was changed, and batches may still have the one before
    Column("webhook", Text),  # told when the job has ended
    Column("retry_of", Uuid),  # the job whose dead letters this one tries again; null where they are of several
    time("sampled_at"),  # when `rate` was last measured,
    count("sampled_chunks"),  # and chunks_indexed at that moment
    Column("rate", Double),  # chunks per second, lately
    Column("best_rate", Double),  # and when it was highest
    time("progressed_at"),  # a counter changed
    time("need_by"),  # when its documents shall be found
    Column("max_cost", Double),  # US dollars; null: as the settings say
    Column("cost", Double, nullable=False, server_default=text("0")),  # spent for it, US dollars
    Column("cost_doubtful", Double, nullable=False, server_default=text("0")),  # that may have been spent besides
    Column("cost_reserved", Double, nullable=False, server_default=text("0")),
    Column("routed", Text),  # the provider that `auto` chose,
    Column("route_reason", Text),  # and why
    time("routed_at"),
    UniqueConstraint("tenant", "idempotency_key"),
)
Index("jobs_unfinished_idx", jobs.c.id, postgresql_where=jobs.c.finished_at.is_(None))
Index(
    "jobs_need_by_idx",
    jobs.c.need_by,
    postgresql_where=jobs.c.finished_at.is_(None) & jobs.c.need_by.is_not(None),
)
Index("jobs_retry_of_idx", jobs.c.retry_of, postgresql_where=jobs.c.retry_of.is_not(None))

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
    json("metadata"),
    Column("base_version", BigInteger),  # what was published when this one opened
    Column("published_gen", BigInteger),  # the collection's generation that made it visible
    Column("pending", Integer, nullable=False, server_default=text("0")),  # chunks not yet indexed
    Column("manifest", JSONB),  # {"points": [id in order of the text], "sections": [heading path], "pages": [number]}
    Column("contracted", SmallInteger, nullable=False, server_default=text("0")),  # sweeps done, of 2
    Column("error", Text),
    now("created_at"),
    time("ended_at"),
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
    time("lease_until"),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("losses", SmallInteger, nullable=False, server_default=text("0")),
    Column("shared", Boolean, nullable=False, server_default=text("false")),  # claimed together with others
    Column("alone", Boolean, nullable=False, server_default=text("false")),  # failed in company: not coalesced again
    time("next_attempt_at"),
    time("sent_at"),
    Column("error", Text),
    now("created_at"),
    time("ended_at"),
    # Its job or collection is paused: out of the index of what can be sent, however much it is.
    Column("held", Boolean, nullable=False, server_default=text("false")),
    time("wedged_at"),  # since when the claim has been held without progress; null while it gets on
    Column("reembedding_id", BigInteger),  # its chunks are those of `reembed_chunks`; null: those of `chunks`
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
Index("batches_waiting_idx", batches.c.id, postgresql_where=batches.c.state == "waiting")
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
    now("created_at"),
    now("last_used"),
    postgresql_with={"fillfactor": 90},
)
Index("embeddings_last_used_idx", embeddings.c.last_used)
