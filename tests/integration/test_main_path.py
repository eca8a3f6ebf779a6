"""The path of a document, step by step in this process, on the real ledger, the real index and a constant embedder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline import Client, Document, Settings
from pipeline.assembly import Services
from pipeline.testing import ConstantEmbedder
from tasks import base
from tasks.embed import token_budget
from tasks.maintenance import contract, reconcile
from tasks.prepare import prepare
from pipeline import ingest


class Workshop:
    """A client and a worker in one process: `work()` does everything that is ready."""

    def __init__(self, settings: Settings) -> None:
        self.embedder = ConstantEmbedder()
        self.services = Services(settings, embedder=self.embedder)
        self.client = Client(services=self.services)

    def work(self) -> int:
        done = 0
        while batch := self._next():
            batch_id, kind = batch
            if kind == "embed":
                base.perform(self.services, batch_id, ingest.embed, lambda claim: token_budget(self.services, claim))
            else:
                base.perform(self.services, batch_id, prepare)
            done += 1
        return done

    def _next(self) -> tuple[int, str] | None:
        with self.services.ledger.transaction() as connection:
            row = connection.execute(
                "SELECT id, kind FROM batches WHERE state = 'ready' AND next_attempt_at IS NULL ORDER BY id LIMIT 1"
            ).fetchone()
        return (row["id"], row["kind"]) if row else None


@pytest.fixture()
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(settings)
    yield made
    made.client.close()


def test_a_document_goes_in_and_is_found(workshop: Workshop) -> None:
    job = workshop.client.ingest([Document("notes/1", "Postgres is the truth.", metadata={"lang": "en"})], collection="n")
    assert job.documents["total"] == 1
    workshop.work()
    status = workshop.client.job(job.job_id)
    assert status.state == "succeeded"
    assert status.documents["indexed"] == 1
    found = workshop.client.search("truth", collection="n", filters={"lang": "en"})
    assert [result.uri for result in found.results] == ["notes/1"]
    assert workshop.client.audit("n").to_json() | {"collection": ""} == {
        "collection": "", "expected": 1, "present": 1, "missing": 0, "orphaned": 0, "duplicate": 0, "stale": 0,
        "leaving": 0, "arriving": 0,
    }
