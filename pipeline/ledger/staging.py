"""The enqueuer's side: documents become staged versions, in groups, one transaction each."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from psycopg.types.json import Jsonb

from pipeline.document import Metadata, Validators
from pipeline.ledger import batches, documents, jobs, writing
from pipeline.ledger.engine import Connection
from pipeline.ledger.jobs import Job
from pipeline.ledger.versions import Changes, no_changes

VersionKind = Literal["ingest", "delete"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that somebody wants: the document's new content, or its end (kind "delete": no content)."""

    uri: str
    kind: VersionKind
    content: bytes = b""
    media_type: str | None = None
    metadata: Metadata = field(default_factory=dict)
    content_hash: bytes = b""
    meta_hash: bytes = b""
    validators: Validators = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one batch of `prepare` work may hold."""

    documents: int
    bytes: int


def unchanged(
    connection: Connection, job: Job, wanted: Sequence[tuple[str, bytes, bytes]], recipe_hash: bytes
) -> set[str]:
    """The uris of (uri, content hash, metadata hash) whose document is published just so, and nothing newer on its way.

    What is still on its way does not count as unchanged: were it to fail or be cancelled, nobody would bring the
    document. It is staged again, and found unchanged when its turn comes.
    """
    rows = connection.execute(
        # OFFSET 0: each document by its uri, each version by its id. With statistics from when the tables were small,
        # Postgres would read every document there is.
        """SELECT d.uri
             FROM unnest(%(uris)b::text[], %(contents)b::bytea[], %(metas)b::bytea[])
               AS w (uri, content_hash, meta_hash)
             CROSS JOIN LATERAL (SELECT * FROM documents WHERE collection_id = %(collection)s AND tenant = %(tenant)s
                                    AND uri = w.uri OFFSET 0) d
             CROSS JOIN LATERAL (SELECT * FROM versions WHERE id = d.published_version OFFSET 0) v
            WHERE d.newest_version = d.published_version AND v.kind = 'ingest'
              AND v.content_hash = w.content_hash AND v.meta_hash = w.meta_hash
              AND v.recipe_hash = ANY(%(recipes)s)""",
        _asked(job, wanted, recipe_hash),
    ).fetchall()
    return {row["uri"] for row in rows}


def staged_before(
    connection: Connection, job: Job, wanted: Sequence[tuple[str, bytes, bytes]], recipe_hash: bytes
) -> set[str]:
    """The uris of which this very job's newest version was staged just so, whatever became of it.

    By an enqueuer that was cut off, or by one that writes the same request under the same key at this moment.

    Locks the documents: of two such enqueuers the second one sees what the first one did.
    """
    if not wanted:
        return set()
    documents.lock(
        connection,
        documents.ensure(connection, job.collection_id, job.tenant, [uri for uri, _, _ in wanted]).values(),
    )
    rows = connection.execute(
        """SELECT d.uri
             FROM unnest(%(uris)b::text[], %(contents)b::bytea[], %(metas)b::bytea[])
               AS w (uri, content_hash, meta_hash)
             CROSS JOIN LATERAL (SELECT * FROM documents WHERE collection_id = %(collection)s AND tenant = %(tenant)s
                                    AND uri = w.uri OFFSET 0) d
             JOIN versions v ON v.id = (
                  SELECT max(id) FROM versions WHERE document_id = d.id AND job_id = %(job)s)
            WHERE v.content_hash = w.content_hash AND v.meta_hash = w.meta_hash AND v.recipe_hash = %(recipe)s""",
        _asked(job, wanted, recipe_hash),
    ).fetchall()
    return {row["uri"] for row in rows}


def _asked(job: Job, wanted: Sequence[tuple[str, bytes, bytes]], recipe_hash: bytes) -> dict[str, object]:
    """The parameters of a question about (uri, content hash, metadata hash) under a job's collection and recipe."""
    return {
        "uris": [uri for uri, _, _ in wanted],
        "contents": [content for _, content, _ in wanted],
        "metas": [meta for _, _, meta in wanted],
        "collection": job.collection_id,
        "tenant": job.tenant,
        "job": job.id,
        "recipe": recipe_hash,
        "recipes": [recipe_hash, *(job.recipe_also or ())],
    }


