"""One job being written: begun, filled group by group, sealed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pipeline import enqueue
from pipeline.assembly import Services
from pipeline.backpressure import (
    Gate,
    OpenGate,
    RefusingGate,
    WaitingGate,
    WhenFull,
    check_when_full,
    wait_for_room,
)
from pipeline.borrowed import borrowed_transaction
from pipeline.dispatch import dispatch
from pipeline.document import canonical, digest
from pipeline.enqueue import Published
from pipeline.errors import BacklogFull, InvalidRequest, Unavailable
from pipeline.groups import Sizes
from pipeline.ledger import collections, dead_letters, documents, jobs, reembed_failures, usage, writing
from pipeline.ledger.collections import Collection
from pipeline.ledger.diagnosis import Waiting, waiting
from pipeline.ledger.engine import Connection, Transaction, clock
from pipeline.ledger.jobs import Job, JobKind
from pipeline.observe import bound, context, logger
from pipeline.providers import (
    Asked,
    NeedBy,
    check_cost,
    deadline,
    ensure_collection,
    expect_future,
    told_deadline,
)
from pipeline.sources import InlineSource
from pipeline.sources.base import Item, documents_since, skipped
from pipeline.status import JobStatus, job_status
from pipeline.sync import Listing, enqueue_missing
from pipeline.webhooks import check_url

MOST_CORRELATION_ID = 200

OnStaged = Callable[[JobStatus], None]

_log = logger("client")


@dataclass(frozen=True, slots=True)
class Request:
    """What every job is asked for with. described: what tells it from another request under the same key.

    connection: the application's own, or None. webhook: the URL that is told when the job has ended. when_full: what
    to do where the backlog is full. correlation_id: of the job; None: that of the log context, if there is one.
    provider: None: as the collection's jobs are embedded. need_by: when its documents shall be found; max_cost: US
    dollars. model, dimensions: of a collection that is made by it; one that is there must have them.
    """

    kind: JobKind
    collection: str
    tenant: str
    priority: str
    provider: str | None = None
    idempotency_key: str | None = None
    described: bytes = b""
    connection: Any = None
    webhook: str | None = None
    when_full: WhenFull = "wait"
    correlation_id: str | None = None
    need_by: NeedBy | None = None
    max_cost: float | None = None
    model: str | None = None
    dimensions: int | None = None

    def hash(self) -> bytes:
        told: tuple[str, ...] = () if self.webhook is None else (self.webhook,)
        wishes = (told_deadline(self.need_by), self.max_cost, self.model, self.dimensions)
        if any(wish not in (None, "") for wish in wishes):
            told += (canonical(wishes).decode(),)
        # As it was said when there was but one.
        provider = self.provider or "local"
        return digest(self.kind, self.collection, self.priority, provider, self.described, *told)


class Submission:
    """The writing of one job. `earlier` is its status where the same request under the same key made it before."""

    def __init__(self, services: Services, request: Request, on_staged: OnStaged | None = None) -> None:
        """Writes the job's row; a collection that is missing is made, except for deletions.

        Raises InvalidRequest, UnknownCollection, CollectionMismatch, IdempotencyConflict, LedgerUnavailable; and
        BacklogFull, where the backlog is full and the request says not to wait: nothing is written then.
        """
        number = jobs.priority_number(request.priority)
        need_by, max_cost = deadline(request.need_by), check_cost(request.max_cost)
        Asked(request.provider, request.model, request.dimensions).check()
        check_when_full(request.when_full)
        if request.webhook is not None:
            check_url(request.webhook, services.settings.webhooks)
        correlation_id = correlation(request.correlation_id)
        self._services = services
        self._on_staged = on_staged
        self._own: Transaction = services.ledger.transaction
        if isinstance(need_by, datetime):
            self._expect_future(request, need_by)
        self._borrowed = request.connection is not None
        if self._borrowed or request.when_full == "refuse":
            self._look_first(request)
        self._transaction = borrowed_transaction(request.connection) if self._borrowed else self._own
        self._gate = self._make_gate(request)
        # The collection is made in a transaction of its own: the application's may stay open for long, or roll back.
        with self._own() as connection:
            self.collection, provider = self._find_collection(connection, request)
        recipe = services.recipe(services.embedder(self.collection.model), self.collection.sparse)
        self.earlier: JobStatus | None = None
        with self._transaction() as connection:
            self.job, made = jobs.create(
                connection,
                kind=request.kind,
                collection_id=self.collection.id,
                tenant=request.tenant,
                priority=number,
                provider=provider,
                recipe=recipe,
                recipe_also=services.recipes_before(self.collection),
                idempotency_key=request.idempotency_key,
                request_hash=request.hash(),
                webhook=request.webhook,
                correlation_id=correlation_id,
                need_by=need_by,
                max_cost=max_cost,
            )
            self._resumed = not made
            if self._resumed and not writing.was_cut_off(self.job):
                self.earlier = read_status(connection, self.job.id)[0]
            elif self._resumed:
                writing.reopen(connection, self.job.id)

    def _expect_future(self, request: Request, need_by: datetime) -> None:
        """A request that made its job before is answered, and one that was cut off gone on with, however late it is."""
        with self._own() as connection:
            if not jobs.has_key(connection, request.tenant, request.idempotency_key):
                expect_future(request.need_by, need_by, clock(connection))

    def _look_first(self, request: Request) -> None:
        """Before anything is written: an application's transaction must not wait in its middle, nor fail there. A
        request that made its job before is answered, however full it is."""
        try:
            with self._own() as connection:
                if not jobs.has_key(connection, request.tenant, request.idempotency_key):
                    look = self._services.backlog
                    (look.check_now if request.when_full == "refuse" else look.check)(connection)
        except BacklogFull as error:
            if request.when_full == "refuse":
                raise BacklogFull(
                    f"{error}. Nothing was enqueued: try again when workers have caught up, or wait for them "
                    "(when_full='wait', `--when-full wait`)"
                ) from error
            wait_for_room(self._services.backlog, self._own, lambda _: None, error)

    def _make_gate(self, request: Request) -> Gate:
        if self._borrowed:
            return OpenGate()
        if request.when_full == "refuse":
            return RefusingGate(self._services.backlog, self._refused)
        return WaitingGate(self._services.backlog, self._own, self._waiting)

    def _find_collection(self, connection: Connection, request: Request) -> tuple[Collection, str]:
        if request.kind == "delete":
            found = collections.get(connection, request.collection)
            return found, found.provider
        asked = Asked(request.provider, request.model, request.dimensions)
        return ensure_collection(self._services, connection, request.collection, asked)

    def named(self) -> AbstractContextManager[None]:
        """Log lines within are about this job."""
        return bound(
            job_id=self.job.id,
            correlation_id=self.job.correlation_id,
            collection=self.collection.name,
            tenant=self.job.tenant,
        )

    def ingest(self, stream: Iterable[Item], metadata: Mapping[str, Any]) -> None:
        """Stages documents, each group durable when the next one is read. A source may ask what the ledger has."""
        settings = self._services.settings.ingest
        published = Published(self._transaction, self._own, self.job, metadata)
        found = documents_since(stream, published)
        enqueue.enqueue(
            self._transaction,
            enqueue.declare_fields(self._own, self.collection, settings),
            self.job,
            # A source of the application's own may yield what the ledger cannot hold.
            found if isinstance(stream, InlineSource) else InlineSource(found, self._services.settings.sources),
            metadata,
            settings,
            self._after_group,
            self._gate,
            sizes=Sizes(settings, self._services.settings.memory),
            resumed=self._resumed,
            published=published,
        )
        if left_out := skipped(stream):
            with self._transaction() as connection:
                writing.note_skipped(connection, self.job.id, left_out)

    def delete(self, uris: Iterable[str]) -> None:
        """Stages deletions."""
        settings = self._services.settings.ingest
        enqueue.enqueue_deletions(
            self._transaction, self.job, uris, settings, self._after_group, self._gate, resumed=self._resumed
        )

    def count_below(self, scope: str) -> int:
        """How many documents below the scope there were or would be before this job."""
        with self._own() as connection:
            return documents.wanted_count(
                connection, self.collection.id, self.job.tenant, prefix=scope, except_job=self.job.id
            )

    def delete_missing(self, listing: Listing, scope: str, known: int, *, force: bool) -> None:
        """Stages the deletion of what a complete listing did not see. Raises DeletionRefused."""
        enqueue_missing(
            self._transaction,
            self.job,
            listing,
            scope,
            known,
            self._services.settings.ingest,
            self._after_group,
            self._gate,
            force=force,
        )

    def seal(self) -> JobStatus:
        """Nothing more comes. Says so where the start is delayed because Redis is away; the job is safe then too."""
        with self._transaction() as connection:
            writing.seal(connection, self.job.id)
        # Whoever lent a connection has not committed yet: reconcile dispatches what then exists.
        delayed = None if self._borrowed else top_up(self._services)
        with self._transaction() as connection:
            status, _ = read_status(connection, self.job.id)
        _log.info(
            "%s: %d documents enqueued",
            self.job.kind,
            status.documents["total"],
            extra={"documents": status.documents["total"], "seconds": round(status.seconds, 3)},
        )
        return replace(status, waiting=Waiting(delayed)) if delayed and not status.finished else status

    def _after_group(self) -> None:
        if self._borrowed:
            return
        top_up(self._services)
        if self._on_staged is not None:
            with self._own() as connection:
                status, _ = read_status(connection, self.job.id)
            self._on_staged(status)

    def _waiting(self, reason: str) -> None:
        """The enqueuer is alive, and says what it waits for. Raises InvalidRequest where the job was cancelled."""
        with self._own() as connection:
            writing.touch(connection, self.job.id)
            status, _ = read_status(connection, self.job.id)
        if self._on_staged is not None:
            # What fills the backlog may be the job itself, which somebody or a budget has paused.
            pause = status.waiting if status.paused else None
            why = Waiting(reason)
            if pause is not None and pause.reason not in reason:
                why = replace(pause, reason=f"{pause.reason}; {reason}")
            self._on_staged(replace(status, waiting=why))

    def _refused(self, error: BacklogFull) -> BacklogFull:
        """Closes the job: it is done with what it has, and can be gone on with at once."""
        with self._own() as connection:
            writing.refuse(connection, self.job.id)
            documents_in_it = jobs.get(connection, self.job.id).counters["documents_total"]
        again = "the same request again under its idempotency key goes on with it"
        if self.job.idempotency_key is None:
            again = "ingest again what is missing: what is done by then is not done twice"
        return BacklogFull(
            f"{error}. Job {self.job.id} keeps the {documents_in_it:,} documents that are in it; {again}."
        )


def correlation(given: str | None) -> str | None:
    """The correlation id of a job: what was given, else that of the log context. Raises InvalidRequest."""
    if given is None:
        given = context().get("correlation_id")
    if given is not None and not (0 < len(given) <= MOST_CORRELATION_ID and given.isprintable() and " " not in given):
        raise InvalidRequest(
            f"a correlation id is 1 to {MOST_CORRELATION_ID} printable characters without spaces, not {given[:80]!r}"
        )
    return given


def read_status(connection: Connection, job_id: uuid.UUID) -> tuple[JobStatus, Job]:
    """A job's status and its row. Raises UnknownJob."""
    job = jobs.get(connection, job_id)
    # Most jobs have no failures, and nobody is asked for their letters.
    some = job.counters["documents_failed"] or job.kind == "reembed"
    letters = dead_letters.count_open(connection, job.id) if some else 0
    used = usage.of_jobs(connection, [job])[job.id]
    errors = (reembed_failures if job.kind == "reembed" else jobs).errors(connection, job.id)
    status = job_status(job, errors, waiting(connection, job), used)
    return replace(status, dead_letters=letters), job


def top_up(services: Services) -> str | None:
    """Sends ready work to the queues. Returns why the start is delayed, where a dependency is away."""
    try:
        dispatch(services.ledger, services.broker, services.settings.work)
    except Unavailable as error:
        return f"dispatch is delayed: {error}"
    return None
