"""Dead letters: versions that failed in a worker, why, and their content, so that they can be tried again.

A letter is written in the transaction that fails its version, and resolved in the one that stages it again. Lock order:
documents before letters, in the order of their ids.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pipeline.document import encodable
from pipeline.errors import UnknownDeadLetter
from pipeline.ledger.batches import BatchKind
from pipeline.ledger.engine import Connection, Row

Resolution = Literal["retried", "discarded", "superseded"]

# A newer version of the letter's document l is published or on its way: newest wins.
_OUTDATED = """EXISTS (
    SELECT 1 FROM versions n WHERE n.document_id = l.document_id AND n.id > l.version_id
       AND n.state IN ('staged', 'open', 'published', 'unchanged'))"""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version failed; ordinal and chunk: of the one chunk that could not be embedded, if it was one."""

    error: str
    traceback: str | None = None
    ordinal: int | None = None
    chunk: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A document that could not be indexed.

    step: the kind of work that failed (prepare, embed, delete). ordinal, chunk: the chunk that failed and its text;
    None where the whole document did. attempts: how often it was tried; losses: workers lost on it. size: bytes kept
    for `retry`; None where there are none any more. resolution: retried (by the job retried_by), discarded, superseded.
    """

    id: int
    job_id: uuid.UUID
    collection: str
    tenant: str
    uri: str
    step: BatchKind
    error: str
    traceback: str | None
    ordinal: int | None
    chunk: str | None
    attempts: int
    losses: int
    media_type: str | None
    size: int | None
    created_at: datetime
    resolved_at: datetime | None
    resolution: Resolution | None
    retried_by: uuid.UUID | None

    def to_json(self) -> dict[str, Any]:
        """Every field; ids and times as strings."""
        told = {name: getattr(self, name) for name in DeadLetter.__slots__}
        for name in ("job_id", "retried_by"):
            told[name] = str(told[name]) if told[name] else None
        for name in ("created_at", "resolved_at"):
            told[name] = told[name].isoformat() if told[name] else None
        return told


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant: those to which all that is given applies; nothing given: all."""

    ids: tuple[int, ...] | None = None
    job_id: uuid.UUID | None = None
    collection_id: int | None = None
    tenant: str | None = None
    uri: str | None = None

    def conditions(self) -> tuple[str, dict[str, Any]]:
        """` AND ...` on letters l and their documents d, and its parameters."""
        columns = {
            "ids": "l.id = ANY(%(ids)s)",
            "job_id": "l.job_id = %(job_id)s",
            "collection_id": "l.collection_id = %(collection_id)s",
            "tenant": "l.tenant = %(tenant)s",
            "uri": "d.uri = %(uri)s",
        }
        given = {name: getattr(self, name) for name in columns if getattr(self, name) is not None}
        if self.ids is not None:
            given["ids"] = list(self.ids)
        return "".join(f" AND {columns[name]}" for name in given), given


_SELECT = """
SELECT l.id, l.job_id, c.name AS collection, l.tenant, d.uri, l.kind AS step, l.error, l.traceback, l.ordinal, l.chunk,
       l.attempts, l.losses, l.media_type, octet_length(l.content) AS size, l.created_at, l.resolved_at, l.resolution,
       l.retried_by
  FROM dead_letters l JOIN documents d ON d.id = l.document_id JOIN collections c ON c.id = l.collection_id"""


def write(
    connection: Connection, kind: BatchKind, failures: Mapping[int, Failure], *, attempts: int, losses: int
) -> None:
    """One letter for each (locked, unfinished) version, with its staged content: call it before the versions end.

    An older open letter of the same document is superseded: a document that fails at every sync is kept once.
    """
    if not failures:
        return
    ids = sorted(failures)
    found = [failures[version_id] for version_id in ids]
    connection.execute(
        """UPDATE dead_letters SET resolved_at = clock_timestamp(), resolution = 'superseded', content = NULL
            WHERE id IN (SELECT l.id FROM dead_letters l JOIN versions v ON v.document_id = l.document_id
                          WHERE v.id = ANY(%s) AND l.resolved_at IS NULL AND l.version_id < v.id
                          ORDER BY l.id FOR UPDATE OF l)""",
        (ids,),
    )
    connection.execute(
        """INSERT INTO dead_letters (collection_id, tenant, job_id, document_id, version_id, kind, ordinal, chunk,
                                     error, traceback, attempts, losses, media_type, content)
           SELECT v.collection_id, d.tenant, v.job_id, v.document_id, v.id, %(kind)s, f.ordinal, f.chunk,
                  f.error, f.traceback, %(attempts)s, %(losses)s, s.media_type, s.content
             FROM unnest(%(ids)s::bigint[], %(ordinals)s::int[], %(chunks)s::text[], %(errors)s::text[],
                         %(tracebacks)s::text[]) AS f (version_id, ordinal, chunk, error, traceback)
             JOIN versions v ON v.id = f.version_id JOIN documents d ON d.id = v.document_id
             LEFT JOIN staged s ON s.version_id = v.id
            WHERE v.state IN ('staged', 'open') ORDER BY v.id
           ON CONFLICT (version_id) DO NOTHING""",
        {
            "kind": kind,
            "attempts": attempts,
            "losses": losses,
            "ids": ids,
            "ordinals": [failure.ordinal for failure in found],
            "chunks": [failure.chunk for failure in found],
            "errors": [storable(failure.error) for failure in found],
            "tracebacks": [storable(failure.traceback) if failure.traceback else None for failure in found],
        },
    )


