"""The enqueuer's story: hash -> compare with the ledger -> stage what is new -> seal.

Each group of documents is one transaction: what has been staged is durable, whatever becomes of the enqueuer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pipeline.backpressure import Gate
from pipeline.document import Document, Metadata, Validators, canonical, digest, meta_hash
from pipeline.errors import BacklogFull, MillraceError
from pipeline.groups import Group, Sizes, groups, with_metadata
from pipeline.ledger import collections, dead_letters, staging, validators, writing
from pipeline.ledger.collections import Collection, FieldType
from pipeline.ledger.engine import Connection, Transaction
from pipeline.ledger.jobs import Job
from pipeline.observe import count, operation
from pipeline.settings import IngestSettings
from pipeline.sources.base import Item, Rejected


def recipe_hash(recipe: Mapping[str, Any]) -> bytes:
    """sha256 of what, besides its content, determines the chunks and vectors of a document."""
    return digest(canonical(dict(recipe)))


class Published:
    """What is published of a job's documents, for its source to ask (`sources.base.Known`).

    It remembers which version each answer was about until the document has come by, so that a document that was
    published anew in between does not pass for unchanged.
    """

    def __init__(self, transaction: Transaction, own: Transaction, job: Job, metadata: Metadata) -> None:
        """transaction: in which the job is written. own: never the application's, so that nothing is locked for long.

        metadata: that of the job, added to every document's.
        """
        self._transaction = transaction
        self._own = own
        self._job = job
        self._metadata = metadata
        self._recipe = recipe_hash(job.recipe)
        self._told: dict[str, int] = {}

    def __call__(self, asked: Mapping[str, Metadata]) -> dict[str, Validators]:
        """uri -> validators, of those (uri -> metadata) that need not be read where these still hold."""
        if not asked:
            return {}
        wanted: dict[str, bytes] = {}
        for uri, metadata in asked.items():
            # What is not JSON is told when the document comes.
            with suppress(TypeError, ValueError):
                wanted[uri] = meta_hash({**metadata, **self._metadata})
        with self._transaction() as connection:
            found = validators.held(connection, self._job, wanted, self._recipe)
        self._told.update({uri: held.version_id for uri, held in found.items()})
        return {uri: held.validators for uri, held in found.items()}

    def confirmed(self, connection: Connection, uris: Sequence[str]) -> dict[str, bool]:
        """Of documents that were said to be unchanged, those that are; whether this job has counted them before."""
        told = {uri: self._told[uri] for uri in uris if uri in self._told}
        return validators.confirmed(connection, self._job, told) if told else {}

    def refresh(self, newer: Mapping[str, tuple[bytes, Validators]]) -> None:
        """Keeps newer validators of documents (uri -> content hash, validators) whose content is as it was."""
        if newer:
            with self._own() as connection:
                validators.refresh(connection, self._job, newer)

    def forget(self, group: Group) -> None:
        """The documents of a group have come by."""
        for uri in group.uris():
            self._told.pop(uri, None)


def enqueue(
    transaction: Transaction,
    declare: Callable[[Mapping[str, FieldType]], None],
    job: Job,
    source: Iterable[Item],
    metadata: Metadata,
    settings: IngestSettings,
    on_group: Callable[[], None],
    gate: Gate,
    *,
    sizes: Sizes,
    resumed: bool = False,
    published: Published | None = None,
) -> None:
    """Stages what the source yields, group by group. resumed: an earlier enqueuer of this job was cut off.

    sizes: how much is staged at once.

    published: what the source was given to ask, where it was given anything.

    declare(key -> type) makes metadata keys into filter fields. on_group is called after every group that was
    committed. gate: asked before anything is staged; what is found unchanged passes a closed one too.
    Raises LedgerUnavailable, BacklogFull; what was staged before stays, and the job can be resumed by its key.
    """
    published = published or Published(transaction, transaction, job, metadata)
    for group in groups(source, metadata, sizes):
        staged = False
        while not staged:
            try:
                with operation("ingest.stage"):
                    gone = _stage(transaction, declare, job, group, settings, published, gate, resumed=resumed)
            except BacklogFull as error:
                gate.full(error)
                continue
            _read_after_all(group, gone, metadata)
            staged = not gone
        published.forget(group)
        on_group()


def _stage(
    transaction: Transaction,
    declare: Callable[[Mapping[str, FieldType]], None],
    job: Job,
    group: Group,
    settings: IngestSettings,
    published: Published,
    gate: Gate,
    *,
    resumed: bool,
) -> set[str]:
    """Stages a group. Returns the uris that are not unchanged after all; then nothing was staged.

    Raises BacklogFull where there is no room for what is new in it; nothing was staged then either.
    """
    recipe = recipe_hash(job.recipe)
    hashes = [(item.uri, item.content_hash(), item.meta_hash()) for item in group.documents]
    declare(_fields(group.documents))
    with transaction() as connection:
        confirmed = published.confirmed(connection, [item.uri for item in group.unchanged])
        gone = {item.uri for item in group.unchanged} - set(confirmed)
        if gone:
            return gone
        before = staging.staged_before(connection, job, hashes, recipe) if resumed or job.idempotency_key else set()
        known = staging.unchanged(connection, job, hashes, recipe) - before if hashes else set()
        new = [
            staging.Wanted(
                item.uri, "ingest", item.data, item.media_type, item.metadata, content, meta, item.validators
            )
            for item, (uri, content, meta) in zip(group.documents, hashes, strict=True)
            if uri not in known and uri not in before
        ]
        if new:
            gate.check(connection)
        staging.stage(
            connection,
            job,
            new,
            recipe,
            staging.Limits(settings.prepare_documents, settings.prepare_bytes),
            already_unchanged=len(known) + sum(not counted for counted in confirmed.values()),
        )
        dead_letters.supersede(connection, job.collection_id, job.tenant, [*known, *confirmed])
        if group.rejected:
            staging.reject(connection, job, [(item.uri, item.error) for item in group.rejected])
    if new:
        size = sum(len(item.content) for item in new)
        gate.add(size, len(new))
        count("documents_enqueued", len(new), "staged")
        count("staged_bytes", size)
    count("documents_enqueued", len(known) + len(confirmed), "unchanged")
    count("documents_enqueued", len(group.rejected), "rejected")
    newer = {
        item.uri: (content, item.validators)
        for item, (uri, content, _) in zip(group.documents, hashes, strict=True)
        if item.validators and uri in known
    }
    published.refresh(newer)
    return set()


def _read_after_all(group: Group, gone: set[str], metadata: Metadata) -> None:
    """Reads documents that were said to be unchanged, and of which the ledger has another version by now."""
    for item in [item for item in group.unchanged if item.uri in gone]:
        group.unchanged.remove(item)
        try:
            found = item.read() if item.read is not None else None
        except MillraceError as error:
            found = Rejected(item.uri, str(error))
        if isinstance(found, Document) and found.uri == item.uri:
            group.documents.append(with_metadata(found, metadata))
        else:
            why = found.error if isinstance(found, Rejected) else f"{item.uri} was ingested anew meanwhile; try again"
            group.rejected.append(Rejected(item.uri, why))


def enqueue_deletions(
    transaction: Transaction,
    job: Job,
    uris: Iterable[str],
    settings: IngestSettings,
    on_group: Callable[[], None],
    gate: Gate,
    *,
    resumed: bool = False,
) -> None:
    """Stages the end of documents, group by group; one that is not there counts as unchanged.

    resumed: an earlier enqueuer of this job was cut off. Raises BacklogFull.
    """
    limits = staging.Limits(settings.prepare_documents, settings.prepare_bytes)
    for group in _pages(uris, settings.group_documents):
        unique = sorted(set(group))
        while True:
            try:
                with operation("delete.stage"):
                    _stage_deletions(transaction, job, unique, limits, gate, resumed=resumed)
                break
            except BacklogFull as error:
                gate.full(error)
        on_group()


def _stage_deletions(
    transaction: Transaction, job: Job, uris: Sequence[str], limits: staging.Limits, gate: Gate, *, resumed: bool
) -> None:
    with transaction() as connection:
        nothing = [(uri, b"", b"") for uri in uris]  # a deletion has no content to hash
        before = staging.staged_before(connection, job, nothing, b"") if resumed or job.idempotency_key else set()
        gone = staging.absent(connection, job, uris) - before
        wanted = [staging.Wanted(uri, "delete") for uri in uris if uri not in gone and uri not in before]
        if wanted:
            gate.check(connection)
        staging.stage(connection, job, wanted, b"", limits, already_unchanged=len(gone))
        dead_letters.supersede(connection, job.collection_id, job.tenant, sorted(gone))
    gate.add(0, len(wanted))
    count("documents_enqueued", len(wanted), "deleted")
    count("documents_enqueued", len(gone), "absent")


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
        writing.seal(connection, job.id)


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
