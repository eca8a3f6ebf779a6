"""How embed batches get vectors that cost money: bought online now, or put on order with the Batch API.

1. Whose is each missing text? `purchases` says: another claim that buys it is waited for, what is on order too.
2. May it be paid for? What it will cost is reserved; a job over its budget is paused.
3. Buy. Each part that comes is stored with what it cost, in one transaction, before anything else is asked for; or
   order, and let the batches wait.

Killed anywhere, nothing that is stored is bought again. What was asked for and not stored is taken over by the next
claim, and told as doubtful: it may have been paid for twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from pipeline.deals import BATCH, ONLINE, Company, Deal, PaidEmbedder, Part, load, sort_claims, tell_doubts
from pipeline.errors import LedgerUnavailable
from pipeline.keeping import Keeper
from pipeline.ledger import circuits, embeddings, jobs, orders, purchases, spending
from pipeline.ledger.batches import Claim
from pipeline.ledger.chunks import WantedPoint
from pipeline.ledger.collections import Collection as IndexedCollection
from pipeline.ledger.embeddings import Vector
from pipeline.ledger.engine import Connection
from pipeline.ledger.purchases import Begun
from pipeline.ledger.spending import Refused, Used
from pipeline.observe import count, logger, operation
from pipeline.tools import Progress, Tools

# How long a process keeps vectors that are paid for while the ledger is away.
_STORE_PATIENCE_SECONDS = 120.0

_log = logger("buying")


# -- online ----------------------------------------------------------------------------------------------------------


def buy(
    tools: Tools,
    collection: IndexedCollection,
    claims: Sequence[Claim],
    wanted: Iterable[WantedPoint],
    progress: Progress,
) -> Deal:
    """Buys what these points lack, each text once in the world, and stores it.

    Raises LeaseLost, ProviderUnavailable and what else ends it; what came by then is stored.
    """
    company = Company.of(tools, collection, claims, wanted)
    begun, refused = _begin(company)
    came = load(tools, begun.came)
    purchase = _Purchase(company, sorted(begun.mine), progress)
    purchase.carry_out()
    begun = replace(begun, failed=purchase.refused)
    return sort_claims(company, begun, refused, {**came, **purchase.vectors}, begun.ordered)


def _begin(company: Company) -> tuple[Begun, list[Refused]]:
    """Makes texts those of these claims, and reserves what they will cost. What may not be paid for is let go again."""
    while True:
        with operation("buying.begin"), company.tools.ledger.transaction() as connection:
            begun = purchases.begin(
                connection, list(company.claims.values()), company.missing.values(), company.spec_hash
            )
            if not begun.doubts:
                refused = spending.reserve(connection, company.costs(begun.mine, ONLINE), company.tools.cost)
                mine = _allowed(connection, company, begun.mine, refused)
                return _with(begun, mine), refused
            # In a transaction with the taking over, so that each doubt is told once.
            tell_doubts(connection, company, begun.doubts)


def _allowed(
    connection: Connection, company: Company, mine: frozenset[bytes], refused: Sequence[Refused]
) -> frozenset[bytes]:
    if not refused:
        return mine
    without = {item.claim for item in refused}
    theirs = {key for key in mine if company.claim_of(key) in without}
    purchases.drop(connection, list(without), theirs)
    return mine - theirs


def _with(begun: Begun, mine: frozenset[bytes]) -> Begun:
    """What was let go is as if another one had it: a claim that wants it too comes again for it."""
    return replace(begun, mine=mine, elsewhere=begun.elsewhere | (begun.mine - mine))


@dataclass(slots=True)
class _Purchase:
    """Texts being bought by claims; vectors: those that came, by key; refused: those that will not, and why."""

    company: Company
    keys: Sequence[bytes]
    progress: Progress
    vectors: dict[bytes, Vector] = field(default_factory=dict)
    refused: dict[bytes, str] = field(default_factory=dict)
    _keeper: Keeper = field(init=False)

    def __post_init__(self) -> None:
        self._keeper = Keeper(self.company.tools.ledger, _STORE_PATIENCE_SECONDS)

    def carry_out(self) -> None:
        """Buys and stores. What was not asked for, or was refused, is free for others when it ends."""
        if not self.keys:
            return
        company = self.company
        embedder = cast(PaidEmbedder, company.tools.embedder(company.collection.model, ONLINE))
        texts = [company.missing[key].text for key in self.keys]
        try:
            with operation("embed.buy"):
                embedder.buy(texts, "passage", self.store, lambda _: self.progress())
        except Exception as error:
            self._let_go(error)
            self.refused = {self.keys[position]: why for position, why in getattr(error, "given_up", {}).items()}
            # Where nothing was answered, it may not be the texts: then they have their attempts first.
            if not self.refused or not self.vectors:
                raise
        else:
            self._let_go(None)

    def store(self, part: Part) -> None:
        """Makes durable what was paid for, whoever has the claims by now. While the ledger is away, waits for it."""
        stored = self._keeper.keep(lambda connection: self._store(connection, part))
        self.vectors.update(stored)
        count("embedded_texts", len(part.positions), ONLINE)
        count("embedded_tokens", sum(part.tokens), ONLINE)

    def _store(self, connection: Connection, part: Part) -> dict[bytes, Vector]:
        company = self.company
        rate = spending.cost_of(company.tools.cost, company.served, ONLINE, 1)
        keys = [self.keys[position] for position in part.positions]
        tokens = dict(zip(keys, part.tokens, strict=True))
        vectors = dict(zip(keys, part.vectors, strict=True))
        new = embeddings.store(
            connection,
            {key: (vectors[key], company.missing[key].tokens) for key in keys},
            {key: n * rate for key, n in tokens.items()},
        )
        purchases.end(connection, keys)
        # Before the jobs' counters: it locks the reservations, and then the jobs.
        spending.record(connection, self._bill(tokens, part))
        embedded = Counter(company.missing[key].job_id for key in new)
        jobs.count(connection, {job: {"chunks_embedded": n} for job, n in embedded.items()})
        purchases.wake(connection, keys)
        circuits.close(connection, circuits.OPENAI)
        others = sorted(set(keys) - set(new))
        return vectors | (embeddings.load(connection, others) if others else {})

    def _bill(self, tokens: Mapping[bytes, int], part: Part) -> list[Used]:
        """What each claim's job pays; the requests are told once, with the first."""
        company = self.company
        rate = spending.cost_of(company.tools.cost, company.served, ONLINE, 1)
        payers: dict[Claim, list[int]] = defaultdict(list)
        for key, n in tokens.items():
            payers[company.claim_of(key)].append(n)
        return [
            company.used(
                claim,
                ONLINE,
                texts=len(counts),
                tokens=sum(counts),
                cost=sum(counts) * rate,
                requests=0 if place else part.requests,
                doubtful_texts=part.doubted * len(counts),
                doubtful_cost=part.doubted * sum(counts) * rate,
            )
            for place, (claim, counts) in enumerate(payers.items())
        ]

    def _let_go(self, error: Exception | None) -> None:
        """Of what did not come: a request that was sent and not answered may be paid for, and is left for who takes it
        over; the others are free."""
        doubtful = {self.keys[position] for position in getattr(error, "unanswered", ())}
        left = [key for key in self.keys if key not in self.vectors and key not in doubtful]
        if not left:
            return
        try:
            with self.company.tools.ledger.transaction() as connection:
                purchases.drop(connection, self.company.members, left)
        except LedgerUnavailable:
            _log.warning("the ledger is away: %d texts that were not bought will be taken for doubtful", len(left))


