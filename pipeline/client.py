"""What applications use: documents in, jobs to watch, answers out.

from pipeline import Client, Document

with Client() as client:
    job = client.ingest([Document("notes/1", "Postgres is the truth.")], collection="notes")
    client.wait(job.job_id)
    print(client.search("what is true?", collection="notes").results[0].text)
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline import enqueue
from pipeline.assembly import Services
from pipeline.audit import AuditReport, audit
from pipeline.borrowed import borrowed_transaction
from pipeline.cached_embedding import embed_cached
from pipeline.dispatch import dispatch
from pipeline.document import Document, canonical, digest
from pipeline.embedding.base import Role
from pipeline.errors import BrokerUnavailable, InvalidRequest, Unavailable, UnknownJob, WaitTimeout
from pipeline.ledger import backlog, batches, collections, documents, fleet, jobs, versions
from pipeline.ledger.collections import Collection
from pipeline.ledger.jobs import Job, JobKind
from pipeline.ledger.waiting import Waiting, waiting
from pipeline.search import SearchResult, checked_filters
from pipeline.settings import Settings, load_settings
from pipeline.sources import InlineSource, Rejected, Source, check_metadata, open_source
from pipeline.status import CollectionInfo, EmbedResult, JobStatus, chunks_expected, job_status
from pipeline.sync import Listing, enqueue_missing

DEFAULT_COLLECTION = "default"

# What `ingest` takes: a path, glob or URL, several of them, documents in any inline form, or a Source.
Ingestible = str | Path | Source | Iterable[Any]

_FIRST_POLL_SECONDS = 0.05
_POLL_SECONDS = 0.5
# The rate shown while waiting is that of the last so many seconds.
_RATE_WINDOW_SECONDS = 20.0


class Client:
    """A connection to one Millrace; thread-safe, cheap to make, opened at first use.

    settings: by default read from the environment, `millrace.toml` and the run file of the stack on this home.
    tenant: whose documents it works with, where a call names no other.
    """

    def __init__(
        self, settings: Settings | None = None, *, tenant: str | None = None, services: Services | None = None
    ) -> None:
        self._services = services or Services(settings or load_settings())
        self.settings = self._services.settings
        self.tenant = tenant or self.settings.tenant

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._services.close()

    # -- documents in --------------------------------------------------------------------------------------------

    def ingest(
        self,
        source: Ingestible,
        *,
        collection: str = DEFAULT_COLLECTION,
        priority: str = "normal",
        provider: str = "local",
        metadata: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        idempotency_key: str | None = None,
        connection: Any = None,
        on_staged: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """Enqueues documents; returns when all of them are durable in Postgres, before they are indexed.

        source: a path, glob or URL, several of them, documents (Document, (uri, text), mappings) or a Source.
        metadata: added to that of every document. collection: made where it is missing, with the model of the settings.
        idempotency_key: the same key and request again is the same job; it goes on where an enqueuer was cut off.
        connection: an open SQLAlchemy connection or session, or psycopg connection, to the ledger's database: the job
        is written in its transaction, and exists if and only if that commits. on_staged: told after every group.

        Raises InvalidRequest, CollectionMismatch, IdempotencyConflict, SourceRefused, LedgerUnavailable.
        """
        if metadata is not None:
            check_metadata(metadata, "the metadata of this ingest")
        stream, described = self._stream(source)
        job, status, transaction = self._begin(
            "ingest",
            collection=collection,
            priority=priority,
            provider=provider,
            tenant=tenant,
            idempotency_key=idempotency_key,
            described=digest(described, canonical(dict(metadata or {}))),
            connection=connection,
        )
        if status is not None:
            return status
        with self._ledger_transaction() as own:
            found = collections.by_id(own, job.collection_id)
        enqueue.enqueue(
            transaction,
            enqueue.declare_fields(self._ledger_transaction, found, self.settings.ingest),
            job,
            stream,
            metadata or {},
            self.settings.ingest,
            self._after_group(job, connection, on_staged),
        )
        return self._seal(job, transaction, connection)

    def delete(
        self,
        uris: Iterable[str] = (),
        *,
        filters: Mapping[str, Any] | None = None,
        collection: str = DEFAULT_COLLECTION,
        priority: str = "normal",
        tenant: str | None = None,
        idempotency_key: str | None = None,
        connection: Any = None,
    ) -> JobStatus:
        """Enqueues the deletion of documents, by uri or by metadata filters (all must match). One that is not there
        counts as unchanged. Raises UnknownCollection, InvalidFilter, InvalidRequest where neither is given."""
        named = sorted({uris} if isinstance(uris, str) else set(uris))
        if not named and not filters:
            raise InvalidRequest("name the documents to delete by uri or by filter")
        with self._ledger_transaction() as own:
            found = collections.get(own, collection)
            if filters:
                typed = {
                    path.removeprefix("metadata."): value for path, value in checked_filters(filters, found).items()
                }
                uri = typed.pop("uri", None)
                matching = documents.matching(own, found.id, tenant or self.tenant, typed)
                named += [item for item in matching if uri is None or item == uri]
        job, status, transaction = self._begin(
            "delete",
            collection=collection,
            priority=priority,
            provider="local",
            tenant=tenant,
            idempotency_key=idempotency_key,
            described=digest(canonical([named, dict(filters or {})])),
            connection=connection,
            make=False,
        )
        if status is not None:
            return status
        enqueue.enqueue_deletions(
            transaction, job, named, self.settings.ingest, self._after_group(job, connection, None)
        )
        return self._seal(job, transaction, connection)

    def sync(
        self,
        source: str | Path | Source,
        *,
        collection: str = DEFAULT_COLLECTION,
        priority: str = "normal",
        provider: str = "local",
        metadata: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        force: bool = False,
        on_staged: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """Makes the collection like the source: ingests what is there, deletes what was there and is gone.

        Deletes only after a complete listing, and nothing at or below a path that could not be read.
        Raises DeletionRefused where more than half would be deleted without `force`; what is there was ingested then.
        """
        stream = open_source(source, self.settings.sources) if isinstance(source, str | Path) else source
        scope = stream.scope
        if scope is None:
            raise InvalidRequest("this source cannot be synchronised: its documents have no common place")
        listing = Listing(stream)
        job, _, transaction = self._begin(
            "sync",
            collection=collection,
            priority=priority,
            provider=provider,
            tenant=tenant,
            idempotency_key=None,
            described=b"",
            connection=None,
        )
        with self._ledger_transaction() as own:
            found = collections.by_id(own, job.collection_id)
        after_group = self._after_group(job, None, on_staged)
        declare = enqueue.declare_fields(self._ledger_transaction, found, self.settings.ingest)
        enqueue.enqueue(transaction, declare, job, listing, metadata or {}, self.settings.ingest, after_group)
        try:
            enqueue_missing(transaction, job, listing, scope, self.settings.ingest, after_group, force=force)
        finally:
            status = self._seal(job, transaction, None)
        return status

    # -- jobs ----------------------------------------------------------------------------------------------------

    def job(self, job_id: uuid.UUID | str) -> JobStatus:
        """How the job is going. Raises UnknownJob, naming it."""
        with self._ledger_transaction() as own:
            job = jobs.get(own, _job_id(job_id))
            status = job_status(job, jobs.errors(own, job.id), waiting(own, job))
        return status if status.finished else _with_rate(status, job, _average_rate(job))

    def jobs(self, *, limit: int = 20, state: str | None = None) -> list[JobStatus]:
        """The newest jobs first."""
        with self._ledger_transaction() as own:
            found = jobs.recent(own, limit, state)
            return [job_status(job, (), waiting(own, job)) for job in found]

    def wait(
        self,
        job_id: uuid.UUID | str,
        timeout: float | None = None,
        on_progress: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """Waits until the job is finished, through outages of Postgres too. timeout: seconds.

        Raises UnknownJob, WaitTimeout (the job goes on).
        """
        wanted = _job_id(job_id)
        deadline = None if timeout is None else time.monotonic() + timeout
        samples: deque[tuple[float, int]] = deque()
        pause = _FIRST_POLL_SECONDS
        while True:
            try:
                with self._ledger_transaction() as own:
                    job = jobs.get(own, wanted)
                    status = job_status(job, jobs.errors(own, job.id), waiting(own, job))
            except Unavailable:
                if deadline is not None and time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
                continue
            samples.append((time.monotonic(), job.counters["chunks_indexed"]))
            while len(samples) > 2 and samples[-1][0] - samples[0][0] > _RATE_WINDOW_SECONDS:
                samples.popleft()
            if not status.finished:
                status = _with_rate(status, job, _recent_rate(samples) or _average_rate(job))
            if on_progress is not None:
                on_progress(status)
            if status.finished:
                return status
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeout(
                    f"job {wanted} is {status.state} after {timeout:g} seconds; it goes on. "
                    f"Look at it with `millrace job {wanted}`."
                )
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(_POLL_SECONDS, pause * 1.5)

    def cancel(self, job_id: uuid.UUID | str) -> JobStatus:
        """Cancels what is not published yet; a finished job stays as it is. Running work stops at its next step, and
        what it added leaves the index."""
        wanted = _job_id(job_id)
        with self._ledger_transaction() as own:
            jobs.get(own, wanted)
            versions.cancel_job(own, wanted)
            batches.cancel_job(own, wanted)
            jobs.end_cancelled(own, wanted)
        self._dispatch()
        return self.job(wanted)

    # -- answers out ---------------------------------------------------------------------------------------------

    def search(
        self,
        query: str,
        *,
        collection: str = DEFAULT_COLLECTION,
        limit: int = 10,
        filters: Mapping[str, Any] | None = None,
        tenant: str | None = None,
    ) -> SearchResult:
        """The best chunks for the query, hybrid (dense and BM25), best first.

        filters: metadata key (or "uri") -> value, or a list of which one must match.
        Raises UnknownCollection, InvalidFilter, InvalidRequest, VectorsUnavailable.
        """
        return self._services.searcher.search(
            query, collection, limit=limit, filters=filters or {}, tenant=tenant or self.tenant
        )

    def embed(self, texts: Sequence[str], *, role: Role = "passage") -> EmbedResult:
        """The texts' vectors under the model of the settings: stored ones where there are, computed and stored otherwise."""
        embedder = self._services.embedder(self._services.spec.to_json())
        return embed_cached(self._services.ledger, embedder, texts, role)

    def collections(self) -> list[CollectionInfo]:
        """Every collection, by name."""
        with self._ledger_transaction() as own:
            rows = collections.listing(own)
        return [
            CollectionInfo(
                row["name"],
                row["model"],
                row["fields"],
                row["generation"],
                row["documents"],
                row["chunks"],
                row["physical"],
                row["created_at"].isoformat(),
            )
            for row in rows
        ]

    def documents(
        self, *, collection: str = DEFAULT_COLLECTION, prefix: str = "", limit: int = 100, tenant: str | None = None
    ) -> list[dict[str, Any]]:
        """Published documents by uri: uri, title, metadata, chunks, generation, published_at."""
        with self._ledger_transaction() as own:
            found = collections.get(own, collection)
            rows = documents.published(own, found.id, tenant or self.tenant, prefix=prefix, limit=limit)
        return [{**row, "published_at": row["published_at"].isoformat()} for row in rows]

    def audit(self, collection: str = DEFAULT_COLLECTION) -> AuditReport:
        """Compares the ledger with the index, point by point; changes nothing."""
        with self._ledger_transaction() as own:
            found = collections.get(own, collection)
        return audit(self._services.ledger, self._services.vectors, found)

    def status(self) -> dict[str, Any]:
        """Health, queues (messages and ready batches), jobs by state, live workers."""
        with self._ledger_transaction() as own:
            depth = backlog.depth(own)
            by_state = jobs.by_state(own)
            alive = fleet.alive(own)
        issues: list[str] = []
        try:
            messages: Mapping[str, int | None] = self._services.broker.depths()
        except BrokerUnavailable as error:
            messages = {}
            issues.append(str(error))
        if not self._services.vectors.alive():
            issues.append("Qdrant does not answer")
        consumed = {queue for row in alive for queue in row["queues"].split(",")}
        issues += [f"no live worker consumes the queue {queue}" for queue in depth if queue not in consumed]
        return {
            "health": {"score": max(0, 100 - 25 * len(issues)), "issues": issues},
            "queues": {queue: {"messages": messages.get(queue), **found} for queue, found in depth.items()},
            "jobs": {state: by_state.get(state, 0) for state in ("queued", "running", "paused")} | by_state,
            "workers": [
                {"id": row["id"], "host": row["host"], "pid": row["pid"], "queues": row["queues"].split(",")}
                for row in alive
            ],
        }

    # -- how -----------------------------------------------------------------------------------------------------

    def _ledger_transaction(self) -> Any:
        return self._services.ledger.transaction()

    def _stream(self, source: Ingestible) -> tuple[Iterable[Document | Rejected], bytes]:
        """The source's documents, and what tells this request from another under the same idempotency key."""
        sources = self.settings.sources
        if isinstance(source, str | Path):
            return open_source(source, sources), canonical(str(source))
        if isinstance(source, Source):
            return source, canonical(type(source).__qualname__)
        if isinstance(source, Mapping):
            return InlineSource([source], sources), canonical(source)
        if isinstance(source, list | tuple):
            if source and all(isinstance(item, str | Path) for item in source):
                opened = [open_source(item, sources) for item in source]
                return (item for one in opened for item in one), canonical([str(item) for item in source])
            found = list(InlineSource(source, sources))
            hashes = [
                (item.uri, item.content_hash().hex(), item.meta_hash().hex())
                if isinstance(item, Document)
                else (item.uri, item.error)
                for item in found
            ]
            return found, canonical(hashes)
        return InlineSource(source, sources), canonical("stream")

    def _begin(
        self,
        kind: JobKind,
        *,
        collection: str,
        priority: str,
        provider: str,
        tenant: str | None,
        idempotency_key: str | None,
        described: bytes,
        connection: Any,
        make: bool = True,
    ) -> tuple[Job, JobStatus | None, enqueue.Transaction]:
        """The job's row, its status if an earlier call with this key made it whole, and how to write for it."""
        number = jobs.priority_number(priority)
        if provider != "local":
            raise InvalidRequest(f"provider {provider!r} is not available; this version embeds with 'local'")
        transaction = self._ledger_transaction if connection is None else borrowed_transaction(connection)
        with self._ledger_transaction() as own:
            found = self._collection(own, collection) if make else collections.get(own, collection)
        recipe = self._services.recipe(self._services.embedder(found.model), found.sparse)
        with transaction() as writing:
            job, made = jobs.create(
                writing,
                kind=kind,
                collection_id=found.id,
                tenant=tenant or self.tenant,
                priority=number,
                provider=provider,
                recipe=recipe,
                idempotency_key=idempotency_key,
                request_hash=digest(kind, collection, priority, provider, described),
            )
            if not made and not jobs.was_cut_off(job):
                return job, job_status(job, jobs.errors(writing, job.id), waiting(writing, job)), transaction
            if not made:
                jobs.reopen(writing, job.id)
        return job, None, transaction

    def _collection(self, connection: Any, name: str) -> Collection:
        from pipeline.vectors.sparse import SparseEncoder

        return collections.ensure(connection, name, self._services.spec.to_json(), SparseEncoder().config)

    def _after_group(
        self, job: Job, connection: Any, on_staged: Callable[[JobStatus], None] | None
    ) -> Callable[[], None]:
        def after_group() -> None:
            if connection is None:
                self._dispatch()
            if on_staged is not None and connection is None:
                on_staged(self.job(job.id))

        return after_group

    def _seal(self, job: Job, transaction: enqueue.Transaction, connection: Any) -> JobStatus:
        enqueue.seal(transaction, job)
        delayed = self._dispatch() if connection is None else None
        with transaction() as own:
            sealed = jobs.get(own, job.id)
            status = job_status(sealed, jobs.errors(own, job.id), waiting(own, sealed))
        return replace(status, waiting=Waiting(delayed)) if delayed and not status.finished else status

    def _dispatch(self) -> str | None:
        """Tops up the queues. Returns why the job's start is delayed, where Redis is away; the job is safe all the same."""
        try:
            dispatch(self._services.ledger, self._services.broker, self.settings.work)
        except Unavailable as error:
            return f"dispatch is delayed: {error}"
        return None


def _job_id(value: uuid.UUID | str) -> uuid.UUID:
    try:
        return value if isinstance(value, uuid.UUID) else uuid.UUID(value)
    except ValueError:
        raise UnknownJob(f"{value!r} is not the id of a job; `millrace jobs` lists them") from None


def _average_rate(job: Job) -> float | None:
    if job.started_at is None or not job.counters["chunks_indexed"]:
        return None
    return job.counters["chunks_indexed"] / max(job.seconds, 0.001)


def _recent_rate(samples: Sequence[tuple[float, int]]) -> float | None:
    (first, before), (last, after) = samples[0], samples[-1]
    return (after - before) / (last - first) if last - first > 1.0 and after > before else None


def _with_rate(status: JobStatus, job: Job, rate: float | None) -> JobStatus:
    if rate is None or job.sealed_at is None or not job.counters["documents_prepared"]:
        return replace(status, rate=rate)
    left = max(0.0, chunks_expected(job.counters) - job.counters["chunks_indexed"])
    return replace(status, rate=rate, eta_seconds=left / rate)
