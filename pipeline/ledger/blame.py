"""Work that keeps failing: it is split in two until the one that fails stands alone, and that one is ended."""

from __future__ import annotations

from pipeline.ledger import batches, chunks, versions
from pipeline.ledger.batches import Claim
from pipeline.ledger.engine import Connection


def members(connection: Connection, claim: Claim) -> int:
    """How many documents (prepare, delete) or chunks (embed) are still in the batch."""
    table = "chunks" if claim.kind == "embed" else "staged"
    row = connection.execute(f"SELECT count(*) AS n FROM {table} WHERE batch_id = %s", (claim.id,)).fetchone()
    return int(row["n"]) if row else 0


def give_up(connection: Connection, claim: Claim, error: str, max_attempts: int) -> str:
    """Ends a (still claimed) batch that is out of attempts. Returns "split" or "failed".

    Several members: two batches of half of them, on their last attempt, so that a bad one is alone after few more.
    One member: its version fails with the error, the version before it stays published, the job goes on.
    """
    count = members(connection, claim)
    if count > 1:
        if claim.kind == "embed":
            chunks.lock_batch(connection, claim.id)
        batches.hold(connection, [claim])
        _split(connection, claim, count, max_attempts)
        return "split"
    version_ids = (
        chunks.versions_of(connection, [claim.id])
        if claim.kind == "embed"
        else [item.version_id for item in versions.load_staged(connection, claim.id)]
    )
    changes = versions.no_changes()
    unfinished = versions.lock_unfinished(connection, version_ids)
    versions.end_unpublished(
        connection, sorted(unfinished), "failed", changes, dict.fromkeys(unfinished, error or "failed")
    )
    batches.hold(connection, [claim])
    batches.end(connection, [claim.id], "dead")
    versions.lock_jobs(connection, changes)
    versions.settle(connection, changes)
    return "failed"


def _split(connection: Connection, claim: Claim, count: int, max_attempts: int) -> None:
    first, second = batches.insert(
        connection,
        kind=claim.kind,
        collection_id=claim.collection_id,
        tenant=claim.tenant,
        job_id=claim.job_id,
        priority=claim.priority,
        provider=claim.provider,
        sizes=[(count - count // 2, claim.tokens // 2), (count // 2, claim.tokens - claim.tokens // 2)],
    )
    if claim.kind == "embed":
        chunks.split_batch(connection, claim.id, (first, second))
    else:
        connection.execute(
            """WITH ranked AS (SELECT version_id, ntile(2) OVER (ORDER BY version_id) AS half
                                 FROM staged WHERE batch_id = %s)
               UPDATE staged s SET batch_id = CASE r.half WHEN 1 THEN %s::bigint ELSE %s::bigint END
                 FROM ranked r WHERE s.version_id = r.version_id""",
            (claim.id, first, second),
        )
    connection.execute(
        "UPDATE batches SET attempts = %s WHERE id = ANY(%s) AND size > 1", (max_attempts - 1, [first, second])
    )
    batches.end(connection, [claim.id], "dead")
