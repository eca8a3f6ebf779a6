"""The worker's story: extract -> chunk -> diff -> embed -> upsert -> publish -> contract.

1. `prepare` makes chunks of staged documents, compares them with what is published and opens the versions.
2. `embed` finds or computes the vectors of new chunks, puts the points into the index, and completes: the versions
   whose last chunk that was are published in the same transaction.
3. `contract`, minutes later, takes the points of replaced and abandoned chunks out of the index.

Postgres decides what is visible; publishing writes nothing to Qdrant. A step that is repeated, by another worker after
a crash, finds what was done and goes on from there.
"""

from __future__ import annotations

import uuid
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from pipeline import buying, computing, deals, embed_batches
from pipeline.deals import Deal
from pipeline.document import canonical, digest, embedding_key, point_id
from pipeline.drafts import Draft, make_drafts
from pipeline.embed_batches import BatchSize
from pipeline.embed_work import work_of
from pipeline.embedding.base import ModelSpec
from pipeline.ledger import (
    batches,
    chunks,
    collections,
    contraction,
    embeddings,
    jobs,
    orders,
    reembed_chunks,
    reembed_failures,
    versions,
)
from pipeline.ledger.batches import Claim
from pipeline.ledger.chunks import NewChunk, WantedPoint
from pipeline.ledger.collections import Collection
from pipeline.ledger.dead_letters import Failure
from pipeline.ledger.embeddings import Vector
from pipeline.ledger.engine import Connection, Row
from pipeline.observe import count, operation
from pipeline.points import ensure_index, points_of
from pipeline.tools import Progress, Tools, Waits

# 1. prepare ---------------------------------------------------------------------------------------------------------


def prepare(tools: Tools, claim: Claim, progress: Progress) -> None:
    """Makes chunks of the staged documents of a batch (or removes them all, for deletions) and opens the versions.

    Raises LeaseLost where another worker has the batch by now; then nothing has changed.
    """
    with tools.ledger.transaction() as connection:
        collection = collections.by_id(connection, claim.collection_id)
        recipe = _recipe(connection, claim.job_id)
        staged = versions.load_staged(connection, claim.id)
        share = tools.batch_share.read(connection)
    drafts = make_drafts(tools, collection, recipe, staged, progress)
    provider = embed_batches.route(tools, claim, collection, drafts)
    size = embed_batches.size_of(tools, collection, drafts, provider, share)
    with operation("prepare.open"), tools.ledger.transaction() as connection:
        _open(connection, claim, collection, drafts, provider, size)


def _recipe(connection: Connection, job_id: uuid.UUID) -> Mapping[str, Any]:
    row = connection.execute("SELECT recipe FROM jobs WHERE id = %s", (job_id,)).fetchone()
    return row["recipe"] if row else {}


def _open(
    connection: Connection,
    claim: Claim,
    collection: Collection,
    drafts: Sequence[Draft],
    provider: str,
    size: BatchSize,
) -> None:
    """One transaction: unchanged chunks keep their rows, new ones are born, removed ones die with this version."""
    changes = versions.no_changes()
    by_version = {draft.staged.version_id: draft for draft in drafts}
    turn = versions.take_turns(connection, [draft.staged for draft in drafts], changes)
    mine = [by_version[version_id] for version_id in sorted(turn.base)]
    failed = {draft.staged.version_id: Failure(draft.error) for draft in mine if draft.error}
    same = [draft.staged.version_id for draft in mine if draft.staged.same_as_published]
    drafted = [draft for draft in mine if not draft.error and not draft.staged.same_as_published]
    live = chunks.lock_live(connection, sorted(draft.staged.document_id for draft in drafted))
    batches.hold(connection, [claim])

    diffs = [_diff(draft, turn.base[draft.staged.version_id], live, collection) for draft in drafted]
    new = embed_batches.assign(connection, claim, [chunk for diff in diffs for chunk in diff.born], provider, size)
    versions.open_versions(connection, [diff.row for diff in diffs])
    chunks.insert(connection, new)
    chunks.remove(connection, {point: diff.row["version_id"] for diff in diffs for point in diff.died})
    versions.block(connection, turn.blocked)
    versions.fail(connection, claim.kind, failed, changes, attempts=claim.attempts + 1, losses=claim.losses)
    versions.end_unpublished(connection, same, "unchanged", changes)
    batches.finish(connection, [claim])

    chunk_count = sum(len(draft.chunks) for draft in drafted)
    changes[claim.job_id].update(
        documents_prepared=len(mine), chunks_total=chunk_count, chunks_indexed=chunk_count - len(new)
    )
    versions.lock_jobs(connection, changes)
    if new:
        collections.share(connection, collection)
    with operation("publish"):
        versions.publish(connection, collection.id, [diff.row["version_id"] for diff in diffs], changes)
    versions.settle(connection, changes)
    count("documents_prepared", len(drafted), "drafted")
    count("documents_prepared", len(same), "unchanged")
    count("documents_prepared", len(failed), "failed")
    count("chunks_prepared", len(new), "new")
    count("chunks_prepared", chunk_count - len(new), "kept")
    count("chunks_prepared", sum(len(diff.died) for diff in diffs), "removed")