def absent(connection: Connection, job: Job, uris: Sequence[str]) -> set[str]:
    """The uris of which nothing is published and nothing is on its way: there is nothing to delete.

    What is published and about to be deleted is still there: were that deletion to fail or be cancelled, nobody would
    delete it. It is staged again, and found unchanged when its turn comes.
    """
    rows = connection.execute(
        """SELECT d.uri FROM documents d LEFT JOIN versions v ON v.id = d.newest_version
             LEFT JOIN versions p ON p.id = d.published_version
            WHERE d.collection_id = %s AND d.tenant = %s AND d.uri = ANY(%s)
              AND (v.kind = 'ingest' OR p.kind = 'ingest')""",
        (job.collection_id, job.tenant, list(uris)),
    ).fetchall()
    return set(uris) - {row["uri"] for row in rows}


def stage(
    connection: Connection,
    job: Job,
    wanted: Sequence[Wanted],
    recipe_hash: bytes,
    limits: Limits,
    already_unchanged: int = 0,
) -> None:
    """Writes one staged version per document (each uri at most once) and the batches that will prepare them.

    A version staged earlier and not yet begun is superseded: only the newest is wanted.
    """
    changes = no_changes()
    if wanted:
        ids = documents.ensure(connection, job.collection_id, job.tenant, [item.uri for item in wanted])
        documents.lock(connection, ids.values())
        _supersede_staged(connection, list(ids.values()), changes)
        versions = _insert_versions(connection, job, wanted, ids, recipe_hash)
        documents.set_newest(connection, versions)
        _stage_content(connection, job, wanted, {uri: versions[document] for uri, document in ids.items()}, limits)
    changes[job.id].update(documents_total=len(wanted) + already_unchanged, documents_unchanged=already_unchanged)
    jobs.count(connection, changes)
    jobs.finish_done(connection, set(changes) - {job.id})
    writing.touch(connection, job.id)


def reject(connection: Connection, job: Job, rejected: Sequence[tuple[str, str]]) -> None:
    """Records documents that could not even be read: (uri, error). What was published of them stays."""
    ids = documents.ensure(connection, job.collection_id, job.tenant, [uri for uri, _ in rejected])
    connection.execute(
        """INSERT INTO versions (document_id, collection_id, job_id, kind, state, priority, error, ended_at, contracted)
           SELECT r.document_id, %(collection)s, %(job)s, 'ingest', 'failed', %(priority)s, r.error, now(), 2
             FROM unnest(%(documents)b::bigint[], %(errors)s::text[]) AS r (document_id, error)""",
        {
            "collection": job.collection_id,
            "job": job.id,
            "priority": job.priority,
            "documents": [ids[uri] for uri, _ in rejected],
            "errors": [error for _, error in rejected],
        },
    )
    count = len(rejected)
    jobs.count(connection, {job.id: {"documents_total": count, "documents_failed": count, "documents_prepared": count}})
    writing.touch(connection, job.id)


def restage_blocked(connection: Connection, limit: int, page: int) -> int:
    """Makes prepare batches, of at most `page` documents, for staged versions whose document's open version has ended,
    or gives way to them now (`versions.take_turns`): its job was paused, or one of the two jobs got another priority.

    Returns how many versions.
    """
    rows = connection.execute(
        """WITH blocked AS MATERIALIZED (SELECT version_id FROM staged WHERE batch_id IS NULL)
           SELECT s.version_id, v.job_id, v.collection_id, v.kind, j.tenant, j.provider
             FROM blocked JOIN staged s USING (version_id)
             CROSS JOIN LATERAL (SELECT * FROM versions WHERE id = s.version_id OFFSET 0) v
             JOIN jobs j ON j.id = v.job_id
            WHERE s.batch_id IS NULL AND v.state = 'staged'
              AND NOT EXISTS (SELECT 1 FROM versions o JOIN jobs oj ON oj.id = o.job_id
                               WHERE o.document_id = v.document_id AND o.state = 'open'
                                 AND oj.state <> 'paused' AND oj.priority <= j.priority)
            ORDER BY s.version_id LIMIT %s FOR UPDATE OF s SKIP LOCKED""",
        (limit,),
    ).fetchall()
    groups: dict[tuple[uuid.UUID, str], list[int]] = {}
    by_group = {}
    for row in rows:
        key = (row["job_id"], row["kind"])
        groups.setdefault(key, []).append(row["version_id"])
        by_group[key] = row
    for key, version_ids in groups.items():
        row = by_group[key]
        pages = [version_ids[start : start + page] for start in range(0, len(version_ids), page)]
        ids = batches.insert(
            connection,
            kind="prepare" if row["kind"] == "ingest" else "delete",
            collection_id=row["collection_id"],
            tenant=row["tenant"],
            job_id=row["job_id"],
            provider=row["provider"],
            sizes=[(len(members), 0) for members in pages],
        )
        for batch_id, members in zip(ids, pages, strict=True):
            connection.execute("UPDATE staged SET batch_id = %s WHERE version_id = ANY(%s)", (batch_id, members))
    return len(rows)


