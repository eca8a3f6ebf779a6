"""What is asked for: a re-embedding begins, is cancelled, tries again what failed, and says how it is going."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import control, routing
from pipeline.assembly import Services
from pipeline.cached_embedding import embed_cached
from pipeline.embedding.base import Embedder, ModelSpec
from pipeline.errors import InvalidRequest, ModelUnavailable
from pipeline.ledger import collections, jobs, reembed_chunks, reembed_failures, reembeddings, standing
from pipeline.ledger.collections import Collection
from pipeline.ledger.dead_letters import Selection
from pipeline.ledger.engine import Connection
from pipeline.ledger.reembed_chunks import Piece
from pipeline.ledger.reembeddings import Reembedding
from pipeline.ledger.standing import FIRST, LAST
from pipeline.lone_buying import Payment
from pipeline.providers import Asked, check_cost
from pipeline.reembedding.status import ReembeddingStatus, told
from pipeline.reembedding.steps import begin_cancelling, drop_doomed
from pipeline.status import average_rate, with_rate
from pipeline.submission import correlation, read_status

# Chunks that are looked at in one step.
_PAGE = 2000
_MOST_COUNTED = 20_000
_SHOWN_ERRORS = 20
# What a provider is asked first, so that a wrong key, model or dimension is told before anything is begun.
_PROBE = "Is this model there?"
_PAID = ("openai", "openai_batch")


def start(
    services: Services,
    name: str,
    model: str,
    *,
    provider: str | None = None,
    dimensions: int | None = None,
    max_cost: float | None = None,
    tenant: str,
    priority: str = "low",
    correlation_id: str | None = None,
) -> ReembeddingStatus:
    """Begins it, once everything is known to fit: workers do the rest.

    Raises UnknownCollection, InvalidRequest (the very model that it has, one under way, chunks that are too long for
    the model, an unknown priority), ModelUnavailable, ProviderUnavailable; BudgetExhausted where nothing may be spent.
    """
    number = jobs.priority_number(priority)
    check_cost(max_cost)
    Asked(provider, model, dimensions).check()
    with services.ledger.transaction() as connection:
        collection = collections.get(connection, name)
        _refuse_second(connection, collection)
    who = provider or _provider(services, collection, model)
    spec = services.spec_for(who, model, dimensions)
    routing.check(who, spec, services.settings.openai)
    if spec.to_json() == dict(collection.model):
        raise InvalidRequest(
            f"collection {name!r} has the vectors of {spec.name} ({spec.dimensions} dimensions) already; there is "
            "nothing to re-embed"
        )
    embedder = services.embedder(spec.to_json(), "openai" if who in _PAID else None)
    if who in _PAID:
        payment = Payment(services.settings.openai, services.settings.cost, tenant, name, collection.id)
        embed_cached(services.ledger, embedder, [_PROBE], "passage", payment)
    chunks = _survey(services, collection, embedder)
    recipe = services.recipe(embedder, collection.sparse)
    with services.ledger.transaction() as connection:
        collections.alone(connection, collection.id)
        collection = collections.by_id(connection, collection.id)
        _refuse_second(connection, collection)
        job, _ = jobs.create(
            connection,
            kind="reembed",
            collection_id=collection.id,
            tenant=tenant,
            priority=number,
            provider=who,
            recipe=recipe,
            max_cost=max_cost,
            correlation_id=correlation(correlation_id),
        )
        reembeddings.create(
            connection,
            collection,
            physical=f"{collection.physical.rsplit('-', 1)[0]}-{uuid.uuid4().hex[:8]}",
            model=spec.to_json(),
            provider=who,
            job_id=job.id,
            chunks=chunks,
        )
    return status(services, name)


def _provider(services: Services, collection: Collection, model: str) -> str:
    """Who embeds where nobody says: the collection's own provider, as far as it has such a model."""
    if model.startswith("text-embedding-"):
        return collection.provider if collection.provider in _PAID else "openai"
    try:
        services.spec_for("local", model, None)
    except ModelUnavailable:
        if collection.provider in _PAID:
            return collection.provider
        raise
    return "local"


def _refuse_second(connection: Connection, collection: Collection) -> None:
    found = reembeddings.newest(connection, collection.id)
    if found is None or found.ended_at is not None:
        return
    model = found.model.get("name")
    if found.state == "cancelling":
        raise InvalidRequest(
            f"what was built of {collection.name!r} for {model} is being removed; try again in a moment"
        )
    if found.switched_at is not None:
        raise InvalidRequest(
            f"collection {collection.name!r} got the vectors of {model} just now; try again in a moment"
        )
    raise InvalidRequest(
        f"collection {collection.name!r} is being re-embedded with {model} already (job {found.job_id}); "
        f"`millrace reembed {collection.name} --status` shows how far it is, `--cancel` ends it"
    )


