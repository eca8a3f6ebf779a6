"""Texts bought online for no batch: by a search, by `embed`, by a repair; each once in the world, as everywhere."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from pipeline.deals import ONLINE, PaidEmbedder, Part
from pipeline.embedding.base import Embedder, Role
from pipeline.embedding.openai.spec import served_name, spec_hash
from pipeline.errors import BoughtElsewhere, BudgetExhausted
from pipeline.ledger import circuits, embeddings, purchases, spending
from pipeline.ledger.embeddings import Vector
from pipeline.ledger.engine import Connection, Ledger
from pipeline.ledger.purchases import Begun, Loner
from pipeline.ledger.spending import Used
from pipeline.observe import count
from pipeline.settings import CostSettings, OpenAISettings

# A text that another one is buying just now is waited for so long, and looked for so often.
_PATIENCE_SECONDS = 20.0
_LOOK_SECONDS = 0.05


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
    """vectors: bought, or stored by others meanwhile. ordered: keys that were left to the Batch API, which has them."""

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
    end), ProviderUnavailable, InvalidRequest, InvalidVectors; what came by then is stored.
    """
    return _Purchase(ledger, cast(PaidEmbedder, embedder), payment, missing, role).carry_out(ordered_too=ordered_too)


@dataclass(slots=True)
class _Purchase:
    """Texts (key -> text) bought for no batch."""

    ledger: Ledger
    embedder: PaidEmbedder
    payment: Payment
    missing: Mapping[bytes, str]
    role: Role
    vectors: dict[bytes, Vector] = field(default_factory=dict)

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

        def store(part: Part) -> None:
            keys = [wanted[position] for position in part.positions]
            last = not set(wanted) - self.vectors.keys() - set(keys)
            with self.ledger.transaction() as connection:
                self._store(connection, keys, part, spending.stand_in(loner.epoch), last=last)

        try:
            self.embedder.buy([self.missing[key] for key in wanted], self.role, store)
        except Exception as error:
            unanswered = {wanted[position] for position in getattr(error, "unanswered", ())}
            raise
        finally:
            left = set(wanted) - self.vectors.keys() - unanswered
            if left:
                with self.ledger.transaction() as connection:
                    purchases.drop(connection, [loner], left)
                    if not unanswered:
                        spending.settle(connection, [spending.stand_in(loner.epoch)])

    def _store(self, connection: Connection, keys: Sequence[bytes], part: Part, stand_in: int, *, last: bool) -> None:
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
        self.vectors |= vectors | (embeddings.load(connection, others) if others else {})
        count("embedded_tokens", sum(part.tokens), ONLINE)
        count("embedded_texts", len(keys), ONLINE)

    def _used(self, **figures: float) -> Used:
        payment = self.payment
        served = served_name(self.embedder.spec, payment.openai)
        return Used(None, payment.tenant, payment.collection, ONLINE, served, **figures)  # type: ignore[arg-type]

    def _cost(self, tokens: int) -> float:
        return spending.cost_of(self.payment.cost, served_name(self.embedder.spec, self.payment.openai), ONLINE, tokens)
