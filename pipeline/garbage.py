"""What nothing needs any more goes: rows, points, embeddings, temporary files.

1. `collect` takes a page of each kind in turn, until none has another or the time is up: a kind of which there is much
   does not keep the others waiting.
2. Rows go as `ledger.garbage` says: looked at, locked, asked again, deleted.
3. Points that no row explains go from the index, once no writer can come back to them.
4. Embeddings go by age, in `collect` and in `expire`, and by size in `expire`: never one that a chunk has.
5. Purchases that nobody waits for go; what may have been paid for is told.
6. What processes that are dead left on this machine's disk goes too.

Killed anywhere, it goes on in the next run: each step of it is a transaction, or can be done again.
"""

from __future__ import annotations

import math
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline import scratch
from pipeline.deals import ONLINE
from pipeline.duties import Bounds
from pipeline.embedding import bundled
from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.spec import is_served, served_name
from pipeline.ledger import circuits, collections, garbage, leftovers, spending, standing
from pipeline.ledger.collections import Collection
from pipeline.ledger.garbage import EXCESS, KINDS, Kind
from pipeline.ledger.leftovers import Leftover
from pipeline.ledger.spending import Used
from pipeline.observe import logger
from pipeline.patience import Patience
from pipeline.repair import Repairer
from pipeline.settings import GarbageSettings
from pipeline.tools import Tools

# Pages of one run of what is only looked through in case something is wrong. The next run goes on behind them.
_CHECKED_PAGES = 200
_MB = 1024 * 1024

_log = logger("garbage")


@dataclass(frozen=True, slots=True)
class Garbage:
    """What is collected with. settled_seconds: so long after its end no search and no paused writer comes back to a
    version. models: where this machine keeps models."""

    tools: Tools
    kept: GarbageSettings
    settled_seconds: float
    models: Path

    @property
    def ages(self) -> Mapping[str, Any]:
        return garbage.ages(self.kept, self.settled_seconds)


# Each item is a page done: how many it took.
Step = Callable[[Garbage, Bounds], Generator[int]]


def collect(given: Garbage, bounds: Bounds) -> Mapping[str, int]:
    """Lets go of what nothing needs any more. Returns how many of each kind; where bounds.dry_run, how many would go
    now, as far as there was time to look.

    A kind that fails does not keep the others waiting; what it raised first is raised in the end.
    """
    return _in_turns(_STEPS, given, bounds)


def expire(given: Garbage, bounds: Bounds) -> Mapping[str, int]:
    """Embeddings that nothing needs go: those unused for too long, and then those unused for longest until the others
    have the size that they may. Returns and raises as `collect` does."""
    return _in_turns(_EXPIRING, given, bounds)


def _in_turns(steps: Mapping[str, Step], given: Garbage, bounds: Bounds) -> Mapping[str, int]:
    counts = Counter(dict.fromkeys(steps, 0))
    failed: list[Exception] = []
    running = {name: step(given, bounds) for name, step in steps.items()}
    over = False
    while running and not over:
        for name, pages in list(running.items()):
            try:
                taken = next(pages, None)
            except Exception as error:  # noqa: BLE001 - raised again when the others have had their turn
                _log.warning("%s could not be collected: %s", name, error)
                failed.append(error)
                taken = None
            if taken is None:
                del running[name]
            else:
                counts[name] += taken
            if over := bounds.over:
                break
    for pages in running.values():
        pages.close()
    if failed:
        raise failed[0]
    return counts


# 2. rows ------------------------------------------------------------------------------------------------------------


def _rows(name: str, kind: Kind, given: Garbage, bounds: Bounds, *, pages: int | None = None) -> Generator[int]:
    """Looks through a table, from where the run before has come to; to its end, and then from its beginning."""
    ledger, ages = given.tools.ledger, given.ages
    after = None
    if not bounds.dry_run:
        with ledger.transaction() as connection:
            after = garbage.place(connection, name)
    began_within = after is not None
    while pages is None or pages > 0:
        with ledger.transaction() as connection:
            page = garbage.page(connection, kind, ages, after=after, rows=bounds.rows, dry_run=bounds.dry_run)
            if not bounds.dry_run and page.after != after:
                garbage.note_place(connection, name, page.after)
        yield page.taken
        after = page.after
        pages = None if pages is None else pages - 1
        if after is None:
            if not began_within:
                return
            began_within = False


# 3. points ----------------------------------------------------------------------------------------------------------


