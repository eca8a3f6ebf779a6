"""A client and a worker in one process, on the real ledger, broker and index, with an embedder that costs nothing."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline import Client, Document, Settings, ingest
from pipeline.assembly import Services
from pipeline.dispatch import dispatch
from pipeline.embedding.base import Embedded, Embedder, Role
from pipeline.extract.isolation.extractor import Extractor
from pipeline.ledger import batches
from pipeline.ledger.batches import Claim
from pipeline.settings import ExtractionSettings
from pipeline.status import JobStatus
from pipeline.testing import ConstantEmbedder
from pipeline.vectors.base import VectorStore
from tasks import base
from tasks.embed import token_budget
from tasks.prepare import prepare

COLLECTION = "notes"
PATIENCE_SECONDS = 60.0


class SharedExtractor(Extractor):
    """One child for all workshops of a test run."""

    def close(self) -> None:
        """Not yet."""


EXTRACTOR = SharedExtractor(ExtractionSettings())
atexit.register(Extractor.close, EXTRACTOR)


class PoisonedEmbedder(ConstantEmbedder):
    """Fails on every text that has the word in it."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        if role == "passage" and any(self.word in text for text in texts):
            raise RuntimeError(f"cannot embed {self.word}")
        return super().embed(texts, role, on_progress)


@dataclass(frozen=True)
class Ready:
    """A batch that somebody could claim now or later."""

    id: int
    kind: str
    wait_seconds: float


