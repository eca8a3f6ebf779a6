"""The ledger and the index side by side, in the order of their ids, a window of ids after the other.

Both are read in pages, so the memory it takes does not depend on how many points there are. A window's points are read
from the index first, and then from the ledger.
"""

from __future__ import annotations

import uuid
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.errors import Unavailable, VectorsFailed
from pipeline.ledger import standing
from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Ledger
from pipeline.ledger.standing import FIRST, LAST, Known
from pipeline.patience import Patience
from pipeline.vectors.base import VectorStore

# Qdrant's ids may be numbers of 64 bits too, which come before all UUIDs; as UUIDs they are smaller than any of ours.
_AFTER_NUMBERS = uuid.UUID(int=2**64)


@dataclass(frozen=True, slots=True)
class Window:
    """What both have of the ids up to `upto`, that no window before had. known: by id; points: the index's ids."""

    upto: uuid.UUID
    known: Sequence[Known]
    points: frozenset[uuid.UUID]

    @property
    def done(self) -> float:
        """The part of all ids that is compared with this window. Ids are hashes: so much of the points, too."""
        return self.upto.int / LAST.int


def windows(
    ledger: Ledger,
    vectors: VectorStore,
    collection: Collection,
    page: int,
    patience: Patience,
    after: uuid.UUID | None = None,
) -> Iterator[Window]:
    """The whole collection, or what is behind `after`; goes on where it was when a server was away.

    Raises VectorsFailed where the index does not tell its points in order, Unavailable when the patience is at its end.
    """
    while after != LAST:
        try:
            for window in _windows(ledger, vectors, collection, page, after):
                patience.well()
                yield window
                after = window.upto
        except Unavailable:
            patience.wait()


def _windows(
    ledger: Ledger, vectors: VectorStore, collection: Collection, page: int, after: uuid.UUID | None
) -> Iterator[Window]:
    """From the ids after `after` on, or from the first."""
    start = None if after is None else uuid.UUID(int=after.int + 1)
    after = _AFTER_NUMBERS if after is None else after
    for points in _in_order(vectors.scroll(collection.physical, page, start)):
        foreign = bisect_right(points, _AFTER_NUMBERS)
        if foreign:
            yield Window(_AFTER_NUMBERS, (), frozenset(points[:foreign]))
        if points[foreign:]:
            yield from _steps(ledger, collection, after, points[-1], points[foreign:], page)
            after = points[-1]
    yield from _steps(ledger, collection, after, LAST, (), page)


def _in_order(pages: Iterator[list[uuid.UUID]]) -> Iterator[list[uuid.UUID]]:
    last = FIRST
    for told in pages:
        # Numbers may be followed by a UUID that is smaller.
        page = sorted(told) if told[0] < _AFTER_NUMBERS else told
        if page != sorted(page) or (page[0] <= last and page[0] >= _AFTER_NUMBERS):
            raise VectorsFailed(f"the index tells its points out of order: {page[0]} after {last}")
        last = max(last, page[-1])
        yield page


def _steps(
    ledger: Ledger,
    collection: Collection,
    after: uuid.UUID,
    upto: uuid.UUID,
    points: Sequence[uuid.UUID],
    page: int,
) -> Iterator[Window]:
    """The ids in (after, upto], in steps of about a page of chunks: there may be many more than the index has."""
    while after < upto:
        with ledger.transaction() as connection:
            end = standing.step(connection, after, upto, 2 * page)
            known = standing.known(connection, collection, after, end)
        cut = bisect_right(points, end)
        yield Window(end, known, frozenset(points[:cut]))
        after, points = end, points[cut:]
