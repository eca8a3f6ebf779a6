"""Embed batches, made at prepare: who carries them out, and how many chunks each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from pipeline import routing
from pipeline.deals import ONLINE, PAID
from pipeline.document import embedding_key
from pipeline.drafts import Draft
from pipeline.embedding.base import Embedder, ModelSpec
from pipeline.embedding.openai.spec import is_served
from pipeline.ledger import batches
from pipeline.ledger.batches import Claim
from pipeline.ledger.chunks import NewChunk
from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Connection
from pipeline.settings import OpenAISettings
from pipeline.tools import Tools

# Chunks of one embed batch, however fast the model is: what is done again where a worker is lost. And among so many
# the chunks alike in length are found for a batch: more would pad less, and finish the first document later.
_MOST_CHUNKS = 512


def route(tools: Tools, claim: Claim, collection: Collection, drafts: Sequence[Draft]) -> str:
    """Who embeds what is new: as the job says, or as is decided for it now."""
    if not any(draft.chunks for draft in drafts):
        return claim.provider
    spec = ModelSpec.from_json(collection.model)
    if claim.provider == "local" == spec.provider:
        return claim.provider  # nobody decides otherwise
    wanted: dict[bytes, int] = {}
    speed = None
    if claim.provider == "auto":
        fingerprint = spec.fingerprint("passage")
        chunks = [chunk for draft in drafts for chunk in draft.chunks]
        wanted = {embedding_key(fingerprint, chunk.text): chunk.tokens for chunk in chunks}
        speed = tools.embedder(collection.model).tokens_per_second if spec.provider == "local" else None
    means = routing.Means(tools.openai, tools.openai_batch, tools.cost)
    with tools.ledger.transaction() as connection:
        return routing.route(connection, means, claim, spec, wanted, speed)


def suited(provider: str, collection: Collection, openai: OpenAISettings) -> str:
    """Who embeds for a job or batch that says `provider`: whom it says, unless its collection has got another model
    since, with which that one cannot."""
    if provider == "auto":
        return provider
    spec = ModelSpec.from_json(collection.model)
    if spec.provider == "openai":
        others = collection.provider if collection.provider in PAID else ONLINE
        return provider if provider in PAID else others
    # Where it never had another one, it is this machine that does not know the server has it: the work waits for one
    # that does.
    return provider if provider not in PAID or not collection.former or is_served(spec, openai) else "local"


@dataclass(frozen=True, slots=True)
class BatchSize:
    """An embed batch ends with this many chunks, or where these tokens are reached, whichever comes last."""

    chunks: int
    tokens: float


def size_of(tools: Tools, collection: Collection, drafts: Sequence[Draft], provider: str, share: float) -> BatchSize:
    """The setting; and where this process has seen the model be fast, as much as it embeds in a second: a message costs
    as much for one chunk as for many. What is bought is asked for in large requests. share: of that, while memory is
    short or work too slow."""
    # Deletions have no chunks, and need no model.
    some = any(draft.chunks for draft in drafts)
    embedder = tools.embedder(collection.model, "local") if some and provider not in PAID else None
    return size_with(tools, embedder, provider, share)


def size_with(tools: Tools, embedder: Embedder | None, provider: str, share: float) -> BatchSize:
    """As `size_of`, with who embeds."""
    if provider in PAID:
        return BatchSize(max(1, round(_MOST_CHUNKS * share)), 0.0)
    tokens = (embedder.tokens_per_second if embedder else None) or 0.0
    return BatchSize(max(1, round(tools.ingest.embed_chunks * share)), tokens * share)


class _Counted(Protocol):
    @property
    def tokens(self) -> int: ...


_Chunk = TypeVar("_Chunk", bound=_Counted)


def groups_of(chunks: Sequence[_Chunk], size: BatchSize) -> list[list[_Chunk]]:
    """Chunks cut into batches, of chunks alike in length."""
    return [
        group
        for start in range(0, len(chunks), _MOST_CHUNKS)
        for group in _groups(sorted(chunks[start : start + _MOST_CHUNKS], key=lambda chunk: -chunk.tokens), size)
    ]


def _groups(ordered: Sequence[_Chunk], size: BatchSize) -> list[list[_Chunk]]:
    """Chunks, longest first, cut into batches: the short ones come last, so that no child waits long for another."""
    groups: list[list[_Chunk]] = []
    tokens = 0
    for chunk in ordered:
        count = len(groups[-1]) if groups else size.chunks
        if not groups or (count >= size.chunks and tokens >= size.tokens):
            groups.append([])
            tokens = 0
        groups[-1].append(chunk)
        tokens += chunk.tokens
    return groups


def assign(
    connection: Connection, claim: Claim, born: Sequence[NewChunk], provider: str, size: BatchSize
) -> list[NewChunk]:
    """Makes the embed batches: across documents, so that small ones share a batch, and of chunks alike in length."""
    groups = groups_of(born, size)
    ids = batches.insert(
        connection,
        kind="embed",
        collection_id=claim.collection_id,
        tenant=claim.tenant,
        job_id=claim.job_id,
        provider=provider,
        sizes=[(len(group), sum(chunk.tokens for chunk in group)) for group in groups],
    )
    return [replace(chunk, batch_id=batch_id) for batch_id, group in zip(ids, groups, strict=True) for chunk in group]
