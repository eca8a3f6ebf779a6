"""Re-embeddings: collections that get the vectors of another model, in a second Qdrant collection beside the first.

What is in the first goes on being searched and added to until one transaction switches both: `switch`. Whoever
completes chunks, or opens versions, holds the collection together with all others who do (`collections.share`); who
begins a re-embedding, switches or cancels it holds it alone. So nothing is completed in one Qdrant collection while the
other takes its place.

Lock order: the collection (`share`, `alone`), the re-embedding; documents, versions, chunks, batches, their
`reembed_chunks`, jobs, collections.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from psycopg.types.json import Jsonb

from pipeline.errors import LeaseLost
from pipeline.ledger.batches import Claim
from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Connection, Row
from pipeline.lifecycle import check

State = Literal["building", "auditing", "switching", "switched", "done", "cancelling", "cancelled"]


@dataclass(frozen=True, slots=True)
class Reembedding:
    """A re-embedding's row. collection: by name; physical: the Qdrant name of the new vectors; before: the model that
    the collection had.

    after: the point up to which the present step has come; walked: every chunk that there was has come by once, and
    walk_batch was the last batch that was made for it. chunks: that there were at the beginning. audits: in a row that
    found faults; audited: the last one found none, lately. held: nothing else of the collection is completed now;
    hold_over: nor was for longer than it may be. resting: nothing is to be tried now. paused: its job, its collection,
    or everything is. job_state: None where the job is gone.
    """

    id: int
    collection_id: int
    collection: str
    physical: str
    model: Mapping[str, Any]
    before: Mapping[str, Any]
    provider: str
    job_id: uuid.UUID
    job_state: str | None
    state: State
    after: uuid.UUID | None
    walked: bool
    walk_batch: int | None
    chunks: int
    audit: Mapping[str, Any]
    audits: int
    audited: bool
    error: str | None
    held: bool
    hold_over: bool
    resting: bool
    paused: bool
    created_at: datetime
    switched_at: datetime | None
    ended_at: datetime | None


# A comparison that found nothing wrong holds for so long.
_AUDITED_SECONDS = 3600.0

_DERIVED = ("collection", "job_state", "audited", "held", "hold_over", "resting", "paused")
_STORED = ", ".join(f"r.{name}" for name in Reembedding.__slots__ if name not in _DERIVED)
_SELECT = f"""
SELECT {_STORED}, c.name AS collection, j.state AS job_state,
       coalesce(r.audited_at > clock_timestamp() - make_interval(secs => {_AUDITED_SECONDS}), false) AS audited,
       coalesce(r.held_until > clock_timestamp(), false) AS held,
       coalesce(r.held_until <= clock_timestamp(), false) AS hold_over,
       coalesce(r.rest_until > clock_timestamp(), false) AS resting,
       j.state IS NOT DISTINCT FROM 'paused'
         OR EXISTS (SELECT 1 FROM pauses p WHERE p.collection_id IS NULL OR p.collection_id = r.collection_id) AS paused
  FROM reembeddings r JOIN collections c ON c.id = r.collection_id LEFT JOIN jobs j ON j.id = r.job_id"""


def _found(row: Row | None) -> Reembedding | None:
    return Reembedding(**row) if row else None


def create(
    connection: Connection,
    collection: Collection,
    *,
    physical: str,
    model: Mapping[str, Any],
    provider: str,
    job_id: uuid.UUID,
    chunks: int,
) -> int:
    """A new one, of a collection that is held alone and has none that is open. Returns its id."""
    connection.execute("UPDATE jobs SET chunks_total = %s WHERE id = %s", (chunks, job_id))
    row = connection.execute(
        """INSERT INTO reembeddings (collection_id, physical, model, before, provider, job_id, chunks)
           VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id""",
        (collection.id, physical, Jsonb(dict(model)), Jsonb(dict(collection.model)), provider, job_id, chunks),
    ).fetchone()
    assert row is not None
    return int(row["id"])


def newest(connection: Connection, collection_id: int) -> Reembedding | None:
    """The last one of the collection, ended or not."""
    return _found(
        connection.execute(
            f"{_SELECT} WHERE r.collection_id = %s ORDER BY r.id DESC LIMIT 1", (collection_id,)
        ).fetchone()
    )


def find(connection: Connection, reembedding_id: int) -> Reembedding:
    found = _found(connection.execute(f"{_SELECT} WHERE r.id = %s", (reembedding_id,)).fetchone())
    assert found is not None
    return found


def of_job(connection: Connection, job_id: uuid.UUID) -> Reembedding | None:
    """The one whose work this job is."""
    return _found(connection.execute(f"{_SELECT} WHERE r.job_id = %s", (job_id,)).fetchone())


def unfinished(connection: Connection) -> list[int]:
    """The ids of those that have not ended, the oldest first."""
    rows = connection.execute("SELECT id FROM reembeddings WHERE ended_at IS NULL ORDER BY id").fetchall()
    return [row["id"] for row in rows]


def lock(connection: Connection, known: Reembedding) -> bool:
    """Takes the row's lock, until the commit. False where it has got on, or was cancelled, since it was read."""
    row = connection.execute(
        """SELECT state = %s AND after IS NOT DISTINCT FROM %s AND walked = %s AS same FROM reembeddings
            WHERE id = %s FOR NO KEY UPDATE""",
        (known.state, known.after, known.walked, known.id),
    ).fetchone()
    return bool(row and row["same"])


