"""Documents that could not be indexed: why, and what is done with them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from pipeline import retries
from pipeline.client.connection import DEFAULT_COLLECTION, Connected
from pipeline.errors import InvalidRequest
from pipeline.ledger import collections, dead_letters, jobs
from pipeline.ledger.dead_letters import DeadLetter, Selection
from pipeline.retries import Retried
from pipeline.watch import parse_job_id


class DeadLetters(Connected):
    """Dead letters: listed, tried again, discarded."""

    def dead_letters(
        self,
        *,
        job: uuid.UUID | str | None = None,
        collection: str | None = None,
        document: str | None = None,
        tenant: str | None = None,
        resolved: bool = False,
        limit: int = 100,
        after: int | None = None,
    ) -> list[DeadLetter]:
        """A page of dead letters, the newest first: open ones, of documents without a newer version.

        job, collection, document (a uri), tenant: only theirs. resolved: those that were retried, discarded or
        superseded too; they are kept for a week. after: the last id of the page before.
        Raises UnknownJob, UnknownCollection.
        """
        selection = self._selection((), job, document, collection, tenant)
        with self._services.ledger.transaction() as own:
            return dead_letters.listing(own, selection, resolved=resolved, after=after, limit=limit)

    def dead_letter(self, letter_id: int) -> DeadLetter:
        """One dead letter, open or resolved. Raises UnknownDeadLetter, naming it."""
        with self._services.ledger.transaction() as own:
            return dead_letters.get(own, letter_id)

    def retry(
        self,
        ids: int | Iterable[int] = (),
        *,
        job: uuid.UUID | str | None = None,
        document: str | None = None,
        collection: str | None = None,
        tenant: str | None = None,
        everything: bool = False,
        priority: str | None = None,
        correlation_id: str | None = None,
    ) -> Retried:
        """Tries dead letters again: of these ids, of a job, of a document (a uri), of a collection, or everything.

        Returns when their content is staged in new jobs. A document that was ingested or deleted since is left as it
        is; a letter that somebody else has just retried is not tried twice. priority: by default that of the old job.
        document: in `collection`, by default "default". tenant: only its letters. correlation_id: as for `ingest`.
        Raises InvalidRequest where nothing is named, UnknownDeadLetter, UnknownJob, UnknownCollection.
        """
        named = self._named(ids, job, document, collection, tenant, everything)
        return retries.retry(self._services, named, priority, correlation_id)

    def discard(
        self,
        ids: int | Iterable[int] = (),
        *,
        job: uuid.UUID | str | None = None,
        document: str | None = None,
        collection: str | None = None,
        tenant: str | None = None,
        everything: bool = False,
    ) -> int:
        """Resolves dead letters without trying them again, named as for `retry`; their content is dropped.

        What is published of their documents stays. Returns how many there were.
        """
        return retries.discard(self._services, self._named(ids, job, document, collection, tenant, everything))

    def _named(
        self,
        ids: int | Iterable[int],
        job: uuid.UUID | str | None,
        document: str | None,
        collection: str | None,
        tenant: str | None,
        everything: bool,
    ) -> Selection:
        wanted = (ids,) if isinstance(ids, int) else tuple(ids)
        if not wanted and job is None and document is None and collection is None and not everything:
            raise InvalidRequest("name the dead letters by id, job, document or collection, or say that all are meant")
        return self._selection(wanted, job, document, collection, tenant)

    def _selection(
        self,
        ids: tuple[int, ...],
        job: uuid.UUID | str | None,
        document: str | None,
        collection: str | None,
        tenant: str | None,
    ) -> Selection:
        job_id = parse_job_id(job) if job is not None else None
        if document is not None:
            collection, tenant = collection or DEFAULT_COLLECTION, tenant or self.tenant
        with self._services.ledger.transaction() as own:
            if job_id is not None:
                jobs.get(own, job_id)
            found = collections.get(own, collection) if collection is not None else None
        return Selection(ids or None, job_id, found.id if found else None, tenant, document)
