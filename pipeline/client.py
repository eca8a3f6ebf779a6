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
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline import scheduling
from pipeline.assembly import Services
from pipeline.audit import AuditReport, audit
from pipeline.cached_embedding import embed_cached
from pipeline.cancellation import cancel
from pipeline.document import canonical, digest
from pipeline.embedding.base import Role
from pipeline.errors import InvalidRequest
from pipeline.health import health
from pipeline.ledger import collections, documents, jobs, schedules
from pipeline.ledger.schedules import Schedule, SyncOptions
from pipeline.ledger.waiting import waiting
from pipeline.scheduling import ScheduleChange
from pipeline.search import SearchResult, typed_filters
from pipeline.settings import Settings, load_settings
from pipeline.sources import Rows, Source, check_metadata
from pipeline.sources.given import Ingestible, open_given
from pipeline.status import CollectionInfo, EmbedResult, JobStatus, average_rate, job_status, with_rate
from pipeline.submission import Request, Submission, read_status
from pipeline.sync import Listing, open_to_sync
from pipeline.watch import Watch, parse_job_id

DEFAULT_COLLECTION = "default"


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
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        rows: Rows | None = None,
        connection: Any = None,
        on_staged: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """Enqueues documents; returns when all of them are durable in Postgres, before they are indexed.

        source: a path, glob or URL, several of them, documents (Document, (uri, text), mappings) or a Source.
        metadata: added to that of every document. collection: made where it is missing, with the model of the settings.
        idempotency_key: the same key and request again is the same job; it goes on where an enqueuer was cut off.
        include, exclude: gitignore patterns for the files of directories. rows: how rows of tables become documents.
        connection: an open SQLAlchemy connection or session, or psycopg connection, to the ledger's database: the job
        is written in its transaction, and exists if and only if that commits. on_staged: told after every group.

        Raises InvalidRequest, CollectionMismatch, IdempotencyConflict, SourceRefused, LedgerUnavailable.
        """
        if metadata is not None:
            check_metadata(metadata, "the metadata of this ingest")
        stream, described = open_given(source, self.settings.sources, include=include, exclude=exclude, rows=rows)
        submission = Submission(
            self._services,
            Request(
                "ingest",
                collection,
                tenant or self.tenant,
                priority,
                provider,
                idempotency_key,
                digest(described, canonical(dict(metadata or {}))),
                connection,
            ),
            on_staged,
        )
        if submission.earlier is not None:
            return submission.earlier
        submission.ingest(stream, metadata or {})
        return submission.seal()

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
                typed = typed_filters(filters, found)
                uri = typed.pop("uri", None)
                matching = documents.matching(own, found.id, tenant or self.tenant, typed)
                wanted = [uri] if isinstance(uri, str) else uri
                named += [item for item in matching if wanted is None or item in wanted]
        submission = Submission(
            self._services,
            Request(
                "delete",
                collection,
                tenant or self.tenant,
                priority,
                idempotency_key=idempotency_key,
                described=canonical([named, dict(filters or {})]),
                connection=connection,
            ),
        )
        if submission.earlier is not None:
            return submission.earlier
        submission.delete(named)
        return submission.seal()

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
        idempotency_key: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        rows: Rows | None = None,
        on_staged: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """Makes the collection like the source: ingests what is there, deletes what was there and is gone.

        Deletes only after a complete listing, and nothing at or below a path that could not be read.
        idempotency_key, include, exclude, rows, on_staged: as for `ingest`.
        Raises DeletionRefused where more than half would be deleted without `force`; what is there was ingested then.
        """
        if metadata is not None:
            check_metadata(metadata, "the metadata of this sync")
        stream = open_to_sync(source, self.settings.sources, include=include, exclude=exclude, rows=rows)
        scope = stream.scope or ""
        listing = Listing(stream)
        mapping = [rows.to_json()] if rows is not None else []
        submission = Submission(
            self._services,
            Request(
                "sync",
                collection,
                tenant or self.tenant,
                priority,
                provider,
                idempotency_key,
                canonical([scope, list(include), list(exclude), dict(metadata or {}), force, *mapping]),
            ),
            on_staged,
        )
        if submission.earlier is not None:
            return submission.earlier
        known = submission.count_below(scope)
        submission.ingest(listing, metadata or {})
        try:
            submission.delete_missing(listing, scope, known, force=force)
        finally:
            status = submission.seal()
        return status

    # -- schedules -----------------------------------------------------------------------------------------------

    def schedule(
        self,
        source: str | Path,
        *,
        every: str | float | timedelta,
        collection: str = DEFAULT_COLLECTION,
        priority: str = "normal",
        provider: str = "local",
        metadata: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        force: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        rows: Rows | None = None,
    ) -> Schedule:
        """Synchronises the source now and then again and again, `every` 30s, 15m, 1h, 1d, seconds or timedelta, as
        `sync` does. The same collection, tenant and source again changes the schedule.

        A worker reads the source: a path must be the same on every machine that has one. Raises InvalidRequest
        (a source that is not there or cannot be synchronised, credentials in a URL), CollectionMismatch, SourceRefused.
        """
        mapping = rows.to_json() if rows is not None else None
        options = SyncOptions(tuple(include), tuple(exclude), mapping, metadata, priority, provider, force)
        return scheduling.put(self._services, source, every, options, collection, tenant or self.tenant)

    def schedules(self) -> list[Schedule]:
        """Every schedule, oldest first."""
        with self._ledger_transaction() as own:
            return schedules.listing(own)

    def change_schedule(
        self,
        schedule: int | str | Path,
        change: ScheduleChange,
        *,
        collection: str | None = None,
        tenant: str | None = None,
    ) -> Schedule:
        """Pauses, resumes or removes a schedule, by id or source, or runs it now; returns it as it is then, or was.

        Its documents stay when it is removed. Raises InvalidRequest where there is none, or more than one.
        """
        return scheduling.change(self._services, schedule, change, collection, tenant or self.tenant)

    def unschedule(
        self, schedule: int | str | Path, *, collection: str | None = None, tenant: str | None = None
    ) -> Schedule:
        """Removes a schedule, by id or source; its documents stay. Returns it as it was. Raises InvalidRequest."""
        return self.change_schedule(schedule, "remove", collection=collection, tenant=tenant)

    # -- jobs ----------------------------------------------------------------------------------------------------

    def job(self, job_id: uuid.UUID | str) -> JobStatus:
        """How the job is going. Raises UnknownJob, naming it."""
        with self._ledger_transaction() as own:
            status, job = read_status(own, parse_job_id(job_id))
        return with_rate(status, job, average_rate(job))

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
        watch = Watch(self._services, job_id, timeout)
        while True:
            status = watch.look()
            if status is not None and on_progress is not None:
                on_progress(status)
            if status is not None and status.finished:
                return status
            time.sleep(watch.pause())

    def cancel(self, job_id: uuid.UUID | str) -> JobStatus:
        """Cancels what is not published yet; a finished job stays as it is. Running work stops at its next step, and
        what it added leaves the index."""
        wanted = parse_job_id(job_id)
        cancel(self._services, wanted)
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
        """The texts' vectors under the model of the settings: stored ones, or computed and stored."""
        embedder = self._services.embedder(self._services.spec.to_json())
        return embed_cached(self._services.ledger, embedder, texts, role)

    def collections(self) -> list[CollectionInfo]:
        """Every collection, by name."""
        with self._ledger_transaction() as own:
            rows = collections.listing(own)
        return [CollectionInfo.from_row(row) for row in rows]

    def documents(
        self,
        *,
        collection: str = DEFAULT_COLLECTION,
        prefix: str = "",
        filters: Mapping[str, Any] | None = None,
        after: str = "",
        limit: int = 100,
        tenant: str | None = None,
    ) -> list[dict[str, Any]]:
        """Published documents by uri: uri, title, metadata, chunks, generation, published_at.

        filters: as for `search`. after: the last uri of the page before. Raises UnknownCollection, InvalidFilter.
        """
        with self._ledger_transaction() as own:
            found = collections.get(own, collection)
            typed = typed_filters(filters or {}, found)
            rows = documents.published(
                own, found.id, tenant or self.tenant, prefix=prefix, filters=typed, after=after, limit=limit
            )
        return [{**row, "published_at": row["published_at"].isoformat()} for row in rows]

    def uris(
        self,
        *,
        collection: str = DEFAULT_COLLECTION,
        prefix: str = "",
        after: str = "",
        limit: int = 5000,
        tenant: str | None = None,
    ) -> list[str]:
        """The uris of documents that are published or on their way, and not on their way out, in order."""
        with self._ledger_transaction() as own:
            found = collections.get(own, collection)
            return documents.wanted_uris(own, found.id, tenant or self.tenant, prefix=prefix, after=after, limit=limit)

    def audit(self, collection: str = DEFAULT_COLLECTION) -> AuditReport:
        """Compares the ledger with the index, point by point; changes nothing."""
        with self._ledger_transaction() as own:
            found = collections.get(own, collection)
        return audit(self._services.ledger, self._services.vectors, found)

    def status(self) -> dict[str, Any]:
        """Health, queues (messages and ready batches), jobs by state, live workers."""
        return health(self._services)

    # -- how -----------------------------------------------------------------------------------------------------

    def _ledger_transaction(self) -> Any:
        return self._services.ledger.transaction()
