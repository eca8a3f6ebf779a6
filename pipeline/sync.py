"""Making a collection like a source: who was seen, and who is gone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.backpressure import Gate
from pipeline.enqueue import enqueue_deletions
from pipeline.errors import DeletionRefused, InvalidRequest
from pipeline.ledger import documents
from pipeline.ledger.engine import Transaction
from pipeline.ledger.jobs import Job
from pipeline.settings import IngestSettings, SourceSettings
from pipeline.sources import Rows, open_source
from pipeline.sources.base import Item, Known, Source, documents_since, skipped
from pipeline.sources.bundles import table_kind

_PAGE = 5000


class Listing:
    """A source that remembers what it yielded, in 16 bytes a uri."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._seen: set[bytes] = set()

    def __iter__(self) -> Iterator[Item]:
        return self._listing(iter(self.source))

    def since(self, known: Known) -> Iterator[Item]:
        return self._listing(documents_since(self.source, known))

    def _listing(self, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            self._seen.add(_mark(item.uri))
            yield item

    @property
    def skipped(self) -> int:
        return skipped(self.source)

    def saw(self, uri: str) -> bool:
        return _mark(uri) in self._seen

    def protects(self, uri: str) -> bool:
        """Whether the uri is at or below a place that could not be looked into."""
        return any(_is_at_or_below(uri, place) for place in self.source.unreadable)


def open_to_sync(
    given: str | Path | Source,
    settings: SourceSettings,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rows: Rows | None = None,
) -> Source:
    """The source that a collection is made like: one with a scope. Raises InvalidRequest, SourceRefused."""
    if isinstance(given, str | Path):
        source, named = open_source(given, settings, include=include, exclude=exclude, rows=rows), str(given)
    elif include or exclude or rows is not None:
        raise InvalidRequest("include, exclude and rows are about files and directories; no path is given here")
    else:
        source, named = given, "this source"
    if source.scope is None:
        is_table = isinstance(given, str | Path) and table_kind(str(given)) is not None
        hint = "; a table has one when each row is a document (--id-column)" if is_table else ""
        raise InvalidRequest(f"{named} cannot be synchronised: its documents have no common place{hint}")
    return source


def enqueue_missing(
    transaction: Transaction,
    job: Job,
    listing: Listing,
    scope: str,
    known: int,
    settings: IngestSettings,
    on_group: Callable[[], None],
    gate: Gate,
    *,
    force: bool,
) -> None:
    """Stages the deletion of what the ledger has below the scope and a complete listing did not see.

    known: how many documents there were below the scope before; those that this job brings do not make up for what
    would go. Nothing is deleted after a listing that broke off. Raises DeletionRefused where more than half would go,
    BacklogFull.
    """
    gone = missing(transaction, job.collection_id, job.tenant, listing, scope)
    if len(gone) * 2 > known and not force:
        raise DeletionRefused(
            f"{len(gone)} of the {known} documents below {scope} are gone from the source: more than half would be "
            f"deleted. Pass force (`--force`) if that is meant. What is there was ingested by job {job.id}."
        )
    enqueue_deletions(transaction, job, gone, settings, on_group, gate)


def missing(transaction: Transaction, collection_id: int, tenant: str, listing: Listing, scope: str) -> list[str]:
    """What the ledger has below the scope and a complete listing did not see; nothing after one that broke off."""
    gone: list[str] = []
    if not listing.source.complete and not listing.source.unreadable:
        return gone
    after = ""
    while True:
        with transaction() as connection:
            page = documents.wanted_uris(connection, collection_id, tenant, prefix=scope, after=after, limit=_PAGE)
        if not page:
            return gone
        after = page[-1]
        gone += [uri for uri in page if not listing.saw(uri) and not listing.protects(uri)]


def _is_at_or_below(uri: str, place: str) -> bool:
    """Rows are below their table (`a.csv#17`), members below their archive (`a.zip!/b.md`)."""
    if not uri.startswith(place):
        return False
    rest = uri[len(place) :]
    return not rest or place.endswith(("/", "#")) or rest.startswith(("/", "#", "!/"))


def _mark(uri: str) -> bytes:
    return hashlib.blake2b(uri.encode("utf-8", "surrogatepass"), digest_size=16).digest()
