"""What the duty `reembed` does: each re-embedding goes on, a step at a time, from wherever the last run has come to.

1. building: every chunk of the collection goes into an embed batch, page by page; workers embed them as any others,
   into the second Qdrant collection. What is completed in the first one meanwhile comes after.
2. auditing: when little is left, what was built is compared with the ledger, point by point, and mended.
3. switching: when nothing is left, one transaction gives the collection its new vectors. Where something always comes
   in between, the completing of the collection's other work is held for moments, and what is left caught up with.
4. switched: the chunks get their new keys; the first Qdrant collection is dropped when no search is in it any more.

Each step is a transaction that asks under the row's lock whether it is still its turn: killed anywhere, or run twice at
once, nothing is lost, and nothing done that was cancelled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.assembly import Services
from pipeline.audit import FAULTS, audit_part
from pipeline.dispatch import dispatch
from pipeline.duties import Bounds
from pipeline.embed_batches import suited
from pipeline.errors import MillraceError, Unavailable
from pipeline.ledger import (
    cancelling,
    collections,
    reembed_chunks,
    reembed_failures,
    reembeddings,
    standing,
    writing,
)
from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Connection
from pipeline.ledger.reembed_chunks import Left
from pipeline.ledger.reembeddings import Reembedding
from pipeline.ledger.standing import FIRST, LAST
from pipeline.observe import logger
from pipeline.patience import Patience
from pipeline.points import ensure_index
from pipeline.reembedding.batching import Superseded, put
from pipeline.repair import Repairer

# Batches that wait for a worker, at most, before more are made: of a large collection the rest waits in the ledger.
_AHEAD_BATCHES = 1000
# So few chunks that they can be caught up with while others wait.
_LITTLE = 1000
# The collection's other work is held for so long, at most, and then has its turn for so long; twice as long each time.
_HOLD_SECONDS = 20.0
_HOLD_REST_SECONDS = 30.0
_HOLD_MOST_REST_SECONDS = 600.0
# After so many comparisons that found faults which mending did not end, a person has to look; it is tried again later.
_MOST_AUDITS = 3
_AUDIT_REST_SECONDS = 300.0
_POLL_SECONDS = 0.1
# Batches of removed chunks that are left when everything else is done.
_LEFT_BATCHES = 1000

_log = logger("reembedding")


def advance(services: Services, bounds: Bounds, *, moment_seconds: float = 2.0) -> dict[str, int]:
    """Lets every re-embedding go on as far as it can now. Returns counts: chunks put into batches, points compared,
    collections switched, Qdrant collections dropped. What one raises does not keep the others waiting; it is raised in
    the end.

    moment_seconds: so long it waits itself for workers to catch up, while others are held.
    """
    run = _Run(services, bounds, moment_seconds)
    with services.ledger.transaction() as connection:
        waiting = reembeddings.unfinished(connection)
    # In turns: one may need all the time there is.
    first = int(time.time()) % max(1, len(waiting))
    failed: list[MillraceError] = []
    for reembedding_id in waiting[first:] + waiting[:first]:
        try:
            run.go_on(reembedding_id)
        except MillraceError as error:
            failed.append(error)
            if not isinstance(error, Unavailable):
                run.tell(reembedding_id, str(error))
        if bounds.over:
            break
    run.counts["dropped"] = drop_doomed(services)
    if failed:
        raise failed[0]
    return run.counts


class _Run:
    def __init__(self, services: Services, bounds: Bounds, moment_seconds: float) -> None:
        self._services = services
        self._ledger = services.ledger
        self._bounds = bounds
        self._moment_seconds = moment_seconds
        self.counts = {"chunks": 0, "compared": 0, "switched": 0}

    def go_on(self, reembedding_id: int) -> None:
        """Steps, until one has nothing to do now."""
        steps: dict[str, Callable[[Reembedding], bool]] = {
            "building": self._build,
            "auditing": self._audit,
            "switching": self._switch,
            "switched": self._settle,
            "cancelling": self._forget,
        }
        while True:
            with self._ledger.transaction() as connection:
                found = reembeddings.find(connection, reembedding_id)
            if found.ended_at is not None:
                return
            open_still = found.state not in ("switched", "cancelling")
            if open_still and found.job_state == "cancelled":
                begin_cancelling(self._services, found.id)
                continue
            if open_still and (found.paused or found.resting):
                return
            if not steps[found.state](found) or self._bounds.over:
                return

    def tell(self, reembedding_id: int, error: str | None) -> None:
        """Writes down what went wrong; None: nothing does any more."""
        with self._ledger.transaction() as connection:
            reembeddings.tell(connection, reembeddings.find(connection, reembedding_id), error)

    def _target(self, connection: Connection, found: Reembedding) -> Collection:
        """The collection as it will be."""
        collection = collections.by_id(connection, found.collection_id)
        return replace(collection, physical=found.physical, model=found.model)

    # -- 1. building -------------------------------------------------------------------------------------------------

    def _build(self, found: Reembedding) -> bool:
        if not found.walked:
            return self._walk(found)
        if self._follow(found):
            return True
        with self._ledger.transaction() as connection:
            left = reembed_chunks.left(connection, found, _LITTLE + 1)
            self._tell(connection, found, left)
            if left.failed or left.total > _LITTLE or reembed_chunks.walk_under_way(connection, found):
                return False
            if reembeddings.lock(connection, found):
                reembeddings.turn(connection, found, "switching" if found.audited else "auditing")
        return True

    def _walk(self, found: Reembedding) -> bool:
        """Puts the next page of all the collection's chunks into batches. False while enough of them wait."""
        after = found.after or FIRST
        with self._ledger.transaction() as connection:
            if reembed_chunks.ready_batches(connection, found, _AHEAD_BATCHES) >= _AHEAD_BATCHES:
                return False
            upto = standing.step(connection, after, LAST, self._bounds.rows)
            pieces = reembed_chunks.unseen(connection, found, after, upto)

        def get_on(connection: Connection) -> None:
            reembeddings.go_on(connection, found, None if upto == LAST else upto, walked=upto == LAST)

        self._put(found, pieces, get_on)
        return True

    def _follow(self, found: Reembedding) -> bool:
        """Puts what came meanwhile, and what is to be tried again, into batches. False where there is nothing."""
        with self._ledger.transaction() as connection:
            pieces = reembed_chunks.unassigned(connection, found, self._bounds.rows)
            if not pieces:
                return reembed_chunks.loosen(connection, found, self._bounds.rows) > 0

        def count(connection: Connection) -> None:
            if found.held:
                reembed_chunks.hurry(connection, found)

        return self._put(found, pieces, count)

    def _put(
        self, found: Reembedding, pieces: Sequence[reembed_chunks.Piece], then: Callable[[Connection], None]
    ) -> bool:
        try:
            self.counts["chunks"] += put(self._services, found, pieces, then)
        except Superseded:
            return True
        if found.error is not None:
            self.tell(found.id, None)
        if pieces:
            self._send()
        return True

    def _send(self) -> None:
        try:
            dispatch(self._ledger, self._services.broker, self._services.settings.work)
        except Unavailable as error:
            _log.warning("queues not topped up: %s", error)

    def _tell(self, connection: Connection, found: Reembedding, left: Left) -> None:
        """Says what keeps it from going on, or that nothing does any more."""
        error = None
        if left.failed:
            many = "1 text" if left.failed == 1 else f"{left.failed:,} texts"
            error = (
                f"{many} could not be embedded. `millrace reembed {found.collection} --status` says which, `--retry` "
                "tries them again, `--cancel` leaves the collection as it is"
            )
        reembeddings.tell(connection, found, error)

    # -- 2. auditing -------------------------------------------------------------------------------------------------

    def _audit(self, found: Reembedding) -> bool:
        """Compares and mends what was built, as far as there is time. What was mended is compared again."""
        settings = self._services.settings.audit
        tools = self._services.tools
        with self._ledger.transaction() as connection:
            target = self._target(connection, found)
        ensure_index(tools, target)
        repairer = Repairer(tools, target, settings.page_points, Patience(0.0))
        report, upto = audit_part(tools, target, settings, repairer, found.after, lambda: self._bounds.over)
        self.counts["compared"] += report.present
        counts = {name: getattr(report, name) for name in ("expected", "present", *FAULTS, "compared")}
        counts["embeddings"] = report.ledger.get("embeddings", 0)
        if found.after is not None:
            counts = {name: count + int(found.audit.get(name, 0)) for name, count in counts.items()}
        with self._ledger.transaction() as connection:
            if not reembeddings.lock(connection, found):
                return True
            if upto is not None:
                reembeddings.tell(connection, found, None)
                reembeddings.note_audit(connection, found, counts, upto)
                return True
            self._judge(connection, found, counts, repairer.done.error)
        return True

    def _judge(self, connection: Connection, found: Reembedding, counts: dict[str, int], error: str | None) -> None:
        faults = {name: counts[name] for name in (*FAULTS, "embeddings") if counts[name]}
        reembeddings.end_audit(connection, found, counts, clean=not faults)
        if not faults:
            reembeddings.tell(connection, found, None)
            reembeddings.turn(connection, found, "switching")
            return
        _log.warning("new vectors of %s: %s; mended, and compared again", found.collection, faults)
        if found.audits + 1 < _MOST_AUDITS:
            return
        words = ", ".join(f"{count:,} {name}" for name, count in faults.items())
        reembeddings.tell(
            connection,
            found,
            f"the new vectors are not as they should be, and mending them did not help ({words})"
            + (f": {error}" if error else "")
            + "; they are compared again every few minutes",
        )
        reembeddings.rest(connection, found, _AUDIT_REST_SECONDS)

    # -- 3. switching ------------------------------------------------------------------------------------------------

    def _switch(self, found: Reembedding) -> bool:
        left = self._try(found)
        if left is None:
            return True
        if left.failed or left.total > _LITTLE:
            with self._ledger.transaction() as connection:
                if reembeddings.lock(connection, found):
                    reembeddings.turn(connection, found, "building")
            return True
        if found.hold_over:
            with self._ledger.transaction() as connection:
                reembeddings.let_go(connection, found, _HOLD_REST_SECONDS, _HOLD_MOST_REST_SECONDS)
            return False
        if not found.held:
            with self._ledger.transaction() as connection:
                if reembeddings.away(connection):
                    return False  # nobody is held up for what would not come
                reembeddings.hold(connection, found, _HOLD_SECONDS)
            return True
        return self._follow(found) or self._await(found)

    def _try(self, found: Reembedding) -> Left | None:
        """Switches, where nothing is left. Returns what is left; None where something else is to be done now."""
        with self._ledger.transaction() as connection:
            # Whoever was about to complete something has done so, or finds other vectors there.
            collections.alone(connection, found.collection_id)
            left = reembed_chunks.left(connection, found, _LITTLE + 1)
            if left.total:
                return left
            # Before the job: whoever completes one has its batch first.
            cancelling.end_batches(connection, found.job_id, _LEFT_BATCHES)
            if not reembeddings.lock(connection, found) or not reembeddings.lock_job(connection, found):
                return None
            reembeddings.switch(connection, found)
            writing.seal(connection, found.job_id)
            reembed_failures.close(connection, found.job_id)
        self.counts["switched"] += 1
        _log.info("collection %s has the vectors of %s", found.collection, found.model.get("name"))
        return None

    def _await(self, found: Reembedding) -> bool:
        """Waits a moment for workers, since others wait for it. False where they are not done by then."""
        deadline = time.monotonic() + self._moment_seconds
        while time.monotonic() < deadline and not self._bounds.over:
            with self._ledger.transaction() as connection:
                left = reembed_chunks.left(connection, found, 1)
            if not left.total or left.unassigned or left.failed:
                return True
            time.sleep(_POLL_SECONDS)
        return False

    # -- 4. afterwards -----------------------------------------------------------------------------------------------

    def _settle(self, found: Reembedding) -> bool:
        """Gives a page of chunks their new keys; and jobs that were begun before somebody who can embed for them."""
        openai = self._services.settings.openai
        with self._ledger.transaction() as connection:
            collection = collections.by_id(connection, found.collection_id)
            reembeddings.hand_over(connection, found, lambda provider: suited(provider, collection, openai))
        with self._ledger.transaction() as connection:
            if not reembeddings.lock(connection, found):
                return True
            if not reembed_chunks.settle(connection, found, self._bounds.rows):
                reembeddings.turn(connection, found, "done")
        return True

    def _forget(self, found: Reembedding) -> bool:
        with self._ledger.transaction() as connection:
            if not reembeddings.lock(connection, found):
                return True
            if not reembed_chunks.forget(connection, found, self._bounds.rows):
                reembeddings.turn(connection, found, "cancelled")
        return True


