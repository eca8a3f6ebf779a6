"""The judge of a drill: is every document in the index exactly once, as it was last acknowledged?

It knows Qdrant (qdrant-client), Postgres (psycopg) and what was asked for, and none of Millrace's own code, so that a
fault there cannot hide from it. Chunks of a document are pieces of its text: laid end to end they must be the text.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from workers.drill.corpus import Content
from workers.drill.plain import Sql, qdrant_client

_PAGE = 500
_LISTED = 20
# Qdrant keeps float32 of unit length; what differs by more is another vector.
_SAME_VECTOR = 1e-3


@dataclass(slots=True)
class Verdict:
    """Counts; all but the first four must be zero.

    documents, deleted: that must be there, and must not. points: found. leaving: points that were replaced, and that
    the ledger is still to take out of the index (a minute after).
    lost: documents of whose newest text nothing is there. half_documents: of which a part is missing. duplicate: points
    that repeat a piece of the newest text. stale: points of an older text, of a deleted document, or of nothing known.
    wrong_vectors: points whose vector is missing or not that of their text. wrong_metadata: whose label is not the
    newest. embedded_twice: texts with more than one stored vector. failed: documents that the ledger gave up.
    """

    documents: int = 0
    deleted: int = 0
    points: int = 0
    leaving: int = 0
    lost: int = 0
    duplicate: int = 0
    stale: int = 0
    half_documents: int = 0
    wrong_vectors: int = 0
    wrong_metadata: int = 0
    embedded_twice: int = 0
    failed: int = 0
    details: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        faults = (self.lost, self.duplicate, self.stale, self.half_documents, self.wrong_vectors, self.wrong_metadata)
        return not any((*faults, self.embedded_twice, self.failed))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def note(self, what: str) -> None:
        if len(self.details) < _LISTED:
            self.details.append(what)


@dataclass(frozen=True, slots=True)
class _Point:
    id: uuid.UUID
    uri: str
    text: str  # without white space
    label: Any
    version: Any
    vector: Sequence[float] | None


def judge(postgres_url: str, qdrant_url: str, collection: str, newest: Mapping[str, Content | None]) -> Verdict:
    """Looks at everything in the collection. newest: what was last acknowledged, by uri; None: deleted."""
    sql = Sql(postgres_url)
    try:
        found = sql.one("SELECT id, physical FROM collections WHERE name = %(name)s", {"name": collection})
        verdict = Verdict(
            documents=sum(content is not None for content in newest.values()),
            deleted=sum(content is None for content in newest.values()),
        )
        by_uri: dict[str, list[_Point]] = defaultdict(list)
        for page in _pages(qdrant_url, found["physical"]):
            verdict.points += len(page)
            leaving = _leaving(sql, page)
            verdict.leaving += len(leaving)
            staying = [point for point in page if point.id not in leaving]
            _check_vectors(sql, staying, verdict)
            for point in staying:
                by_uri[point.uri].append(point)
        for uri in sorted({*by_uri, *newest}):
            _check_document(uri, newest.get(uri), by_uri.get(uri, []), verdict)
        _check_ledger(sql, found["id"], verdict)
        return verdict
    finally:
        sql.close()


def _pages(qdrant_url: str, physical: str) -> Iterator[list[_Point]]:
    client = qdrant_client(qdrant_url)
    offset = None
    try:
        while True:
            points, offset = client.scroll(
                physical, limit=_PAGE, offset=offset, with_payload=True, with_vectors=["dense"]
            )
            yield [_read(point) for point in points]
            if offset is None:
                return
    finally:
        client.close()


def _read(point: Any) -> _Point:
    payload = point.payload or {}
    vector = point.vector.get("dense") if isinstance(point.vector, dict) else None
    return _Point(
        uuid.UUID(str(point.id)),
        str(payload.get("uri")),
        _bare(str(payload.get("text", ""))),
        (payload.get("metadata") or {}).get("label"),
        payload.get("version"),
        vector,
    )


def _bare(text: str) -> str:
    return "".join(text.split())


def _leaving(sql: Sql, page: Sequence[_Point]) -> set[uuid.UUID]:
    """Points of replaced and abandoned chunks that are still to be taken out of the index, in time."""
    rows = sql.rows(
        """SELECT c.point_id FROM chunks c JOIN versions v ON v.id = c.died_version
            WHERE c.point_id = ANY(%(ids)s) AND v.contracted < 2 AND v.ended_at IS NOT NULL""",
        {"ids": [point.id for point in page]},
    )
    return {row["point_id"] for row in rows}


def _check_document(uri: str, content: Content | None, points: Sequence[_Point], verdict: Verdict) -> None:
    if content is None:
        if points:
            verdict.stale += len(points)
            verdict.note(f"{uri}: deleted or never asked for, and has {len(points)} points")
        return
    text = _bare(content.text)
    pieces, complete = _laid_out(text, points)
    for point in pieces:
        if point.label != content.label:
            verdict.wrong_metadata += 1
            verdict.note(f"{uri}: {point.id} is labelled {point.label}, not {content.label}")
    used = {point.id for point in pieces}
    texts = {point.text for point in pieces}
    for point in points:
        if point.id in used:
            continue
        kind = "duplicate" if point.text in texts else "stale"
        setattr(verdict, kind, getattr(verdict, kind) + 1)
        verdict.note(f"{uri}: {point.id} of version {point.version} is {kind}: {point.text[:40]}")
    if not complete:
        kind = "half_documents" if any(point.text in text for point in points) else "lost"
        setattr(verdict, kind, getattr(verdict, kind) + 1)
        verdict.note(f"{uri}: {len(pieces)} of {len(points)} points lead from its beginning; {kind}")


def _laid_out(text: str, points: Sequence[_Point]) -> tuple[list[_Point], bool]:
    """The points that follow each other from the beginning of the text, and whether they reach its end.

    Paragraphs begin with marks that stand once in a text, so no more than one piece fits in a place.
    """
    left = list(points)
    pieces: list[_Point] = []
    place = 0
    while place < len(text):
        fitting = [point for point in left if point.text and text.startswith(point.text, place)]
        if not fitting:
            return pieces, False
        longest = max(fitting, key=lambda point: (len(point.text), point.id))
        left.remove(longest)
        pieces.append(longest)
        place += len(longest.text)
    return pieces, True


def _check_vectors(sql: Sql, page: Sequence[_Point], verdict: Verdict) -> None:
    """Each point has the vector that is stored for its text."""
    rows = sql.rows(
        """SELECT c.point_id, c.text, e.vector FROM chunks c LEFT JOIN embeddings e ON e.key = c.embedding_key
            WHERE c.point_id = ANY(%(ids)s)""",
        {"ids": [point.id for point in page]},
    )
    stored = {row["point_id"]: row for row in rows}
    for point in page:
        row = stored.get(point.id)
        if row is None:
            continue  # a point of nothing known: counted by its text
        wanted = np.frombuffer(row["vector"] or b"", "<f4")
        there = np.asarray(point.vector if point.vector is not None else (), np.float32)
        same = wanted.size and there.shape == wanted.shape and float(np.abs(there - wanted).max()) < _SAME_VECTOR
        if not same or _bare(row["text"]) != point.text:
            verdict.wrong_vectors += 1
            verdict.note(f"{point.uri}: {point.id} has not the vector, or not the text, that is stored for it")


def _check_ledger(sql: Sql, collection_id: int, verdict: Verdict) -> None:
    row = sql.one(
        """SELECT (SELECT count(*) FROM versions WHERE collection_id = %(id)s AND state = 'failed') AS failed,
                  (SELECT count(*) FROM (SELECT c.text FROM chunks c JOIN documents d ON d.id = c.document_id
                                          WHERE d.collection_id = %(id)s
                                          GROUP BY c.text HAVING count(DISTINCT c.embedding_key) > 1) t) AS twice""",
        {"id": collection_id},
    )
    verdict.failed, verdict.embedded_twice = row["failed"], row["twice"]
    if verdict.failed:
        for failure in sql.rows(
            """SELECT d.uri, v.id, v.error FROM versions v JOIN documents d ON d.id = v.document_id
                WHERE v.collection_id = %(id)s AND v.state = 'failed' ORDER BY v.id LIMIT 5""",
            {"id": collection_id},
        ):
            verdict.note(f"{failure['uri']}: version {failure['id']} failed: {failure['error']}")
