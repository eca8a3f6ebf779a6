"""Documents: a uri per tenant and collection, which version is newest and which is published. Never deleted."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from pipeline.ledger.engine import Connection, Row


def ensure(connection: Connection, collection_id: int, tenant: str, uris: Sequence[str]) -> dict[str, int]:
    """uri -> document id, in the order of the ids; rows are made where they are missing."""
    given = {"collection": collection_id, "tenant": tenant, "uris": sorted(set(uris))}
    connection.execute(
        """INSERT INTO documents (collection_id, tenant, uri)
           SELECT %(collection)s, %(tenant)s, u.uri FROM unnest(%(uris)b::text[]) AS u (uri)
            WHERE (SELECT d.id FROM documents d WHERE d.collection_id = %(collection)s
                      AND d.tenant = %(tenant)s AND d.uri = u.uri) IS NULL
            ORDER BY u.uri
           ON CONFLICT (collection_id, tenant, uri) DO NOTHING""",
        given,
    )
    rows = connection.execute(
        """SELECT id, uri FROM documents
            WHERE collection_id = %(collection)s AND tenant = %(tenant)s AND uri = ANY(%(uris)b::text[]) ORDER BY id""",
        given,
    ).fetchall()
    return {row["uri"]: row["id"] for row in rows}


def lock(connection: Connection, document_ids: Iterable[int]) -> dict[int, int | None]:
    """Takes the documents' row locks, first of all locks and in the order of ids. Returns id -> published version."""
    rows = connection.execute(
        "SELECT id, published_version FROM documents WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE",
        (sorted(set(document_ids)),),
    ).fetchall()
    return {row["id"]: row["published_version"] for row in rows}


def set_newest(connection: Connection, versions: Mapping[int, int]) -> None:
    """document id -> the version that is now its newest."""
    connection.execute(
        """UPDATE documents d SET newest_version = n.version_id
             FROM unnest(%b::bigint[], %b::bigint[]) AS n (document_id, version_id) WHERE d.id = n.document_id""",
        (list(versions), list(versions.values())),
    )


def forget_newest(connection: Connection, version_ids: Sequence[int]) -> None:
    """Versions that ended without being published are no longer the newest: that is what is open, else published."""
    connection.execute(
        """UPDATE documents d
              SET newest_version = coalesce(
                    (SELECT max(v.id) FROM versions v
                      WHERE v.document_id = d.id AND v.state IN ('staged', 'open')), d.published_version)
            WHERE d.id IN (SELECT document_id FROM versions WHERE id = ANY(%(ids)s))
              AND d.newest_version = ANY(%(ids)s)""",
        {"ids": list(version_ids)},
    )


def matching(connection: Connection, collection_id: int, tenant: str, filters: Mapping[str, Any]) -> list[str]:
    """The uris of the published documents whose metadata has all these values (a list: any of them), by uri."""
    conditions, given = _metadata_conditions(filters)
    rows = connection.execute(
        f"""SELECT d.uri FROM documents d JOIN versions v ON v.id = d.published_version
             WHERE d.collection_id = %(collection)s AND d.tenant = %(tenant)s AND v.kind = 'ingest' {conditions}
             ORDER BY d.uri""",
        {**given, "collection": collection_id, "tenant": tenant},
    ).fetchall()
    return [row["uri"] for row in rows]


def published(
    connection: Connection,
    collection_id: int,
    tenant: str,
    *,
    prefix: str = "",
    filters: Mapping[str, Any] | None = None,
    after: str = "",
    limit: int = 1000,
) -> list[Row]:
    """A page of published documents, by uri: uri, title, metadata, chunks, generation, published_at.

    filters: as for `matching`, and "uri".
    """
    wanted = dict(filters or {})
    uris = wanted.pop("uri", None)
    conditions, given = _metadata_conditions(wanted)
    return connection.execute(
        f"""SELECT d.uri, v.title, v.metadata, jsonb_array_length(v.manifest -> 'points') AS chunks,
                   v.published_gen AS generation, v.ended_at AS published_at
              FROM documents d JOIN versions v ON v.id = d.published_version
             WHERE d.collection_id = %(collection)s AND d.tenant = %(tenant)s AND v.kind = 'ingest'
               AND starts_with(d.uri, %(prefix)s) AND d.uri > %(after)s
               AND (%(uris)s::text[] IS NULL OR d.uri = ANY(%(uris)s)) {conditions}
             ORDER BY d.uri LIMIT %(limit)s""",
        {
            **given,
            "collection": collection_id,
            "tenant": tenant,
            "prefix": prefix,
            "after": after,
            "uris": [uris] if isinstance(uris, str) else uris,
            "limit": limit,
        },
    ).fetchall()


def _metadata_conditions(filters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """` AND ...` on the metadata of versions v, and its parameters."""
    conditions = []
    given: dict[str, Any] = {}
    for number, (key, value) in enumerate(sorted(filters.items())):
        options = list(value) if isinstance(value, list | tuple) else [value]
        # A document with a list of values matches by any of them, as in the index.
        forms = [form for option in options for form in (Jsonb({key: option}), Jsonb({key: [option]}))]
        given[f"forms_{number}"] = forms
        conditions.append(f" AND v.metadata @> ANY(%(forms_{number})s::jsonb[])")
    return "".join(conditions), given


def wanted_count(connection: Connection, collection_id: int, tenant: str, *, prefix: str, except_job: uuid.UUID) -> int:
    """Documents below a prefix that are published or on their way, and not on their way out.

    except_job: those that were not there before this job (it was cut off, and goes on) are not counted.
    """
    row = connection.execute(
        """SELECT count(*) AS n FROM documents d JOIN versions v ON v.id = d.newest_version
            WHERE d.collection_id = %(collection)s AND d.tenant = %(tenant)s AND v.kind = 'ingest'
              AND starts_with(d.uri, %(prefix)s)
              AND (v.job_id <> %(job)s OR 'ingest' = (
                    SELECT p.kind FROM versions p WHERE p.document_id = d.id AND p.job_id <> %(job)s
                     ORDER BY p.id DESC LIMIT 1))""",
        {"collection": collection_id, "tenant": tenant, "prefix": prefix, "job": except_job},
    ).fetchone()
    return int(row["n"]) if row else 0


def wanted_uris(
    connection: Connection, collection_id: int, tenant: str, *, prefix: str, after: str = "", limit: int = 5000
) -> list[str]:
    """A page of the uris below a prefix that are published or on their way, and not on their way out, by uri."""
    rows = connection.execute(
        """SELECT d.uri FROM documents d JOIN versions v ON v.id = d.newest_version
            WHERE d.collection_id = %s AND d.tenant = %s AND v.kind = 'ingest'
              AND starts_with(d.uri, %s) AND d.uri > %s
            ORDER BY d.uri LIMIT %s""",
        (collection_id, tenant, prefix, after, limit),
    ).fetchall()
    return [row["uri"] for row in rows]
