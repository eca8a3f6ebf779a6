"""embeddings that are bought: purchases, remote batches, what they cost, budgets; collections in two models

Revision: 0008, after 0007; 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0"))


def _cost(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=False, server_default=sa.text("0"))


def _small(name: str, default: str = "0") -> sa.Column[int]:
    return sa.Column(name, sa.SmallInteger(), nullable=False, server_default=sa.text(default))


def _json(name: str, default: str = "{}") -> sa.Column[object]:
    return sa.Column(name, JSONB(), nullable=False, server_default=sa.text(f"'{default}'::jsonb"))


def _now(name: str) -> sa.Column[object]:
    return sa.Column(name, _TIME, nullable=False, server_default=sa.func.now())


_JOB_COLUMNS = ("need_by", "max_cost", "cost", "cost_doubtful", "cost_reserved", "routed", "route_reason", "routed_at")


def upgrade() -> None:
    op.add_column("collections", sa.Column("provider", sa.Text(), nullable=False, server_default="local"))
    for column in (
        sa.Column("need_by", _TIME),
        sa.Column("max_cost", sa.Double()),
        _cost("cost"),
        _cost("cost_doubtful"),
        _cost("cost_reserved"),
        sa.Column("routed", sa.Text()),
        sa.Column("route_reason", sa.Text()),
        sa.Column("routed_at", _TIME),
    ):
        op.add_column("jobs", column)
    op.create_index(
        "jobs_need_by_idx",
        "jobs",
        ["need_by"],
        postgresql_where=sa.text("finished_at IS NULL AND need_by IS NOT NULL"),
    )
    op.add_column("circuits", sa.Column("cause", sa.Text()))
    op.create_index("batches_waiting_idx", "batches", ["id"], postgresql_where=sa.text("state = 'waiting'"))
    _remote_batches()
    _purchases()
    _costs()
    _reembeddings()


def _reembeddings() -> None:
    op.add_column("collections", _json("former", "[]"))
    op.drop_constraint("collections_physical_key", "collections")
    op.create_unique_constraint(op.f("collections_physical_key"), "collections", ["physical"], deferrable=True)
    op.add_column("jobs", sa.Column("recipe_also", ARRAY(sa.LargeBinary())))
    op.add_column("batches", sa.Column("reembedding_id", sa.BigInteger()))
    op.create_table(
        "reembeddings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("collection_id", sa.Integer(), nullable=False),
        sa.Column("physical", sa.Text(), nullable=False),
        _json("model"),
        sa.Column("provider", sa.Text(), nullable=False),
        _json("before"),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, server_default="building"),
        sa.Column("after", sa.Uuid()),
        sa.Column("walked", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("walk_batch", sa.BigInteger()),
        _count("chunks"),
        _json("audit"),
        sa.Column("audits", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("audited_at", _TIME),
        sa.Column("error", sa.Text()),
        sa.Column("held_until", _TIME),
        sa.Column("holds", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("rest_until", _TIME),
        _now("created_at"),
        sa.Column("switched_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("doomed", sa.Text()),
        sa.Column("doomed_at", _TIME),
        _small("drops"),
        sa.ForeignKeyConstraint(["collection_id"], ["collections.id"], name=op.f("reembeddings_collection_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("reembeddings_pkey")),
    )
    op.create_index(
        "reembeddings_open_idx",
        "reembeddings",
        ["collection_id"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "reembeddings_doomed_idx",
        "reembeddings",
        ["id"],
        postgresql_where=sa.text("doomed IS NOT NULL AND drops < 2"),
    )
    op.create_table(
        "reembed_chunks",
        sa.Column("point_id", sa.Uuid(), nullable=False),
        sa.Column("reembedding_id", sa.BigInteger(), nullable=False),
        sa.Column("batch_id", sa.BigInteger()),
        sa.Column("embedding_key", sa.LargeBinary()),
        sa.Column("tokens", sa.Integer()),
        sa.Column("done", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("point_id", name=op.f("reembed_chunks_pkey")),
    )
    op.create_index("reembed_chunks_batch_id_idx", "reembed_chunks", ["batch_id"])
    op.create_index("reembed_chunks_embedding_key_idx", "reembed_chunks", ["embedding_key"])
    op.create_index(
        "reembed_chunks_left_idx",
        "reembed_chunks",
        ["reembedding_id", "point_id"],
        postgresql_where=sa.text("NOT done"),
    )
    op.create_index(
        "reembed_chunks_loose_idx",
        "reembed_chunks",
        ["reembedding_id", "point_id"],
        postgresql_where=sa.text("NOT done AND batch_id IS NULL"),
    )


def _remote_batches() -> None:
    op.create_table(
        "remote_batches",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        _small("attempt", "1"),
        sa.Column("spec_hash", sa.LargeBinary(), nullable=False),
        _json("spec"),
        sa.Column("state", sa.Text(), nullable=False, server_default="planned"),
        sa.Column("status", sa.Text()),
        sa.Column("inputs", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger()),
        sa.Column("sha256", sa.LargeBinary()),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("need_by", _TIME),
        _json("jobs", "[]"),
        sa.Column("file_id", sa.Text()),
        sa.Column("remote_id", sa.Text()),
        _json("remote"),
        _json("others", "[]"),
        sa.Column("output_file_id", sa.Text()),
        sa.Column("error_file_id", sa.Text()),
        _json("harvested"),
        _count("done"),
        _count("failed"),
        _count("missing"),
        _cost("cost"),
        sa.Column("epoch", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("owner", sa.Text()),
        sa.Column("lease_until", _TIME),
        _small("losses"),
        _small("tries"),
        sa.Column("next_at", _TIME),
        sa.Column("sent_at", _TIME),
        sa.Column("poll_seconds", sa.Double()),
        sa.Column("intent_at", _TIME),
        _small("listings"),
        sa.Column("fenced_at", _TIME),
        sa.Column("cancel_reason", sa.Text()),
        sa.Column("doubtful", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("error", sa.Text()),
        _now("created_at"),
        sa.Column("submitted_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("harvested_at", _TIME),
        sa.Column("closed_at", _TIME),
        sa.PrimaryKeyConstraint("id", name=op.f("remote_batches_pkey")),
        sa.UniqueConstraint("key", name=op.f("remote_batches_key_key")),
    )
    op.create_index(
        "remote_batches_due_idx", "remote_batches", ["next_at"], postgresql_where=sa.text("next_at IS NOT NULL")
    )
    op.create_index("remote_batches_open_idx", "remote_batches", ["id"], postgresql_where=sa.text("closed_at IS NULL"))


def _purchases() -> None:
    op.create_table(
        "purchases",
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("collection_id", sa.Integer(), nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Integer()),
        sa.Column("spec_hash", sa.LargeBinary(), nullable=False),
        sa.Column("remote_batch_id", sa.BigInteger()),
        sa.Column("withdrawn", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("text", sa.Text()),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("need_by", _TIME),
        _small("attempts"),
        sa.Column("outcome", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.Column("lease_until", _TIME),
        _now("created_at"),
        sa.ForeignKeyConstraint(
            ["remote_batch_id"], ["remote_batches.id"], name=op.f("purchases_remote_batch_id_fkey")
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("purchases_pkey")),
    )
    op.create_index(
        "purchases_wanted_idx",
        "purchases",
        ["spec_hash", "created_at"],
        postgresql_where=sa.text("remote_batch_id IS NULL AND epoch IS NULL"),
    )
    op.create_index("purchases_remote_batch_id_idx", "purchases", ["remote_batch_id", "key"])
    op.create_index("purchases_batch_id_idx", "purchases", ["batch_id"])
    op.create_index("purchases_withdrawn_idx", "purchases", ["key"], postgresql_where=sa.text("withdrawn"))
    op.create_index(
        "purchases_given_up_idx",
        "purchases",
        ["key"],
        postgresql_where=sa.text("remote_batch_id IS NULL AND epoch IS NULL AND attempts >= 3"),
    )


def _costs() -> None:
    op.create_table(
        "reservations",
        sa.Column("batch_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("job_id", sa.Uuid()),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("cost", sa.Double(), nullable=False),
        _now("created_at"),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("reservations_pkey")),
    )
    op.create_table(
        "usage",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("collection", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid()),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        _count("requests"),
        _count("texts"),
        _count("tokens"),
        _cost("cost"),
        _count("cached_texts"),
        _count("cached_tokens"),
        _cost("cached_cost"),
        _cost("batch_saved"),
        _count("doubtful_texts"),
        _cost("doubtful_cost"),
        sa.UniqueConstraint(
            *("day", "tenant", "collection", "job_id", "provider", "model"),
            name=op.f("usage_day_tenant_collection_job_id_provider_model_key"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index("usage_job_id_idx", "usage", ["job_id"])
    op.create_table(
        "spending",
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        _cost("cost"),
        _cost("doubtful"),
        _cost("reserved"),
        sa.PrimaryKeyConstraint("month", "tenant", name=op.f("spending_pkey")),
    )
    op.create_table(
        "budgets",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("month_usd", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text()),
        _now("changed_at"),
        sa.PrimaryKeyConstraint("tenant", name=op.f("budgets_pkey")),
    )


def downgrade() -> None:
    for table in ("reembed_chunks", "reembeddings", "budgets", "spending", "usage", "reservations"):
        op.drop_table(table)
    for table in ("purchases", "remote_batches"):
        op.drop_table(table)
    for column in reversed(_JOB_COLUMNS):
        op.drop_column("jobs", column)
    op.drop_column("collections", "provider")
    op.drop_column("collections", "former")
    op.drop_constraint("collections_physical_key", "collections")
    op.create_unique_constraint(op.f("collections_physical_key"), "collections", ["physical"])
    op.drop_column("jobs", "recipe_also")
    op.drop_column("batches", "reembedding_id")
    op.drop_column("circuits", "cause")
    op.drop_index("batches_waiting_idx", "batches")