# -- by the Batch API ------------------------------------------------------------------------------------------------


def order(tools: Tools, collection: IndexedCollection, claims: Sequence[Claim], wanted: Iterable[WantedPoint]) -> Deal:
    """Puts on order what these points lack, each text once in the world. Raises LeaseLost; ModelUnavailable where the
    server has another model under the collection's name."""
    if collection.model["provider"] == "local":  # what comes a day later cannot be compared any more
        cast(PaidEmbedder, tools.embedder(collection.model, ONLINE)).be_same()
    company = Company.of(tools, collection, claims, wanted)
    while True:
        with operation("buying.order"), tools.ledger.transaction() as connection:
            begun = orders.order(connection, claims, company.missing.values(), company.spec_hash)
            if not begun.doubts:
                refused = spending.reserve(connection, company.costs(begun.mine, BATCH), tools.cost)
                without = {item.claim for item in refused}
                mine = frozenset(key for key in begun.mine if company.claim_of(key) not in without)
                orders.withdraw(connection, begun.mine - mine)
                break
            # Ordered when that is committed, so that what they cost is reserved with the order.
            orders.withdraw(connection, begun.mine)
            tell_doubts(connection, company, begun.doubts)
    return sort_claims(company, _with(begun, mine), refused, load(tools, begun.came), begun.ordered | mine)
