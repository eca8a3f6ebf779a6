"""The ledger's state machine where vectors cost money: jobs of every provider beside each other, a provider that fails,
and the Batch API, which brings what is on order when it likes. The machine of test_buying_machine.py.

The collection's model is one that the provider has, too, so that all of them share its vectors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule
from ledger_machine import LedgerMachine as Machine
from ledger_machine import _given, _steps, chosen_uris, places, rather_not, tenants, words
from ledger_scene import Content, documents_of
from paid_embedder import PaidEmbedder
from paused_stories import Killed
from workshop import Workshop

from pipeline.errors import ProviderUnavailable
from pipeline.ledger import embeddings, jobs, purchases
from pipeline.ledger.purchases import LACKED

PROVIDERS = ("openai", "openai", "openai_batch", "local")
TABLES = ("purchases", "reservations", "usage", "spending", "remote_batches", "walks")
_COSTS = {"cost", "cost_doubtful", "cost_reserved", "progressed_at"}

# Beside what can happen to the ledger: name -> how often, and what it is given.
_MORE: dict[str, tuple[int, st.SearchStrategy[dict[str, Any]]]] = {
    "buy": (
        16,
        st.fixed_dictionaries(
            {
                "tenant": tenants,
                "uris": chosen_uris,
                "common": words,
                "kind": st.integers(min_value=0, max_value=3),
                "provider": st.sampled_from(PROVIDERS),
                "far": st.integers(min_value=0, max_value=7),
                "dies": st.booleans(),
            }
        ),
    ),
    "pack": (3, st.fixed_dictionaries({"many": st.integers(min_value=1, max_value=6)})),
    "deliver": (6, st.fixed_dictionaries({"place": places, "many": st.integers(min_value=1, max_value=6)})),
    "hinder": (2, st.fixed_dictionaries({"ends": rather_not, "unanswered": st.booleans()})),
}


class BuyingMachine(Machine):
    def __init__(self, workshop: Workshop) -> None:
        provider = workshop.services._given_paid
        assert isinstance(provider, PaidEmbedder)
        self.provider = provider
        provider.billed.clear()
        provider.fails.clear()
        self.brought: Counter[str] = Counter()  # by the Batch API
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

    def put(
        self, tenant: str, uris: list[str], common: list[str], odd: tuple[str, ...], language: str, priority: str
    ) -> None:
        """Nobody can buy what is poison: that a text is given up in the end has its own tests."""
        super().put(tenant, uris, common, tuple(word for word in odd if word != "poison"), language, priority)

    def buy(
        self, tenant: str, uris: list[str], common: list[str], kind: int, provider: str, far: int, dies: bool
    ) -> None:
        """Texts of which most are new are wanted, and a worker begins to get them. dies: it is killed on the way."""
        chosen = [f"{word}{'wxyz'[kind]}" for word in common]
        given = {uri: Content((*chosen[number:], *chosen[:number]), "de") for number, uri in enumerate(uris)}
        status = self.workshop.put(documents_of(given), tenant=tenant, provider=provider)
        self._note(status, tenant, given)
        for kind_of_work in ("prepare", "embed"):
            rows = self.workshop.sql(
                "SELECT id FROM batches WHERE job_id = %(job)s AND kind = %(kind)s AND state = 'ready' AND NOT held",
                job=status.job_id,
                kind=kind_of_work,
            )
            if not rows or len(self.stories) > 4:
                return
            story = self._claim(rows[0]["id"])
            if kind_of_work == "prepare":
                while not story.over:
                    self._advance(story)
        self._go_on(story, far)
        if dies and not story.over:
            self._advance(story, Killed())

    def pack(self, many: int) -> None:
        """Some of what is on order is sent."""
        self.workshop.sql(
            """WITH chosen AS (
                 SELECT key, spec_hash FROM purchases WHERE epoch IS NULL AND remote_batch_id IS NULL
                  ORDER BY key LIMIT %(many)s),
               made AS (
                 INSERT INTO remote_batches (key, spec_hash, inputs, tokens, priority)
                 SELECT gen_random_uuid()::text, min(spec_hash), count(*), 1, 1 FROM chosen HAVING count(*) > 0
                 RETURNING id)
               UPDATE purchases p SET remote_batch_id = made.id FROM chosen, made WHERE p.key = chosen.key""",
            many=many,
        )

    def deliver(self, place: int, many: int) -> None:
        """Some of what was sent comes back."""
        with self.workshop.services.ledger.transaction() as connection:
            rows = connection.execute(
                """SELECT p.key, p.text, p.tokens, b.job_id FROM purchases p LEFT JOIN batches b ON b.id = p.batch_id
                    WHERE p.remote_batch_id IS NOT NULL ORDER BY p.key OFFSET %s LIMIT %s""",
                (place, many),
            ).fetchall()
            vectors = self.provider.embed([row["text"] for row in rows]).vectors
            keys = [bytes(row["key"]) for row in rows]
            found = {key: (vector, row["tokens"]) for key, vector, row in zip(keys, vectors, rows, strict=True)}
            new = embeddings.store(connection, found, dict.fromkeys(keys, 1e-6))
            connection.execute("DELETE FROM purchases WHERE key = ANY(%s)", (keys,))
            counted = Counter(row["job_id"] for row in rows if bytes(row["key"]) in new)
            jobs.count(connection, {job: {"chunks_embedded": n} for job, n in counted.items()})
            purchases.wake(connection, keys)
        self.brought.update(row["text"] for row in rows)

    def hinder(self, ends: bool, unanswered: bool) -> None:
        """The provider does not answer, or does again. unanswered: what it was asked for may be paid."""
        self.provider.fails.clear()
        if not ends:
            error = ProviderUnavailable("it does not answer")
            error.__dict__["unanswered"] = (0,) if unanswered else ()
            self.provider.fails["paragraph"] = error

    # ----------------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        self.provider.fails.clear()
        super().teardown()

    def _finish(self) -> None:
        while True:
            worked = self.workshop.work()
            self._reconcile()
            self.pack(1000)
            self.deliver(0, 1000)
            if not worked and not self.workshop.ready():
                break
        self._assert_all_is_done()

    def _ledger(self) -> dict[str, list[str]]:
        """What a late worker was billed for is told, whatever became of its claim."""
        told = super()._ledger()
        rows = self.workshop.sql("SELECT * FROM jobs")
        told["jobs"] = sorted(str({name: row[name] for name in row if name not in _COSTS}) for row in rows)
        return told

    def _assert_all_is_done(self) -> None:
        super()._assert_all_is_done()
        self._assert_paid_once()
        assert self.workshop.value(f"SELECT count(*) FROM purchases p WHERE {LACKED}") == 0
        assert self.workshop.value("SELECT count(*) FROM batches WHERE state = 'waiting'") == 0

    def _assert_paid_once(self) -> None:
        """But for what the ledger shows."""
        billed: Mapping[str, int] = self.provider.billed + self.brought
        besides = sum(times - 1 for times in billed.values())
        (used,) = self.workshop.sql(
            """SELECT coalesce(sum(texts), 0)::int AS texts, coalesce(sum(doubtful_texts), 0)::int AS doubtful
                 FROM usage WHERE provider = 'openai'"""
        )
        assert besides <= used["doubtful"], billed
        assert used["texts"] <= sum(self.provider.billed.values()) <= used["texts"] + used["doubtful"] + self._asked()
        stored = self.workshop.value("SELECT count(*) FROM embeddings WHERE cost > 0")
        assert stored <= len(billed), "nothing is paid that was computed here"

    def _asked(self) -> int:
        """Texts whose buyer is dead, and that nobody has wanted since."""
        return int(self.workshop.value("SELECT count(*) FROM purchases WHERE epoch IS NOT NULL"))
