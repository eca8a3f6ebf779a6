"""Making a collection like a source: who was seen, and who is gone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from pipeline.document import Document
from pipeline.enqueue import enqueue_deletions
from pipeline.errors import DeletionRefused
from pipeline.ledger import documents
from pipeline.ledger.engine import Transaction
from pipeline.ledger.jobs import Job
from pipeline.settings import IngestSettings
from pipeline.sources.base import Rejected, Source

_PAGE = 5000


class Listing:
    """A source that remembers what it yielded, in 16 bytes a uri."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._seen: set[bytes] = set()

    def __iter__(self) -> Iterator[Document | Rejected]:
        for item in self.source:
            self._seen.add(_mark(item.uri))
            yield item

    def saw(self, uri: str) -> bool:
        return _mark(uri) in self._seen

    def protects(self, uri: str) -> bool:
        """Whether the uri is at or below a place that could not be looked into."""
        return any(uri == place or uri.startswith(place.rstrip("/") + "/") for place in self.source.unreadable)


def enqueue_missing(
    transaction: Transaction,
    job: Job,
    listing: Listing,
    scope: str,
    known: int,
    settings: IngestSettings,
    on_group: Callable[[], None],
    *,
    force: bool,
) -> None:
    """Stages the deletion of what the ledger has below the scope and a complete listing did not see.

    known: how many documents there were below the scope before; those that this job brings do not make up for what
    would go. Nothing is deleted after a listing that broke off. Raises DeletionRefused where more than half would go.
    """
    if not listing.source.complete and not listing.source.unreadable:
        return
    gone: list[str] = []
    after = ""
    while True:
        with transaction() as connection:
            page = documents.wanted_uris(
                connection, job.collection_id, job.tenant, prefix=scope, after=after, limit=_PAGE
            )
        if not page:
            break
        after = page[-1]
        gone += [uri for uri in page if not listing.saw(uri) and not listing.protects(uri)]
    if len(gone) * 2 > known and not force:
        raise DeletionRefused(
            f"{len(gone)} of the {known} documents below {scope} are gone from the source: more than half would be "
            f"deleted. Pass force (`--force`) if that is meant. What is there was ingested by job {job.id}."
        )
    enqueue_deletions(transaction, job, gone, settings, on_group)


def _mark(uri: str) -> bytes:
    return hashlib.blake2b(uri.encode("utf-8", "surrogatepass"), digest_size=16).digest()
