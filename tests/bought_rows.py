"""Rows of what is bought, put into the ledger by hand: jobs whose texts the Batch API has, or is to get."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import SecretStr
from services import RedisServer
from workshop import Workshop, chunked, paragraphs

from pipeline.settings import CostSettings, OpenAIBatchSettings, OpenAISettings, Price, load_settings

# A million dollars for a million tokens: each token of a test costs a dollar online, and half of that by the Batch API.
COST = CostSettings(prices={"stub": Price(online=1e6, batch=5e5)})
OPENAI = OpenAISettings(api_key=SecretStr("sk-of-a-test"), same_as={"stub": "constant"})
BATCH = OpenAIBatchSettings()


_WORK = """jobs, batches, documents, versions, chunks, staged, embeddings, purchases, remote_batches, reservations,
           usage, spending, budgets, workers, pauses"""


@pytest.fixture(scope="module")
def shared(
    module_postgres_url: str, redis_server: RedisServer, qdrant_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workshop]:
    """One for all tests of a module: none of them indexes anything. Each begins with `begin_anew`."""
    redis_server.flush()
    settings = load_settings(
        home=tmp_path_factory.mktemp("home"),
        memory={"ingest_mb": 100_000},
        postgres={"url": module_postgres_url},
        redis={"url": redis_server.url},
        qdrant={"url": qdrant_url},
    )
    made = Workshop(chunked(settings))
    yield made
    made.close()


@pytest.fixture
def workshop(shared: Workshop) -> Workshop:
    """The module's, without anything in it."""
    return begin_anew(shared)


def begin_anew(workshop: Workshop) -> Workshop:
    """Forgets all work, and what was said of the provider."""
    workshop.sql(f"TRUNCATE {_WORK} RESTART IDENTITY CASCADE")
    workshop.sql("UPDATE circuits SET opened_at = NULL, retry_at = NULL, error = NULL, cause = NULL, failures = 0")
    return workshop


@dataclass
class Bought:
    """A job of chunks that are on order. keys: of their texts; batch_ids: that wait for them."""

    job_id: uuid.UUID
    batch_ids: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)


def ordered(workshop: Workshop, *names: str, provider: str = "openai_batch", **options: Any) -> Bought:
    """A job with one chunk for each name, in one batch that waits for them; each is an order that is not packed, unless
    somebody has ordered it before."""
    job = workshop.put({f"doc {uuid.uuid4()}": paragraphs(*names)}, **options).job_id
    workshop.prepare()
    workshop.sql(
        """UPDATE batches SET state = 'waiting', provider = %(provider)s, sent_at = NULL
            WHERE job_id = %(job)s AND kind = 'embed'""",
        job=job,
        provider=provider,
    )
    workshop.sql(
        "UPDATE jobs SET provider = %(provider)s, state = 'running' WHERE id = %(job)s", job=job, provider=provider
    )
    workshop.sql(
        """INSERT INTO purchases (key, collection_id, batch_id, spec_hash, text, tokens, priority)
           SELECT DISTINCT ON (c.embedding_key) c.embedding_key, b.collection_id, b.id, 'spec', c.text, c.tokens, 1
             FROM chunks c JOIN batches b ON b.id = c.batch_id WHERE b.job_id = %(job)s
           ON CONFLICT DO NOTHING""",
        job=job,
    )
    found = workshop.sql(
        """SELECT c.embedding_key AS key, c.batch_id FROM chunks c JOIN batches b ON b.id = c.batch_id
            WHERE b.job_id = %(job)s ORDER BY c.ordinal""",
        job=job,
    )
    return Bought(job, sorted({row["batch_id"] for row in found}), [bytes(row["key"]) for row in found])


def packed(workshop: Workshop, *bought: Bought, **columns: object) -> int:
    """A remote batch that holds the orders of these jobs. columns: in SQL."""
    given = {
        "state": "'submitted'",
        "status": "'in_progress'",
        "remote_id": "'batch_' || gen_random_uuid()::text",
        "next_at": "clock_timestamp() + interval '1 minute'",
        **columns,
    }
    keys = [key for job in bought for key in job.keys]
    remote = workshop.value(
        f"""INSERT INTO remote_batches (key, spec_hash, inputs, tokens, priority, jobs, {", ".join(given)})
            VALUES (gen_random_uuid()::text, 'spec', %(inputs)s, 1000, 1, to_jsonb(%(jobs)s::text[]),
                    {", ".join(map(str, given.values()))})
         RETURNING id""",
        inputs=len(keys),
        jobs=[str(job.job_id) for job in bought],
    )
    workshop.sql("UPDATE purchases SET remote_batch_id = %(id)s WHERE key = ANY(%(keys)s)", id=remote, keys=keys)
    return int(remote)


def ended(workshop: Workshop, remote: int, *finished: bytes) -> None:
    """As the harvest of a cancelled batch leaves it: what it had finished is stored, the rest is wanted again."""
    workshop.sql(
        """INSERT INTO embeddings (key, vector, tokens)
           SELECT key, '\\x00', tokens FROM purchases WHERE key = ANY(%(keys)s)""",
        keys=list(finished),
    )
    workshop.sql("DELETE FROM purchases WHERE key = ANY(%(keys)s)", keys=list(finished))
    workshop.sql("UPDATE purchases SET remote_batch_id = NULL WHERE remote_batch_id = %(id)s", id=remote)
    workshop.sql(
        """UPDATE remote_batches SET state = 'closed', ended_at = now(), closed_at = now(), next_at = NULL
            WHERE id = %(id)s""",
        id=remote,
    )
