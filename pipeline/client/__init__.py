"""What applications use: documents in, jobs to watch, answers out.

from pipeline import Client, Document

with Client() as client:
    job = client.ingest([Document("notes/1", "Postgres is the truth.")], collection="notes")
    client.wait(job.job_id)
    print(client.search("what is true?", collection="notes").results[0].text)
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from pipeline.client.alerts import Alerts
from pipeline.client.answers import Answers
from pipeline.client.batches import Batches
from pipeline.client.connection import DEFAULT_COLLECTION
from pipeline.client.costs import Costs
from pipeline.client.dead_letters import DeadLetters
from pipeline.client.documents import DocumentsIn
from pipeline.client.duties import Duties
from pipeline.client.figures import Figures
from pipeline.client.jobs import Jobs
from pipeline.client.operations import Operations
from pipeline.client.reembedding import Reembeddings
from pipeline.client.schedules import Schedules

__all__ = ["DEFAULT_COLLECTION", "Client"]


class Client(
    DocumentsIn,
    Schedules,
    Jobs,
    DeadLetters,
    Answers,
    Operations,
    Reembeddings,
    Costs,
    Batches,
    Duties,
    Alerts,
    Figures,
):
    """A connection to one Millrace; thread-safe, cheap to make, opened at first use.

    settings: by default read from the environment, `millrace.toml` and the run file of the stack on this home.
    tenant: whose documents it works with, where a call names no other.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._services.close()
        if self._reporter is not None:
            self._reporter.close()