@dataclass(frozen=True, slots=True)
class _Diff:
    """What opening a version changes: its row, the chunks it adds (in no batch yet), the points it removes."""

    row: Row
    born: list[NewChunk]
    died: list[uuid.UUID]


def _diff(
    draft: Draft, base: int | None, live: Mapping[int, Sequence[chunks.LiveChunk]], collection: Collection
) -> _Diff:
    """Compares the chunks by hash of text and filterable metadata; each live chunk is kept at most once, wherever it
    moves (order and sections are in the manifest)."""
    item = draft.staged
    fingerprint = ModelSpec.from_json(collection.model).fingerprint("passage")
    filterable = canonical(collections.filterable(draft.metadata, collection.fields))
    kept: dict[bytes, deque[uuid.UUID]] = {}
    for published in live.get(item.document_id, ()):
        kept.setdefault(published.chunk_hash, deque()).append(published.point_id)
    points: list[uuid.UUID] = []
    born: list[NewChunk] = []
    for chunk in draft.chunks:
        chunk_hash = digest(chunk.text, filterable)
        if kept.get(chunk_hash):
            points.append(kept[chunk_hash].popleft())
            continue
        new_id = point_id(item.document_id, item.version_id, chunk.ordinal)
        key = embedding_key(fingerprint, chunk.text)
        born.append(
            NewChunk(
                new_id, item.document_id, item.version_id, 0, chunk.ordinal, chunk.text, chunk_hash, key, chunk.tokens
            )
        )
        points.append(new_id)
    row = {
        "version_id": item.version_id,
        "base_version": base,
        "pending": len(born),
        "manifest": Jsonb(
            {
                "points": [str(point) for point in points],
                "sections": [chunk.section for chunk in draft.chunks],
                "pages": draft.chunk_pages(),
            }
        ),
        "metadata": Jsonb(draft.metadata),
        "title": draft.title,
    }
    return _Diff(row, born, [point for rest in kept.values() for point in rest])


# 2. embed -----------------------------------------------------------------------------------------------------------


def embed(tools: Tools, claims: Sequence[Claim], progress: Progress) -> Waits | None:
    """Brings the chunks of claimed batches (of one collection and provider) into the index and publishes what is
    complete. Returns what the others wait for, if there are any.

    Raises LeaseLost where another worker has one of them by now; vectors stored before that stay, and serve it.
    BoughtElsewhere, BudgetExhausted: where some of them cannot go on now; those that could are done.
    """
    with operation("embed.lookup"), tools.ledger.transaction() as connection:
        collection, claims, wanted = work_of(tools, connection, claims)
        found = embeddings.use(connection, sorted({point.embedding_key for point in wanted}))
    deal = _acquire(tools, collection, claims, wanted, found, progress)
    if deal.failed:
        _fail(tools, claims, wanted, deal.failed)
        return embed(tools, claims, progress)
    whole = [claim for claim in claims if claim.id not in deal.short]
    if whole:
        _index(tools, collection, whole, wanted, {**found, **deal.vectors}, progress)
        deals.settle(tools, collection, whole, wanted, found)
    return deals.finish(tools, claims, deal)


def _acquire(
    tools: Tools,
    collection: Collection,
    claims: Sequence[Claim],
    wanted: Sequence[WantedPoint],
    found: Mapping[bytes, Vector],
    progress: Progress,
) -> Deal:
    """The vectors that are not stored yet: computed here, bought, or put on order."""
    missing = [point for point in wanted if point.embedding_key not in found]
    count("cache_lookups", len(found), "embedding", "postgres", "hit")
    count("cache_lookups", len({point.embedding_key for point in missing}), "embedding", "postgres", "miss")
    if not missing:
        return Deal()
    match claims[0].provider:
        case deals.ONLINE:
            return buying.buy(tools, collection, claims, missing, progress)
        case deals.BATCH:
            return buying.order(tools, collection, claims, missing)
        case _:
            return Deal(computing.compute(tools, collection, claims, missing, progress))


