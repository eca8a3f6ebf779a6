"""The drill, from beginning to end.

1. Documents are written, and searched for, all the while.
2. Faults come, each when it hits work that is under way; what it hit is watched until it works again.
3. Everything goes on again, the last job ends.
4. The judge looks at everything.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pipeline import ingest
from pipeline.assembly import Services
from pipeline.client import Client
from pipeline.errors import MillraceError
from workers.drill.corpus import Corpus, Record
from workers.drill.faults import Fault, Faults, Hit, plan
from workers.drill.judge import Verdict, judge
from workers.drill.plain import Away, Sql
from workers.drill.report import Recovery, Report
from workers.drill.searcher import Searcher
from workers.drill.stack import DrilledStack, Pauser
from workers.drill.writer import Writer

Tell = Callable[[str], None]

_LOOK_SECONDS = 0.1
_MOST_AT_ONCE = 3  # faults that have not recovered; more would only hide each other
_PATIENCE_SECONDS = 90.0  # to begin, and to recover from a fault
_END_SECONDS = 240.0  # for the last job
_JUDGEMENTS = 3
_WARM_BATCHES = 4
_CONTRACTED_VERSIONS = 500
_BREAK_OFF_SECONDS = 15.0
_TELL_SECONDS = 10.0  # what takes longer than this says what it waits for


class DrillFailed(MillraceError):
    """The drill could not be brought to its end; its stack runs on."""


@dataclass(frozen=True, slots=True)
class Options:
    """faults: so many; 0: as many as come in `seconds`. documents: different ones, of which each is written often."""

    seed: int
    kinds: Sequence[str]
    faults: int = 0
    seconds: float = 0.0
    documents: int = 400


class Drill:
    """One drill of a stack, in a collection of its own. tell: is told in words what happens."""

    def __init__(self, stack: DrilledStack, options: Options, collection: str, tell: Tell) -> None:
        self.stack = stack
        self.options = options
        self.collection = collection
        self.record = Record()
        self.corpus = Corpus(collection, options.seed, options.documents)
        self.services = Services(stack.settings)
        self.client = Client(services=self.services)
        self.sql = Sql(stack.postgres_url)
        self._tell = tell
        self._writer = Writer(self.client, Sql(stack.postgres_url), collection, self.corpus, self.record)
        self._begun = time.monotonic()
        self._recoveries: list[Recovery] = []
        self._missed = 0

    def run(self) -> Report:
        """Faults, then the end of all jobs. Whatever happens, everything that was held still goes on.

        Raises DrillFailed, what the client raises for good, KeyboardInterrupt.
        """
        writer = self._writer
        searcher = Searcher(self.client, Sql(self.stack.postgres_url), self.collection, self.record, self.options.seed)
        try:
            # Both load what they need at their first time; two threads that import the same at once fail now and then.
            writer.write_next()
            searcher.search_next()
            writer.start()
            searcher.start()
            self._await_work(writer)
            with Pauser() as pauser:
                self._throw_all(Faults(self.stack, self.sql, pauser, self.collection), writer)
            self.say("no more faults; the last jobs go to their end")
            writer.stop()
            writer.join(_END_SECONDS)
            self._check(writer)
            self._await_end()
        finally:
            writer.stop()
            searcher.stop()
        searcher.join(_PATIENCE_SECONDS)
        if searcher.failure is not None:
            raise DrillFailed(f"searching failed: {searcher.failure!r}") from searcher.failure
        return Report(
            self.collection,
            self.options.seed,
            time.monotonic() - self._begun,
            self._recoveries,
            self._missed,
            dict(self.corpus.counts),
            writer.written,
            searcher.searches,
        )

    def verdict(self) -> Verdict:
        """What the judge finds; where there is something, he looks again: a point may be leaving at that moment."""
        for left in range(_JUDGEMENTS - 1, -1, -1):
            found = judge(self.stack.postgres_url, self.stack.qdrant_url, self.collection, self.record.newest())
            if found.clean or not left:
                return found
            time.sleep(1.0)
        raise AssertionError("unreachable")

    def say(self, words: str) -> None:
        self._tell(f"{time.monotonic() - self._begun:6.1f} s  {words}")

    def clean_up(self) -> None:
        """Deletes the documents of the drill, then the collection in Qdrant. Raises what the client raises."""
        self.client.wait(self._delete_all(), timeout=_END_SECONDS)
        found = self.sql.one("SELECT physical FROM collections WHERE name = %(name)s", {"name": self.collection})
        self.services.vectors.drop_collection(found["physical"])

    def abandon(self) -> None:
        """Of a drill that was broken off: no more is written, and the deletion of its documents is enqueued."""
        self._writer.stop()
        if self._writer.is_alive():
            self._writer.join(_BREAK_OFF_SECONDS)
        with suppress(MillraceError):
            if self.record.uris():
                self._delete_all()
                self.say(f"broken off; the documents of collection {self.collection!r} are being deleted")

    def _delete_all(self) -> uuid.UUID:
        return self.client.delete(self.record.uris(), collection=self.collection).job_id

    def contract(self) -> None:
        """One run of the duty that takes replaced points out of the index, in this process, by the settings' clocks."""
        work = self.stack.settings.work
        ingest.contract(self.services.tools, work.contract_seconds, work.recontract_seconds, _CONTRACTED_VERSIONS)

    def close(self) -> None:
        self.sql.close()
        self.services.close()

    # ----------------------------------------------------------------------------------------------------------------

    def _await_work(self, writer: Writer) -> None:
        """Returns when some work has reached the index: what comes before is not what is drilled."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self._check(writer)
            try:
                row = self.sql.one(
                    """SELECT count(*) AS n FROM batches b JOIN collections c ON c.id = b.collection_id
                        WHERE c.name = %(name)s AND b.state = 'indexed'""",
                    {"name": self.collection},
                )
            except Away:
                row = {"n": 0}
            if row["n"] >= _WARM_BATCHES:
                return
            time.sleep(_LOOK_SECONDS)
        raise DrillFailed(f"no work was done within {_PATIENCE_SECONDS:g} s; see `millrace status`")

    def _throw_all(self, faults: Faults, writer: Writer) -> None:
        planned = self._planned()
        waiting: deque[Fault] = deque()
        pending: list[Hit] = []
        options = self.options
        begun = time.monotonic()
        fault = next(planned)
        not_before = begun + fault.gap
        tries = 0
        thrown = 0

        def more() -> bool:
            return thrown < options.faults if options.faults else time.monotonic() - begun < options.seconds

        while more() or pending:
            self._check(writer)
            pending = [hit for hit in pending if not self._is_over(hit)]
            if more() and time.monotonic() >= not_before and _may_come(fault, pending):
                try:
                    hit = faults.throw(fault)
                except Away:
                    hit = None
                if hit is not None:
                    thrown += 1
                    self.say(f"{thrown}: {hit.words}")
                    pending.append(hit)
                    for each in pending if len(pending) > 1 else ():
                        each.alone = False
                    tries = 0
                    fault = waiting.popleft() if waiting else next(planned)
                    not_before = time.monotonic() + fault.gap
                else:
                    self._missed += 1
                    tries += 1
                    if tries % 10 == 0:  # it cannot be now: another one first
                        waiting.append(fault)
                        fault = next(planned) if len(waiting) < 8 else waiting.popleft()
            time.sleep(_LOOK_SECONDS)

    def _planned(self) -> Iterator[Fault]:
        return plan(self.options.seed, self.options.kinds, self.stack.settings.work.lease_seconds)

    def _is_over(self, hit: Hit) -> bool:
        try:
            recovered = hit.recovered(self.stack, self.sql, self.collection)
        except Away:
            recovered = False
        seconds = time.monotonic() - hit.at
        if recovered:
            self._recoveries.append(Recovery(hit.fault.name, seconds, hit.alone))
            self.say(f"   {hit.words.partition(',')[0]}: works again after {seconds:.1f} s")
        elif seconds > hit.fault.seconds + _PATIENCE_SECONDS:
            self._recoveries.append(Recovery(hit.fault.name, None, hit.alone))
            self.say(f"   {hit.words}: does not work again after {seconds:.0f} s")
            return True
        elif seconds - max(hit.told, hit.fault.seconds) > _TELL_SECONDS:
            hit.told = seconds
            with suppress(Away):
                self.say(f"   {hit.words.partition(',')[0]}: after {seconds:.0f} s still {hit.waits_for(self.sql)}")
        return recovered

    def _await_end(self) -> None:
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            try:
                row = self.sql.one(
                    """SELECT count(*) AS n FROM jobs j JOIN collections c ON c.id = j.collection_id
                        WHERE c.name = %(name)s AND j.finished_at IS NULL""",
                    {"name": self.collection},
                )
            except Away:
                row = {"n": 1}
            if not row["n"]:
                return
            time.sleep(_LOOK_SECONDS)
        raise DrillFailed(
            f"{row['n']} jobs of collection {self.collection!r} are not finished after {_END_SECONDS:g} s: "
            "`millrace jobs` shows them, and what they wait for"
        )

    @staticmethod
    def _check(writer: Writer) -> None:
        if writer.failure is not None:
            raise DrillFailed(f"writing failed: {writer.failure!r}") from writer.failure


def _may_come(fault: Fault, pending: Sequence[Hit]) -> bool:
    if fault.alone or any(hit.fault.alone for hit in pending):
        return not pending
    return len(pending) < _MOST_AT_ONCE