def _survey(services: Services, collection: Collection, embedder: Embedder) -> int:
    """How many chunks there are. Raises InvalidRequest where some are too long for the model.

    No text has more tokens than bytes, beside those that the model adds: only what could be too long is counted.
    """
    limit = embedder.spec.max_tokens
    least_bytes = max(0, limit - embedder.count_tokens([""])[0] + 1)
    total = 0
    long = _Long()
    after = FIRST
    while after != LAST:
        with services.ledger.transaction() as connection:
            upto = standing.step(connection, after, LAST, _PAGE)
            page = reembed_chunks.survey(connection, collection.id, after, upto, least_bytes)
        total += page.expected
        long.look(page.pieces, embedder.count_tokens([piece.text for piece in page.pieces]), limit)
        after = upto
    if long.point is not None:
        with services.ledger.transaction() as connection:
            uri = reembed_chunks.uri_of(connection, long.point)
        raise InvalidRequest(_too_long(collection, embedder.spec, long, uri))
    return total


@dataclass(slots=True)
class _Long:
    """Chunks that are over the limit: how many, and the longest."""

    count: int = 0
    tokens: int = 0
    point: uuid.UUID | None = None

    def look(self, pieces: Sequence[Piece], counts: Sequence[int], limit: int) -> None:
        for piece, tokens in zip(pieces, counts, strict=True):
            if tokens > limit:
                self.count += 1
                if tokens > self.tokens:
                    self.tokens, self.point = tokens, piece.point_id


def _too_long(collection: Collection, spec: ModelSpec, long: _Long, uri: str) -> str:
    return (
        f"{long.count:,} chunk{'s' if long.count > 1 else ''} of collection {collection.name!r} "
        f"{'are' if long.count > 1 else 'is'} longer than the {spec.max_tokens:,} tokens that {spec.name} takes: the "
        f"longest has {long.tokens:,} (of {uri}). Choose a model that takes more; or set "
        f"MILLRACE_CHUNKING__MAX_TOKENS to {spec.max_tokens:,} or less, ingest again, and re-embed then"
    )


# -- while it is under way ---------------------------------------------------------------------------------------------


def status(services: Services, name: str) -> ReembeddingStatus:
    """The collection's last re-embedding, under way or not. Raises UnknownCollection; InvalidRequest where it never
    had one."""
    with services.ledger.transaction() as connection:
        found = _newest(connection, name)
        left = reembed_chunks.left(connection, found, _MOST_COUNTED)
        errors = reembed_chunks.failing(connection, found, _SHOWN_ERRORS)
        job = None
        if found.job_state is not None:
            seen, row = read_status(connection, found.job_id)
            job = with_rate(seen, row, average_rate(row))
    return told(found, left, errors, job)


def _newest(connection: Connection, name: str) -> Reembedding:
    found = reembeddings.newest(connection, collections.get(connection, name).id)
    if found is None:
        raise InvalidRequest(
            f"collection {name!r} was never re-embedded; `millrace reembed {name} --model NAME` begins it"
        )
    return found


def cancel(services: Services, name: str) -> ReembeddingStatus:
    """Ends it: the collection stays as it is, and what was built goes. What was bought stays stored.

    Raises UnknownCollection, InvalidRequest where none is under way, or the collection has the new vectors already.
    """
    with services.ledger.transaction() as connection:
        found = _newest(connection, name)
        if found.switched_at is not None:
            raise InvalidRequest(
                f"collection {name!r} has the vectors of {found.model.get('name')} already; "
                f"`millrace reembed {name} --model {found.before.get('name')}` brings back the former ones"
            )
        if found.state == "cancelled":
            raise InvalidRequest(f"collection {name!r} is not being re-embedded: that was cancelled before")
    # From its commit on it is never switched: the switch asks for the job's state under its lock.
    control.cancel(services, found.job_id)
    begin_cancelling(services, found.id)
    drop_doomed(services)
    return status(services, name)


def retry(services: Services, name: str) -> int:
    """Everything that failed in the collection's re-embedding is tried again. Returns how many chunks.

    Raises UnknownCollection, InvalidRequest where none is under way.
    """
    with services.ledger.transaction() as connection:
        found = _newest(connection, name)
        if found.ended_at is not None or found.switched_at is not None:
            raise InvalidRequest(f"collection {name!r} is not being re-embedded: there is nothing to try again")
        reembed_failures.retry(connection, Selection(job_id=found.job_id))
        tried = reembed_chunks.try_again(connection, found)
        reembeddings.tell(connection, found, None)
    return tried
