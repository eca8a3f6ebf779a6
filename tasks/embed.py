"""`embed.batch`: chunks get their vectors, their points go into the index, complete versions are published."""

from __future__ import annotations

from functools import partial

from celery import shared_task

from pipeline import ingest
from pipeline.assembly import Services
from pipeline.ledger import collections
from pipeline.ledger.batches import Claim
from pipeline.ledger.engine import Connection
from tasks import base

# Before the first measurement: about two seconds of MiniLM float32 on one slow core.
_UNMEASURED_TOKENS = 4096


def token_budget(opened: Services, connection: Connection, claim: Claim) -> int:
    """Tokens that this process embeds in `max_wait_seconds`, by its measured speed; less while batches are shrunk."""
    model = collections.by_id(connection, claim.collection_id).model
    speed = opened.embedder(model).tokens_per_second
    tokens = _UNMEASURED_TOKENS if speed is None else speed * opened.settings.embedding.max_wait_seconds
    return int(tokens * opened.batch_share.read(connection))


@shared_task(name="embed.batch")
def embed_batch(batch_id: int) -> None:
    """Embeds a batch and what is small enough to go with it."""
    opened = base.services()
    base.perform(opened, batch_id, ingest.embed, partial(token_budget, opened))