def storable(text: str) -> str:
    """The text as Postgres takes it: without NUL and lone surrogates, which messages about bad documents may hold."""
    return encodable(text).replace("\x00", "\ufffd")


def get(connection: Connection, letter_id: int) -> DeadLetter:
    """Raises UnknownDeadLetter, naming it."""
    row = connection.execute(f"{_SELECT} WHERE l.id = %s", (letter_id,)).fetchone()
    if row is None:
        raise UnknownDeadLetter(f"there is no dead letter {letter_id}; `millrace dead` lists them")
    return DeadLetter(**row)


def listing(
    connection: Connection, selection: Selection, *, resolved: bool, after: int | None, limit: int
) -> list[DeadLetter]:
    """A page of letters, the newest first; after: the last id of the page before.

    Open ones whose document has no newer version by now; resolved: all there are.
    """
    conditions, given = selection.conditions()
    which = "true" if resolved else f"l.resolved_at IS NULL AND NOT {_OUTDATED}"
    rows = connection.execute(
        f"""{_SELECT} WHERE {which} AND (%(after)s::bigint IS NULL OR l.id < %(after)s) {conditions}
             ORDER BY l.id DESC LIMIT %(limit)s""",
        {**given, "after": after, "limit": limit},
    ).fetchall()
    return [DeadLetter(**row) for row in rows]


def count_open(connection: Connection, job_id: uuid.UUID) -> int:
    """How many letters of a job `listing` shows as open."""
    row = connection.execute(
        f"SELECT count(*) AS n FROM dead_letters l WHERE l.job_id = %s AND l.resolved_at IS NULL AND NOT {_OUTDATED}",
        (job_id,),
    ).fetchone()
    return int(row["n"]) if row else 0


def newest(connection: Connection) -> int:
    """The highest id there is; 0 for none."""
    row = connection.execute("SELECT coalesce(max(id), 0) AS newest FROM dead_letters").fetchone()
    return int(row["newest"]) if row else 0


def missing(connection: Connection, ids: Sequence[int]) -> list[int]:
    """Of these ids, those that no letter has, open or resolved."""
    rows = connection.execute("SELECT id FROM dead_letters WHERE id = ANY(%s)", (list(ids),)).fetchall()
    return sorted(set(ids) - {row["id"] for row in rows})


def page(connection: Connection, selection: Selection, *, after: int, last: int, count: int, size: int) -> list[Row]:
    """Open letters that can be tried again, oldest first, from after to last: up to `count`, and about `size` bytes.

    Rows of id, document_id, version_id, and what their job asked for: job_id, collection_id, tenant, kind (of the
    version), provider, priority, recipe.
    """
    conditions, given = selection.conditions()
    return connection.execute(
        f"""WITH found AS (
              SELECT l.id, l.document_id, l.version_id, l.job_id, l.collection_id, l.tenant, v.kind, j.provider,
                     j.priority, j.recipe, octet_length(l.content) AS size
                FROM dead_letters l JOIN documents d ON d.id = l.document_id JOIN versions v ON v.id = l.version_id
                JOIN jobs j ON j.id = l.job_id
               WHERE l.resolved_at IS NULL AND l.content IS NOT NULL AND l.id > %(after)s AND l.id <= %(last)s
                     {conditions}
               ORDER BY l.id LIMIT %(count)s),
            summed AS (SELECT found.*, sum(size) OVER (ORDER BY id) - size AS before FROM found)
            SELECT id, document_id, version_id, job_id, collection_id, tenant, kind, provider, priority, recipe
              FROM summed WHERE before < %(size)s ORDER BY id""",
        {**given, "after": after, "last": last, "count": count, "size": size},
    ).fetchall()


