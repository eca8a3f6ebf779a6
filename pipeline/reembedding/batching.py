"""Chunks become embed batches: counted as the new model counts, and given to whoever embeds them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence

from pipeline import routing
from pipeline.assembly import Services
from pipeline.deals import BATCH, ONLINE, PAID
from pipeline.document import embedding_key
from pipeline.embed_batches import groups_of, size_with
from pipeline.embedding.base import Embedder, ModelSpec
from pipeline.ledger import batches, jobs, reembed_chunks, reembed_failures, reembeddings
from pipeline.ledger.batches import Claim
from pipeline.ledger.dead_letters import Failure
from pipeline.ledger.engine import Connection
from pipeline.ledger.jobs import Job
from pipeline.ledger.reembed_chunks import Keyed, Piece
from pipeline.ledger.reembeddings import Reembedding


class Superseded(Exception):
    """Somebody else has done it, or it was cancelled: nothing was written."""


def put(services: Services, found: Reembedding, pieces: Sequence[Piece], then: Callable[[Connection], None]) -> int:
    """Makes batches of chunks; what is too long for the model fails. then: is called in the same transaction, also
    where there are none. Returns how many chunks. Raises Superseded."""
    spec = ModelSpec.from_json(found.model)
    with services.ledger.transaction() as connection:
        job = jobs.get(connection, found.job_id)
        share = services.batch_share.read(connection)
    embedder = services.embedder(found.model, ONLINE if found.provider in PAID else None)
    counts = embedder.count_tokens([piece.text for piece in pieces]) if pieces else []
    fingerprint = spec.fingerprint("passage")
    fitting: list[Keyed] = []
    long: dict[uuid.UUID, Failure] = {}
    for piece, tokens in zip(pieces, counts, strict=True):
        if tokens > spec.max_tokens:
            long[piece.point_id] = Failure(_too_long(tokens, spec), None, piece.ordinal, piece.text)
        else:
            fitting.append(Keyed(piece.point_id, embedding_key(fingerprint, piece.text), tokens))
    provider = _provider(services, found, job, spec, fitting, embedder)
    groups = groups_of(fitting, size_with(services.tools, embedder, provider, share))
    with services.ledger.transaction() as connection:
        if not reembeddings.lock(connection, found) or not reembeddings.lock_job(connection, found):
            raise Superseded
        ids = batches.insert(
            connection,
            kind="embed",
            collection_id=found.collection_id,
            tenant=job.tenant,
            job_id=job.id,
            provider=provider,
            sizes=[(len(group), sum(chunk.tokens for chunk in group)) for group in groups],
            reembedding_id=found.id,
        )
        if not reembed_chunks.put(connection, found, dict(zip(ids, groups, strict=True))):
            raise Superseded
        reembed_failures.fail(connection, found.id, job.id, long, attempts=0)
        if found.walked and fitting:
            jobs.count(connection, {job.id: {"chunks_total": len(fitting)}})
        then(connection)
    return len(fitting)


def _too_long(tokens: int, spec: ModelSpec) -> str:
    return (
        f"the text has {tokens:,} tokens, {spec.name} takes {spec.max_tokens:,}: set MILLRACE_CHUNKING__MAX_TOKENS to "
        "that or less, and ingest its document again"
    )


def _provider(
    services: Services, found: Reembedding, job: Job, spec: ModelSpec, chunks: Sequence[Keyed], embedder: Embedder
) -> str:
    """Who embeds these. What comes after the walk through all of them does not wait for another window of the Batch
    API: there is always something that comes."""
    provider = job.provider
    if provider == "auto" and chunks:
        wanted = _extrapolated(chunks, found.chunks)
        means = routing.Means(services.settings.openai, services.settings.openai_batch, services.settings.cost)
        speed = embedder.tokens_per_second if spec.provider == "local" else None
        with services.ledger.transaction() as connection:
            provider = routing.route(connection, means, _claim(found, job), spec, wanted, speed)
    return ONLINE if provider == BATCH and found.walked else provider


def _extrapolated(chunks: Sequence[Keyed], total: int) -> Mapping[bytes, int]:
    """Key -> tokens, as if these chunks were all that there are."""
    share = max(1.0, total / len(chunks))
    return {chunk.embedding_key: round(chunk.tokens * share) for chunk in chunks}


def _claim(found: Reembedding, job: Job) -> Claim:
    """What routing asks about is work of this job."""
    return Claim(
        id=0,
        kind="embed",
        epoch=0,
        collection_id=found.collection_id,
        job_id=job.id,
        tenant=job.tenant,
        priority=job.priority,
        provider=job.provider,
        size=1,
        tokens=0,
        attempts=0,
        losses=0,
        alone=False,
        collection=found.collection,
        reembedding_id=found.id,
    )