def _index(
    tools: Tools,
    collection: Collection,
    claims: Sequence[Claim],
    wanted: Sequence[WantedPoint],
    vectors: Mapping[bytes, Vector],
    progress: Progress,
) -> None:
    ids = {claim.id for claim in claims}
    points = [point for point in wanted if point.batch_id in ids]
    if points:
        with operation("upsert"):
            _upsert(tools, collection, points, vectors, progress)
        count("points_upserted", len(points))
    with operation("complete"), tools.ledger.transaction() as connection:
        _complete(connection, claims, collection, points)


def _fail(tools: Tools, claims: Sequence[Claim], wanted: Sequence[WantedPoint], failed: Mapping[bytes, str]) -> None:
    """Ends the versions whose text the provider refuses, and only those: nobody has to be halved to find them."""
    if claims[0].reembedding_id is not None:
        with tools.ledger.transaction() as connection:
            reembed_failures.refused(connection, claims, wanted, failed)
            orders.forget(connection, failed)
        return
    by_id = {claim.id: claim for claim in claims}
    failures: dict[int, dict[int, Failure]] = {}
    for point in wanted:
        if point.embedding_key in failed:
            failure = Failure(failed[point.embedding_key], None, point.ordinal, point.text)
            failures.setdefault(point.batch_id, {}).setdefault(point.version_id, failure)
    changes = versions.no_changes()
    with tools.ledger.transaction() as connection:
        unfinished = versions.lock_unfinished(connection, {version for group in failures.values() for version in group})
        batches.hold(connection, claims)
        for batch_id, group in sorted(failures.items()):
            claim = by_id[batch_id]
            ended = {version: failure for version, failure in group.items() if version in unfinished}
            versions.fail(connection, "embed", ended, changes, attempts=claim.attempts + 1, losses=claim.losses)
            unfinished -= ended.keys()
        orders.forget(connection, failed)
        versions.lock_jobs(connection, changes)
        versions.settle(connection, changes)


def _upsert(
    tools: Tools,
    collection: Collection,
    wanted: Sequence[WantedPoint],
    vectors: Mapping[bytes, Vector],
    progress: Progress,
) -> None:
    points = points_of(tools, collection, wanted, vectors)
    ensure_index(tools, collection)
    tools.vectors.upsert(collection.physical, points, lambda _: progress())


def _complete(
    connection: Connection, claims: Sequence[Claim], collection: Collection, indexed: Sequence[WantedPoint]
) -> None:
    """One transaction under the epoch: the batches end, versions count down, those that reach zero are published."""
    if claims[0].reembedding_id is not None:
        reembed_chunks.complete(connection, claims, indexed)
        return
    changes = versions.no_changes()
    still_open = versions.lock_open(connection, {point.version_id for point in indexed})
    batches.hold(connection, claims)
    done = [point for point in indexed if point.version_id in still_open]
    versions.count_down(connection, Counter(point.version_id for point in done))
    batches.finish(connection, claims)
    for point in done:
        changes[point.job_id].update(chunks_indexed=1)
    versions.lock_jobs(connection, changes)
    if done and collections.share(connection, collection, completing=True):
        reembed_chunks.follow(connection, collection.id, [point.point_id for point in done])
    with operation("publish"):
        versions.publish(connection, collection.id, still_open, changes)
    versions.settle(connection, changes)
    jobs.note_indexing(connection, changes)


# 3. contract --------------------------------------------------------------------------------------------------------


def contract(tools: Tools, after_seconds: float, again_seconds: float, limit: int) -> int:
    """Deletes the points of chunks that no search can see any more. Returns how many.

    Twice: a minute after their version ended, when every search that might still show them has given up; and a quarter
    of an hour later, for a writer that was paused in between. Then their rows go.
    """
    with tools.ledger.transaction() as connection:
        due = contraction.due(connection, after_seconds, again_seconds, limit)
    for sweep in due:
        with operation("contract"):
            for physical in sweep.physicals:
                tools.vectors.delete(physical, sweep.points)
            with tools.ledger.transaction() as connection:
                contraction.done(connection, sweep)
        count("points_deleted", len(sweep.points))
    return sum(len(sweep.points) for sweep in due)
