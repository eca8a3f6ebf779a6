"""Mending the index from the ledger: points put back from durable embeddings, and points taken out.

Safe beside workers, beside another repair, and killed anywhere: every step can be done again, and after each write the
ledger is asked again, for what was removed or has come meanwhile.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from pipeline.embedding.base import ModelSpec
from pipeline.errors import (
    BoughtElsewhere,
    BudgetExhausted,
    EmbeddingFailed,
    InvalidRequest,
    InvalidVectors,
    KeyRejected,
    MillraceError,
    ModelUnavailable,
    QuotaExhausted,
)
from pipeline.ledger import embeddings, standing
from pipeline.ledger.collections import Collection as IndexedCollection
from pipeline.ledger.embeddings import Vector
from pipeline.ledger.standing import EXPECTED, StoredChunk
from pipeline.lone_buying import Payment, buy_alone
from pipeline.patience import Patience
from pipeline.points import points_of
from pipeline.tools import Tools

# Texts that are bought in one go: none of them is kept from others for long.
_BOUGHT_AT_ONCE = 256
# What waiting does not help against.
_NO_VECTORS = (
    ModelUnavailable,
    EmbeddingFailed,
    InvalidRequest,
    InvalidVectors,
    KeyRejected,
    QuotaExhausted,
    BudgetExhausted,
    BoughtElsewhere,
)


@dataclass(slots=True)
class Repaired:
    """Points upserted and deleted, and embeddings that had to be computed. failed: points that could not be put back,
    because their embedding is not stored and cannot be computed here; error says why."""

    upserted: int = 0
    deleted: int = 0
    embedded: int = 0
    failed: int = 0
    error: str | None = None

    def to_json(self) -> dict[str, int | str | None]:
        return {name: getattr(self, name) for name in ("upserted", "deleted", "embedded", "failed", "error")}


@dataclass(slots=True)
class Repairer:
    """Mends one collection; `done` counts."""

    tools: Tools
    collection: IndexedCollection
    page: int  # points of one step
    patience: Patience
    done: Repaired = field(default_factory=Repaired)

    def put(self, point_ids: Sequence[uuid.UUID]) -> None:
        """Upserts those of the points that belong in the index. Chunks whose batch is not done are put there if their
        embedding is stored: a worker may have upserted them already. Raises Unavailable, VectorsFailed."""
        for start in range(0, len(point_ids), self.page):
            self.patience.call(partial(self._put, point_ids[start : start + self.page]))

    def take(self, point_ids: Sequence[uuid.UUID]) -> None:
        """Deletes points that the ledger does not know, or that should have left. Raises Unavailable, VectorsFailed."""
        for start in range(0, len(point_ids), self.page):
            page = point_ids[start : start + self.page]
            self.patience.call(partial(self.tools.vectors.delete, self.collection.physical, page))
            self.done.deleted += len(page)
            # After this process was stopped for long, one of them may have become a chunk: one of a ledger that was
            # set back to a backup gets the ids again that are in the index.
            known = self.patience.call(partial(self._standing, page))
            self.put([point for point in page if known.get(point) in EXPECTED | {"arriving"}])

    def embed(self, point_ids: Sequence[uuid.UUID]) -> None:
        """Stores the embeddings that are missing of these chunks."""
        for start in range(0, len(point_ids), self.page):
            self.patience.call(partial(self._embed, point_ids[start : start + self.page]))

    def _embed(self, point_ids: Sequence[uuid.UUID]) -> None:
        chunks, vectors = self._load(point_ids)
        self._compute(chunks, vectors)

    def _put(self, point_ids: Sequence[uuid.UUID]) -> None:
        chunks, vectors = self._load(point_ids)
        vectors |= self._compute(chunks, vectors)
        chunks = [chunk for chunk in chunks if chunk.embedding_key in vectors]
        if not chunks:
            return
        points = points_of(self.tools, self.collection, chunks, vectors)
        self.tools.vectors.upsert(self.collection.physical, points)
        # A chunk that was removed and swept meanwhile must not come back for good. One that is leaving is still to be
        # swept, after this write.
        known = self._standing([point.id for point in points])
        gone = [point.id for point in points if known.get(point.id, "stale") == "stale"]
        if gone:
            self.tools.vectors.delete(self.collection.physical, gone)
        self.done.upserted += len(points) - len(gone)

    def _load(self, point_ids: Sequence[uuid.UUID]) -> tuple[list[StoredChunk], dict[bytes, Vector]]:
        """The chunks that belong into the index, and the embeddings that are stored of them."""
        with self.tools.ledger.transaction() as connection:
            chunks = standing.stored(connection, self.collection, point_ids)
            chunks = [chunk for chunk in chunks if chunk.standing in EXPECTED | {"arriving"}]
            return chunks, embeddings.load(connection, sorted({chunk.embedding_key for chunk in chunks}))

    def _compute(self, chunks: Sequence[StoredChunk], vectors: dict[bytes, Vector]) -> dict[bytes, Vector]:
        """Computes and stores the embeddings of expected chunks that are not stored (normally none). What is arriving
        has none yet before its worker made it."""
        missing = {
            chunk.embedding_key: chunk
            for chunk in chunks
            if chunk.embedding_key not in vectors and chunk.standing in EXPECTED
        }
        if not missing:
            return {}
        if ModelSpec.from_json(self.collection.model).provider != "local":
            return self._buy(chunks, missing)
        try:
            embedder = self.tools.embedder(self.collection.model, "local")
            computed = embedder.embed([chunk.text for chunk in missing.values()], "passage").vectors
        except (ModelUnavailable, EmbeddingFailed) as error:
            self._failed(chunks, missing, error)
            return {}
        made = dict(zip(missing, computed, strict=True))
        with self.tools.ledger.transaction() as connection:
            new = embeddings.store(connection, {key: (made[key], chunk.tokens) for key, chunk in missing.items()})
        self.done.embedded += len(new)
        return made

    def _buy(self, chunks: Sequence[StoredChunk], missing: Mapping[bytes, StoredChunk]) -> dict[bytes, Vector]:
        """As `_compute`, where the model is not of this machine: they are bought online, and paid for by the tenants
        whose they are. What is on order with the Batch API comes from there."""
        made: dict[bytes, Vector] = {}
        by_tenant: dict[str, list[bytes]] = {}
        for key, chunk in missing.items():
            by_tenant.setdefault(chunk.tenant, []).append(key)
        for tenant, keys in sorted(by_tenant.items()):
            for start in range(0, len(keys), _BOUGHT_AT_ONCE):
                part = {key: missing[key] for key in keys[start : start + _BOUGHT_AT_ONCE]}
                made |= self._buy_part(chunks, tenant, part)
        return made

    def _buy_part(
        self, chunks: Sequence[StoredChunk], tenant: str, part: Mapping[bytes, StoredChunk]
    ) -> Mapping[bytes, Vector]:
        tools, collection = self.tools, self.collection
        payment = Payment(tools.openai, tools.cost, tenant, collection.name, collection.id)
        texts = {key: chunk.text for key, chunk in part.items()}
        try:
            embedder = tools.embedder(collection.model)
            bought = buy_alone(tools.ledger, embedder, payment, texts, "passage", ordered_too=False)
        except _NO_VECTORS as error:
            self._failed(chunks, part, error)
            return {}
        self.done.embedded += len(bought.vectors)
        if bought.ordered:
            waits = BoughtElsewhere(f"{len(bought.ordered)} texts are on order with the Batch API; try again later")
            self._failed(chunks, bought.ordered, waits)
        return bought.vectors

    def _failed(self, chunks: Sequence[StoredChunk], keys: Collection[bytes], error: MillraceError) -> None:
        self.done.failed += sum(chunk.embedding_key in keys for chunk in chunks)
        self.done.error = str(error)

    def _standing(self, point_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, standing.Standing]:
        with self.tools.ledger.transaction() as connection:
            return standing.standing(connection, self.collection, point_ids)


class Pace:
    """Holds a loop to so many points a second; 0: does not."""

    def __init__(self, points_per_second: float) -> None:
        self._rate = points_per_second
        self._due = time.monotonic()

    def spend(self, points: int) -> None:
        """Waits until so many points' time has passed since the last call; time lost before that is not made up for."""
        if self._rate:
            self._due += points / self._rate
            time.sleep(max(0.0, self._due - time.monotonic()))
            self._due = max(self._due, time.monotonic())
