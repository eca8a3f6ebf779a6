"""Work that buys, as far as a test wants it, and what the ledger shows of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from paid_embedder import DIMENSIONS, PaidEmbedder, paying
from workshop import Workshop, chunked, paragraph

from pipeline import Settings
from pipeline.duties import Bounds
from pipeline.ledger import embeddings, purchases
from pipeline.testing import MemoryVectorStore
from tasks.maintenance import reconcile


@pytest.fixture
def provider(settings: Settings) -> PaidEmbedder:
    """Who is paid by `workshop`, for one text at a time."""
    return PaidEmbedder(paying(settings).openai, texts_per_request=1)


@pytest.fixture
def workshop(settings: Settings, provider: PaidEmbedder) -> Iterator[Workshop]:
    made = Workshop(chunked(paying(settings)), paid=provider, vectors=MemoryVectorStore())
    yield made
    made.close()


def prepared(workshop: Workshop, given: dict[str, str], **options: Any) -> list[int]:
    """The ids of the embed batches of a new job."""
    before = {batch.id for batch in workshop.ready()}
    job = workshop.put(given, **{"provider": "openai", **options})
    workshop.prepare()
    rows = workshop.sql("SELECT id FROM batches WHERE job_id = %(job)s AND kind = 'embed' ORDER BY id", job=job.job_id)
    return [row["id"] for row in rows if row["id"] not in before]


def states(workshop: Workshop) -> list[str]:
    rows = workshop.sql("SELECT state FROM batches WHERE kind = 'embed' ORDER BY id")
    return [row["state"] for row in rows]


def deliver(workshop: Workshop, *names: str) -> int:
    """The Batch API has brought these paragraphs. Returns how many batches go on."""
    rows = workshop.sql(
        "SELECT key, text, tokens FROM purchases WHERE text = ANY(%(texts)s)", texts=[paragraph(name) for name in names]
    )
    assert len(rows) == len(names)
    vector = np.ones(DIMENSIONS, np.float32) / np.sqrt(DIMENSIONS)
    keys = [bytes(row["key"]) for row in rows]
    with workshop.services.ledger.transaction() as connection:
        embeddings.store(connection, {bytes(row["key"]): (vector, row["tokens"]) for row in rows})
        connection.execute("DELETE FROM purchases WHERE key = ANY(%s)", (keys,))
        return purchases.wake(connection, keys)


def doubtful(workshop: Workshop) -> int:
    return int(workshop.value("SELECT coalesce(sum(doubtful_texts), 0) FROM usage"))


def expire(workshop: Workshop) -> None:
    """The lease of what runs is over, and whoever looks finds that."""
    workshop.sql("UPDATE batches SET lease_until = now() - interval '1 s' WHERE state = 'running'")
    reconcile(workshop.services, Bounds(100, 20.0))


def pack(workshop: Workshop) -> None:
    """What is on order is in a remote batch."""
    workshop.sql(
        """WITH made AS (
             INSERT INTO remote_batches (key, spec_hash, inputs, tokens, priority)
             SELECT 'k', spec_hash, count(*), sum(tokens), 1 FROM purchases GROUP BY spec_hash RETURNING id)
           UPDATE purchases SET remote_batch_id = made.id FROM made"""
    )
