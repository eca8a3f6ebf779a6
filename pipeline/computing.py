"""How embed batches get vectors that cost nothing: computed here, by the model of this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.ledger import batches, embeddings, jobs
from pipeline.ledger.batches import Claim
from pipeline.ledger.chunks import WantedPoint
from pipeline.ledger.collections import Collection
from pipeline.ledger.embeddings import Vector
from pipeline.observe import count, operation
from pipeline.tools import Progress, Tools

# What is thrown away, at most, where a worker leaves in the middle of an embedding.
_PART_SECONDS = 0.5


def compute(
    tools: Tools,
    collection: Collection,
    claims: Sequence[Claim],
    wanted: Sequence[WantedPoint],
    progress: Progress,
) -> dict[bytes, Vector]:
    """Computes the vectors here, each text once, and makes them durable before they are used.

    Those that are computed when it breaks off (a worker that leaves, a text that fails) are made durable too.
    """
    missing = {point.embedding_key: point for point in wanted}
    vectors: dict[bytes, Vector] = {}
    embedder = tools.embedder(collection.model, "local")
    try:
        for part in _parts(missing, embedder.tokens_per_second):
            texts = [missing[key].text for key in part]
            with operation("embed.compute"):
                computed = embedder.embed(texts, "passage", lambda _: progress()).vectors
            vectors.update(zip(part, computed, strict=True))
            count("embedded_texts", len(part), "local")
            count("embedded_tokens", sum(missing[key].tokens for key in part), "local")
    finally:
        if vectors:
            vectors |= _store(tools, claims, {key: (vector, missing[key]) for key, vector in vectors.items()})
    return vectors


def _parts(missing: Mapping[bytes, WantedPoint], speed: float | None) -> list[list[bytes]]:
    """The keys cut into parts of about half a second's work, texts of like length together; one part where the speed is
    not known yet."""
    if speed is None:
        return [list(missing)] if missing else []
    parts: list[list[bytes]] = []
    tokens = 0.0
    for key in sorted(missing, key=lambda key: -missing[key].tokens):
        if not parts or tokens >= speed * _PART_SECONDS:
            parts.append([])
            tokens = 0.0
        parts[-1].append(key)
        tokens += missing[key].tokens
    return parts


def _store(
    tools: Tools, claims: Sequence[Claim], vectors: Mapping[bytes, tuple[Vector, WantedPoint]]
) -> dict[bytes, Vector]:
    """Makes vectors durable. Returns those that somebody else had stored meanwhile: they are the ones that count. An
    int8 model gives a text another vector in other company, and what is in the index is what is stored."""
    with operation("embed.store"), tools.ledger.transaction() as connection:
        batches.hold(connection, claims)
        new = embeddings.store(connection, {key: (vector, point.tokens) for key, (vector, point) in vectors.items()})
        embedded = Counter(vectors[key][1].job_id for key in new)
        jobs.count(connection, {job: {"chunks_embedded": count} for job, count in embedded.items()})
        others = sorted(vectors.keys() - set(new))
        return embeddings.load(connection, others) if others else {}
