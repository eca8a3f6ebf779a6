"""What a search may see: Postgres decides, as of one generation."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.ledger.engine import Connection


@dataclass(frozen=True, slots=True)
class Visible:
    """A chunk that a search may show, with its document as it was in that generation."""

    point_id: uuid.UUID
    version_id: int
    uri: str
    title: str
    metadata: Mapping[str, Any]
    text: str


def visible(connection: Connection, point_ids: Sequence[uuid.UUID], generation: int) -> dict[uuid.UUID, Visible]:
    """Those of the points that belong to what was published in the generation: born by then, not yet removed."""
    rows = connection.execute(
        """SELECT c.point_id, shown.id AS version_id, d.uri, shown.title, shown.metadata, c.text
             FROM chunks c
             JOIN versions born ON born.id = c.born_version
             LEFT JOIN versions died ON died.id = c.died_version
             JOIN documents d ON d.id = c.document_id
            CROSS JOIN LATERAL (
                  SELECT v.id, v.title, v.metadata FROM versions v
                   WHERE v.document_id = c.document_id AND v.published_gen <= %(generation)s
                   ORDER BY v.published_gen DESC LIMIT 1) AS shown
            WHERE c.point_id = ANY(%(ids)s) AND born.published_gen <= %(generation)s
              AND (died.published_gen IS NULL OR died.published_gen > %(generation)s)""",
        {"ids": list(point_ids), "generation": generation},
    ).fetchall()
    return {row["point_id"]: Visible(**row) for row in rows}


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its document a chunk stands: section "" where it has no headings, page None where it has no pages."""

    section: str
    page: int | None


def places(connection: Connection, chunks: Sequence[Visible]) -> dict[uuid.UUID, Place]:
    """Where each chunk stands in the version that is shown.

    A chunk that did not change may have moved: the version's manifest knows where to. Takes time with the length of
    the manifests, so ask for what will be shown only.
    """
    rows = connection.execute(
        """SELECT p.point_id, v.manifest -> 'sections' ->> entry.position AS section,
                  (v.manifest -> 'pages' ->> entry.position)::int AS page
             FROM unnest(%s::uuid[], %s::bigint[]) AS p (point_id, version_id)
             JOIN versions v ON v.id = p.version_id
            CROSS JOIN LATERAL (
                  SELECT (number - 1)::int AS position
                    FROM jsonb_array_elements_text(v.manifest -> 'points') WITH ORDINALITY AS points (point, number)
                   WHERE point = p.point_id::text LIMIT 1) AS entry""",
        ([chunk.point_id for chunk in chunks], [chunk.version_id for chunk in chunks]),
    ).fetchall()
    return {row["point_id"]: Place(row["section"] or "", row["page"]) for row in rows}


def generation(connection: Connection, collection_id: int) -> int:
    """The newest generation of the collection. Read it before asking Qdrant."""
    row = connection.execute("SELECT generation FROM collections WHERE id = %s", (collection_id,)).fetchone()
    return int(row["generation"]) if row else 0