def _points(given: Garbage, bounds: Bounds) -> Generator[int]:
    """Looks through the index, a page of ids after the other, from where the run before has come to."""
    ledger = given.tools.ledger
    with ledger.transaction() as connection:
        if circuits.find(connection, circuits.VECTORS) is not None:
            return
        place = None if bounds.dry_run else garbage.place(connection, "points")
        known = collections.every(connection)
    first, start = (int(place[0]), uuid.UUID(place[1])) if place else (0, None)
    left = _CHECKED_PAGES
    for collection in known:
        if collection.id < first or collection.lost_at is not None:
            continue
        begin = start if collection.id == first else None
        for ids in islice(given.tools.vectors.scroll(collection.physical, bounds.rows, begin), left):
            orphans = _orphans(given, collection, ids)
            if orphans and not bounds.dry_run:
                Repairer(given.tools, collection, bounds.rows, Patience(0.0)).take(orphans)
            if not bounds.dry_run:
                with ledger.transaction() as connection:
                    garbage.note_place(connection, "points", (str(collection.id), str(ids[-1])))
            yield len(orphans)
            left -= 1
        if not left:
            return
    if not bounds.dry_run:
        with ledger.transaction() as connection:
            garbage.note_place(connection, "points", None)


def _orphans(given: Garbage, collection: Collection, ids: Sequence[uuid.UUID]) -> list[uuid.UUID]:
    """Those of the points that no row explains and that say of which version they are, which is over and done with.

    Points that do not say it were not written by Millrace: an audit tells them, and takes them out when it is asked to.
    """
    with given.tools.ledger.transaction() as connection:
        explained = standing.standing(connection, collection, ids)
    strange = [point for point in ids if point not in explained]
    if not strange:
        return []
    found = given.tools.vectors.points(collection.physical, strange)
    versions = {point: content.payload.get("version") for point, content in found.items()}
    numbers = {number for number in versions.values() if isinstance(number, int) and 0 < number < 2**63}
    with given.tools.ledger.transaction() as connection:
        settled = garbage.settled_versions(connection, sorted(numbers), given.settled_seconds)
        # Asked again, after the look into the index.
        explained = standing.standing(connection, collection, strange)
    return [point for point, version in versions.items() if version in settled and point not in explained]


# 4. embeddings ------------------------------------------------------------------------------------------------------


def _excess(given: Garbage, bounds: Bounds) -> Generator[int]:
    """Of the embeddings that cost nothing, those unused for longest go until all are as small as they may be."""
    if not given.kept.embeddings_mb:
        return
    ledger = given.tools.ledger
    with ledger.transaction() as connection:
        stored, size = garbage.embeddings_size(connection)
        after = None if bounds.dry_run else garbage.place(connection, "excess")
    if not size:
        return
    left = stored - math.floor(given.kept.embeddings_mb * _MB / size)
    while left > 0:
        with ledger.transaction() as connection:
            rows = min(bounds.rows, left)
            page = garbage.page(connection, EXCESS, given.ages, after=after, rows=rows, dry_run=bounds.dry_run)
            if not bounds.dry_run:
                garbage.note_place(connection, "excess", page.after)
        yield page.taken
        left -= page.taken
        after = page.after
        if after is None:
            return
    if not bounds.dry_run:
        with ledger.transaction() as connection:
            garbage.note_place(connection, "excess", None)  # what was needed then may not be when it is too much again


# 5. purchases --------------------------------------------------------------------------------------------------------


def _purchases(given: Garbage, bounds: Bounds) -> Generator[int]:
    """Texts that somebody was buying or had ordered for who does not need them any more. What may have been paid for is
    told as doubtful."""
    ledger = given.tools.ledger
    if bounds.dry_run:
        with ledger.transaction() as connection:
            found = leftovers.count(connection, given.settled_seconds, bounds.rows)
        yield found
        return
    while True:
        with ledger.transaction() as connection:
            taken, doubtful = leftovers.bury(connection, given.settled_seconds, bounds.rows)
            if doubtful:
                spending.record(connection, [_doubted(given, leftover) for leftover in doubtful])
        yield taken
        if taken < bounds.rows:
            return


def _doubted(given: Garbage, leftover: Leftover) -> Used:
    tools = given.tools
    spec = ModelSpec.from_json(leftover.model)
    served = served_name(spec, tools.openai) if is_served(spec, tools.openai) else spec.name
    cost = spending.cost_of(tools.cost, served, ONLINE, leftover.tokens)
    tenant = leftover.tenant or ""
    return Used(
        leftover.job_id,
        tenant,
        leftover.collection,
        ONLINE,
        served,
        doubtful_texts=1,
        doubtful_cost=cost,
        batch_id=leftover.batch_id or None,
    )


# 6. files -----------------------------------------------------------------------------------------------------------


def _files(given: Garbage, bounds: Bounds) -> Generator[int]:
    """Directories for temporary files of dead processes, of this machine and this user."""
    for found in (scratch.abandoned(), bundled.abandoned(given.models)):
        for path in found:
            if not bounds.dry_run:
                shutil.rmtree(path, ignore_errors=True)
            yield 1


_EMBEDDINGS = {"embeddings": partial(_rows, "embeddings", KINDS["embeddings"])}

_STEPS: Mapping[str, Step] = {
    **{name: partial(_rows, name, kind) for name, kind in KINDS.items()},
    "chunks": partial(_rows, "chunks", KINDS["chunks"], pages=_CHECKED_PAGES),
    "points": _points,
    "purchases": _purchases,
    "files": _files,
}

_EXPIRING: Mapping[str, Step] = {**_EMBEDDINGS, "excess_embeddings": _excess}
