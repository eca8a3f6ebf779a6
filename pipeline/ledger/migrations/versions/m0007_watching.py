"""the system watches itself: alerts, samples, overrides, services; what a duty and a worker say of themselves

Revision: 0007, after 0006; 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    for column in (
        sa.Column("failures", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("defaults", JSONB(), nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("awaited_since", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("asked_at", _TIME),
        sa.Column("interval_seconds", sa.Double()),
        sa.Column("row_limit", sa.Integer()),
        sa.Column("budget_seconds", sa.Double()),
        sa.Column("enabled", sa.Boolean(), nullable=False, server_default=sa.text("true")),
    ):
        op.add_column("duties", column)
    op.add_column("workers", sa.Column("processes", JSONB(), nullable=False, server_default=sa.text("'[]'::jsonb")))
    op.add_column("workers", sa.Column("metrics_url", sa.Text()))
    op.add_column("workers", sa.Column("collect_asked_at", _TIME))
    op.create_index("embeddings_last_used_idx", "embeddings", ["last_used"])
    _garbage()
    op.create_table(
        "services",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("seen_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("memory", JSONB(), nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.PrimaryKeyConstraint("name", "host", "pid", name=op.f("services_pkey")),
    )
    op.create_table(
        "overrides",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("changed_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("overrides_pkey")),
    )
    op.create_table(
        "samples",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "at", name=op.f("samples_pkey")),
    )
    _alerts()


def _garbage() -> None:
    op.create_table(
        "walks",
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("after", ARRAY(sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("step", name=op.f("walks_pkey")),
    )
    for table, column in (("jobs", "retry_of"), ("dead_letters", "retried_by")):
        op.create_index(f"{table}_{column}_idx", table, [column], postgresql_where=sa.text(f"{column} IS NOT NULL"))
    op.execute("DELETE FROM duties WHERE name = 'forget'")  # `gc.data` does its work


def _alerts() -> None:
    op.create_table(
        "alerts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), server_default="", nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("metrics", JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("action", sa.Text(), nullable=True),
        sa.Column("began_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("raised_at", _TIME, nullable=True),
        sa.Column("seen_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("gone_at", _TIME, nullable=True),
        sa.Column("cleared_at", _TIME, nullable=True),
        sa.Column("raise_owed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("clear_owed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("acknowledged_at", _TIME, nullable=True),
        sa.Column("acknowledged_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("alerts_pkey")),
    )
    op.create_index(
        "alerts_open_idx", "alerts", ["type", "subject"], unique=True, postgresql_where=sa.text("cleared_at IS NULL")
    )
    op.create_index("alerts_raised_at_idx", "alerts", ["raised_at"])
    op.create_index("alerts_owed_idx", "alerts", ["id"], postgresql_where=sa.text("raise_owed OR clear_owed"))
    op.alter_column("webhook_deliveries", "job_id", nullable=True)
    op.add_column("webhook_deliveries", sa.Column("alert_id", sa.BigInteger()))
    op.add_column("webhook_deliveries", sa.Column("event", sa.Text()))
    op.create_foreign_key(
        op.f("webhook_deliveries_alert_id_fkey"),
        *("webhook_deliveries", "alerts", ["alert_id"], ["id"]),
        ondelete="CASCADE",
    )
    op.create_unique_constraint(
        op.f("webhook_deliveries_alert_id_event_key"), "webhook_deliveries", ["alert_id", "event"]
    )
    op.create_check_constraint(
        op.f("webhook_deliveries_about_check"), "webhook_deliveries", "num_nonnulls(job_id, alert_id) = 1"
    )


def downgrade() -> None:
    op.execute("DELETE FROM webhook_deliveries WHERE job_id IS NULL")
    op.drop_constraint(op.f("webhook_deliveries_about_check"), "webhook_deliveries", type_="check")
    for column in ("event", "alert_id"):
        op.drop_column("webhook_deliveries", column)
    op.alter_column("webhook_deliveries", "job_id", nullable=False)
    for table in ("alerts", "samples", "overrides", "services"):
        op.drop_table(table)
    op.drop_index("dead_letters_retried_by_idx", table_name="dead_letters")
    op.drop_index("jobs_retry_of_idx", table_name="jobs")
    op.drop_table("walks")
    op.drop_index("embeddings_last_used_idx", table_name="embeddings")
    for column in ("collect_asked_at", "metrics_url", "processes"):
        op.drop_column("workers", column)
    for column in (
        *("enabled", "budget_seconds", "row_limit", "interval_seconds"),
        *("asked_at", "awaited_since", "defaults", "failures"),
    ):
        op.drop_column("duties", column)
