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

from pipeline.assembly import Services
from pipeline.audit import AuditReport, audit
from pipeline.cached_embedding import embed_cached
from pipeline.document import canonical, digest
from pipeline.embedding.base import Role
from pipeline.errors import BrokerUnavailable, InvalidRequest, Unavailable, UnknownJob, WaitTimeout
from pipeline.ledger import backlog, batches, collections, documents, fleet, jobs, versions
from pipeline.ledger.waiting import Waiting, waiting
from pipeline.search import SearchResult, typed_filters
from pipeline.settings import Settings, load_settings
from pipeline.sources import Source, check_metadata, open_source
from pipeline.sources.given import Ingestible, open_given
from pipeline.status import (
    CollectionInfo,
    EmbedResult,
    JobStatus,
    average_rate,
    job_status,
    recent_rate,
    with_rate,
)
from pipeline.submission import Request, Submission, read_status, top_up
from pipeline.sync import Listing

DEFAULT_COLLECTION = "default"

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
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        connection: Any = None,
        on_staged: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """Enqueues documents; returns when all of them are durable in Postgres, before they are indexed.

        source: a path, glob or URL, several of them, documents (Document, (uri, text), mappings) or a Source.
        metadata: added to that of every document. collection: made where it is missing, with the model of the settings.
        idempotency_key: the same key and request again is the same job; it goes on where an enqueuer was cut off.
        include, exclude: gitignore patterns for the files of directories.
        connection: an open SQLAlchemy connection or session, or psycopg connection, to the ledger's database: the job
        is written in its transaction, and exists if and only if that commits. on_staged: told after every group.

        Raises InvalidRequest, CollectionMismatch, IdempotencyConflict, SourceRefused, LedgerUnavailable.
        """
        if metadata is not None:
            check_metadata(metadata, "the metadata of this ingest")
        stream, described = open_given(source, self.settings.sources, include=include, exclude=exclude)
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
        submission = Submission(
            self._services, Request("sync", collection, tenant or self.tenant, priority, provider), on_staged
        )
        known = submission.count_below(scope)
        submission.ingest(listing, metadata or {})
        try:
            submission.delete_missing(listing, scope, known, force=force)
        finally:
            status = submission.seal()
        return status

    # -- jobs ----------------------------------------------------------------------------------------------------

    def job(self, job_id: uuid.UUID | str) -> JobStatus:
        """How the job is going. Raises UnknownJob, naming it."""
        with self._ledger_transaction() as own:
            status, job = read_status(own, _job_id(job_id))
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
        wanted = _job_id(job_id)
        deadline = None if timeout is None else time.monotonic() + timeout
        samples: deque[tuple[float, int]] = deque()
        last: JobStatus | None = None
        pause = _FIRST_POLL_SECONDS
        while True:
            try:
                with self._ledger_transaction() as own:
                    status, job = read_status(own, wanted)
            except Unavailable as error:
                if deadline is not None and time.monotonic() > deadline:
                    raise
                if last is not None and on_progress is not None:
                    on_progress(replace(last, waiting=Waiting(str(error)), rate=None, eta_seconds=None))
                time.sleep(_POLL_SECONDS)
                continue
            if job.indexing_seconds is not None:
                samples.append((time.monotonic(), job.counters["chunks_indexed"]))
            while len(samples) > 2 and samples[-1][0] - samples[0][0] > _RATE_WINDOW_SECONDS:
                samples.popleft()
            last = status = with_rate(status, job, recent_rate(samples) or average_rate(job))
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
        # Twice: an enqueuer that is still adding may have committed a group that the first round did not see. It finds
        # the job cancelled from then on.
        for _ in range(2):
            with self._ledger_transaction() as own:
                jobs.get(own, wanted)
                changes = versions.cancel_job(own, wanted)
                batches.cancel_job(own, wanted)
                jobs.count(own, changes)
                jobs.end_cancelled(own, wanted)
        top_up(self._services)
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


def _job_id(value: uuid.UUID | str) -> uuid.UUID:
    try:
        return value if isinstance(value, uuid.UUID) else uuid.UUID(value)
    except ValueError:
        raise UnknownJob(f"{value!r} is not the id of a job; `millrace jobs` lists them") from None
