"""Texts bought online for no batch: by a search, by `embed`, by a repair; each once in the world, as everywhere."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from pipeline.deals import ONLINE, PaidEmbedder, Part
from pipeline.embedding.base import Embedder, ModelSpec, Role
from pipeline.embedding.openai.besides import Besides
from pipeline.embedding.openai.spec import served_name, spec_hash
from pipeline.errors import BoughtElsewhere, BudgetExhausted, LedgerUnavailable, MillraceError
from pipeline.keeping import Keeper
from pipeline.ledger import circuits, embeddings, purchases, spending
from pipeline.ledger.budgets import ALL
from pipeline.ledger.embeddings import Vector
from pipeline.ledger.engine import Connection, Ledger
from pipeline.ledger.purchases import Begun, Loner
from pipeline.ledger.spending import Used
from pipeline.observe import count, logger
from pipeline.settings import CostSettings, OpenAISettings

# A text that another one is buying just now is waited for so long, and looked for so often.
_PATIENCE_SECONDS = 20.0
_LOOK_SECONDS = 0.05
# How long vectors that are paid for are kept while the ledger is away: somebody waits for the answer to a query.
_STORE_PATIENCE_SECONDS: Mapping[Role, float] = {"passage": 120.0, "query": 5.0}
# What a model was tried with is a few hundred tokens: nobody waits long for its row.
_BESIDES_PATIENCE_SECONDS = 20.0

_log = logger("buying")


@dataclass(frozen=True, slots=True)
class Payment:
    """Who pays for texts that are bought for no batch: a tenant, told with a collection's name ('' of none)."""

    openai: OpenAISettings
    cost: CostSettings
    tenant: str
    collection: str = ""
    collection_id: int = 0


@dataclass(frozen=True, slots=True)
class Bought:
    """vectors: bought, or stored by others meanwhile; where the ledger went away for good, they are nowhere but here.
    ordered: keys that were left to the Batch API, which has them."""

    vectors: Mapping[bytes, Vector]
    ordered: frozenset[bytes] = frozenset()


def buy_alone(
    ledger: Ledger,
    embedder: Embedder,
    payment: Payment,
    missing: Mapping[bytes, str],
    role: Role,
    *,
    ordered_too: bool,
) -> Bought:
    """Buys and stores the texts (key -> text). ordered_too: those, too, that the Batch API has on order; such a one is
    paid for twice.

    Raises BudgetExhausted (nothing is bought), BoughtElsewhere (another one buys some of them, and does not come to an
    end), ProviderUnavailable, InvalidRequest, InvalidVectors, LedgerUnavailable; what came by then is stored.

    Where the ledger goes away after an answer, its vectors are tried to be stored for a while. If it stays away, who
    waits for them gets them all the same, and nothing more is bought.
    """
    return _Purchase(ledger, cast(PaidEmbedder, embedder), payment, missing, role).carry_out(ordered_too=ordered_too)


def record_besides(
    ledger: Ledger, openai: OpenAISettings, cost: CostSettings, spec: ModelSpec, besides: Besides
) -> None:
    """Texts that were paid for and that nobody asked for are told for no tenant and no job, and count for the month.

    It raises nothing: while the ledger is away it waits for it, and says so where that does not help.
    """
    model = served_name(spec, openai)
    used = Used(
        None,
        ALL,
        "",
        ONLINE,
        model,
        texts=besides.texts,
        tokens=besides.tokens,
        cost=spending.cost_of(cost, model, ONLINE, besides.tokens),
        requests=besides.requests,
        doubtful_texts=besides.doubtful_texts,
        doubtful_cost=spending.cost_of(cost, model, ONLINE, besides.doubtful_tokens),
    )
    try:
        Keeper(ledger, _BESIDES_PATIENCE_SECONDS).keep(lambda connection: spending.record(connection, [used]))
    except MillraceError as error:
        _log.warning("%d tokens that were paid for to try %s are in no sum of costs: %s", besides.tokens, model, error)


