"""Embeddings through the durable cache: what was computed once is not computed again."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from pipeline.document import embedding_key
from pipeline.embedding.base import Embedder, ModelRun, Role
from pipeline.ledger import embeddings
from pipeline.ledger.engine import Ledger
from pipeline.observe import count, operation
from pipeline.status import EmbedResult


def embed_cached(ledger: Ledger, embedder: Embedder, texts: Sequence[str], role: Role) -> EmbedResult:
    """The texts' vectors, float32[n, dim]: stored ones where there are; the others are computed once, and stored."""
    with operation("embed.texts"):
        return _embed_cached(ledger, embedder, texts, role)


def _embed_cached(ledger: Ledger, embedder: Embedder, texts: Sequence[str], role: Role) -> EmbedResult:
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
    if missing:
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