def lock_job(connection: Connection, known: Reembedding) -> bool:
    """Takes the lock of its job's row, until the commit. False where the job was cancelled: it gets no more work, and
    nothing is switched."""
    row = connection.execute("SELECT state FROM jobs WHERE id = %s FOR NO KEY UPDATE", (known.job_id,)).fetchone()
    return row is not None and row["state"] != "cancelled"


def go_on(connection: Connection, known: Reembedding, after: uuid.UUID | None, *, walked: bool) -> None:
    """Says how far the walk has come; walked: to its end."""
    connection.execute(
        """UPDATE reembeddings
              SET after = %(after)s, walked = %(walked)s,
                  walk_batch = CASE WHEN %(walked)s THEN (SELECT max(id) FROM batches WHERE job_id = %(job)s) END
            WHERE id = %(id)s""",
        {"id": known.id, "after": after, "walked": walked, "job": known.job_id},
    )


def turn(connection: Connection, known: Reembedding, state: State) -> None:
    """The (locked) one goes over to another state, from its beginning."""
    check("reembedding", known.state, state)
    connection.execute(
        """UPDATE reembeddings
              SET state = %(state)s, after = NULL, held_until = NULL, rest_until = NULL,
                  ended_at = CASE WHEN %(state)s IN ('done', 'cancelled') THEN clock_timestamp() END
            WHERE id = %(id)s""",
        {"id": known.id, "state": state},
    )


def tell(connection: Connection, known: Reembedding, error: str | None) -> None:
    """Writes down what keeps it from going on; None: nothing does."""
    if error != known.error:
        connection.execute("UPDATE reembeddings SET error = %s WHERE id = %s", (error, known.id))


def rest(connection: Connection, known: Reembedding, seconds: float) -> None:
    """Nothing is tried for so long."""
    connection.execute(
        "UPDATE reembeddings SET rest_until = clock_timestamp() + make_interval(secs => %s) WHERE id = %s",
        (seconds, known.id),
    )


def note_audit(connection: Connection, known: Reembedding, counts: Mapping[str, Any], after: uuid.UUID | None) -> None:
    """What was found among the new vectors so far, and up to which point."""
    connection.execute(
        "UPDATE reembeddings SET audit = %s, after = %s WHERE id = %s", (Jsonb(dict(counts)), after, known.id)
    )


def end_audit(connection: Connection, known: Reembedding, counts: Mapping[str, Any], *, clean: bool) -> None:
    """All of them were compared."""
    connection.execute(
        """UPDATE reembeddings
              SET audit = %(counts)s, after = NULL, audits = CASE WHEN %(clean)s THEN 0 ELSE audits + 1 END,
                  audited_at = CASE WHEN %(clean)s THEN clock_timestamp() END
            WHERE id = %(id)s""",
        {"id": known.id, "counts": Jsonb(dict(counts)), "clean": clean},
    )


# -- holding -----------------------------------------------------------------------------------------------------------


def hold(connection: Connection, known: Reembedding, seconds: float) -> None:
    """For so long, at most, nothing else of the collection is completed: what is left can be caught up with."""
    connection.execute(
        """UPDATE reembeddings SET held_until = clock_timestamp() + make_interval(secs => %s) WHERE id = %s
              AND state = 'switching'""",
        (seconds, known.id),
    )


def let_go(connection: Connection, known: Reembedding, rest_seconds: float, most_seconds: float) -> None:
    """It was not long enough: the others' turn, for so long at least, and twice as long each time."""
    connection.execute(
        """UPDATE reembeddings
              SET held_until = NULL, holds = holds + 1,
                  rest_until = clock_timestamp() + make_interval(secs => least(%s, %s * power(2, least(holds, 20))))
            WHERE id = %s""",
        (most_seconds, rest_seconds, known.id),
    )


def away(connection: Connection) -> bool:
    """Whether something that embedding may need does not answer."""
    row = connection.execute("SELECT EXISTS (SELECT 1 FROM circuits WHERE opened_at IS NOT NULL) AS some").fetchone()
    return bool(row and row["some"])


