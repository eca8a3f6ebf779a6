"""What buying online and ordering by the Batch API share: claims that lack vectors, and what becomes of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.embedding.base import Embedder, ModelSpec, Role
from pipeline.embedding.openai.spec import served_name, spec_hash
from pipeline.errors import BoughtElsewhere, BudgetExhausted
from pipeline.ledger import embeddings, orders, spending
from pipeline.ledger.batches import Claim
from pipeline.ledger.chunks import WantedPoint
from pipeline.ledger.collections import Collection as IndexedCollection
from pipeline.ledger.embeddings import Vector
from pipeline.ledger.engine import Connection
from pipeline.ledger.purchases import Begun, Doubt
from pipeline.ledger.spending import Refused, Used
from pipeline.observe import logger
from pipeline.tools import Tools, Waits

ONLINE = "openai"
BATCH = "openai_batch"
PAID = (ONLINE, BATCH)

_log = logger("buying")


class Part(Protocol):
    """What one answer brought. positions: of the texts that were asked for; vectors: float32[n, dim], L2-normalised, in
    their order; tokens: of each, as billed; requests: that it took; doubted: of those, how many may have been paid for
    without an answer."""

    @property
    def positions(self) -> Sequence[int]: ...
    @property
    def vectors(self) -> NDArray[np.float32]: ...
    @property
    def tokens(self) -> Sequence[int]: ...
    @property
    def requests(self) -> int: ...
    @property
    def doubted(self) -> int: ...


class PaidEmbedder(Embedder, Protocol):
    """An Embedder whose answers cost money, and are handed over as they come."""

    def buy(
        self,
        texts: Sequence[str],
        role: Role,
        on_part: Callable[[Part], None],
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Embeds the texts. on_part is told every answer, in the calling thread, before anything is tried again.

        Raises what ended it, when all that was under way has been handed over. An error may have `unanswered`: the
        positions of texts that were sent, and may be paid for, and did not come; and `given_up`: position -> why, of
        texts that are refused, when the others have come.
        """
        ...

    def be_same(self) -> None:
        """Compares, once in a process, a local model with what is served under its name.

        Raises ModelUnavailable where it is another, or where the local one is not here to compare.
        """
        ...


@dataclass(frozen=True, slots=True)
class Deal:
    """What became of the missing texts. vectors: bought, or stored by others meanwhile. elsewhere: ids of claims that
    lack what another one is buying. waiting: of those that lack but what is on order (`ordered`). refused: those that
    may not spend more. failed: texts that the provider has given up, and why."""

    vectors: Mapping[bytes, Vector] = field(default_factory=dict)
    elsewhere: frozenset[int] = frozenset()
    waiting: frozenset[int] = frozenset()
    ordered: frozenset[bytes] = frozenset()
    refused: Sequence[Refused] = ()
    failed: Mapping[bytes, str] = field(default_factory=dict)

    @property
    def short(self) -> frozenset[int]:
        """Ids of the claims that cannot be completed now."""
        return self.elsewhere | self.waiting | {refused.claim.id for refused in self.refused}


@dataclass(frozen=True, slots=True)
class Company:
    """Claims that are served together, and what they lack. lacking: claim id -> keys."""

    tools: Tools
    collection: IndexedCollection
    claims: Mapping[int, Claim]
    missing: Mapping[bytes, WantedPoint]
    lacking: Mapping[int, frozenset[bytes]]
    spec: ModelSpec
    served: str
    spec_hash: bytes

    @classmethod
    def of(
        cls, tools: Tools, collection: IndexedCollection, claims: Sequence[Claim], wanted: Iterable[WantedPoint]
    ) -> Company:
        missing: dict[bytes, WantedPoint] = {}
        lacking: dict[int, set[bytes]] = defaultdict(set)
        for point in wanted:
            missing.setdefault(point.embedding_key, point)
            lacking[point.batch_id].add(point.embedding_key)
        spec = ModelSpec.from_json(collection.model)
        return cls(
            tools,
            collection,
            {claim.id: claim for claim in claims},
            missing,
            {claim_id: frozenset(keys) for claim_id, keys in lacking.items()},
            spec,
            served_name(spec, tools.openai),
            spec_hash(spec, tools.openai),
        )

    @property
    def members(self) -> list[Claim]:
        return list(self.claims.values())

    def claim_of(self, key: bytes) -> Claim:
        """Who wanted the text first, and pays for it."""
        return self.claims[self.missing[key].batch_id]

    def those_lacking(self, keys: Collection[bytes]) -> frozenset[int]:
        return frozenset(claim_id for claim_id, lacked in self.lacking.items() if not lacked.isdisjoint(keys))

    def costs(self, keys: Iterable[bytes], provider: str) -> dict[Claim, float]:
        """What these texts will cost whom."""
        tokens = Counter[Claim]()
        for key in keys:
            tokens[self.claim_of(key)] += self.missing[key].tokens
        return {claim: spending.cost_of(self.tools.cost, self.served, provider, n) for claim, n in tokens.items()}

    def used(self, claim: Claim, provider: str, **figures: float) -> Used:
        return Used(
            claim.job_id,
            claim.tenant,
            self.collection.name,
            provider,
            self.served,
            batch_id=claim.id,
            **figures,  # type: ignore[arg-type]
        )


