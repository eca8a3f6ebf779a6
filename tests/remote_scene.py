"""Texts on order with the Batch API, in the ledger alone: whoever waits for them is a batch that does nothing else.

The real service works on them, against the stand-in server; the test is the duty and the workers.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

import numpy as np
from openai_server import OpenAIServer
from openai_server.models import vector_of
from psycopg.types.json import Jsonb
from pydantic import SecretStr

from pipeline import Settings
from pipeline.assembly import Services
from pipeline.document import embedding_key
from pipeline.embedding.openai.spec import openai_spec, spec_hash
from pipeline.ledger import remote
from pipeline.ledger.remote import RemoteBatch
from pipeline.openai_batch.packing import pack
from pipeline.openai_batch.server import Server
from pipeline.openai_batch.service import BatchService
from tasks.openai_batch import perform

PATIENCE_SECONDS = 60.0
TOKENS = 7  # of a text, as the scene orders it


class Crash(BaseException):
    """The process ends here: nothing of it goes on, not even what hands its work back."""


@dataclass
class CrashAt:
    """Ends the process at the nth passing of a boundary; seen: those that were passed."""

    name: str
    nth: int = 1
    seen: Counter[str] = field(default_factory=Counter)

    def __call__(self, boundary: str) -> None:
        self.seen[boundary] += 1
        if boundary == self.name and self.seen[boundary] == self.nth:
            raise Crash(boundary)


def batch_settings(settings: Settings, server: OpenAIServer, **batch: Any) -> Settings:
    """Settings of the stand-in; texts are packed as soon as somebody looks."""
    openai = {"api_key": SecretStr(server.key), "base_url": server.url, "batch": "on", "timeout": 10.0}
    lines = {"linger_seconds": 0.0, "harvest_lines": 5}
    return settings.model_copy(
        update={
            "openai": settings.openai.model_copy(update=openai),
            "openai_batch": settings.openai_batch.model_copy(update={**lines, **batch}),
        }
    )


class RemoteScene:
    def __init__(self, settings: Settings, server: OpenAIServer, *, dimensions: int = 8) -> None:
        self.settings = settings
        self.server = server
        self._at_first = settings
        self._client = Server(settings.openai)
        self.services = Services(settings)
        self.spec = openai_spec(settings.openai, dimensions=dimensions)
        self.collection = self.value(
            """INSERT INTO collections (name, physical, model) VALUES ('notes', 'notes', %(model)s) RETURNING id""",
            model=Jsonb(self.spec.to_json()),
        )

    def close(self) -> None:
        self._client.close()
        self.services.close()

    def reset(self) -> None:
        """As at the beginning, and so is the server."""
        tables = "purchases remote_batches embeddings chunks reservations usage spending batches jobs"
        for table in tables.split():  # of a few rows, sooner done than truncating them
            self.sql(f"DELETE FROM {table}")
        self.sql("UPDATE circuits SET opened_at = NULL, error = NULL")
        self.settings = self.services.settings = self._at_first
        self.server.control.reset()

    def with_batch(self, **batch: Any) -> None:
        """From now on with other settings of the Batch API."""
        self.settings = self.services.settings = self.settings.model_copy(
            update={"openai_batch": self.settings.openai_batch.model_copy(update=batch)}
        )

    # -- the ledger --------------------------------------------------------------------------------------------------

    def sql(self, query: str, **given: Any) -> list[dict[str, Any]]:
        with self.services.ledger.transaction() as connection:
            cursor = connection.execute(query, given)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, **given: Any) -> Any:
        (row,) = self.sql(query, **given)
        (found,) = row.values()
        return found

    def key(self, text: str) -> bytes:
        return embedding_key(self.spec.fingerprint("passage"), text)

    # -- ordering ----------------------------------------------------------------------------------------------------

    def order(
        self,
        texts: Sequence[str],
        *,
        tenant: str = "default",
        priority: int = 1,
        need_by: datetime | None = None,
        tokens: int = TOKENS,
    ) -> int:
        """A batch of a job of its own that waits for these texts, and orders those that nobody has ordered yet. Returns
        its id."""
        job = self.value(
            """INSERT INTO jobs (id, kind, collection_id, tenant, priority, provider, state, need_by)
               VALUES (%(id)s, 'ingest', %(collection)s, %(tenant)s, %(priority)s, 'openai_batch', 'running',
                       %(need_by)s) RETURNING id""",
            id=uuid.uuid4(),
            collection=self.collection,
            tenant=tenant,
            priority=priority,
            need_by=need_by,
        )
        batch: int = self.value(
            """INSERT INTO batches (kind, collection_id, tenant, job_id, priority, provider, state, size, epoch)
               VALUES ('embed', %(collection)s, %(tenant)s, %(job)s, %(priority)s, 'openai_batch', 'waiting', %(n)s, 1)
               RETURNING id""",
            collection=self.collection,
            tenant=tenant,
            job=job,
            priority=priority,
            n=len(texts),
        )
        self.sql(
            """INSERT INTO chunks (point_id, document_id, born_version, batch_id, ordinal, text, chunk_hash,
                                   embedding_key, tokens)
               SELECT gen_random_uuid(), 1, 1, %(batch)s, 0, w.text, w.key, w.key, %(tokens)s
                 FROM unnest(%(texts)s::text[], %(keys)s::bytea[]) AS w (text, key)""",
            batch=batch,
            texts=list(texts),
            keys=[self.key(text) for text in texts],
            tokens=tokens,
        )
        self.sql(
            """INSERT INTO purchases (key, collection_id, batch_id, spec_hash, text, tokens, priority, need_by)
               SELECT w.key, %(collection)s, %(batch)s, %(spec)s, w.text, %(tokens)s, %(priority)s, %(need_by)s
                 FROM unnest(%(texts)s::text[], %(keys)s::bytea[]) AS w (text, key) ON CONFLICT DO NOTHING""",
            collection=self.collection,
            batch=batch,
            spec=spec_hash(self.spec, self.settings.openai),
            texts=list(texts),
            keys=[self.key(text) for text in texts],
            tokens=tokens,
            priority=priority,
            need_by=need_by,
        )
        return batch

    def end(self, batch: int) -> None:
        """The batch is cancelled with its job."""
        self.sql(
            "UPDATE batches SET state = 'cancelled', epoch = epoch + 1, ended_at = now() WHERE id = %(id)s", id=batch
        )

    def states(self, *batches: int) -> list[str]:
        rows = self.sql("SELECT state FROM batches WHERE id = ANY(%(ids)s) ORDER BY id", ids=list(batches))
        return [row["state"] for row in rows]

    # -- the workers -------------------------------------------------------------------------------------------------

    def pack(self) -> list[int]:
        return pack(self.services.ledger, self.settings.openai, self.settings.openai_batch)

    def rows(self) -> list[RemoteBatch]:
        """Oldest first."""
        with self.services.ledger.transaction() as connection:
            return remote.listing(connection)[::-1]

    def row(self, remote_id: int) -> RemoteBatch:
        with self.services.ledger.transaction() as connection:
            return remote.find(connection, remote_id)

    def service(self, at: Callable[[str], None] | None = None) -> BatchService:
        """A process of its own."""
        settings = self.settings
        more = {} if at is None else {"at": at}
        return BatchService(
            self.services.ledger, settings.openai, settings.openai_batch, settings.cost, self._client, **more
        )

    def visit(self, remote_id: int, at: Callable[[str], None] | None = None) -> str:
        """Does what is to be done for a remote batch, when its time has come. Returns its state then. A crash leaves it
        claimed by a process that is dead."""
        self.pass_time(self.row(remote_id).due_seconds or 0.0)
        with suppress(Crash):
            perform(self.services, remote_id, self.service(at))
        return self.row(remote_id).state

    def pass_time(self, seconds: float) -> None:
        """So much later, here and at the server, without waiting for it."""
        if seconds <= 0:
            return
        self.server.control.advance(seconds)
        moments = ("next_at", "intent_at", "fenced_at", "created_at", "submitted_at", "ended_at")
        sets = ", ".join(f"{name} = {name} - make_interval(secs => %(s)s)" for name in moments)
        self.sql(f"UPDATE remote_batches SET {sets}", s=seconds)
        self.sql(
            """UPDATE remote_batches
                  SET remote = remote || jsonb_build_object('expires_at', (remote ->> 'expires_at')::int8 - %(s)s::int8)
                WHERE remote ->> 'expires_at' IS NOT NULL""",
            s=seconds,
        )
        self.sql("UPDATE purchases SET created_at = created_at - make_interval(secs => %(s)s)", s=seconds)

    def bury(self) -> int:
        """Takes back what dead processes hold: their leases are over."""
        self.sql(
            "UPDATE remote_batches SET lease_until = to_timestamp(0) WHERE owner IS NOT NULL AND closed_at IS NULL"
        )
        with self.services.ledger.transaction() as connection:
            return remote.expire(connection, 100, 9.0)

    def until(self, remote_id: int, *states: str) -> RemoteBatch:
        """Goes on with a remote batch until it has one of these states."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (row := self.row(remote_id)).state not in states:
            assert time.monotonic() < deadline, f"{row.state} is not one of {states}: {row.error}"
            self.visit(remote_id)
        return row

    def finish(self) -> None:
        """Packs, and goes on with everything, until nothing is left to do."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.pack()
            unfinished = [row for row in self.rows() if row.closed_at is None]
            if not unfinished:
                return
            assert time.monotonic() < deadline, [(row.state, row.error) for row in unfinished]
            self.visit(min(unfinished, key=lambda row: row.due_seconds or 0.0).id)

    # -- what must be true -------------------------------------------------------------------------------------------

    def vectors(self, texts: Sequence[str]) -> int:
        """How many of these have their vector: the one that the server has for the text, to the last bit or nearly."""
        found = {bytes(row["key"]): row["vector"] for row in self.sql("SELECT key, vector FROM embeddings")}
        stored = [text for text in texts if self.key(text) in found]
        for text in stored:
            vector = np.frombuffer(found[self.key(text)], "<f4")
            assert np.allclose(vector, vector_of(text, dimensions=8), atol=1e-6)
        return len(stored)

    def billed(self, texts: Sequence[str]) -> Counter[int]:
        """How many texts were paid for how often."""
        times = {entry.hash: entry.times for entry in self.server.control.billing()}
        return Counter(times.get(sha256(text.encode()).hexdigest(), 0) for text in texts)

    def usage(self) -> dict[str, Any]:
        """The sums of what was recorded."""
        (row,) = self.sql(
            """SELECT coalesce(sum(texts), 0)::int AS texts, coalesce(sum(tokens), 0)::int AS tokens,
                      coalesce(sum(cost), 0) AS cost, coalesce(sum(doubtful_texts), 0)::int AS doubtful FROM usage"""
        )
        return row

    def assert_bought_once(self, texts: Sequence[str]) -> None:
        """Everything is there, nothing was paid for twice, nobody waits, and nothing is left."""
        assert self.vectors(texts) == len(set(texts))
        assert self.billed(sorted(set(texts))) == {1: len(set(texts))}
        assert self.usage()["texts"] == len(set(texts))
        assert self.usage()["doubtful"] == 0
        assert self.value("SELECT count(*) FROM purchases") == 0
        assert self.value("SELECT count(*) FROM batches WHERE state = 'waiting'") == 0
        assert [row for row in self.rows() if row.doubtful or row.closed_at is None] == []
        assert self.server.control.files() == []

    def assert_whole(self, texts: Sequence[str]) -> None:
        """Everything is there and nobody waits; what was paid for besides is shown as doubtful."""
        assert self.vectors(texts) == len(texts)
        assert self.value("SELECT count(*) FROM batches WHERE state = 'waiting'") == 0
        assert self.value("SELECT count(*) FROM purchases") == 0
        assert self.usage()["texts"] == len(texts)
        besides = sum(number * (times - 1) for times, number in self.billed(texts).items())
        assert self.usage()["doubtful"] >= besides
        assert self.usage()["doubtful"] == 0 or any(row.doubtful for row in self.rows())
