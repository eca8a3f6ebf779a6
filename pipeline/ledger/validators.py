"""What a source said of a version (an ETag, a time), and what it is asked again with: validators.

Only those of published versions are ever used: of a version that failed, nothing is in the index that could go on
being right. A document that has something newer on its way is read again, as in `staging.unchanged`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg.types.json import Jsonb

from pipeline.document import Validators
from pipeline.ledger.engine import Connection
from pipeline.ledger.jobs import Job


@dataclass(frozen=True, slots=True)
class Held:
    """The published version of a document, and the validators that it was published with."""

    version_id: int
    validators: Validators


def held(connection: Connection, job: Job, wanted: Mapping[str, bytes], recipe_hash: bytes) -> dict[str, Held]:
    """uri -> what is held, of those (uri -> metadata hash) that would have the same metadata and recipe if read now."""
    rows = connection.execute(
        """SELECT d.uri, v.id, v.validators
             FROM unnest(%(uris)s::text[], %(metas)s::bytea[]) AS w (uri, meta_hash)
             JOIN documents d ON d.collection_id = %(collection)s AND d.tenant = %(tenant)s AND d.uri = w.uri
             JOIN versions v ON v.id = d.published_version AND d.newest_version = d.published_version
            WHERE v.kind = 'ingest' AND v.validators IS NOT NULL AND v.meta_hash = w.meta_hash
              AND v.recipe_hash = ANY(%(recipes)s)""",
        {
            "uris": list(wanted),
            "metas": list(wanted.values()),
            "collection": job.collection_id,
            "tenant": job.tenant,
            "recipes": [recipe_hash, *(job.recipe_also or ())],
        },
    ).fetchall()
    return {row["uri"]: Held(row["id"], row["validators"]) for row in rows}


def confirmed(connection: Connection, job: Job, told: Mapping[str, int]) -> dict[str, bool]:
    """Which of the documents (uri -> the version that the source was told of) are still published just so, with
    nothing newer on its way. The value says whether this very job has counted the document before it was cut off."""
    rows = connection.execute(
        """SELECT d.uri, EXISTS (SELECT 1 FROM versions v WHERE v.document_id = d.id AND v.job_id = %(job)s) AS counted
             FROM unnest(%(uris)s::text[], %(versions)s::bigint[]) AS w (uri, version_id)
             JOIN documents d ON d.collection_id = %(collection)s AND d.tenant = %(tenant)s AND d.uri = w.uri
            WHERE d.published_version = w.version_id AND d.newest_version = w.version_id""",
        {
            "uris": list(told),
            "versions": list(told.values()),
            "collection": job.collection_id,
            "tenant": job.tenant,
            "job": job.id,
        },
    ).fetchall()
    return {row["uri"]: row["counted"] for row in rows}


def refresh(connection: Connection, job: Job, wanted: Mapping[str, tuple[bytes, Validators]]) -> None:
    """Gives published versions of the same content (uri -> content hash, validators) the newer validators.

    In a transaction of its own, and never waiting for a row, so that it needs no place in the order of locks.
    """
    connection.execute(
        """UPDATE versions v SET validators = n.validators
             FROM (SELECT v.id, w.validators
                     FROM unnest(%(uris)s::text[], %(contents)s::bytea[], %(validators)s::jsonb[])
                       AS w (uri, content_hash, validators)
                     JOIN documents d ON d.collection_id = %(collection)s AND d.tenant = %(tenant)s AND d.uri = w.uri
                     JOIN versions v ON v.id = d.published_version
                    WHERE v.content_hash = w.content_hash AND v.validators IS DISTINCT FROM w.validators
                      FOR NO KEY UPDATE OF v SKIP LOCKED) AS n
            WHERE v.id = n.id""",
        {
            "uris": list(wanted),
            "contents": [content for content, _ in wanted.values()],
            "validators": [Jsonb(dict(validators)) for _, validators in wanted.values()],
            "collection": job.collection_id,
            "tenant": job.tenant,
        },
    )


def carry_over(connection: Connection, version_ids: Sequence[int]) -> None:
    """Gives the published versions the validators of (locked) versions that turned out to be the same."""
    connection.execute(
        """UPDATE versions p SET validators = n.validators
             FROM (SELECT p.id, v.validators
                     FROM versions v JOIN documents d ON d.id = v.document_id
                     JOIN versions p ON p.id = d.published_version
                    WHERE v.id = ANY(%s) AND v.validators IS NOT NULL AND p.validators IS DISTINCT FROM v.validators
                      AND p.content_hash = v.content_hash
                      FOR NO KEY UPDATE OF p SKIP LOCKED) AS n
            WHERE p.id = n.id""",
        (sorted(version_ids),),
    )
