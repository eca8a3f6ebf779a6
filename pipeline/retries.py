"""Dead letters tried again: their content is staged as new versions, in jobs of their own; or let go.

Each group of letters is one transaction, in which they are resolved and staged: who is interrupted calls again and goes
on with the rest, and two that try the same at once make it once. Newest wins here too: a letter whose document has a
newer version by now, published or on its way, is resolved as superseded and brings nothing back.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.assembly import Services
from pipeline.document import canonical
from pipeline.enqueue import recipe_hash
from pipeline.ledger import collections, dead_letters, documents, jobs, reembed_failures, staging, writing
from pipeline.ledger.dead_letters import Selection
from pipeline.ledger.engine import Connection, Row
from pipeline.ledger.jobs import Job
from pipeline.settings import ChunkingSettings
from pipeline.status import JobStatus
from pipeline.submission import correlation, read_status, top_up

_DISCARDED_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Retried:
    """What a retry did. jobs: one for each collection, tenant, recipe, provider and priority among the letters, and one
    more for deletions; none where nothing was left to try. retried: letters staged again; superseded: letters whose
    document has a newer version."""

    jobs: Sequence[JobStatus]
    retried: int
    superseded: int


@dataclass(slots=True)
class _Target:
    """A job that letters go into, made with the first of them. retry_of: the jobs that they come from."""

    asked: Row
    recipe: dict[str, Any]
    recipe_also: list[bytes]
    job: Job | None = None
    retry_of: set[uuid.UUID] = field(default_factory=set)


def retry(
    services: Services, selection: Selection, priority: str | None = None, correlation_id: str | None = None
) -> Retried:
    """Stages the content of the selected open letters again. priority: of the new jobs; None: as before.
    correlation_id: of the new jobs; None: that of the log context, if there is one.

    Letters that are written meanwhile are left alone. Raises InvalidRequest (an unknown priority, a job that was
    cancelled while it was written), UnknownDeadLetter, LedgerUnavailable; what was staged by then is tried.
    """
    number = None if priority is None else jobs.priority_number(priority)
    with services.ledger.transaction() as connection:
        # What cannot be embedded by another model has no content of its own: its job goes on with it.
        again = reembed_failures.retry(connection, selection)
    run = _Run(services, selection, number, correlation(correlation_id))
    while run.stage_page():
        pass
    return run.finish(again)


def discard(services: Services, selection: Selection) -> int:
    """Resolves the selected open letters without trying them, and drops their content. Returns how many.

    Raises UnknownDeadLetter, LedgerUnavailable.
    """
    with services.ledger.transaction() as connection:
        _check_ids(connection, selection)
        last = dead_letters.newest(connection)
    discarded = 0
    while True:
        with services.ledger.transaction() as connection:
            found = dead_letters.discard(connection, selection, last=last, limit=_DISCARDED_AT_ONCE)
        discarded += found
        if found < _DISCARDED_AT_ONCE:
            return discarded


def _check_ids(connection: Connection, selection: Selection) -> None:
    for letter_id in dead_letters.missing(connection, selection.ids or ()):
        dead_letters.get(connection, letter_id)


class _Run:
    """One retry: page by page, oldest letters first."""

    def __init__(
        self, services: Services, selection: Selection, priority: int | None, correlation_id: str | None
    ) -> None:
        self._services = services
        self._selection = selection
        self._priority = priority
        self._correlation_id = correlation_id
        self._targets: dict[bytes, _Target] = {}
        self._after = 0
        self._retried = self._superseded = 0
        with services.ledger.transaction() as connection:
            _check_ids(connection, selection)
            # A letter that this very retry leads to is none of it: it would go round for ever.
            self._last = dead_letters.newest(connection)

    def stage_page(self) -> bool:
        """Stages a page of letters; False where there are no more."""
        settings = self._services.settings.ingest
        with self._services.ledger.transaction() as connection:
            page = dead_letters.page(
                connection,
                self._selection,
                after=self._after,
                last=self._last,
                count=settings.group_documents,
                size=settings.group_bytes,
            )
        if not page:
            return False
        members: dict[bytes, list[Row]] = {}
        for row in page:
            # Outside of the transaction below: a recipe is told by the tokenizer of the model, which has to be read.
            members.setdefault(self._target(row), []).append(row)
        with self._services.ledger.transaction() as connection:
            documents.lock(connection, [row["document_id"] for row in page])
            for key, rows in sorted(members.items()):
                self._stage(connection, self._targets[key], rows)
        self._after = page[-1]["id"]
        return True

    def finish(self, again: Mapping[uuid.UUID, int]) -> Retried:
        """Seals the jobs and sends their work. again: further jobs that go on, and with how many letters."""
        made = [target.job for target in self._targets.values() if target.job is not None]
        with self._services.ledger.transaction() as connection:
            for job in sorted(made, key=lambda job: job.id):
                writing.seal(connection, job.id)
        if made:
            top_up(self._services)
        with self._services.ledger.transaction() as connection:
            found = [read_status(connection, job_id)[0] for job_id in (*(job.id for job in made), *again)]
        return Retried(found, self._retried + sum(again.values()), self._superseded)

    def _target(self, row: Row) -> bytes:
        """The key of the job that a letter goes into."""
        asked = {name: row[name] for name in ("collection_id", "tenant", "kind", "provider")}
        asked["priority"] = row["priority"] if self._priority is None else self._priority
        asked["chunking"] = row["recipe"].get("chunking", {})
        key = canonical(asked)
        if key not in self._targets:
            self._targets[key] = _Target(asked, *self._recipe(asked))
        return key

    def _recipe(self, asked: Row) -> tuple[dict[str, Any], list[bytes]]:
        """The chunking that the application asked for, by the extractor and the chunker of today; and the hashes of
        what counts as the same."""
        with self._services.ledger.transaction() as connection:
            collection = collections.by_id(connection, asked["collection_id"])
        embedder = self._services.embedder(collection.model)
        chunking = ChunkingSettings(**asked["chunking"])
        also = self._services.recipes_before(collection, chunking)
        return self._services.recipe(embedder, collection.sparse, chunking), also

    def _stage(self, connection: Connection, target: _Target, rows: Sequence[Row]) -> None:
        letters = dead_letters.lock_open(connection, [row["id"] for row in rows])
        outdated = [letter["id"] for letter in letters if letter["outdated"]]
        dead_letters.resolve(connection, outdated, "superseded")
        self._superseded += len(outdated)
        wanted = [_wanted(letter) for letter in letters if not letter["outdated"]]
        if not wanted:
            return
        if target.job is None:
            target.job = _create(connection, target, self._correlation_id)
        settings = self._services.settings.ingest
        ids = [letter["id"] for letter in letters if not letter["outdated"]]
        target.retry_of.update(row["job_id"] for row in rows if row["id"] in ids)
        jobs.set_retry_of(connection, target.job.id, target.retry_of)
        dead_letters.resolve(connection, ids, "retried", target.job.id)
        self._retried += len(ids)
        recipe = recipe_hash(target.recipe) if target.asked["kind"] == "ingest" else b""
        limits = staging.Limits(settings.prepare_documents, settings.prepare_bytes)
        staging.stage(connection, target.job, wanted, recipe, limits)


def _create(connection: Connection, target: _Target, correlation_id: str | None) -> Job:
    asked = target.asked
    job, _ = jobs.create(
        connection,
        kind=asked["kind"],
        collection_id=asked["collection_id"],
        tenant=asked["tenant"],
        priority=asked["priority"],
        provider=asked["provider"],
        recipe=target.recipe,
        recipe_also=target.recipe_also,
        correlation_id=correlation_id,
    )
    return job


def _wanted(letter: Row) -> staging.Wanted:
    return staging.Wanted(
        letter["uri"],
        letter["kind"],
        letter["content"],
        letter["media_type"],
        letter["metadata"],
        letter["content_hash"],
        letter["meta_hash"],
        letter["validators"] or {},
    )
