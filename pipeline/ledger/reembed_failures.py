"""Chunks that cannot be embedded by another model: they keep their collection from getting its vectors.

Their letters have no content of their own: the text is in `chunks`, and what is tried again is that. One letter a
document, under the version that is published.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipeline.ledger import batches, dead_letters, reembed_chunks, reembeddings
from pipeline.ledger.batches import Claim
from pipeline.ledger.chunks import WantedPoint
from pipeline.ledger.dead_letters import Failure, Selection
from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.reembeddings import Reembedding
from pipeline.settings import WorkSettings


def fail(
    connection: Connection,
    reembedding_id: int,
    job_id: uuid.UUID,
    failures: Mapping[uuid.UUID, Failure],
    *,
    attempts: int,
    losses: int = 0,
) -> None:
    """Takes chunks out of their (held) batches, says why, and writes letters. The batches go on without them."""
    if not failures:
        return
    errors = {point: dead_letters.storable(failure.error) for point, failure in failures.items()}
    reembed_chunks.refuse(connection, reembedding_id, errors)
    _write(connection, job_id, failures, attempts, losses)


def refused(
    connection: Connection, claims: Sequence[Claim], wanted: Sequence[WantedPoint], failed: Mapping[bytes, str]
) -> None:
    """Ends what the provider refuses: embedding key -> why. Raises LeaseLost."""
    batches.hold(connection, claims)
    found = {
        point.point_id: Failure(failed[point.embedding_key], None, point.ordinal, point.text)
        for point in wanted
        if point.embedding_key in failed
    }
    first = claims[0]
    assert first.reembedding_id is not None
    fail(connection, first.reembedding_id, first.job_id, found, attempts=first.attempts + 1, losses=first.losses)


def _write(
    connection: Connection, job_id: uuid.UUID, failures: Mapping[uuid.UUID, Failure], attempts: int, losses: int
) -> None:
    points = sorted(failures)
    found = [failures[point] for point in points]
    connection.execute(
        """INSERT INTO dead_letters AS l (collection_id, tenant, job_id, document_id, version_id, kind, ordinal, chunk,
                                          error, traceback, attempts, losses)
           SELECT DISTINCT ON (version_id) d.collection_id, d.tenant, %(job)s, d.id,
                  coalesce(d.published_version, c.born_version) AS version_id, 'embed', c.ordinal, c.text,
                  w.error, w.traceback, %(attempts)s, %(losses)s
             FROM unnest(%(points)s::uuid[], %(errors)s::text[], %(tracebacks)s::text[])
                    AS w (point_id, error, traceback)
             JOIN chunks c ON c.point_id = w.point_id JOIN documents d ON d.id = c.document_id
            ORDER BY version_id, c.ordinal
           ON CONFLICT (version_id) DO UPDATE
              SET job_id = excluded.job_id, ordinal = excluded.ordinal, chunk = excluded.chunk, error = excluded.error,
                  traceback = excluded.traceback, attempts = excluded.attempts, losses = excluded.losses,
                  created_at = excluded.created_at, resolved_at = NULL, resolution = NULL, retried_by = NULL""",
        {
            "job": job_id,
            "attempts": attempts,
            "losses": losses,
            "points": points,
            "errors": [dead_letters.storable(failure.error) for failure in found],
            "tracebacks": [
                dead_letters.storable(failure.traceback) if failure.traceback else None for failure in found
            ],
        },
    )


def give_up(
    connection: Connection, claim: Claim, error: str, work: WorkSettings, traceback: str | None
) -> Literal["again", "failed"]:
    """As `blame.give_up`, of a batch whose one chunk is left: it "failed", or is tried "again" if it was not yet tried
    alone."""
    batches.hold(connection, [claim])
    tried = connection.execute("SELECT attempts, losses FROM batches WHERE id = %s", (claim.id,)).fetchone()
    assert tried is not None
    rows = connection.execute(
        """SELECT c.point_id, c.ordinal, c.text FROM reembed_chunks r JOIN chunks c ON c.point_id = r.point_id
            WHERE r.batch_id = %s AND NOT r.done""",
        (claim.id,),
    ).fetchall()
    if rows and tried["attempts"] < work.max_attempts and tried["losses"] < work.max_losses:
        batches.put_back(connection, claim.id, size=1)
        return "again"
    found = {row["point_id"]: Failure(error, traceback, row["ordinal"], row["text"]) for row in rows}
    assert claim.reembedding_id is not None
    fail(connection, claim.reembedding_id, claim.job_id, found, **tried)
    batches.end(connection, [claim.id], "dead")
    return "failed"


# -- tried again -------------------------------------------------------------------------------------------------------


def retry(connection: Connection, selection: Selection) -> dict[uuid.UUID, int]:
    """Tries again what the selected open letters are about, as far as it belongs to re-embeddings that are under way.
    Job -> how many of its letters."""
    tried: dict[uuid.UUID, int] = {}
    for reembedding, letters in _letters(connection, selection):
        if not reembed_chunks.try_again(connection, reembedding, [letter["document_id"] for letter in letters]):
            continue
        reembeddings.tell(connection, reembedding, None)
        dead_letters.resolve(connection, [letter["id"] for letter in letters], "retried", reembedding.job_id)
        tried[reembedding.job_id] = len(letters)
    return tried


def _letters(connection: Connection, selection: Selection) -> list[tuple[Reembedding, Sequence[Row]]]:
    conditions, given = selection.conditions()
    rows: list[dict[str, Any]] = connection.execute(
        f"""SELECT l.id, l.document_id, l.job_id
              FROM dead_letters l JOIN documents d ON d.id = l.document_id
              JOIN reembeddings r ON r.job_id = l.job_id AND r.ended_at IS NULL AND r.switched_at IS NULL
             WHERE l.resolved_at IS NULL {conditions} ORDER BY l.id FOR UPDATE OF l""",
        given,
    ).fetchall()
    by_job: dict[uuid.UUID, list[Row]] = {}
    for row in rows:
        by_job.setdefault(row["job_id"], []).append(row)
    found = [(reembeddings.of_job(connection, job_id), letters) for job_id, letters in by_job.items()]
    return [(reembedding, letters) for reembedding, letters in found if reembedding is not None]


def errors(connection: Connection, job_id: uuid.UUID, limit: int = 100) -> list[dict[str, str]]:
    """The documents with a text that the job could not embed, and why."""
    reembedding = reembeddings.of_job(connection, job_id)
    rows = reembed_chunks.failing(connection, reembedding, limit) if reembedding is not None else []
    return [{"uri": row["uri"], "error": row["error"]} for row in rows]


def close(connection: Connection, job_id: uuid.UUID) -> None:
    """The re-embedding has ended: nothing of it is open any more."""
    connection.execute(
        """UPDATE dead_letters SET resolved_at = clock_timestamp(), resolution = 'superseded'
            WHERE job_id = %s AND resolved_at IS NULL""",
        (job_id,),
    )
