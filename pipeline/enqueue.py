"""The enqueuer's story: hash -> compare with the ledger -> stage what is new -> seal.

Each group of documents is one transaction: what has been staged is durable, whatever becomes of the enqueuer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.document import Document, Metadata, canonical, digest
from pipeline.ledger import collections, jobs, staging
from pipeline.ledger.collections import Collection, FieldType
from pipeline.ledger.engine import Transaction
from pipeline.ledger.jobs import Job
from pipeline.settings import IngestSettings
from pipeline.sources.base import Rejected

Item = Document | Rejected


def recipe_hash(recipe: Mapping[str, Any]) -> bytes:
    """sha256 of what, besides its content, determines the chunks and vectors of a document."""
    return digest(canonical(dict(recipe)))


def enqueue(
    transaction: Transaction,
    declare: Callable[[Mapping[str, FieldType]], None],
    job: Job,
    source: Iterable[Item],
    metadata: Metadata,
    settings: IngestSettings,
    on_group: Callable[[], None],
    *,
    resumed: bool = False,
) -> None:
    """Stages what the source yields, group by group. resumed: an earlier enqueuer of this job was cut off.

    declare(key -> type) makes metadata keys into filter fields. on_group is called after every group that was
    committed. Raises LedgerUnavailable; what was staged before stays, and the job can be resumed by its key.
    """
    wanted_recipe = recipe_hash(job.recipe)
    limits = staging.Limits(settings.prepare_documents, settings.prepare_bytes)
    for documents, rejected in _groups(source, metadata, settings):
        hashes = [(item.uri, item.content_hash(), item.meta_hash()) for item in documents]
        declare(_fields(documents))
        with transaction() as connection:
            before = staging.staged_before(connection, job, hashes, wanted_recipe) if resumed else set()
            known = staging.unchanged(connection, job, hashes, wanted_recipe) - before if hashes else set()
            new = [
                staging.Wanted(item.uri, "ingest", item.data, item.media_type, item.metadata, content, meta)
                for item, (uri, content, meta) in zip(documents, hashes, strict=True)
                if uri not in known and uri not in before
            ]
            staging.stage(connection, job, new, wanted_recipe, limits, already_unchanged=len(known))
            if rejected:
                staging.reject(connection, job, [(item.uri, item.error) for item in rejected])
        on_group()


def enqueue_deletions(
    transaction: Transaction,
    job: Job,
    uris: Iterable[str],
    settings: IngestSettings,
    on_group: Callable[[], None],
    *,
    resumed: bool = False,
) -> None:
    """Stages the end of documents, group by group; one that is not there counts as unchanged.

    resumed: an earlier enqueuer of this job was cut off.
    """
    limits = staging.Limits(settings.prepare_documents, settings.prepare_bytes)
    for group in _pages(uris, settings.group_documents):
        unique = sorted(set(group))
        with transaction() as connection:
            nothing = [(uri, b"", b"") for uri in unique]  # a deletion has no content to hash
            before = staging.staged_before(connection, job, nothing, b"") if resumed else set()
            gone = staging.absent(connection, job, unique) - before
            wanted = [staging.Wanted(uri, "delete") for uri in unique if uri not in gone and uri not in before]
            staging.stage(connection, job, wanted, b"", limits, already_unchanged=len(gone))
        on_group()


def declare_fields(
    transaction: Transaction, collection: Collection, settings: IngestSettings
) -> Callable[[Mapping[str, FieldType]], None]:
    """What `enqueue` calls to make new metadata keys into filter fields; keys known already cost nothing."""
    known = dict(collection.fields)

    def declare(fields: Mapping[str, FieldType]) -> None:
        new = {key: kind for key, kind in fields.items() if key not in known}
        if new:
            known.update(new)
            with transaction() as connection:
                collections.declare_fields(connection, collection, new, settings.max_fields)

    return declare


def seal(transaction: Transaction, job: Job) -> None:
    """Nothing more will come: the job ends with its last version."""
    with transaction() as connection:
        jobs.seal(connection, job.id)


def _groups(
    source: Iterable[Item], metadata: Metadata, settings: IngestSettings
) -> Iterator[tuple[list[Document], list[Rejected]]]:
    """Cuts the stream by count and bytes. In a group, the last document of a uri is the one that is wanted."""
    documents: dict[str, Document] = {}
    rejected: dict[str, Rejected] = {}
    size = 0
    for item in source:
        if isinstance(item, Rejected):
            rejected[item.uri] = item
            documents.pop(item.uri, None)
        else:
            document = replace(item, metadata={**item.metadata, **metadata}) if metadata else item
            rejected.pop(document.uri, None)
            documents[document.uri] = document
            size += len(document.data)
        if len(documents) + len(rejected) >= settings.group_documents or size >= settings.group_bytes:
            yield list(documents.values()), list(rejected.values())
            documents, rejected, size = {}, {}, 0
    if documents or rejected:
        yield list(documents.values()), list(rejected.values())


def _pages(items: Iterable[str], size: int) -> Iterator[Sequence[str]]:
    page: list[str] = []
    for item in items:
        page.append(item)
        if len(page) >= size:
            yield page
            page = []
    if page:
        yield page


def _fields(documents: Sequence[Document]) -> dict[str, FieldType]:
    found: dict[str, FieldType] = {}
    for document in documents:
        for key, value in document.metadata.items():
            kind = collections.field_type(value) if key not in found else None
            if kind is not None:
                found[key] = kind
    return found
