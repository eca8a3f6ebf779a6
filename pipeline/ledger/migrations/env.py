"""Alembic's entry: `pipeline.ledger.migrate` hands it an open connection."""

from __future__ import annotations

from alembic import context

from pipeline.ledger.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
