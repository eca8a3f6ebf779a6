"""Embeddings through the durable cache: what was computed or bought once is not computed or bought again.

This is for who waits for the answer, a search or `embed`; documents have a path of their own (`ingest`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from pipeline.document import embedding_key
from pipeline.embedding.base import Embedder, ModelRun, Role
from pipeline.ledger import embeddings
from pipeline.ledger.engine import Ledger
from pipeline.lone_buying import Payment, buy_alone
from pipeline.observe import count, operation
from pipeline.status import EmbedResult


def embed_cached(
    ledger: Ledger, embedder: Embedder, texts: Sequence[str], role: Role, payment: Payment | None = None
) -> EmbedResult:
    """The texts' vectors, float32[n, dim]: stored ones where there are; the others are computed once, and stored.

    payment: who pays, where the embedder is not of this machine. Then it raises BudgetExhausted (nothing is bought),
    BoughtElsewhere (another one buys some of them, and does not come to an end), ProviderUnavailable.
    """
    with operation("embed.texts"):
        return _embed_cached(ledger, embedder, texts, role, payment)


def _embed_cached(
    ledger: Ledger, embedder: Embedder, texts: Sequence[str], role: Role, payment: Payment | None
) -> EmbedResult:
    started = time.perf_counter()
    spec = embedder.spec
    keys = [embedding_key(spec.fingerprint(role), text) for text in texts]
    with ledger.transaction() as connection:
        vectors = embeddings.load(connection, sorted(set(keys)))
        embeddings.touch(connection, list(vectors))
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
    count("cache_lookups", len(texts) - len(missing), "embedding", "postgres", "hit")
    count("cache_lookups", len(missing), "embedding", "postgres", "miss")
    runs: tuple[ModelRun, ...] = ()
    if missing and payment is not None:
        # One that the Batch API has on order is bought all the same: who waits here cannot wait for that.
        vectors |= buy_alone(ledger, embedder, payment, missing, role, ordered_too=True).vectors
    elif missing:
        computed = embedder.embed(list(missing.values()), role)
        tokens = embedder.count_tokens(list(missing.values()))
        count("embedded_tokens", sum(tokens), "local")
        count("embedded_texts", len(missing), "local")
        runs = computed.runs
        fresh = {key: (vector, count) for key, vector, count in zip(missing, computed.vectors, tokens, strict=True)}
        with ledger.transaction() as connection:
            embeddings.store(connection, fresh)
        vectors |= {key: vector for key, (vector, _) in fresh.items()}
    stacked = np.stack([vectors[key] for key in keys]) if keys else np.empty((0, spec.dimensions), np.float32)
    return EmbedResult(
        model=spec.name,
        vectors=stacked,
        hits=len(texts) - len(missing),
        misses=len(missing),
        runs=runs,
        seconds=time.perf_counter() - started,
    )
