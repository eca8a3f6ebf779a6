"""Work that keeps failing: it is split in two until the one that fails stands alone, and that one is a dead letter."""

from __future__ import annotations

from typing import Literal

from pipeline.ledger import batches, chunks, reembed_chunks, reembed_failures, versions
from pipeline.ledger.batches import Claim
from pipeline.ledger.dead_letters import Failure
from pipeline.ledger.engine import Connection, Row
from pipeline.settings import WorkSettings

Verdict = Literal["split", "failed", "again"]


def members(connection: Connection, claim: Claim) -> int:
    """How many documents (prepare, delete) or chunks (embed) are still in the batch."""
    if claim.reembedding_id is not None:
        return reembed_chunks.members(connection, claim.id)
    table = "chunks" if claim.kind == "embed" else "staged"
    row = connection.execute(f"SELECT count(*) AS n FROM {table} WHERE batch_id = %s", (claim.id,)).fetchone()
    return int(row["n"]) if row else 0


def note_death(connection: Connection, batch_id: int, how: str) -> None:
    """Writes down of what the process died that holds this batch, and others with it, for `batches.expire` to tell."""
    connection.execute(
        """UPDATE batches SET error = %s
            WHERE id IN (SELECT id FROM batches WHERE state = 'running'
                            AND owner = (SELECT owner FROM batches WHERE id = %s AND state = 'running')
                          ORDER BY id FOR NO KEY UPDATE)""",
        (f"{batches.DIED}{how}", batch_id),
    )


def give_up(
    connection: Connection, claim: Claim, error: str, work: WorkSettings, traceback: str | None = None
) -> Verdict:
    """Ends a (still claimed) batch that is out of attempts or losses, or splits one whose process died.

    Several members: "split" into two batches of half of them, on their last attempt, so that a bad one is alone after
    few more. One member: its version has "failed" with the error and leaves a dead letter, the version before it stays
    published, the job goes on; unless that one, alone, has not had its attempts yet: it is tried "again".
    """
    count = members(connection, claim)
    if count > 1:
        if claim.kind == "embed" and claim.reembedding_id is None:
            chunks.lock_batch(connection, claim.id)
        batches.hold(connection, [claim])
        _split(connection, claim, count, work)
        return "split"
    if claim.reembedding_id is not None:
        return reembed_failures.give_up(connection, claim, error or "failed", work, traceback)
    failures = _failures(connection, claim, error or "failed", traceback)
    changes = versions.no_changes()
    unfinished = versions.lock_unfinished(connection, failures)
    batches.hold(connection, [claim])
    tried = _tried(connection, claim)
    if count and tried["attempts"] < work.max_attempts and tried["losses"] < work.max_losses:
        batches.put_back(connection, claim.id, size=1)
        return "again"
    found = {version_id: failure for version_id, failure in failures.items() if version_id in unfinished}
    versions.fail(connection, claim.kind, found, changes, **tried)
    batches.end(connection, [claim.id], "dead")
    versions.lock_jobs(connection, changes)
    versions.settle(connection, changes)
    return "failed"


def _failures(connection: Connection, claim: Claim, error: str, traceback: str | None) -> dict[int, Failure]:
    """version id -> why it fails, of what is left in the batch."""
    if claim.kind != "embed":
        return {item.version_id: Failure(error, traceback) for item in versions.load_staged(connection, claim.id)}
    rows = connection.execute(
        "SELECT born_version, ordinal, text FROM chunks WHERE batch_id = %s ORDER BY born_version, ordinal", (claim.id,)
    ).fetchall()
    return {row["born_version"]: Failure(error, traceback, row["ordinal"], row["text"]) for row in rows}


def _tried(connection: Connection, claim: Claim) -> Row:
    row = connection.execute("SELECT attempts, losses FROM batches WHERE id = %s", (claim.id,)).fetchone()
    assert row is not None
    return row


def _split(connection: Connection, claim: Claim, count: int, work: WorkSettings) -> None:
    first, second = batches.insert(
        connection,
        kind=claim.kind,
        collection_id=claim.collection_id,
        tenant=claim.tenant,
        job_id=claim.job_id,
        provider=claim.provider,
        sizes=[(count - count // 2, claim.tokens // 2), (count // 2, claim.tokens - claim.tokens // 2)],
        reembedding_id=claim.reembedding_id,
    )
    if claim.reembedding_id is not None:
        reembed_chunks.split(connection, claim.id, (first, second))
    elif claim.kind == "embed":
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
        # A half that still has several is one failure from being split again. One alone has all its attempts before it:
        # only now is it known that nobody else can be meant. Neither drags others along with it.
        """UPDATE batches b
              SET alone = true,
                  attempts = CASE WHEN b.size > 1 THEN %s ELSE 0 END,
                  losses = CASE WHEN b.size > 1 THEN least(parent.losses, %s) ELSE 0 END
             FROM batches parent WHERE parent.id = %s AND b.id = ANY(%s)""",
        (work.max_attempts - 1, work.max_losses - 1, claim.id, [first, second]),
    )
    batches.end(connection, [claim.id], "dead")
