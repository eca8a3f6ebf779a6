"""The ledger against the index: what must be there, what is, and what should not be. Changes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.ledger import visibility
from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Ledger
from pipeline.vectors.base import VectorStore

_PAGE = 5000
_LISTED = 1000


@dataclass(slots=True)
class AuditReport:
    """Counts of points, and the first thousand ids of each kind of fault.

    expected: chunks of published versions. present: of those, in the index. missing: the others.
    stale: removed or abandoned chunks whose points should have left the index by now. leaving, arriving: points of such
    chunks that may still be there, and of versions not published yet; both are as they should be.
    orphaned: points of which the ledger knows nothing. duplicate: orphaned ones that repeat a chunk that is expected.
    """

    collection: str
    expected: int = 0
    present: int = 0
    missing: int = 0
    orphaned: int = 0
    duplicate: int = 0
    stale: int = 0
    leaving: int = 0
    arriving: int = 0
    listed: dict[str, list[str]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not (self.missing or self.orphaned or self.duplicate or self.stale)

    def to_json(self, *, verbose: bool = False) -> dict[str, Any]:
        counts = {
            name: getattr(self, name)
            for name in (
                "expected",
                "present",
                "missing",
                "orphaned",
                "duplicate",
                "stale",
                "leaving",
                "arriving",
            )
        }
        return {"collection": self.collection, **counts, **({"ids": self.listed} if verbose else {})}

    def _list(self, kind: str, ids: list[str]) -> None:
        listed = self.listed.setdefault(kind, [])
        listed.extend(ids[: max(0, _LISTED - len(listed))])


def audit(ledger: Ledger, vectors: VectorStore, collection: Collection) -> AuditReport:
    """Compares point by point, in pages. Raises LedgerUnavailable, VectorsUnavailable.

    Work that is under way while it runs may show as missing for a moment; run it again.
    """
    report = AuditReport(collection.name)
    expected = set(_expected(ledger, collection))
    seen: set[uuid.UUID] = set()
    for page in vectors.scroll(collection.physical, _PAGE):
        ids = [point for point, _ in page]
        seen.update(point for point in ids if point in expected)
        _classify(ledger, collection, report, [(point, payload) for point, payload in page if point not in expected])
    absent = expected - seen
    if absent:
        # What was published or removed since the expected ones were read is looked at again.
        absent &= set(_expected(ledger, collection))
        absent -= set(vectors.vectors(collection.physical, sorted(absent)))
    report.expected = len(expected)
    report.missing = len(absent)
    report.present = report.expected - report.missing
    report._list("missing", [str(point) for point in sorted(absent)])
    return report


def _expected(ledger: Ledger, collection: Collection) -> Iterator[uuid.UUID]:
    after: uuid.UUID | None = None
    while True:
        with ledger.transaction() as connection:
            page = visibility.expected_points(connection, collection.id, after, _PAGE)
        if not page:
            return
        after = page[-1]
        yield from page


def _classify(
    ledger: Ledger, collection: Collection, report: AuditReport, extra: list[tuple[uuid.UUID, dict[str, Any]]]
) -> None:
    """Sorts points that are not expected into arriving, leaving, stale, orphaned and duplicate."""
    if not extra:
        return
    with ledger.transaction() as connection:
        standing = visibility.standing(connection, collection.id, [point for point, _ in extra])
        orphans = [(point, payload) for point, payload in extra if point not in standing]
        repeated = visibility.live_places(
            connection,
            [
                (payload["document"], payload["version"], payload["ordinal"])
                for _, payload in orphans
                if {"document", "version", "ordinal"} <= payload.keys()
            ],
        )
    for kind in ("arriving", "leaving", "stale"):
        ids = [str(point) for point, found in standing.items() if found == kind]
        setattr(report, kind, getattr(report, kind) + len(ids))
        report._list(kind, ids)
    report.orphaned += len(orphans)
    report._list("orphaned", [str(point) for point, _ in orphans])
    twice = [
        str(point)
        for point, payload in orphans
        if (payload.get("document"), payload.get("version"), payload.get("ordinal")) in repeated
    ]
    report.duplicate += len(twice)
    report._list("duplicate", twice)
