"""What claimed embed batches are to bring into which Qdrant collection, by which model and provider."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pipeline.document import embedding_key
from pipeline.embed_batches import suited
from pipeline.embedding.base import ModelSpec
from pipeline.ledger import batches, chunks, collections, reembed_chunks, reembeddings
from pipeline.ledger.batches import Claim
from pipeline.ledger.chunks import WantedPoint
from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Connection
from pipeline.tools import Tools


def work_of(
    tools: Tools, connection: Connection, claims: Sequence[Claim]
) -> tuple[Collection, Sequence[Claim], Sequence[WantedPoint]]:
    """The collection, as it is or (where it is re-embedded) will be; the claims; and their chunks that are left.

    A collection may have got another model since these batches were made. Then their chunks get the keys of that one,
    and the claims another provider, where theirs cannot embed with it. Raises LeaseLost.
    """
    collection = collections.by_id(connection, claims[0].collection_id)
    if claims[0].reembedding_id is not None:
        target = reembeddings.target(connection, claims[0], collection)
        return target, claims, reembed_chunks.wanted_points(connection, claims)
    key_of = partial(embedding_key, ModelSpec.from_json(collection.model).fingerprint("passage"))
    wanted = chunks.rekeyed(connection, chunks.wanted_points(connection, claims), key_of)
    provider = suited(claims[0].provider, collection, tools.openai)
    if provider != claims[0].provider:
        claims = batches.give(connection, claims, provider)
    return collection, claims, wanted