def _supersede_staged(connection: Connection, document_ids: list[int], changes: Changes) -> None:
    rows = connection.execute(
        """UPDATE versions SET state = 'superseded', ended_at = now(), contracted = 2
            WHERE id IN (SELECT id FROM versions WHERE document_id = ANY(%s) AND state = 'staged'
                          ORDER BY id FOR NO KEY UPDATE)
            RETURNING id, job_id""",
        (document_ids,),
    ).fetchall()
    connection.execute("DELETE FROM staged WHERE version_id = ANY(%s)", ([row["id"] for row in rows],))
    for row in rows:
        changes[row["job_id"]].update(documents_superseded=1)


def _insert_versions(
    connection: Connection, job: Job, wanted: Sequence[Wanted], ids: dict[str, int], recipe_hash: bytes
) -> dict[int, int]:
    """document id -> version id."""
    rows = connection.execute(
        """INSERT INTO versions (document_id, collection_id, job_id, kind, state, priority, content_hash, meta_hash,
                                 recipe_hash, metadata, validators)
           SELECT w.document_id, %(collection)s, %(job)s, w.kind, 'staged', %(priority)s, w.content_hash, w.meta_hash,
                  %(recipe)s, w.metadata, w.validators
             FROM unnest(%(documents)b::bigint[], %(kinds)b::text[], %(contents)b::bytea[], %(metas)b::bytea[],
                         %(metadata)b::jsonb[], %(validators)b::jsonb[])
               AS w (document_id, kind, content_hash, meta_hash, metadata, validators)
            ORDER BY w.document_id
           RETURNING id, document_id""",
        {
            "collection": job.collection_id,
            "job": job.id,
            "priority": job.priority,
            "recipe": recipe_hash,
            "documents": [ids[item.uri] for item in wanted],
            "kinds": [item.kind for item in wanted],
            "contents": [item.content_hash for item in wanted],
            "metas": [item.meta_hash for item in wanted],
            "metadata": [Jsonb(dict(item.metadata)) for item in wanted],
            "validators": [Jsonb(dict(item.validators)) if item.validators else None for item in wanted],
        },
    ).fetchall()
    return {row["document_id"]: row["id"] for row in rows}


def _stage_content(
    connection: Connection, job: Job, wanted: Sequence[Wanted], versions: dict[str, int], limits: Limits
) -> None:
    rows: list[tuple[int, int, str | None, bytes]] = []
    kinds: tuple[tuple[VersionKind, batches.BatchKind], ...] = (("ingest", "prepare"), ("delete", "delete"))
    for version_kind, batch_kind in kinds:
        groups = _groups([item for item in wanted if item.kind == version_kind], limits)
        ids = batches.insert(
            connection,
            kind=batch_kind,
            collection_id=job.collection_id,
            tenant=job.tenant,
            job_id=job.id,
            provider=job.provider,
            sizes=[(len(group), 0) for group in groups],
        )
        for batch_id, group in zip(ids, groups, strict=True):
            rows.extend((versions[item.uri], batch_id, item.media_type, item.content) for item in group)
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY staged (version_id, batch_id, media_type, content) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.set_types(["int8", "int8", "text", "bytea"])
        for row in rows:
            copy.write_row(row)


def _groups(wanted: Sequence[Wanted], limits: Limits) -> list[list[Wanted]]:
    groups: list[list[Wanted]] = []
    size = 0
    for item in wanted:
        if not groups or len(groups[-1]) >= limits.documents or size + len(item.content) > limits.bytes:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += len(item.content)
    return groups