def lock_open(connection: Connection, letter_ids: Sequence[int]) -> list[Row]:
    """Locks those of the letters (of locked documents) that are still open.

    Rows of id, whether it is `outdated`, and what its version was: uri, kind, content, media_type, metadata, hashes,
    validators.
    """
    connection.execute(
        "SELECT 1 FROM dead_letters WHERE id = ANY(%s) AND resolved_at IS NULL ORDER BY id FOR UPDATE",
        (sorted(letter_ids),),
    )
    return connection.execute(
        # A statement of its own: it sees what was committed while the locks were waited for.
        f"""SELECT l.id, {_OUTDATED} AS outdated, d.uri, v.kind, l.content, l.media_type, v.metadata,
                   v.content_hash, v.meta_hash, v.validators
              FROM dead_letters l JOIN documents d ON d.id = l.document_id JOIN versions v ON v.id = l.version_id
             WHERE l.id = ANY(%s) AND l.resolved_at IS NULL AND l.content IS NOT NULL ORDER BY l.id""",
        (sorted(letter_ids),),
    ).fetchall()


def resolve(
    connection: Connection, letter_ids: Sequence[int], resolution: Resolution, retried_by: uuid.UUID | None = None
) -> None:
    """Ends (locked) letters, and drops their content; that of those tried again is kept until their job has ended."""
    connection.execute(
        """UPDATE dead_letters SET resolved_at = clock_timestamp(), resolution = %s, retried_by = %s,
                  content = CASE WHEN %s::uuid IS NOT NULL THEN content END
            WHERE id = ANY(%s) AND resolved_at IS NULL""",
        (resolution, retried_by, retried_by, sorted(letter_ids)),
    )


def reopen(connection: Connection, job_id: uuid.UUID) -> int:
    """The job that tried letters again is cancelled: those whose version was cancelled with it are open as before, but
    where their document has another open one by now. Returns how many."""
    return connection.execute(
        """UPDATE dead_letters SET resolved_at = NULL, resolution = NULL, retried_by = NULL
            WHERE id IN (
              SELECT l.id FROM dead_letters l
                JOIN versions v ON v.job_id = %(job)s AND v.document_id = l.document_id AND v.state = 'cancelled'
               WHERE l.retried_by = %(job)s AND l.content IS NOT NULL
                 AND NOT EXISTS (SELECT 1 FROM dead_letters o
                                  WHERE o.document_id = l.document_id AND o.resolved_at IS NULL)
               ORDER BY l.id FOR UPDATE OF l)""",
        {"job": job_id},
    ).rowcount


def discard(connection: Connection, selection: Selection, *, last: int, limit: int) -> int:
    """Resolves up to `limit` open letters without trying them again. Returns how many."""
    conditions, given = selection.conditions()
    return connection.execute(
        f"""UPDATE dead_letters SET resolved_at = clock_timestamp(), resolution = 'discarded', content = NULL
             WHERE id IN (SELECT l.id FROM dead_letters l JOIN documents d ON d.id = l.document_id
                           WHERE l.resolved_at IS NULL AND l.id <= %(last)s {conditions}
                           ORDER BY l.id LIMIT %(limit)s FOR UPDATE OF l)""",
        {**given, "last": last, "limit": limit},
    ).rowcount


def supersede(connection: Connection, collection_id: int, tenant: str, uris: Sequence[str]) -> None:
    """Resolves the letters of documents that are wanted as they are published: no newer version says so.

    Call it after `staging.stage`, which locks documents.
    """
    if uris:
        connection.execute(
            # Where there is no open letter, as nearly always, no document is looked for: the first condition is asked
            # once. OFFSET 0: each document by its uri, and its letters by the document.
            """UPDATE dead_letters SET resolved_at = clock_timestamp(), resolution = 'superseded', content = NULL
                WHERE id IN (
                  SELECT id FROM dead_letters WHERE resolved_at IS NULL AND id = ANY (ARRAY(
                    SELECT l.id FROM unnest(%(uris)b::text[]) AS u (uri)
                     CROSS JOIN LATERAL (SELECT id FROM documents WHERE collection_id = %(collection)s
                                            AND tenant = %(tenant)s AND uri = u.uri OFFSET 0) d
                     CROSS JOIN LATERAL (SELECT id FROM dead_letters WHERE document_id = d.id
                                            AND resolved_at IS NULL OFFSET 0) l
                     WHERE (SELECT id FROM dead_letters WHERE resolved_at IS NULL AND collection_id = %(collection)s
                             LIMIT 1) IS NOT NULL))
                   ORDER BY id FOR UPDATE)""",
            {"collection": collection_id, "tenant": tenant, "uris": list(uris)},
        )
