"""control and its proofs: pauses, circuits, dead letters, webhooks, how fast a job is

Revision: 0006, after 0005; 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_READY = ["priority", "tenant", "id"]


def upgrade() -> None:
    for column in (
        sa.Column("paused_at", sa.DateTime(timezone=True)),
        sa.Column("pause_reason", sa.Text()),
        sa.Column("prioritized_at", sa.DateTime(timezone=True)),
        sa.Column("webhook", sa.Text()),
        sa.Column("retry_of", sa.Uuid()),
        sa.Column("sampled_at", sa.DateTime(timezone=True)),
        sa.Column("sampled_chunks", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("rate", sa.Double()),
        sa.Column("best_rate", sa.Double()),
        sa.Column("progressed_at", sa.DateTime(timezone=True)),
    ):
        op.add_column("jobs", column)
    op.add_column("collections", sa.Column("lost_at", sa.DateTime(timezone=True)))
    op.add_column("batches", sa.Column("held", sa.Boolean(), nullable=False, server_default=sa.text("false")))
    op.add_column("batches", sa.Column("wedged_at", sa.DateTime(timezone=True)))
    op.add_column("workers", sa.Column("rates", JSONB(), nullable=False, server_default=sa.text("'{}'::jsonb")))
    op.add_column("duties", sa.Column("seen_at", sa.DateTime(timezone=True)))
    for table in ("workers", "duties"):
        op.add_column(table, sa.Column("steady_since", sa.DateTime(timezone=True)))
    op.drop_index("batches_ready_idx", table_name="batches")
    op.create_index("batches_ready_idx", "batches", _READY, postgresql_where=sa.text("state = 'ready' AND NOT held"))
    op.create_index("batches_held_idx", "batches", ["job_id"], postgresql_where=sa.text("held"))
    op.drop_index("batches_job_unfinished_idx", table_name="batches")
    op.create_index(
        "batches_job_unfinished_idx", "batches", ["job_id", "held"], postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_table(
        "turns",
        sa.Column("priority", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("priority", name=op.f("turns_pkey")),
    )
    op.create_table(
        "pauses",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("collection_id", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("paused_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pauses_pkey")),
        sa.ForeignKeyConstraint(["collection_id"], ["collections.id"], name=op.f("pauses_collection_id_fkey")),
        sa.UniqueConstraint("collection_id", name=op.f("pauses_collection_id_key"), postgresql_nulls_not_distinct=True),
    )
    op.create_table(
        "circuits",
        sa.Column("dependency", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("probe_batch", sa.BigInteger(), nullable=True),
        sa.Column("failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("dependency", name=op.f("circuits_pkey")),
    )
    # There from the start: on a full disk a row can be changed where none can be added.
    op.execute("INSERT INTO circuits (dependency) VALUES ('postgres'), ('qdrant')")
    _dead_letters()
    _webhook_deliveries()


def _dead_letters() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("collection_id", sa.Integer(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("document_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=True),
        sa.Column("chunk", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("losses", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=True),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("resolution", sa.Text(), nullable=True),
        sa.Column("retried_by", sa.Uuid(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("dead_letters_pkey")),
        *(
            sa.ForeignKeyConstraint([f"{name}_id"], [f"{name}s.id"], name=op.f(f"dead_letters_{name}_id_fkey"))
            for name in ("collection", "job", "document", "version")
        ),
        sa.UniqueConstraint("version_id", name=op.f("dead_letters_version_id_key")),
    )
    op.execute("ALTER TABLE dead_letters ALTER COLUMN content SET STORAGE EXTERNAL")
    op.create_index("dead_letters_open_idx", "dead_letters", ["id"], postgresql_where=sa.text("resolved_at IS NULL"))
    op.create_index(
        "dead_letters_resolved_idx",
        "dead_letters",
        ["resolved_at"],
        postgresql_where=sa.text("resolved_at IS NOT NULL"),
    )
    op.create_index("dead_letters_job_id_idx", "dead_letters", ["job_id"])
    op.create_index(
        "dead_letters_document_id_idx", "dead_letters", ["document_id"], postgresql_where=sa.text("resolved_at IS NULL")
    )


def _webhook_deliveries() -> None:
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="ready", nullable=False),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("webhook_deliveries_pkey")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("webhook_deliveries_job_id_fkey")),
        sa.UniqueConstraint("job_id", name=op.f("webhook_deliveries_job_id_key")),
    )
    op.create_index(
        "webhook_deliveries_due_idx",
        "webhook_deliveries",
        ["next_attempt_at"],
        postgresql_where=sa.text("state = 'ready'"),
    )


def downgrade() -> None:
    for table in ("webhook_deliveries", "dead_letters", "circuits", "pauses", "turns"):
        op.drop_table(table)
    op.drop_index("batches_held_idx", table_name="batches")
    op.drop_index("batches_job_unfinished_idx", table_name="batches")
    op.create_index("batches_job_unfinished_idx", "batches", ["job_id"], postgresql_where=sa.text("ended_at IS NULL"))
    op.drop_index("batches_ready_idx", table_name="batches")
    op.create_index("batches_ready_idx", "batches", _READY, postgresql_where=sa.text("state = 'ready'"))
    op.drop_column("workers", "rates")
    for table in ("workers", "duties"):
        op.drop_column(table, "steady_since")
    op.drop_column("duties", "seen_at")
    op.drop_column("batches", "wedged_at")
    op.drop_column("batches", "held")
    op.drop_column("collections", "lost_at")
    for column in (
        *("progressed_at", "best_rate", "rate", "sampled_chunks", "sampled_at", "retry_of", "webhook"),
        *("prioritized_at", "pause_reason", "paused_at"),
    ):
        op.drop_column("jobs", column)
