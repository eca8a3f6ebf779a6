"""Versions of documents: opened with their chunks, published when every chunk is in the index, or ended without.

Lock order, here as everywhere: documents, versions, chunks, batches, embeddings, jobs, collections; ids ascending.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.ledger import dead_letters, documents, jobs, validators
from pipeline.ledger.batches import BatchKind
from pipeline.ledger.dead_letters import Failure
from pipeline.ledger.engine import Connection, Row
from pipeline.lifecycle import UNFINISHED_VERSIONS

# What a transaction has to add to the counters of jobs.
Changes = defaultdict[uuid.UUID, Counter[str]]


def no_changes() -> Changes:
    return defaultdict(Counter)


Unpublished = Literal["unchanged", "superseded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Staged:
    """A staged version with what a worker needs to make chunks of it."""

    version_id: int
    document_id: int
    job_id: uuid.UUID
    kind: Literal["ingest", "delete"]
    uri: str
    tenant: str
    metadata: Mapping[str, Any]
    media_type: str | None
    content: bytes
    published_version: int | None
    same_as_published: bool


def load_staged(connection: Connection, batch_id: int) -> list[Staged]:
    """The staged versions of a prepare or delete batch, by id.

    `same_as_published` says that content, metadata and recipe are those of the published version (or that both are
    deletions): nothing to extract.
    """
    rows = connection.execute(
        # OFFSET 0: the batch first, then its versions by id. With statistics from when the tables were small, Postgres
        # would begin with every staged version there is.
        """WITH mine AS MATERIALIZED (SELECT version_id, media_type, content FROM staged WHERE batch_id = %s)
           SELECT v.id AS version_id, v.document_id, v.job_id, v.kind, d.uri, d.tenant, v.metadata, s.media_type,
                  s.content, d.published_version,
                  (p.kind = v.kind AND (v.kind = 'delete' OR p.content_hash = v.content_hash
                   AND p.meta_hash = v.meta_hash
                   AND (p.recipe_hash = v.recipe_hash OR p.recipe_hash = ANY(j.recipe_also)))
                   AND NOT EXISTS (SELECT 1 FROM versions o WHERE o.document_id = d.id AND o.state = 'open')
                  ) IS TRUE AS same_as_published
             FROM mine s CROSS JOIN LATERAL (SELECT * FROM versions WHERE id = s.version_id OFFSET 0) v
             JOIN documents d ON d.id = v.document_id JOIN jobs j ON j.id = v.job_id
             LEFT JOIN versions p ON p.id = d.published_version
            WHERE v.state = 'staged' ORDER BY v.id""",
        (batch_id,),
    ).fetchall()
    return [Staged(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose turn it is, found under the locks: versions that may open, and the document's published version."""

    base: Mapping[int, int | None]  # version id -> published version of its document
    blocked: frozenset[int]  # versions that wait for the open version of their document


def take_turns(connection: Connection, staged: Sequence[Staged], changes: Changes) -> Turn:
    """Locks the documents and their versions, and finds which of the staged ones may open now.

    A version supersedes the open one if that one's job is paused, or of lower priority; otherwise it waits. One that
    was compared with a version that is no longer the published one waits too: for a comparison with the new one. What
    is no longer staged (superseded, cancelled) is in neither answer.
    """
    published = documents.lock(connection, [item.document_id for item in staged])
    rows = connection.execute(
        """SELECT v.id, v.document_id, v.state, j.priority, j.state AS job_state
             FROM versions v JOIN jobs j ON j.id = v.job_id
            WHERE v.document_id = ANY(%s) AND v.state IN ('staged', 'open')
            ORDER BY v.id FOR NO KEY UPDATE OF v""",
        (list(published),),
    ).fetchall()
    mine = {item.version_id: item for item in staged}
    open_rows = {row["document_id"]: row for row in rows if row["state"] == "open"}
    base: dict[int, int | None] = {}
    blocked: set[int] = set()
    superseded: list[int] = []
    for row in rows:
        if row["id"] not in mine or row["state"] != "staged":
            continue
        rival = open_rows.get(row["document_id"])
        outranks = rival is None or rival["job_state"] == "paused" or rival["priority"] > row["priority"]
        stale = mine[row["id"]].same_as_published and mine[row["id"]].published_version != published[row["document_id"]]
        if not outranks or stale:
            blocked.add(row["id"])
            continue
        if rival is not None:
            superseded.append(rival["id"])
        base[row["id"]] = published[row["document_id"]]
    if superseded:
        end_unpublished(connection, superseded, "superseded", changes)
    return Turn(base, frozenset(blocked))


