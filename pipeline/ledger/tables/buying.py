"""The tables of embeddings that are bought: what is on order, from whom, and what it cost."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
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

from pipeline.ledger.tables.columns import count, json, metadata, now, time

# Batches of the Batch API: one row for each that was wanted, whatever became of it.
remote_batches = Table(
    "remote_batches",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("key", Text, nullable=False, unique=True),  # ours; in the file's name and in the batch's metadata
    Column("attempt", SmallInteger, nullable=False, server_default=text("1")),  # of creating it
    Column("spec_hash", LargeBinary, nullable=False),  # model, dimensions, endpoint, account: who shares a batch
    json("spec"),
    Column("state", Text, nullable=False, server_default="planned"),  # as `lifecycle.REMOTE` says
    Column("status", Text),  # the server's own word, when it was last asked
    Column("inputs", Integer, nullable=False),
    Column("tokens", BigInteger, nullable=False),  # reserved of the account's limit until the batch has ended
    Column("bytes", BigInteger),
    Column("sha256", LargeBinary),  # of the file
    Column("priority", SmallInteger, nullable=False),  # the highest of its jobs; its steps go to that queue
    time("need_by"),  # the soonest of its jobs
    Column("file_id", Text),
    Column("remote_id", Text),
    json("remote"),  # the batch as the server last told it
    json("others", "[]"),  # further batches that were found under its key: duplicates, as the server told them
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    json("harvested"),  # file id -> bytes of it that are stored
    count("done"),  # inputs whose vector came
    count("failed"),  # inputs that came back with an error
    count("missing"),  # inputs that were in neither file
    Column("cost", Double, nullable=False, server_default=text("0")),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    Column("owner", Text),
    time("lease_until"),
    Column("losses", SmallInteger, nullable=False, server_default=text("0")),
    time("next_at"),  # when something is to be done; null: nothing is
    time("sent_at"),
    Column("poll_seconds", Double),  # until the next look
    time("intent_at"),  # before the creation was asked for
    Column("listings", SmallInteger, nullable=False, server_default=text("0")),  # searches for it that found nothing
    Column("cancel_reason", Text),  # why it is to be cancelled; null: it is not
    Column("doubtful", Boolean, nullable=False, server_default=text("false")),  # may have been paid for more than once
    Column("error", Text),
    now("created_at"),
    time("submitted_at"),
    time("ended_at"),  # the server said so
    time("harvested_at"),
    time("closed_at"),  # nothing is left to do
)
Index("remote_batches_due_idx", remote_batches.c.next_at, postgresql_where=remote_batches.c.next_at.is_not(None))
Index("remote_batches_open_idx", remote_batches.c.id, postgresql_where=remote_batches.c.closed_at.is_(None))

# Texts that are being bought: the one place where it is decided who buys a text, so that two jobs do not. A row goes in
# the transaction that stores its vector.
purchases = Table(
    "purchases",
    metadata,
    Column("key", LargeBinary, primary_key=True),  # of the embedding
    Column("collection_id", Integer, nullable=False),
    Column("batch_id", BigInteger, nullable=False),  # that wanted it first: what it costs is that one's job's
    Column("epoch", Integer),  # under which it is bought online; null: by the Batch API
    Column("spec_hash", LargeBinary, nullable=False),
    Column("remote_batch_id", ForeignKey("remote_batches.id")),  # null: not packed yet, or bought online
    Column("text", Text),  # what the file is rendered from; null: bought online
    Column("tokens", Integer, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    time("need_by"),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("error", Text),  # of the last attempt
    now("created_at"),
)
Index(
    "purchases_wanted_idx",
    purchases.c.spec_hash,
    purchases.c.created_at,
    postgresql_where=purchases.c.remote_batch_id.is_(None) & purchases.c.epoch.is_(None),
)
Index("purchases_remote_batch_id_idx", purchases.c.remote_batch_id)
Index("purchases_batch_id_idx", purchases.c.batch_id)

# What may be spent for a batch that is at it: held back from its budgets until it is known what it cost.
reservations = Table(
    "reservations",
    metadata,
    Column("batch_id", BigInteger, primary_key=True, autoincrement=False),
    Column("job_id", Uuid, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("cost", Double, nullable=False),
    now("created_at"),
)

# What was spent and saved, by day; kept when the jobs are gone.
usage = Table(
    "usage",
    metadata,
    Column("day", Date, nullable=False),  # UTC
    Column("tenant", Text, nullable=False),
    Column("collection", Text, nullable=False),
    Column("job_id", Uuid),  # null: a search, or `embed`
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    count("requests"),
    count("texts"),  # bought
    count("tokens"),
    Column("cost", Double, nullable=False, server_default=text("0")),
    count("cached_texts"),  # found, and not bought
    count("cached_tokens"),
    Column("cached_cost", Double, nullable=False, server_default=text("0")),  # what they would have cost online
    Column(
        "batch_saved", Double, nullable=False, server_default=text("0")
    ),  # what the rest would have cost more online
    count("doubtful_texts"),  # that may have been paid for without an answer
    Column("doubtful_cost", Double, nullable=False, server_default=text("0")),
    UniqueConstraint(
        *("day", "tenant", "collection", "job_id", "provider", "model"), postgresql_nulls_not_distinct=True
    ),
)
Index("usage_job_id_idx", usage.c.job_id)

# The sums that budgets are compared with: one row a month for each tenant, and one ('') for all.
spending = Table(
    "spending",
    metadata,
    Column("month", Date, primary_key=True),  # its first day, UTC
    Column("tenant", Text, primary_key=True),
    Column("cost", Double, nullable=False, server_default=text("0")),
    Column("reserved", Double, nullable=False, server_default=text("0")),
)

# Limits that an operator has set while it runs; what is not here is as the settings say.
budgets = Table(
    "budgets",
    metadata,
    Column("tenant", Text, primary_key=True),  # '': of all together
    Column("month_usd", Double, nullable=False),
    Column("reason", Text),
    now("changed_at"),
)

# A collection that gets vectors of another model, beside those that it has.
reembeddings = Table(
    "reembeddings",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("collection_id", ForeignKey("collections.id"), nullable=False),
    Column("physical", Text, nullable=False),  # the Qdrant name of the new vectors
    json("model"),
    Column("provider", Text, nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),  # whose batches embed, and whose budget is spent
    Column("state", Text, nullable=False, server_default="building"),  # building, auditing, switching, done, cancelled
    Column("after", Uuid),  # the point up to which chunks are put into batches
    Column("passes", Integer, nullable=False, server_default=text("0")),
    json("audit"),
    Column("error", Text),
    now("created_at"),
    time("ended_at"),
)
Index(
    "reembeddings_open_idx",
    reembeddings.c.collection_id,
    unique=True,
    postgresql_where=reembeddings.c.ended_at.is_(None),
)
