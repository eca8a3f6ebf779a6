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
    json("jobs", "[]"),  # ids of the jobs that wanted its texts first
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
    Column("tries", SmallInteger, nullable=False, server_default=text("0")),  # of the present step, that failed
    time("next_at"),  # when something is to be done; null: nothing is
    time("sent_at"),
    Column("poll_seconds", Double),  # until the next look
    time("intent_at"),  # before the creation was asked for
    Column("listings", SmallInteger, nullable=False, server_default=text("0")),  # searches for it, unanswered
    time("fenced_at"),  # its file was deleted: no creation that is still under way can succeed any more
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
    # Wanted online instead: not packed (again), and bought by whoever comes first.
    Column("withdrawn", Boolean, nullable=False, server_default=text("false")),
    Column("text", Text),  # what the file is rendered from; null: bought online
    Column("tokens", Integer, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    time("need_by"),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("outcome", Text),  # of its line in the batch that is being harvested, as `openai_batch.lines` names it
    Column("error", Text),  # of the last attempt
    time("lease_until"),  # of who buys it online without a batch: a search, a repair (batch_id is 0 then)
    now("created_at"),
)
Index(
    "purchases_wanted_idx",
    purchases.c.spec_hash,
    purchases.c.created_at,
    postgresql_where=purchases.c.remote_batch_id.is_(None) & purchases.c.epoch.is_(None),
)
Index("purchases_remote_batch_id_idx", purchases.c.remote_batch_id, purchases.c.key)
Index("purchases_batch_id_idx", purchases.c.batch_id)
Index("purchases_withdrawn_idx", purchases.c.key, postgresql_where=purchases.c.withdrawn)
Index(
    "purchases_given_up_idx",
    purchases.c.key,
    postgresql_where=purchases.c.remote_batch_id.is_(None) & purchases.c.epoch.is_(None) & (purchases.c.attempts >= 3),
)

# What may be spent for a batch that is at it: held back from its budgets until it is known what it cost.
reservations = Table(
    "reservations",
    metadata,
    Column("batch_id", BigInteger, primary_key=True, autoincrement=False),  # negative: of no batch (a search, `embed`)
    Column("job_id", Uuid),
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
    Column("doubtful", Double, nullable=False, server_default=text("0")),  # may have been spent besides
    Column("reserved", Double, nullable=False, server_default=text("0")),  # in this month, and not released yet
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
    json("before"),  # the model that it had
    Column("job_id", Uuid, nullable=False),  # whose batches embed, and whose budget is spent; no key: it may be gone
    Column("state", Text, nullable=False, server_default="building"),  # as `lifecycle.REEMBEDDING` says
    Column("after", Uuid),  # the point up to which the present step has come
    Column("walked", Boolean, nullable=False, server_default=text("false")),  # every chunk has come by once
    Column("walk_batch", BigInteger),  # the last batch that was made by then
    count("chunks"),  # that there were when it began
    json("audit"),  # what was found in the new vectors
    Column("audits", Integer, nullable=False, server_default=text("0")),  # in a row that found faults
    time("audited_at"),  # they were found to be as they should
    Column("error", Text),  # what keeps it from going on
    time("held_until"),  # meanwhile nothing else of the collection is completed
    Column("holds", Integer, nullable=False, server_default=text("0")),  # that were not long enough
    time("rest_until"),  # nothing is tried before
    now("created_at"),
    time("switched_at"),
    time("ended_at"),
    Column("doomed", Text),  # the Qdrant name that nobody needs any more,
    time("doomed_at"),  # since when
    Column("drops", SmallInteger, nullable=False, server_default=text("0")),  # times that it was dropped, of 2
)
Index(
    "reembeddings_open_idx",
    reembeddings.c.collection_id,
    unique=True,
    postgresql_where=reembeddings.c.ended_at.is_(None),
)
Index(
    "reembeddings_doomed_idx",
    reembeddings.c.id,
    postgresql_where=reembeddings.c.doomed.is_not(None) & (reembeddings.c.drops < 2),
)

# The chunks of a collection that is re-embedded, beside what `chunks` says of them: their embedding under the new
# model. A row goes when its chunk has that key itself, or is gone.
reembed_chunks = Table(
    "reembed_chunks",
    metadata,
    Column("point_id", Uuid, primary_key=True),
    Column("reembedding_id", BigInteger, nullable=False),
    Column("batch_id", BigInteger),  # null: in none yet, or in none any more
    Column("embedding_key", LargeBinary),  # null: not known yet
    Column("tokens", Integer),  # as the new model counts them
    Column("done", Boolean, nullable=False, server_default=text("false")),  # among the new vectors
    Column("error", Text),  # why it cannot be
)
Index("reembed_chunks_batch_id_idx", reembed_chunks.c.batch_id)
Index("reembed_chunks_embedding_key_idx", reembed_chunks.c.embedding_key)
Index(
    "reembed_chunks_left_idx",
    reembed_chunks.c.reembedding_id,
    reembed_chunks.c.point_id,
    postgresql_where=~reembed_chunks.c.done,
)
Index(
    "reembed_chunks_loose_idx",
    reembed_chunks.c.reembedding_id,
    reembed_chunks.c.point_id,
    postgresql_where=~reembed_chunks.c.done & reembed_chunks.c.batch_id.is_(None),
)