def sort_claims(
    company: Company,
    begun: Begun,
    refused: Sequence[Refused],
    vectors: Mapping[bytes, Vector],
    ordered: frozenset[bytes],
) -> Deal:
    """Sorts the claims by what they lack: what comes first keeps them most."""
    over_budget = {item.claim.id for item in refused}
    elsewhere = company.those_lacking(begun.elsewhere) - over_budget
    waiting = company.those_lacking(ordered) - over_budget - elsewhere
    return Deal(vectors, elsewhere, waiting, ordered, refused, begun.failed)


def load(tools: Tools, keys: Collection[bytes]) -> dict[bytes, Vector]:
    if not keys:
        return {}
    with tools.ledger.transaction() as connection:
        return embeddings.use(connection, sorted(keys))


def finish(tools: Tools, claims: Sequence[Claim], deal: Deal) -> Waits | None:
    """Lets claims wait, when those are done that can be. Returns what they wait for. Raises BudgetExhausted or
    BoughtElsewhere for those that have to be handed back, LeaseLost."""
    if deal.waiting:
        with tools.ledger.transaction() as connection:
            orders.wait(connection, [claim for claim in claims if claim.id in deal.waiting], deal.ordered)
    if deal.refused:
        raise BudgetExhausted(deal.refused[0].message)
    if deal.elsewhere:
        raise BoughtElsewhere
    return Waits(f"batches that wait for the Batch API: {len(deal.waiting)}") if deal.waiting else None


def tell_doubts(connection: Connection, company: Company, doubts: Sequence[Doubt]) -> None:
    by_batch: dict[int, list[Doubt]] = defaultdict(list)
    for doubt in doubts:
        by_batch[doubt.batch_id].append(doubt)
    entries = []
    for batch_id, members in sorted(by_batch.items()):
        first, taker = members[0], company.claim_of(members[0].key)
        cost = spending.cost_of(company.tools.cost, company.served, ONLINE, sum(doubt.tokens for doubt in members))
        entries.append(
            Used(
                first.job_id,
                first.tenant if first.tenant is not None else taker.tenant,
                company.collection.name,
                ONLINE,
                company.served,
                doubtful_texts=len(members),
                doubtful_cost=cost,
                batch_id=batch_id or None,
            )
        )
    spending.record(connection, entries)
    _log.warning("%d texts may have been paid for by a claim that was lost; they are bought again", len(doubts))


def settle(
    tools: Tools,
    collection: IndexedCollection,
    claims: Sequence[Claim],
    wanted: Sequence[WantedPoint],
    found: Collection[bytes],
) -> None:
    """These claims are complete: what is reserved for them is free again, and what they found is told as saved.

    At a claim's first epoch alone: what it finds later it may have bought before.
    """
    if claims[0].provider not in PAID:
        return
    company = Company.of(tools, collection, claims, [])
    fresh = {claim.id: claim for claim in claims if claim.epoch == 1}
    seen: set[bytes] = set()
    hits: dict[Claim, list[int]] = defaultdict(list)
    for point in wanted:
        if point.batch_id in fresh and point.embedding_key in found and point.embedding_key not in seen:
            seen.add(point.embedding_key)
            hits[fresh[point.batch_id]].append(point.tokens)
    entries = [
        company.used(
            claim,
            claim.provider,
            cached_texts=len(counts),
            cached_tokens=sum(counts),
            cached_cost=spending.cost_of(tools.cost, company.served, ONLINE, sum(counts)),
        )
        for claim, counts in hits.items()
    ]
    with tools.ledger.transaction() as connection:
        spending.record(connection, entries, settled=[claim.id for claim in claims])
