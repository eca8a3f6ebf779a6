"""`embed.batch`: chunks get their vectors, their points go into the index, complete versions are published."""

from __future__ import annotations

from functools import partial

from celery import shared_task

from pipeline import ingest
from pipeline.assembly import Services
from pipeline.deals import BATCH, ONLINE
from pipeline.embed_batches import suited
from pipeline.errors import ModelUnavailable
from pipeline.ledger import collections, reembeddings
from pipeline.ledger.batches import Claim
from pipeline.ledger.engine import Connection
from tasks import base

# Before the first measurement: about two seconds of MiniLM float32 on one slow core.
_UNMEASURED_TOKENS = 4096
# Of what is bought online, so many full requests at most: what comes of them is in memory at once.
_MOST_REQUESTS = 4


def token_budget(opened: Services, connection: Connection, claim: Claim) -> int:
    """Tokens that this process embeds in `max_wait_seconds`, by its measured speed; less while batches are shrunk.

    Of what is bought it is a request at least: what it costs is the same, however many claims share it. What is put on
    order, or comes from there, takes no time of a model.
    """
    try:
        return int(_tokens(opened, connection, claim) * opened.batch_share.read(connection))
    except ModelUnavailable:
        return 0  # nothing goes with what is handed back


def _tokens(opened: Services, connection: Connection, claim: Claim) -> float:
    request, seconds = opened.settings.openai.request_tokens, opened.settings.embedding.max_wait_seconds
    if claim.provider == BATCH:
        return request * _MOST_REQUESTS
    collection = collections.by_id(connection, claim.collection_id)
    if claim.reembedding_id is not None:
        collection = reembeddings.target(connection, claim, collection)
    provider = suited(claim.provider, collection, opened.settings.openai)
    speed = opened.embedder(collection.model, provider).tokens_per_second
    if provider == ONLINE:
        return min(max(request, (speed or 0.0) * seconds), request * _MOST_REQUESTS)
    return _UNMEASURED_TOKENS if speed is None else speed * seconds


@shared_task(name="embed.batch")
def embed_batch(batch_id: int) -> None:
    """Embeds a batch and what is small enough to go with it."""
    opened = base.services()
    base.perform(opened, batch_id, ingest.embed, partial(token_budget, opened))
