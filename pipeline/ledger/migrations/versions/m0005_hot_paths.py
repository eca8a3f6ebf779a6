"""hot paths: staged content is stored as it is (compressing it took half of the time of enqueueing), and what was sent
and not taken is found without reading the backlog

Revision: 0005, after 0004; 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE staged ALTER COLUMN content SET STORAGE EXTERNAL")
    op.create_index(
        "batches_sent_idx",
        "batches",
        ["sent_at"],
        unique=False,
        postgresql_where=sa.text("state = 'ready' AND sent_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("batches_sent_idx", table_name="batches", postgresql_where=sa.text("state = 'ready'"))
    op.execute("ALTER TABLE staged ALTER COLUMN content SET STORAGE EXTENDED")
