"""Documents in: ingest, delete, sync."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.backpressure import WhenFull
from pipeline.client.connection import DEFAULT_COLLECTION, Connected
from pipeline.document import canonical, digest
from pipeline.errors import InvalidRequest
from pipeline.ledger import collections, documents
from pipeline.providers import NeedBy
from pipeline.search import typed_filters
from pipeline.sources import Rows, Source, check_metadata
from pipeline.sources.given import Ingestible, open_given
from pipeline.status import JobStatus
from pipeline.submission import Request, Submission
from pipeline.sync import Listing, open_to_sync


class DocumentsIn(Connected):
    """Each method writes one job and returns when all of it is durable in Postgres."""

    def ingest(
        self,
        source: Ingestible,
        *,
        collection: str = DEFAULT_COLLECTION,
        priority: str = "normal",
        provider: str | None = None,
        need_by: NeedBy | None = None,
        max_cost: float | None = None,
        model: str | None = None,
        dimensions: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        idempotency_key: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        rows: Rows | None = None,
        connection: Any = None,
        webhook: str | None = None,
        when_full: WhenFull = "wait",
        correlation_id: str | None = None,
        on_staged: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """Enqueues documents; returns when all of them are durable in Postgres, before they are indexed.

        source: a path, glob or URL, several of them, documents (Document, (uri, text), mappings) or a Source.
        metadata: added to that of every document. collection: made where it is missing, with the model of the settings.
        idempotency_key: the same key and request again is the same job; it goes on where an enqueuer was cut off.
        include, exclude: gitignore patterns for the files of directories. rows: how rows of tables become documents.
        connection: an open SQLAlchemy connection or session, or psycopg connection, to the ledger's database: the job
        is written in its transaction, and exists if and only if that commits. on_staged: told after every group, and
        about every second while the enqueuing waits.
        webhook: a URL that is told when the job has ended (docs/webhooks.md). when_full: where more is on its way than
        `ingest.max_staged_bytes` and `ingest.max_ready_batches` allow, `wait` until workers have caught up, or
        `refuse`. With a connection that is decided before anything is written in its transaction.
        correlation_id: what the application calls its request, in every log line of the work (docs/logs.md); by default
        what is bound in its log context (`observe.bound`), if anything is.

        provider: who embeds: `local`, `openai`, `openai_batch` (cheaper, within a day) or `auto`; by default as the
        collection was made for (docs/providers.md). need_by: when the documents shall be found: `2h`, seconds, a
        timedelta or a datetime; max_cost: US dollars that the job may spend. model, dimensions: of a collection that is
        made now; one that is there must have them.

        Raises InvalidRequest, CollectionMismatch, IdempotencyConflict, SourceRefused, LedgerUnavailable; BacklogFull
        where it is full and is not to be waited for: what was enqueued by then is carried out.
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
                webhook,
                when_full,
                correlation_id,
                need_by,
                max_cost,
                model,
                dimensions,
            ),
            on_staged,
        )
        if submission.earlier is not None:
            return submission.earlier
        with submission.named():
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
        webhook: str | None = None,
        when_full: WhenFull = "wait",
        correlation_id: str | None = None,
        on_staged: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """Enqueues the deletion of documents, by uri or by metadata filters (all must match). One that is not there
        counts as unchanged. connection, webhook, when_full, correlation_id, on_staged: as for `ingest`.

        Raises UnknownCollection, InvalidFilter, BacklogFull; InvalidRequest where neither is given."""
        named = sorted({uris} if isinstance(uris, str) else set(uris))
        if not named and not filters:
            raise InvalidRequest("name the documents to delete by uri or by filter")
        with self._services.ledger.transaction() as own:
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
                webhook=webhook,
                when_full=when_full,
                correlation_id=correlation_id,
            ),
            on_staged,
        )
        if submission.earlier is not None:
            return submission.earlier
        with submission.named():
            submission.delete(named)
            return submission.seal()

    def sync(
        self,
        source: str | Path | Source,
        *,
        collection: str = DEFAULT_COLLECTION,
        priority: str = "normal",
        provider: str | None = None,
        need_by: NeedBy | None = None,
        max_cost: float | None = None,
        model: str | None = None,
        dimensions: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        force: bool = False,
        idempotency_key: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        rows: Rows | None = None,
        webhook: str | None = None,
        when_full: WhenFull = "wait",
        correlation_id: str | None = None,
        on_staged: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """Makes the collection like the source: ingests what is there, deletes what was there and is gone.

        Deletes only after a complete listing, and nothing at or below a path that could not be read.
        idempotency_key, include, exclude, rows, webhook, when_full, correlation_id, on_staged, provider, need_by,
        max_cost, model, dimensions: as for `ingest`.
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
                webhook=webhook,
                when_full=when_full,
                correlation_id=correlation_id,
                need_by=need_by,
                max_cost=max_cost,
                model=model,
                dimensions=dimensions,
            ),
            on_staged,
        )
        if submission.earlier is not None:
            return submission.earlier
        known = submission.count_below(scope)
        with submission.named():
            submission.ingest(listing, metadata or {})
            try:
                submission.delete_missing(listing, scope, known, force=force)
            finally:
                status = submission.seal()
        return status