@dataclass(slots=True)
class _Purchase:
    """Texts (key -> text) bought for no batch."""

    ledger: Ledger
    embedder: PaidEmbedder
    payment: Payment
    missing: Mapping[bytes, str]
    role: Role
    vectors: dict[bytes, Vector] = field(default_factory=dict)
    unstored: set[bytes] = field(default_factory=set)

    def carry_out(self, *, ordered_too: bool) -> Bought:
        tokens = dict(zip(self.missing, self.embedder.count_tokens(list(self.missing.values())), strict=True))
        loner = Loner(self.payment.collection_id, 1 + secrets.randbelow(2**31 - 2))
        deadline = time.monotonic() + _PATIENCE_SECONDS
        ordered: frozenset[bytes] = frozenset()
        while True:
            begun = self._begin(loner, tokens, ordered_too=ordered_too)
            ordered |= begun.ordered
            wanted = sorted(begun.mine | (begun.ordered if ordered_too else frozenset()))
            if wanted:
                self._buy(loner, wanted)
            if not begun.elsewhere:
                return Bought(self.vectors, ordered - self.vectors.keys())
            if time.monotonic() > deadline:
                raise BoughtElsewhere
            time.sleep(_LOOK_SECONDS)
            tokens = {key: tokens[key] for key in begun.elsewhere}

    def _begin(self, loner: Loner, tokens: Mapping[bytes, int], *, ordered_too: bool) -> Begun:
        spec = self.embedder.spec
        with self.ledger.transaction() as connection:
            begun = purchases.begin_alone(connection, loner, tokens, spec_hash(spec, self.payment.openai))
            bought = sum(tokens[key] for key in begun.mine | (begun.ordered if ordered_too else frozenset()))
            refusal = spending.reserve_alone(
                connection, loner.epoch, self.payment.tenant, self._cost(bought), self.payment.cost
            )
            if refusal is not None:
                raise BudgetExhausted(refusal)
            self.vectors |= embeddings.load(connection, sorted(begun.came))
            doubtful = sum(doubt.tokens for doubt in begun.doubts)
            if begun.doubts:
                entry = self._used(doubtful_texts=len(begun.doubts), doubtful_cost=self._cost(doubtful))
                spending.record(connection, [entry])
        return begun

    def _buy(self, loner: Loner, wanted: Sequence[bytes]) -> None:
        unanswered: set[bytes] = set()
        keeper = Keeper(self.ledger, _STORE_PATIENCE_SECONDS[self.role])

        def store(part: Part) -> None:
            keys = [wanted[position] for position in part.positions]
            complete = not set(wanted) - self.vectors.keys() - set(keys)
            last = complete and not self.unstored
            stand_in = spending.stand_in(loner.epoch)
            try:
                stored = keeper.keep(lambda connection: self._store(connection, keys, part, stand_in, last=last))
            except LedgerUnavailable as error:
                self._keep_unstored(keys, part, error)
                if not complete:
                    raise  # what the ledger does not see is not bought
                return
            self.vectors |= stored
            count("embedded_tokens", sum(part.tokens), ONLINE)
            count("embedded_texts", len(keys), ONLINE)

        try:
            self.embedder.buy([self.missing[key] for key in wanted], self.role, store)
        except Exception as error:
            unanswered = {wanted[position] for position in getattr(error, "unanswered", ())}
            raise
        finally:
            self._let_go(loner, set(wanted) - self.vectors.keys() - unanswered, settled=not unanswered)

    def _keep_unstored(self, keys: Sequence[bytes], part: Part, error: LedgerUnavailable) -> None:
        """Their purchases stay: whoever wants these texts next takes them over, and tells them as doubtful."""
        self.unstored |= set(keys)
        self.vectors |= dict(zip(keys, part.vectors, strict=True))
        _log.warning(
            "%d texts were bought (%d tokens) and cannot be stored; who buys them again tells them as doubtful: %s",
            len(keys),
            sum(part.tokens),
            error,
        )

    def _let_go(self, loner: Loner, left: set[bytes], *, settled: bool) -> None:
        """What was not asked for, or was refused, is free for others."""
        if not left:
            return
        try:
            with self.ledger.transaction() as connection:
                purchases.drop(connection, [loner], left)
                if settled and not self.unstored:
                    spending.settle(connection, [spending.stand_in(loner.epoch)])
        except LedgerUnavailable:
            _log.warning("the ledger is away: %d texts that were not bought will be taken for doubtful", len(left))

    def _store(
        self, connection: Connection, keys: Sequence[bytes], part: Part, stand_in: int, *, last: bool
    ) -> Mapping[bytes, Vector]:
        """stand_in: of whose reservation it is paid; last: what is left of that is free."""
        vectors = dict(zip(keys, part.vectors, strict=True))
        tokens = dict(zip(keys, part.tokens, strict=True))
        costs = {key: self._cost(n) for key, n in tokens.items()}
        new = embeddings.store(connection, {key: (vectors[key], tokens[key]) for key in keys}, costs)
        purchases.end(connection, keys)
        cost = self._cost(sum(part.tokens))
        bill = self._used(
            texts=len(keys),
            tokens=sum(part.tokens),
            cost=cost,
            requests=part.requests,
            doubtful_texts=part.doubted * len(keys),
            doubtful_cost=part.doubted * cost,
            batch_id=stand_in,
        )
        spending.record(connection, [bill], settled=[stand_in] if last else ())
        purchases.wake(connection, keys)
        circuits.close(connection, circuits.OPENAI)
        others = sorted(set(keys) - set(new))
        return vectors | (embeddings.load(connection, others) if others else {})

    def _used(self, **figures: float) -> Used:
        payment = self.payment
        served = served_name(self.embedder.spec, payment.openai)
        return Used(None, payment.tenant, payment.collection, ONLINE, served, **figures)  # type: ignore[arg-type]

    def _cost(self, tokens: int) -> float:
        return spending.cost_of(self.payment.cost, served_name(self.embedder.spec, self.payment.openai), ONLINE, tokens)
