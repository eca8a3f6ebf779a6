"""Purchases that nobody waits for any more: their jobs were cancelled, their documents replaced, their buyers died."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.ledger.engine import Connection
from pipeline.ledger.purchases import LACKED


@dataclass(frozen=True, slots=True)
class Leftover:
    """A text that may have been paid for, and whose vector nobody wants any more. job_id, tenant: whose it was; None
    where nobody knows."""

    key: bytes
    tokens: int
    batch_id: int
    job_id: uuid.UUID | None
    tenant: str | None
    collection: str
    model: Mapping[str, Any]


# Of rows p: nobody is at them, and no remote batch has them.
_ABANDONED = """p.created_at < now() - make_interval(secs => %(settled)s) AND p.remote_batch_id IS NULL
    AND (p.lease_until IS NULL OR p.lease_until < now() - make_interval(secs => %(settled)s))
    AND NOT EXISTS (SELECT 1 FROM batches h
                     WHERE h.id = p.batch_id AND h.epoch = p.epoch AND h.state = 'running')"""


def count(connection: Connection, settled_seconds: float, limit: int) -> int:
    """How many `bury` would take, up to `limit`."""
    row = connection.execute(
        f"""SELECT count(*) AS n FROM (
              SELECT 1 FROM purchases p WHERE {_ABANDONED} AND NOT {LACKED} LIMIT %(limit)s) AS w""",
        {"settled": settled_seconds, "limit": limit},
    ).fetchone()
    return int(row["n"]) if row else 0


def bury(connection: Connection, settled_seconds: float, limit: int) -> tuple[int, Sequence[Leftover]]:
    """Lets go of up to `limit` of them, that have been so for that long. Returns how many, and which of them may have
    been paid for: say so in the same transaction."""
    rows = connection.execute(
        f"""WITH gone AS (
              DELETE FROM purchases WHERE key IN (
                SELECT p.key FROM purchases p WHERE {_ABANDONED} AND NOT {LACKED}
                 ORDER BY p.key LIMIT %(limit)s FOR UPDATE OF p SKIP LOCKED)
              RETURNING key, tokens, epoch, batch_id, collection_id)
            SELECT g.key, g.tokens, g.epoch, g.batch_id, b.job_id, b.tenant, coalesce(c.name, '') AS collection,
                   coalesce(c.model, '{{}}') AS model
              FROM gone g LEFT JOIN batches b ON b.id = g.batch_id LEFT JOIN collections c ON c.id = g.collection_id""",
        {"settled": settled_seconds, "limit": limit},
    ).fetchall()
    doubtful = [
        Leftover(**{**{name: row[name] for name in Leftover.__slots__}, "key": bytes(row["key"])})
        for row in rows
        if row["epoch"] is not None and row["model"]
    ]
    return len(rows), doubtful
