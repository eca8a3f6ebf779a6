"""The ledger's state machine with garbage collection among its steps, everything old enough to go at once: the machine
of test_garbage_machine.py.

What is collected is remembered, so that in the end every document can still be held against what was wanted of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule
from ledger_checks import faults
from ledger_machine import LedgerMachine as Machine
from ledger_machine import _given, _steps, chosen_uris, languages, words
from ledger_scene import TENANTS
from workshop import COLLECTION, Workshop

from pipeline.duties import Bounds
from tasks import garbage

NEVER = 1e-9  # days; an age that everything has reached

# What the ledger's machine holds about rows that stay: each was counted where it was made.
_OF_ROWS_THAT_STAY = {
    "a counter of documents that is not the number of them",
    "an embedding that was counted not once",
}

# What something needs: chunks that are served, or of versions that may be.
_NEEDED_KEYS = """
    SELECT DISTINCT c.embedding_key AS key FROM chunks c JOIN versions born ON born.id = c.born_version
      LEFT JOIN versions died ON died.id = c.died_version JOIN embeddings e ON e.key = c.embedding_key
     WHERE died.id IS NULL OR died.state = 'open'"""

_WITHOUT_A_BATCH = """
    SELECT c.point_id FROM chunks c JOIN versions v ON v.id = c.born_version LEFT JOIN batches b ON b.id = c.batch_id
     WHERE v.state = 'open' AND b.id IS NULL"""

# What of each table nothing needs, when all is done -> the rows of which it is.
_LEFT = {
    "batches": "SELECT id FROM batches",
    "staged": "SELECT version_id FROM staged",
    "chunks": """
        SELECT c.point_id FROM chunks c WHERE NOT EXISTS (
            SELECT 1 FROM documents d JOIN versions v ON v.id = d.published_version
             WHERE d.id = c.document_id AND v.manifest -> 'points' ? c.point_id::text)""",
    "embeddings": "SELECT e.key FROM embeddings e WHERE NOT EXISTS (SELECT 1 FROM chunks WHERE embedding_key = e.key)",
    "versions": """
        SELECT v.id, v.state FROM versions v
         WHERE NOT EXISTS (SELECT 1 FROM documents WHERE published_version = v.id)
           AND NOT EXISTS (SELECT 1 FROM chunks WHERE born_version = v.id)
           AND NOT EXISTS (SELECT 1 FROM dead_letters WHERE version_id = v.id)""",
    "dead_letters": "SELECT id FROM dead_letters WHERE resolved_at IS NOT NULL",
    "jobs": """
        SELECT j.id FROM jobs j WHERE NOT EXISTS (SELECT 1 FROM versions WHERE job_id = j.id)
           AND NOT EXISTS (SELECT 1 FROM dead_letters WHERE job_id = j.id)""",
}

# Beside what can happen to the ledger: name -> how often, and what it is given.
_MORE: dict[str, tuple[int, st.SearchStrategy[dict[str, Any]]]] = {
    "collect": (
        12,
        st.fixed_dictionaries(
            {
                "what": st.sampled_from(["data", "data", "cache"]),
                "rows": st.integers(min_value=1, max_value=3),
                "pages": st.sampled_from([10, 30, 1000, 1000]),
                "sweeps": st.booleans(),
            }
        ),
    ),
    "renew": (
        12,
        st.fixed_dictionaries(
            {"uris": chosen_uris, "common": words, "language": languages, "many": st.integers(min_value=1, max_value=6)}
        ),
    ),
}


class GarbageMachine(Machine):
    """Collects whenever it likes, of whatever kind, so many pages or all."""

    def __init__(self, workshop: Workshop) -> None:
        self.remembered: dict[int, dict[str, Any]] = {}  # versions, as they were before the last collection
        self.tired: set[Any] = set()  # jobs of which a batch was given up
        super().__init__(workshop)

    @rule(
        step=st.deferred(
            lambda: st.sampled_from(
                [*_steps, *(name for name, (often, _) in _MORE.items() for _ in range(often))]
            ).flatmap(lambda name: st.tuples(st.just(name), _MORE[name][1] if name in _MORE else _given[name]))
        )
    )
    def happen(self, step: tuple[str, dict[str, Any]]) -> None:
        name, given = step
        getattr(self, name)(**given)

    def renew(self, uris: list[str], common: list[str], language: str, many: int) -> None:
        """Documents are brought anew, and much is worked off: there is little to collect before some are published."""
        self.put("here", uris, common, (), language, "high")
        self.work(0, many)

    def collect(self, what: str, rows: int, pages: int, sweeps: bool) -> None:
        """sweeps: what was replaced leaves the index before."""
        if sweeps:
            self.sweep(0, "first")
            self.sweep(0, "second")
        done = count(1)
        self._collect(what, Bounds(rows, 60.0, interrupted=lambda: next(done) >= pages))

    def _collect(self, what: str, bounds: Bounds) -> int:
        """Nothing goes that is needed, and of who comes back only a search is disturbed: it would have ended by then.
        Returns how much went."""
        for search in self.searches:
            search.spoiled = True
        self._remember()
        needed = {row["key"] for row in self.workshop.sql(_NEEDED_KEYS)}
        # Whoever has begun to write, and sleeps, is to find the job: it would be the age of that.
        days = 30.0 if self.writings else NEVER
        settings = self.workshop.services.settings
        kept = settings.garbage.model_copy(update={"jobs_days": days})
        self.workshop.services.settings = settings.model_copy(update={"garbage": kept})
        run = garbage.collect if what == "data" else garbage.expire
        taken = sum(run(self.workshop.services, bounds).values())
        assert {row["key"] for row in self.workshop.sql(_NEEDED_KEYS)} == needed, "an embedding that is needed went"
        return taken

    # -- in the end ----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """After all that the ledger's machine wants: nothing unneeded is left, and nothing needed is missing."""
        super().teardown()
        self.writings.clear()
        while self._collect("data", Bounds(100, 60.0)):
            pass
        left = {name: found for name, query in _LEFT.items() if (found := self.workshop.sql(query))}
        assert left == {}
        self._assert_all_is_done()
        assert self.workshop.client.audit(COLLECTION, all_vectors=True).clean
        embedded = len(self.workshop.embedded())
        rebuilt = self.workshop.client.rebuild(COLLECTION, fresh=True)
        assert (rebuilt.whole, rebuilt.repaired.embedded) == (True, 0)
        assert len(self.workshop.embedded()) == embedded
        for tenant in TENANTS:
            assert self._found(tenant) == self._published(tenant)

    def _clear(self) -> None:
        """Of who was away for so long that its chunks are collected, nobody but the collection knows what it wrote."""
        super()._clear()
        while self._collect("data", Bounds(100, 60.0)):
            pass

    # -- of what is gone -----------------------------------------------------------------------------------------

    def _faults(self) -> dict[str, list[dict[str, Any]]]:
        found = {name: rows for name, rows in faults(self.workshop).items() if name not in _OF_ROWS_THAT_STAY}
        if rows := self.workshop.sql(_WITHOUT_A_BATCH):
            found["a chunk of an open version without its batch"] = rows
        return found

    def _remember(self) -> None:
        self.remembered.update({row["id"]: row for row in self._versions()})
        rows = self.workshop.sql("SELECT DISTINCT job_id FROM batches WHERE state = 'dead'")
        self.tired.update(row["job_id"] for row in rows)

    def _versions(self) -> list[dict[str, Any]]:
        return self.workshop.sql("SELECT id, document_id, job_id, state, error FROM versions")

    def _histories(self) -> Iterator[list[dict[str, Any]]]:
        self._remember()
        rows = [self.remembered[version] for version in sorted(self.remembered)]
        for document in sorted({row["document_id"] for row in rows}):
            yield [row for row in rows if row["document_id"] == document]

    def _gave_up(self, job_id: Any) -> bool:
        return job_id in self.tired

    def _batches(self, ids: Iterable[int]) -> dict[int, dict[str, Any]]:
        wanted = list(ids)
        return {id: {"state": "gone", "epoch": -1} for id in wanted} | super()._batches(wanted)
