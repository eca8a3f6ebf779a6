"""The story of an estimate: read -> leave out what is unchanged -> cut -> look up -> price."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.document import Document, Metadata
from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.tokens import counts_exactly
from pipeline.enqueue import Published, recipe_hash
from pipeline.estimates.counting import KINDS, Counted, Cutting, Tally
from pipeline.estimates.offers import Offer, Wallet, price
from pipeline.groups import Group, Sizes, groups
from pipeline.ledger import estimating, jobs, staging
from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Transaction
from pipeline.ledger.jobs import Job
from pipeline.settings import MemorySettings, RedisSettings, SourceSettings
from pipeline.sources import InlineSource
from pipeline.sources.base import Item, documents_since, skipped
from pipeline.sync import Listing, missing
from pipeline.tools import Tools

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Reading:
    """The settings that reading and pricing keep to."""

    memory: MemorySettings
    sources: SourceSettings
    redis: RedisSettings


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be estimated: the request of an ingest or (with a scope) a sync. exists: the collection is there.
    seconds_left: until its `need_by`; max_cost: US dollars. recipe_also: hashes of recipes that count as the same."""

    collection: Collection
    exists: bool
    tenant: str
    provider: str
    recipe: Mapping[str, Any]
    metadata: Metadata
    seconds_left: float | None = None
    max_cost: float | None = None
    scope: str | None = None
    recipe_also: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an ingest would do. exists: the collection is there; else it would be made.

    documents: total, new, unchanged, failed (it would), deleted (by a sync, besides the total), skipped (left out by
    the source). chunks: of the new documents. new: texts to be embedded, each once; cached: whose vectors are stored;
    ordered: that are being bought already; repeated: that come again. exact_tokens: as they would be billed; else they
    are an upper bound. auto: whom the provider `auto` would choose, and why. saved_by_cache: what the cached ones would
    cost online, US dollars. seconds: that the estimate took.
    """

    collection: str
    exists: bool
    tenant: str
    model: Mapping[str, Any]
    provider: str
    documents: Mapping[str, int]
    chunks: Counted
    new: Counted
    cached: Counted
    ordered: Counted
    repeated: Counted
    exact_tokens: bool
    offers: Sequence[Offer]
    auto: tuple[str, str] | None
    saved_by_cache: float
    errors: Sequence[Mapping[str, str]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form (docs/cost.md)."""
        parts: dict[str, Counted] = {name: getattr(self, name) for name in KINDS}
        return {
            "dry_run": True,
            "collection": self.collection,
            "exists": self.exists,
            "tenant": self.tenant,
            "model": {name: self.model.get(name) for name in ("name", "provider", "dimensions")},
            "provider": self.provider,
            "documents": dict(self.documents),
            "chunks": {"total": self.chunks.texts, **{name: part.texts for name, part in parts.items()}},
            "tokens": {
                "total": self.chunks.tokens,
                **{name: part.tokens for name, part in parts.items()},
                "exact": self.exact_tokens,
            },
            "providers": [offer.to_json() for offer in self.offers],
            "auto": {"provider": self.auto[0], "reason": self.auto[1]} if self.auto else None,
            "saved_by_cache": self.saved_by_cache,
            "errors": [dict(error) for error in self.errors],
            "seconds": round(self.seconds, 3),
        }


def estimate(
    tools: Tools,
    reading: Reading,
    wish: Wish,
    stream: Iterable[Item],
    on_progress: OnProgress = lambda documents, chunks: None,
) -> Estimate:
    """Reads the stream to its end. on_progress: documents and chunks that were counted so far.

    Raises what reading the source raises, LedgerUnavailable, ModelUnavailable (tokens are counted by the model).
    """
    began = time.monotonic()
    transaction = _read_only(tools.ledger.transaction)
    planned = jobs.planned(
        wish.collection.id, wish.collection.name, wish.tenant, wish.provider, wish.recipe, wish.recipe_also
    )
    found = documents_since(stream, Published(transaction, transaction, planned, wish.metadata))
    # A source of the application's own may yield what the ledger cannot hold.
    checked = found if isinstance(stream, InlineSource) else InlineSource(found, reading.sources)
    cutting = Cutting(tools, wish.collection, wish.recipe, wish.tenant)
    tally = Tally()
    try:
        for group in groups(checked, wish.metadata, Sizes(tools.ingest, reading.memory)):
            for part in cutting.parts(_changed(transaction, planned, group, tally)):
                cutting.count(part, tally)
                on_progress(tally.documents.total(), tally.chunks.texts)
            on_progress(tally.documents.total(), tally.chunks.texts)
    finally:
        tally.close()
    gone = 0
    if wish.scope is not None and isinstance(stream, Listing):
        gone = len(missing(transaction, wish.collection.id, wish.tenant, stream, wish.scope))
    return _told(tools, reading, wish, tally, gone, skipped(stream), time.monotonic() - began)


def _read_only(transaction: Transaction) -> Transaction:
    return lambda: estimating.read_only(transaction)


def _changed(transaction: Transaction, planned: Job, group: Group, tally: Tally) -> list[Document]:
    """The documents of a group that are not published just so."""
    hashes = [(item.uri, item.content_hash(), item.meta_hash()) for item in group.documents]
    known: set[str] = set()
    if hashes:
        with transaction() as connection:
            known = staging.unchanged(connection, planned, hashes, recipe_hash(planned.recipe))
    tally.documents["unchanged"] += len(known) + len(group.unchanged)
    for item in group.rejected:
        tally.failed(item.uri, item.error)
    return [item for item in group.documents if item.uri not in known]


def _told(
    tools: Tools, reading: Reading, wish: Wish, tally: Tally, gone: int, left_out: int, seconds: float
) -> Estimate:
    model = wish.collection.model
    new, cached = tally.kinds["new"], tally.kinds["cached"]
    wallet = Wallet(wish.tenant, wish.max_cost)
    priced = price(tools, reading.redis, model, new, cached, wallet, wish.seconds_left)
    spec = ModelSpec.from_json(model)
    documents = {name: tally.documents[name] for name in ("new", "unchanged", "failed")}
    return Estimate(
        wish.collection.name,
        wish.exists,
        wish.tenant,
        model,
        wish.provider,
        {"total": tally.documents.total(), **documents, "deleted": gone, "skipped": left_out},
        tally.chunks,
        **tally.kinds,
        exact_tokens=spec.provider == "local" or counts_exactly(tools.openai, spec.name),
        offers=priced.offers,
        auto=priced.auto,
        saved_by_cache=priced.saved,
        errors=tally.errors,
        seconds=seconds,
    )
