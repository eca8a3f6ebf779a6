"""The ledger against the index: what must be there, what is, and what should not be; mended where that is asked for.

Both are compared window by window of ids (`comparison`). While that goes on, documents are published and removed. So
whatever looks wrong is looked at again before it is told: what stands in the ledger before and after a look into the
index stood there during it (`ledger.standing`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from pipeline.comparison import Window, windows
from pipeline.contents import differing
from pipeline.ledger import soundness, standing
from pipeline.ledger.collections import Collection
from pipeline.ledger.standing import EXPECTED, LAST, Standing
from pipeline.patience import Patience
from pipeline.repair import Pace, Repaired, Repairer
from pipeline.settings import AuditSettings
from pipeline.tools import Tools

_LISTED = 1000
# Looks at a point that stands otherwise each time. Each change is one of few steps that a chunk takes in its life.
_MOST_LOOKS = 4

FAULTS = ("missing", "orphaned", "duplicate", "stale", "wrong")
_COUNTS = ("expected", "present", "missing", "orphaned", "duplicate", "stale", "leaving", "arriving", "wrong")


@dataclass(slots=True)
class AuditReport:
    """Counts of points, and the first thousand ids of each kind of fault.

    expected: points that must be in the index: chunks of published versions. present: of those, in the index. missing:
    the others, and chunks not published yet that were indexed and are not there. orphaned: points of which the ledger
    knows nothing. duplicate: orphaned ones that repeat a chunk that is expected. stale: points of removed or abandoned
    chunks that should have left the index by now. leaving, arriving: points of such chunks that may still be there, and
    of versions not published yet; both are as they should be. compared: points whose vector and payload were compared
    with the ledger; wrong: of those, what says something else.
    ledger: where the ledger does not agree with itself (`ledger.soundness`), issue -> how often; `embeddings` are
    chunks whose vector is not stored. collection_missing: Qdrant had no such collection. repaired: what was mended;
    None where that was not asked for.
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
    wrong: int = 0
    compared: int = 0
    ledger: dict[str, int] = field(default_factory=dict)
    collection_missing: bool = False
    repaired: Repaired | None = None
    listed: dict[str, list[str]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Nothing was found that is not as it should be."""
        return not any(getattr(self, fault) for fault in FAULTS) and not self.ledger

    @property
    def mended(self) -> bool:
        """Everything is as it should be now."""
        if self.clean:
            return True
        return self.repaired is not None and not self.repaired.failed and not set(self.ledger) - {"embeddings"}

    def to_json(self, *, verbose: bool = False) -> dict[str, Any]:
        return {
            "collection": self.collection,
            **{name: getattr(self, name) for name in _COUNTS},
            "compared": self.compared,
            "ledger": dict(self.ledger),
            "collection_missing": self.collection_missing,
            "repaired": self.repaired and self.repaired.to_json(),
            **({"ids": self.listed} if verbose else {}),
        }

    def add(self, kind: str, ids: Sequence[object]) -> None:
        """Counts points of this kind, and lists the first thousand."""
        setattr(self, kind, getattr(self, kind) + len(ids))
        self._list(kind, ids)

    def add_issue(self, issue: str, ids: Sequence[object]) -> None:
        """Counts what the ledger has wrong, and lists the first thousand."""
        if ids:
            self.ledger[issue] = self.ledger.get(issue, 0) + len(ids)
            self._list(f"ledger.{issue}", ids)

    def _list(self, kind: str, ids: Sequence[object]) -> None:
        if ids:
            listed = self.listed.setdefault(kind, [])
            listed.extend(str(one) for one in ids[: max(0, _LISTED - len(listed))])


# (the part that is done, 0 to 1; the counts so far)
OnProgress = Callable[[float, AuditReport], None]


def audit(
    tools: Tools,
    collection: Collection,
    settings: AuditSettings,
    *,
    repairer: Repairer | None = None,
    lost: bool = False,
    sample: int | None = None,
    all_vectors: bool = False,
    on_progress: OnProgress | None = None,
) -> AuditReport:
    """Compares point by point, in memory that does not grow with the points; changes nothing unless it has a repairer.

    sample: points whose vector and payload are compared too, by chance (default: the setting); all_vectors: every one.
    lost: points may be gone that workers had written and not completed: the repairer puts these back, too.
    Raises LedgerUnavailable, VectorsUnavailable, VectorsFailed; then it can be run again.
    """
    report = AuditReport(collection.name, repaired=repairer.done if repairer else None)
    patience = Patience(settings.patience_seconds)
    there = collection.physical in tools.vectors.names()
    sampled = _Sample(settings.sample if sample is None else sample)
    pace = Pace(settings.points_per_second)
    for window in windows(tools.ledger, tools.vectors, collection, settings.page_points, patience):
        found = patience.call(partial(_classify, tools, collection, window, report))
        wrong: Sequence[uuid.UUID] = ()
        if all_vectors:
            wrong = patience.call(partial(_compare, tools, collection, found.live, report))
        else:
            sampled.add(found.live)
        if repairer is not None:
            repairer.put([*found.missing, *wrong, *(found.absent if lost else ())])
            repairer.take(found.unwanted)
            repairer.embed(found.unembedded)
        pace.spend(max(len(window.known), len(window.points)))
        if on_progress is not None:
            on_progress(window.done, report)
    for start in range(0, len(sampled.points), settings.page_points):
        page = sampled.points[start : start + settings.page_points]
        wrong = patience.call(partial(_compare, tools, collection, page, report))
        if repairer is not None:
            repairer.put(wrong)
    unsound = patience.call(partial(_unsound, tools, collection))
    report.ledger |= unsound.ledger
    report.listed |= unsound.listed
    report.collection_missing = not there and bool(report.missing)
    return report


# Of each window of a part, so many points' vectors and payloads are compared, too.
_PART_SAMPLE = 20


def audit_part(
    tools: Tools,
    collection: Collection,
    settings: AuditSettings,
    repairer: Repairer,
    after: uuid.UUID | None,
    stop: Callable[[], bool],
) -> tuple[AuditReport, uuid.UUID | None]:
    """Compares and mends a part of the points: from behind `after` (None: from the first) until stop() says so, which
    is asked after each window. Also the point up to which it came; None: to the end. What the ledger has wrong in
    itself is not looked for. Raises as `audit` does."""
    report = AuditReport(collection.name, repaired=repairer.done)
    patience = Patience(0.0)
    for window in windows(tools.ledger, tools.vectors, collection, settings.page_points, patience, after):
        found = _classify(tools, collection, window, report)
        sampled = _Sample(_PART_SAMPLE)
        sampled.add(found.live)
        wrong = _compare(tools, collection, sampled.points, report)
        repairer.put([*found.missing, *wrong])
        repairer.take(found.unwanted)
        repairer.embed(found.unembedded)
        if stop() and window.upto != LAST:
            return report, window.upto
    return report, None


@dataclass(frozen=True, slots=True)
class _Found:
    """Of one window. live: points that are there and expected. missing, unwanted: faults. absent: chunks that are not
    there and need not be yet. unembedded: expected chunks that are there, without an embedding."""

    live: list[uuid.UUID]
    missing: list[uuid.UUID]
    unwanted: list[uuid.UUID]
    absent: list[uuid.UUID]
    unembedded: list[uuid.UUID]


def _classify(tools: Tools, collection: Collection, window: Window, report: AuditReport) -> _Found:
    """Counts a window, after a second look at what seems wrong."""
    kinds: dict[uuid.UUID, Standing] = {chunk.point_id: chunk.standing for chunk in window.known}
    there = {point: kinds[point] for point in window.points if point in kinds}
    suspects: list[uuid.UUID] = [point for point in window.points if kinds.get(point, "stale") == "stale"]
    for point in suspects:
        there.pop(point, None)
    missing = []
    for point, kind in _absent(tools, collection, [p for p in kinds if kinds[p] in EXPECTED and p not in there]):
        if kind is None:
            missing.append(point)
        else:
            there[point] = kind
    unwanted = []
    orphans: dict[uuid.UUID, Mapping[str, Any]] = {}
    for point, kind, payload in _unwanted(tools, collection, {point: kinds.get(point) for point in suspects}):
        if kind not in (None, "stale"):
            there[point] = kind
            continue
        unwanted.append(point)
        if kind is None:
            orphans[point] = payload
    duplicates = _duplicates(tools, orphans)
    # Nothing is asked from here on: a window that was cut off by an outage is not counted twice.
    report.add("missing", missing)
    report.add("stale", [point for point in unwanted if point not in orphans])
    report.add("orphaned", list(orphans))
    report.add("duplicate", duplicates)
    live = [point for point, kind in there.items() if kind == "live"]
    report.present += len(live)
    report.expected = report.present + report.missing
    report.leaving += sum(kind == "leaving" for kind in there.values())
    report.arriving += sum(kind in ("arriving", "indexed") for kind in there.values())
    unembedded = [chunk.point_id for chunk in window.known if chunk.standing in EXPECTED and not chunk.embedded]
    report.add_issue("embeddings", unembedded)
    absent = [point for point, kind in kinds.items() if kind == "arriving" and point not in there]
    lost = set(missing)
    return _Found(live, missing, unwanted, absent, [point for point in unembedded if point not in lost])


def _absent(
    tools: Tools, collection: Collection, points: Sequence[uuid.UUID]
) -> Iterator[tuple[uuid.UUID, Standing | None]]:
    """Looks again for expected points (by a reading of the ledger that is past) that were not in the index.

    Yields how those stand that are there after all, and None for those that are missing; those that are no longer
    expected are passed over.
    """
    if not points:
        return
    found = tools.vectors.present(collection.physical, points)
    with tools.ledger.transaction() as connection:
        now = standing.standing(connection, collection, points)
    for point in points:
        kind = now.get(point)
        if point in found and kind is not None:
            yield point, kind
        elif point not in found and kind in EXPECTED:
            yield point, None


def _unwanted(
    tools: Tools, collection: Collection, suspects: Mapping[uuid.UUID, Standing | None]
) -> Iterator[tuple[uuid.UUID, Standing | None, Mapping[str, Any]]]:
    """Looks again at points that are stale or unknown (None), by a reading of the ledger that is past.

    Yields the point, how it stands after all (stale or None: it really does), and its payload; points that are gone,
    and those that never stand still, are passed over.
    """
    before = dict(suspects)
    for _ in range(_MOST_LOOKS):
        if not before:
            return
        found = tools.vectors.points(collection.physical, list(before))
        with tools.ledger.transaction() as connection:
            now = standing.standing(connection, collection, list(found))
        unsure: dict[uuid.UUID, Standing | None] = {}
        for point, content in found.items():
            kind = now.get(point)
            if kind == before[point] or kind not in (None, "stale"):
                yield point, kind, content.payload
            else:
                unsure[point] = kind
        before = unsure


def _duplicates(tools: Tools, orphans: Mapping[uuid.UUID, Mapping[str, Any]]) -> list[uuid.UUID]:
    """Those that say they are a chunk which is expected under another id."""
    places: dict[uuid.UUID, tuple[int, int, int]] = {}
    for point, payload in orphans.items():
        match payload.get("document"), payload.get("version"), payload.get("ordinal"):
            case (int() as document, int() as version, int() as ordinal):
                places[point] = (document, version, ordinal)
    if not places:
        return []
    with tools.ledger.transaction() as connection:
        taken = standing.live_places(connection, list(places.values()))
    return [point for point, place in places.items() if place in taken]


def _compare(
    tools: Tools, collection: Collection, points: Sequence[uuid.UUID], report: AuditReport
) -> Sequence[uuid.UUID]:
    """Compares vectors and payloads of live points. Returns those that are wrong."""
    if not points:
        return ()
    compared, wrong = differing(tools, collection, points)
    report.compared += compared
    report.add("wrong", wrong)
    return wrong


def _unsound(tools: Tools, collection: Collection) -> AuditReport:
    """What the ledger has wrong in itself, counted and listed."""
    found = AuditReport(collection.name)
    for issue, id_ in soundness.issues(tools.ledger.transaction, collection.id):
        found.add_issue(issue, [id_])
    return found


class _Sample:
    """So many of all points, each with the same chance, though nobody knows how many come (reservoir sampling)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen = 0
        self._chance = np.random.default_rng()
        self.points: list[uuid.UUID] = []

    def add(self, points: Sequence[uuid.UUID]) -> None:
        room = points[: self._size - len(self.points)]
        self.points += room
        self._seen += len(room)
        rest = points[len(room) :]
        if not rest or not self._size:
            return
        # The n-th of all takes the place of another with the chance size / n.
        places = self._chance.integers(0, np.arange(self._seen + 1, self._seen + 1 + len(rest)))
        self._seen += len(rest)
        for taker in np.flatnonzero(places < self._size).tolist():
            self.points[int(places[taker])] = rest[taker]