def block(connection: Connection, version_ids: Iterable[int]) -> None:
    """Detaches staged versions from their batch; `staging.restage_blocked` brings them back when their turn comes."""
    connection.execute("UPDATE staged SET batch_id = NULL WHERE version_id = ANY(%s)", (sorted(version_ids),))


def unstage(connection: Connection, version_ids: Iterable[int]) -> None:
    """Drops the staged content of versions that have ended."""
    connection.execute("DELETE FROM staged WHERE version_id = ANY(%s)", (sorted(version_ids),))


def open_versions(connection: Connection, opened: Sequence[Row]) -> None:
    """Opens versions: rows of version_id, base_version, pending, manifest and metadata (Jsonb), title."""
    connection.execute(
        """UPDATE versions v
              SET state = 'open', base_version = o.base_version, pending = o.pending, manifest = o.manifest,
                  title = o.title, metadata = o.metadata
             FROM unnest(%(ids)s::bigint[], %(bases)s::bigint[], %(pending)s::int[], %(manifests)s::jsonb[],
                         %(titles)s::text[], %(metadata)s::jsonb[])
               AS o (id, base_version, pending, manifest, title, metadata)
            WHERE v.id = o.id""",
        {
            "ids": [row["version_id"] for row in opened],
            "bases": [row["base_version"] for row in opened],
            "pending": [row["pending"] for row in opened],
            "manifests": [row["manifest"] for row in opened],
            "titles": [row["title"] for row in opened],
            "metadata": [row["metadata"] for row in opened],
        },
    )


def lock_open(connection: Connection, version_ids: Iterable[int]) -> set[int]:
    """Locks the documents, then the versions. Returns those that are still open."""
    return _lock(connection, version_ids, ("open",))


def lock_unfinished(connection: Connection, version_ids: Iterable[int]) -> set[int]:
    """Locks the documents, then the versions. Returns those that are staged or open."""
    return _lock(connection, version_ids, UNFINISHED_VERSIONS)


def _lock(connection: Connection, version_ids: Iterable[int], states: Sequence[str]) -> set[int]:
    ids = sorted(set(version_ids))
    rows = connection.execute("SELECT DISTINCT document_id FROM versions WHERE id = ANY(%s)", (ids,)).fetchall()
    documents.lock(connection, [row["document_id"] for row in rows])
    rows = connection.execute(
        "SELECT id FROM versions WHERE id = ANY(%s) AND state = ANY(%s) ORDER BY id FOR NO KEY UPDATE",
        (ids, list(states)),
    ).fetchall()
    return {row["id"] for row in rows}


def count_down(connection: Connection, indexed: Mapping[int, int]) -> None:
    """version id -> chunks that have just been indexed. The versions are locked and open."""
    connection.execute(
        """UPDATE versions v SET pending = pending - i.n
             FROM unnest(%s::bigint[], %s::int[]) AS i (id, n) WHERE v.id = i.id""",
        (list(indexed), list(indexed.values())),
    )