# -- the end -----------------------------------------------------------------------------------------------------------


def switch(connection: Connection, known: Reembedding) -> None:
    """The collection (held alone, of which nothing is left to be embedded) has the new vectors from the commit on, and
    the (locked) job of the re-embedding is done."""
    before = connection.execute(
        "SELECT physical FROM collections WHERE id = %s FOR NO KEY UPDATE", (known.collection_id,)
    ).fetchone()
    assert before is not None
    connection.execute(
        """UPDATE collections
              SET physical = %(physical)s, model = %(model)s, provider = %(provider)s, generation = generation + 1,
                  former = former || jsonb_build_array(model), lost_at = NULL
            WHERE id = %(collection)s""",
        {
            "physical": known.physical,
            "model": Jsonb(dict(known.model)),
            "provider": known.provider,
            "collection": known.collection_id,
        },
    )
    turn(connection, known, "switched")
    tell(connection, known, None)
    doom(connection, known, before["physical"])
    connection.execute("UPDATE reembeddings SET switched_at = clock_timestamp() WHERE id = %s", (known.id,))
    # Some were removed in between.
    connection.execute("UPDATE jobs SET chunks_total = chunks_indexed WHERE id = %s", (known.job_id,))


def hand_over(connection: Connection, known: Reembedding, suited: Callable[[str], str]) -> None:
    """Unfinished jobs, and schedules, of the collection that name a provider which cannot embed with its new model get
    another one. suited: provider -> who embeds instead."""
    rows = connection.execute(
        """SELECT id, provider, routed FROM jobs
            WHERE collection_id = %s AND finished_at IS NULL AND kind <> 'reembed' ORDER BY id""",
        (known.collection_id,),
    ).fetchall()
    for row in rows:
        provider, routed = suited(row["provider"]), row["routed"]
        fits = routed is None or suited(routed) == routed
        if (provider, fits) != (row["provider"], True):
            connection.execute(
                """UPDATE jobs SET provider = %s, routed = CASE WHEN %s THEN routed END
                    WHERE id = %s AND finished_at IS NULL""",
                (provider, fits, row["id"]),
            )
    schedules = connection.execute(
        "SELECT id, options ->> 'provider' AS provider FROM schedules WHERE collection = %s ORDER BY id",
        (known.collection,),
    ).fetchall()
    for row in schedules:
        if row["provider"] is not None and suited(row["provider"]) != row["provider"]:
            connection.execute("UPDATE schedules SET options = options - 'provider' WHERE id = %s", (row["id"],))


def doom(connection: Connection, known: Reembedding, physical: str) -> None:
    """Nobody needs this Qdrant collection any more."""
    connection.execute(
        "UPDATE reembeddings SET doomed = %s, doomed_at = clock_timestamp() WHERE id = %s", (physical, known.id)
    )


@dataclass(frozen=True, slots=True)
class Doomed:
    """A Qdrant collection that nobody needs, and how often it was dropped already."""

    id: int
    physical: str
    drops: int


def doomed(connection: Connection, first_seconds: float, again_seconds: float) -> list[Doomed]:
    """Those that are to be dropped now: first when no search is under way in them any more (of one that was never
    searched, at once), and again for a writer that was paused in between."""
    rows = connection.execute(
        """SELECT r.id, r.doomed AS physical, r.drops FROM reembeddings r
            WHERE r.doomed IS NOT NULL AND r.drops < 2
              AND r.doomed_at < clock_timestamp() - make_interval(secs => CASE
                    WHEN r.drops = 1 THEN %s::float8 WHEN r.switched_at IS NULL THEN 0 ELSE %s::float8 END)
              AND NOT EXISTS (SELECT 1 FROM collections c WHERE c.physical = r.doomed)
            ORDER BY r.id""",
        (again_seconds, first_seconds),
    ).fetchall()
    return [Doomed(**row) for row in rows]


def dropped(connection: Connection, gone: Doomed) -> None:
    connection.execute("UPDATE reembeddings SET drops = drops + 1 WHERE id = %s AND drops = %s", (gone.id, gone.drops))


# -- its work ----------------------------------------------------------------------------------------------------------


def target(connection: Connection, claim: Claim, collection: Collection) -> Collection:
    """The collection as it will be, which this claim works for. Raises LeaseLost where that was cancelled."""
    row = connection.execute(
        "SELECT physical, model FROM reembeddings WHERE id = %s AND ended_at IS NULL", (claim.reembedding_id,)
    ).fetchone()
    if row is None:
        raise LeaseLost(f"the re-embedding of {collection.name} was cancelled; the result here is dropped")
    return replace(collection, physical=row["physical"], model=row["model"])