def begin_cancelling(services: Services, reembedding_id: int) -> bool:
    """From the commit on, nothing is put beside the collection's vectors any more, and what was built is to be dropped.
    Its job is cancelled already. False where the collection was switched before, or it was cancelled already."""
    with services.ledger.transaction() as connection:
        found = reembeddings.find(connection, reembedding_id)
        # Whoever is completing something may be about to note it for this one.
        collections.alone(connection, found.collection_id)
        found = reembeddings.find(connection, reembedding_id)
        if not reembeddings.lock(connection, found) or found.state not in ("building", "auditing", "switching"):
            return False
        reembeddings.turn(connection, found, "cancelling")
        reembeddings.tell(connection, found, None)
        reembeddings.doom(connection, found, found.physical)
        reembed_failures.close(connection, found.job_id)
    return True


# Nobody's search is younger than this (`pipeline.search`).
_SEARCH_SECONDS = 30.0


def drop_doomed(services: Services) -> int:
    """Drops the Qdrant collections that nobody needs any more. Returns how many there were."""
    work = services.settings.work
    first = max(_SEARCH_SECONDS, work.contract_seconds)
    with services.ledger.transaction() as connection:
        gone = reembeddings.doomed(connection, first, max(first, work.recontract_seconds))
    found = 0
    for one in gone:
        found += services.vectors.drop_collection(one.physical)
        with services.ledger.transaction() as connection:
            reembeddings.dropped(connection, one)
    return found