def publish(connection: Connection, collection_id: int, version_ids: Iterable[int], changes: Changes) -> list[int]:
    """Makes visible those of the (locked) open versions that wait for no chunk, all in one new generation.

    The collection's row is the last lock taken (call `lock_jobs` before), so generations are made one after the
    other, in commit order. Counts are added to `changes`; the caller writes them with `settle`. Returns the versions
    published.
    """
    rows = connection.execute(
        """SELECT id FROM versions WHERE id = ANY(%s) AND state = 'open' AND pending = 0 ORDER BY id""",
        (sorted(version_ids),),
    ).fetchall()
    ready = [row["id"] for row in rows]
    if not ready:
        return []
    published = connection.execute(
        """WITH generation AS (
             UPDATE collections SET generation = generation + 1 WHERE id = %(collection)s RETURNING generation),
           made AS (
             UPDATE versions v
                SET state = 'published', published_gen = g.generation, ended_at = clock_timestamp(),
                    contracted = CASE WHEN EXISTS (SELECT 1 FROM chunks c WHERE c.died_version = v.id) THEN 0 ELSE 2 END
               FROM generation g WHERE v.id = ANY(%(ids)s)
             RETURNING v.id, v.document_id, v.base_version, v.job_id, v.kind),
           -- Kept until here: had a chunk failed, its dead letter would hold what can be tried again.
           unstaged AS (DELETE FROM staged WHERE version_id = ANY(%(ids)s))
           UPDATE documents d SET published_version = m.id FROM made m
            WHERE d.id = m.document_id AND d.published_version IS NOT DISTINCT FROM m.base_version
        RETURNING m.id, m.job_id, m.kind""",
        {"collection": collection_id, "ids": ready},
    ).fetchall()
    if len(published) != len(ready):
        lost = sorted(set(ready) - {row["id"] for row in published})
        raise AssertionError(f"versions {lost} were built on a version that is no longer the published one")
    for row in published:
        counter = "documents_indexed" if row["kind"] == "ingest" else "documents_deleted"
        changes[row["job_id"]].update({counter: 1})
    return ready


def end_unpublished(
    connection: Connection,
    version_ids: Sequence[int],
    state: Unpublished,
    changes: Changes,
    errors: Mapping[int, str] | None = None,
) -> None:
    """Ends (locked) versions that will not be published: what they removed lives on, what they added is abandoned.

    Abandoned rows get died_version = born_version, so that they are never live and `contract` finds their points.
    """
    ids = sorted(version_ids)
    if not ids:
        return
    chunks = {"ids": ids}
    connection.execute(
        """SELECT 1 FROM chunks WHERE (born_version = ANY(%(ids)s) OR died_version = ANY(%(ids)s))
            ORDER BY point_id FOR NO KEY UPDATE""",
        chunks,
    )
    connection.execute(
        "UPDATE chunks SET died_version = NULL WHERE died_version = ANY(%(ids)s) AND born_version <> died_version",
        chunks,
    )
    connection.execute("UPDATE chunks SET died_version = born_version WHERE born_version = ANY(%(ids)s)", chunks)
    rows = connection.execute(
        """UPDATE versions v
              SET state = %(state)s, ended_at = clock_timestamp(), error = e.error,
                  contracted = CASE WHEN EXISTS (SELECT 1 FROM chunks c WHERE c.died_version = v.id) THEN 0 ELSE 2 END
             FROM unnest(%(ids)s::bigint[], %(errors)s::text[]) AS e (id, error)
            WHERE v.id = e.id AND v.state IN ('staged', 'open')
        RETURNING v.id, v.job_id""",
        {"ids": ids, "state": state, "errors": [(errors or {}).get(version_id) for version_id in ids]},
    ).fetchall()
    unstage(connection, ids)
    documents.forget_newest(connection, ids)
    if state == "unchanged":
        validators.carry_over(connection, ids)
    for row in rows:
        changes[row["job_id"]].update({f"documents_{state}": 1})


def fail(
    connection: Connection,
    kind: BatchKind,
    failures: Mapping[int, Failure],
    changes: Changes,
    *,
    attempts: int,
    losses: int,
) -> None:
    """Ends (locked) versions that failed in a worker, and writes their dead letters. kind: of the work that failed."""
    dead_letters.write(connection, kind, failures, attempts=attempts, losses=losses)
    errors = {version_id: dead_letters.storable(failure.error) for version_id, failure in failures.items()}
    end_unpublished(connection, sorted(failures), "failed", changes, errors)


def lock_jobs(connection: Connection, job_ids: Iterable[uuid.UUID]) -> None:
    """Takes the jobs' row locks, before `publish` takes the collection's."""
    connection.execute("SELECT 1 FROM jobs WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE", (sorted(set(job_ids)),))


def settle(connection: Connection, changes: Changes) -> list[uuid.UUID]:
    """Writes the (locked) jobs' counters and ends the jobs that are done. Returns those that ended."""
    jobs.count(connection, changes)
    return jobs.finish_done(connection, changes)