class Workshop:
    """`work()` does everything there is to do; `perform(id)` does one batch, as a task of a worker does."""

    def __init__(
        self,
        settings: Settings,
        embedder: ConstantEmbedder | None = None,
        extractor: Extractor = EXTRACTOR,
        vectors: VectorStore | None = None,
        paid: Embedder | None = None,
    ) -> None:
        """paid: who is asked for the vectors of OpenAI's models; None: their server, as the settings say."""
        self.embedder = embedder or ConstantEmbedder()
        self.services = Services(
            settings, embedder=self.embedder, paid_embedder=paid, extractor=extractor, vectors=vectors
        )
        self.client = Client(services=self.services)
        self.settings = settings

    def close(self) -> None:
        self.client.close()

    # -- the worker ----------------------------------------------------------------------------------------------

    def work(self) -> list[base.Outcome]:
        """Performs every batch, those that wait for their next attempt too, until none is left."""
        outcomes: list[base.Outcome] = []
        self.sql("UPDATE circuits SET opened_at = NULL")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            ready = self.ready()
            if not ready:
                self.dispatch()  # what waited for another version of its document comes back here
                ready = self.ready()
            if not ready:
                return outcomes
            assert time.monotonic() < deadline, f"the work does not end: {ready}"
            first = min(ready, key=lambda item: (item.wait_seconds, item.id))
            time.sleep(first.wait_seconds)
            outcomes.append(self.perform(first.id))
            if isinstance(outcomes[-1], base.Waiting):
                self.sql("UPDATE circuits SET opened_at = NULL")  # what waits for the index is tried again too

    def ready(self, kind: str | None = None) -> list[Ready]:
        rows = self.sql(
            """SELECT id, kind, greatest(0, extract(epoch FROM next_attempt_at - clock_timestamp()))::float8 AS wait
                 FROM batches
                WHERE state = 'ready' AND NOT held AND (%(kind)s::text IS NULL OR kind = %(kind)s) ORDER BY id""",
            kind=kind,
        )
        return [Ready(row["id"], row["kind"], row["wait"] or 0.0) for row in rows]

    def perform(self, batch_id: int, *, alone: bool = False) -> base.Outcome:
        """alone: nothing is coalesced with it."""
        (row,) = self.sql("SELECT kind FROM batches WHERE id = %(id)s", id=batch_id)
        if row["kind"] == "embed":
            budget = None if alone else partial(token_budget, self.services)
            return base.perform(self.services, batch_id, ingest.embed, budget)
        return base.perform(self.services, batch_id, prepare)

    def prepare(self) -> None:
        """Performs the prepare and delete batches that are ready, and no embedding."""
        for batch in self.ready():
            if batch.kind != "embed":
                self.perform(batch.id)

    def claim(self, batch_id: int, owner: str = "worker@here#1/1", lease_seconds: float = 30.0) -> Claim:
        with self.services.ledger.transaction() as connection:
            found = batches.claim(connection, batch_id, owner, lease_seconds)
        assert found is not None
        return found

    def dispatch(self) -> int:
        return dispatch(self.services.ledger, self.services.broker, self.settings.work)

    def contract(self) -> int:
        """Both sweeps, without the wait before each."""
        tools = self.services.tools
        return ingest.contract(tools, 0.0, 0.0, 1000) + ingest.contract(tools, 0.0, 0.0, 1000)

    def contract_once(self) -> int:
        """The first sweep alone."""
        return ingest.contract(self.services.tools, 0.0, 900.0, 1000)

    # -- the application -----------------------------------------------------------------------------------------

    def put(self, documents: Any, **options: Any) -> JobStatus:
        """Enqueues documents (a mapping is uri -> text)."""
        if isinstance(documents, Mapping):
            documents = [Document(uri, text) for uri, text in documents.items()]
        return self.client.ingest(documents, **{"collection": COLLECTION, **options})

    def index(self, documents: Any, **options: Any) -> JobStatus:
        """Enqueues documents and does the work. Returns the job as it is then."""
        job = self.put(documents, **options)
        self.work()
        return self.client.job(job.job_id)

    def remove(self, uris: Iterable[str] = (), **options: Any) -> JobStatus:
        """Deletes documents and does the work. Returns the job as it is then."""
        job = self.client.delete(uris, collection=COLLECTION, **options)
        self.work()
        return self.client.job(job.job_id)

    def texts(self, **options: Any) -> dict[str, list[str]]:
        """uri -> the texts of its chunks that a search finds, sorted."""
        found = self.client.search("anything", **{"collection": COLLECTION, "limit": 100, **options})
        assert found.degraded == ()
        texts: dict[str, list[str]] = {}
        for result in found.results:
            texts.setdefault(result.uri, []).append(result.text)
        return {uri: sorted(chunks) for uri, chunks in sorted(texts.items())}

    def embedded(self) -> list[str]:
        """The passages that were embedded, in order."""
        return [text for role, texts in self.embedder.calls if role == "passage" for text in texts]

    def audit(self) -> dict[str, int]:
        """The counts of an audit that are not zero."""
        report = self.client.audit(COLLECTION).to_json()
        return {name: count for name, count in report.items() if name not in ("collection", "compared") and count}

    # -- the ledger ----------------------------------------------------------------------------------------------

    def sql(self, query: str, **given: Any) -> list[dict[str, Any]]:
        """A statement of the test's own; the rows, if it has any."""
        with self.services.ledger.transaction() as connection:
            cursor = connection.execute(query, given)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, **given: Any) -> Any:
        """The only column of the only row."""
        (row,) = self.sql(query, **given)
        (found,) = row.values()
        return found

    def versions(self, uri: str) -> list[str]:
        """The states of a document's versions, oldest first."""
        rows = self.sql(
            """SELECT v.state FROM versions v JOIN documents d ON d.id = v.document_id
                WHERE d.uri = %(uri)s ORDER BY v.id""",
            uri=uri,
        )
        return [row["state"] for row in rows]


def with_work(settings: Settings, **work: Any) -> Settings:
    """The settings with other clocks of work."""
    return settings.model_copy(update={"work": settings.work.model_copy(update=work)})


def paragraphs(*names: str) -> str:
    """A text of which, under `chunked` settings, each paragraph is a chunk of its own."""
    return "\n\n".join(paragraph(name) for name in names)


def paragraph(name: str) -> str:
    """The text of one such chunk; names have up to ten letters."""
    return f"{name} is what this paragraph is about"


def chunked(settings: Settings) -> Settings:
    """Settings under which one of `paragraphs` fits into a chunk, and two do not."""
    return settings.model_copy(update={"chunking": settings.chunking.model_copy(update={"max_tokens": 16})})
