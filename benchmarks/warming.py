"""A stack made warm: every pool child has loaded its model before anything is measured."""

from __future__ import annotations

from typing import Any

from benchmarks.stack import LiveStack
from pipeline.assembly import Services
from pipeline.client import Client
from pipeline.document import Document
from pipeline.ledger.engine import Row

COLLECTION = "warming"
ATTEMPTS = 20
DOCUMENTS = 200
WAIT_SECONDS = 120.0


def warm(live: LiveStack, client: Client, children: int) -> None:
    """Ingests a few texts that no corpus has, until so many processes have embedded some.

    Raises RuntimeError where not that many ever do.
    """
    opened = live.services()
    try:
        for attempt in range(ATTEMPTS):
            texts = [
                Document(f"warming/{attempt}/{number}", f"warming {attempt} number {number} " + "so many words " * 20)
                for number in range(DOCUMENTS)
            ]
            client.wait(client.ingest(texts, collection=COLLECTION).job_id, timeout=WAIT_SECONDS)
            rows = ask(opened, "SELECT DISTINCT owner FROM batches WHERE kind = 'embed' AND owner IS NOT NULL")
            if len(rows) >= children:
                return
    finally:
        opened.close()
    raise RuntimeError(f"{len(rows)} of {children} pool children ever embedded anything")


def ask(opened: Services, query: str, *given: Any) -> list[Row]:
    """A question to the ledger."""
    with opened.ledger.transaction() as connection:
        return connection.execute(query, given).fetchall()
