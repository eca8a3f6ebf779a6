"""A collection made again in Qdrant from the ledger alone, and the mending of one that is there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pipeline.audit import AuditReport, OnProgress, audit
from pipeline.ledger import collections, losses
from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Ledger
from pipeline.patience import Patience
from pipeline.points import ensure_index
from pipeline.repair import Repaired, Repairer
from pipeline.settings import AuditSettings
from pipeline.tools import Tools
from pipeline.vectors.base import VectorStore


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """points: that are in the index now, as they must be; so many of them were put there (repaired). audit: what was
    found on the way, in its order; seconds: it took."""

    collection: str
    points: int
    repaired: Repaired
    audit: AuditReport
    seconds: float

    @property
    def whole(self) -> bool:
        """Everything is there."""
        return self.audit.mended

    def to_json(self) -> dict[str, Any]:
        return {
            "collection": self.collection,
            "points": self.points,
            **self.repaired.to_json(),
            "ledger": dict(self.audit.ledger),
            "seconds": round(self.seconds, 3),
            "points_per_second": round(self.repaired.upserted / max(self.seconds, 0.001), 1),
        }


def lost_collections(ledger: Ledger, vectors: VectorStore) -> list[str]:
    """The names of those that Qdrant lost and that are not rebuilt yet. Costs a listing of its collections.

    Raises LedgerUnavailable, VectorsUnavailable.
    """
    with ledger.transaction() as connection:
        published = losses.published(connection)
    # What was published before this listing was in Qdrant before it.
    there = vectors.names()
    with ledger.transaction() as connection:
        for row in published:
            if row["physical"] not in there:
                losses.note(connection, row["id"])
        return [row["name"] for row in losses.listing(connection)]


def mend(
    tools: Tools,
    collection: Collection,
    settings: AuditSettings,
    *,
    sample: int | None = None,
    all_vectors: bool = False,
    on_progress: OnProgress | None = None,
) -> AuditReport:
    """An audit that mends what it finds, from the durable embeddings. Raises as `audit` does, CollectionMismatch."""
    there = collection.physical in tools.vectors.names()
    ensure_index(tools, collection)
    with tools.ledger.transaction() as connection:
        collection = collections.by_id(connection, collection.id)
    report = audit(
        tools,
        collection,
        settings,
        repairer=Repairer(tools, collection, settings.page_points, Patience(settings.patience_seconds)),
        lost=collection.lost_at is not None,
        sample=sample,
        all_vectors=all_vectors,
        on_progress=on_progress,
    )
    report.collection_missing = not there and bool(report.missing)
    if collection.lost_at is not None and report.mended:
        with tools.ledger.transaction() as connection:
            losses.forget(connection, collection.id, collection.lost_at)
    return report


def rebuild(
    tools: Tools,
    collection: Collection,
    settings: AuditSettings,
    *,
    fresh: bool = False,
    on_progress: OnProgress | None = None,
) -> Rebuilt:
    """Puts back every point that is missing in Qdrant, and the collection itself; deletes what does not belong there.

    Ingest and searches go on meanwhile; killed, it goes on where it was when it is run again. fresh: what Qdrant has of
    the collection is dropped first. Raises as `mend` does.
    """
    started = time.monotonic()
    if fresh:
        with tools.ledger.transaction() as connection:
            losses.note(connection, collection.id)
        tools.vectors.drop_collection(collection.physical)
    # There is nothing to compare: what is there and looks right was put there by the same code.
    report = mend(tools, collection, settings, sample=0, on_progress=on_progress)
    assert report.repaired is not None
    points = report.present + report.missing - report.repaired.failed
    return Rebuilt(collection.name, points, report.repaired, report, time.monotonic() - started)
