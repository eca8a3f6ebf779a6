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
from dataclasses import dataclass, replace
from typing import Any

from psycopg.types.json import Jsonb

from pipeline.document import canonical, digest, embedding_key, point_id
from pipeline.drafts import Draft, make_drafts
from pipeline.embedding.base import ModelSpec
from pipeline.ledger import batches, chunks, collections, contraction, embeddings, jobs, versions
from pipeline.ledger.batches import Claim
from pipeline.ledger.chunks import NewChunk, WantedPoint
from pipeline.ledger.collections import Collection
from pipeline.ledger.dead_letters import Failure
from pipeline.ledger.embeddings import Vector
from pipeline.ledger.engine import Connection, Row
from pipeline.observe import count, operation
from pipeline.points import ensure_index, points_of
from pipeline.tools import Progress, Tools

# Chunks of one embed batch, however fast the model is: what is done again where a worker is lost. And among so many
# the chunks alike in length are found for a batch: more would pad less, and finish the first document later.
_MOST_CHUNKS = 512
# What is thrown away, at most, where a worker leaves in the middle of an embedding.
_PART_SECONDS = 0.5


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
    size = _batch_size(tools, collection, drafts, share)
    with operation("prepare.open"), tools.ledger.transaction() as connection:
        _open(connection, claim, collection, drafts, size)


def _recipe(connection: Connection, job_id: uuid.UUID) -> Mapping[str, Any]:
    row = connection.execute("SELECT recipe FROM jobs WHERE id = %s", (job_id,)).fetchone()
    return row["recipe"] if row else {}


def _open(
    connection: Connection, claim: Claim, collection: Collection, drafts: Sequence[Draft], size: _BatchSize
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
    new = _assign_batches(connection, claim, [chunk for diff in diffs for chunk in diff.born], size)
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


@dataclass(frozen=True, slots=True)
class _BatchSize:
    """An embed batch ends with this many chunks, or where these tokens are reached, whichever comes last."""

    chunks: int
    tokens: float


def _batch_size(tools: Tools, collection: Collection, drafts: Sequence[Draft], share: float) -> _BatchSize:
    """The setting; and where this process has seen the model be fast, as much as it embeds in a second: a message costs
    as much for one chunk as for many. share: of that, while memory is short or work too slow."""
    # Deletions have no chunks, and need no model.
    embedder = tools.embedder(collection.model) if any(draft.chunks for draft in drafts) else None
    tokens = (embedder.tokens_per_second if embedder else None) or 0.0
    return _BatchSize(max(1, round(tools.ingest.embed_chunks * share)), tokens * share)


def _groups(ordered: Sequence[NewChunk], size: _BatchSize) -> list[list[NewChunk]]:
    """Chunks, longest first, cut into batches: the short ones come last, so that no child waits long for another."""
    groups: list[list[NewChunk]] = []
    tokens = 0
    for chunk in ordered:
        count = len(groups[-1]) if groups else size.chunks
        if not groups or (count >= size.chunks and tokens >= size.tokens):
            groups.append([])
            tokens = 0
        groups[-1].append(chunk)
        tokens += chunk.tokens
    return groups


def _assign_batches(connection: Connection, claim: Claim, born: Sequence[NewChunk], size: _BatchSize) -> list[NewChunk]:
    """Makes the embed batches: across documents, so that small ones share a batch, and of chunks alike in length."""
    groups = [
        group
        for start in range(0, len(born), _MOST_CHUNKS)
        for group in _groups(sorted(born[start : start + _MOST_CHUNKS], key=lambda chunk: -chunk.tokens), size)
    ]
    ids = batches.insert(
        connection,
        kind="embed",
        collection_id=claim.collection_id,
        tenant=claim.tenant,
        job_id=claim.job_id,
        provider=claim.provider,
        sizes=[(len(group), sum(chunk.tokens for chunk in group)) for group in groups],
    )
    return [replace(chunk, batch_id=batch_id) for batch_id, group in zip(ids, groups, strict=True) for chunk in group]


# 2. embed -----------------------------------------------------------------------------------------------------------


def embed(tools: Tools, claims: Sequence[Claim], progress: Progress) -> None:
    """Brings the chunks of claimed batches (of one collection) into the index and publishes what is complete.

    Raises LeaseLost where another worker has one of them by now; vectors stored before that stay, and serve it.
    """
    with operation("embed.lookup"), tools.ledger.transaction() as connection:
        collection = collections.by_id(connection, claims[0].collection_id)
        wanted = chunks.wanted_points(connection, claims)
        found = embeddings.use(connection, sorted({point.embedding_key for point in wanted}))
    if wanted:
        vectors = {**found, **_compute(tools, collection, claims, wanted, found, progress)}
        with operation("upsert"):
            _upsert(tools, collection, wanted, vectors, progress)
        count("points_upserted", len(wanted))
    with operation("complete"), tools.ledger.transaction() as connection:
        _complete(connection, claims, collection, wanted)


def _compute(
    tools: Tools,
    collection: Collection,
    claims: Sequence[Claim],
    wanted: Sequence[WantedPoint],
    found: Mapping[bytes, Vector],
    progress: Progress,
) -> dict[bytes, Vector]:
    """Computes the vectors that are not stored yet, each text once, and makes them durable before they are used.

    Those that are computed when it breaks off (a worker that leaves, a text that fails) are made durable too.
    """
    missing = {point.embedding_key: point for point in wanted if point.embedding_key not in found}
    count("cache_lookups", len(found), "embedding", "postgres", "hit")
    count("cache_lookups", len(missing), "embedding", "postgres", "miss")
    vectors: dict[bytes, Vector] = {}
    embedder = tools.embedder(collection.model) if missing else None
    try:
        for part in _parts(missing, embedder.tokens_per_second if embedder else None):
            assert embedder is not None
            texts = [missing[key].text for key in part]
            with operation("embed.compute"):
                computed = embedder.embed(texts, "passage", lambda _: progress()).vectors
            vectors.update(zip(part, computed, strict=True))
            count("embedded_texts", len(part), claims[0].provider)
            count("embedded_tokens", sum(missing[key].tokens for key in part), claims[0].provider)
    finally:
        if vectors:
            vectors |= _store(tools, claims, {key: (vector, missing[key]) for key, vector in vectors.items()})
    return vectors


def _parts(missing: Mapping[bytes, WantedPoint], speed: float | None) -> list[list[bytes]]:
    """The keys cut into parts of about half a second's work, texts of like length together; one part where the speed is
    not known yet."""
    if speed is None:
        return [list(missing)] if missing else []
    parts: list[list[bytes]] = []
    tokens = 0.0
    for key in sorted(missing, key=lambda key: -missing[key].tokens):
        if not parts or tokens >= speed * _PART_SECONDS:
            parts.append([])
            tokens = 0.0
        parts[-1].append(key)
        tokens += missing[key].tokens
    return parts


def _store(
    tools: Tools, claims: Sequence[Claim], vectors: Mapping[bytes, tuple[Vector, WantedPoint]]
) -> dict[bytes, Vector]:
    """Makes vectors durable. Returns those that somebody else had stored meanwhile: they are the ones that count. An
    int8 model gives a text another vector in other company, and what is in the index is what is stored."""
    with operation("embed.store"), tools.ledger.transaction() as connection:
        batches.hold(connection, claims)
        new = embeddings.store(connection, {key: (vector, point.tokens) for key, (vector, point) in vectors.items()})
        embedded = Counter(vectors[key][1].job_id for key in new)
        jobs.count(connection, {job: {"chunks_embedded": count} for job, count in embedded.items()})
        others = sorted(vectors.keys() - set(new))
        return embeddings.load(connection, others) if others else {}


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
    changes = versions.no_changes()
    still_open = versions.lock_open(connection, {point.version_id for point in indexed})
    batches.hold(connection, claims)
    done = [point for point in indexed if point.version_id in still_open]
    versions.count_down(connection, Counter(point.version_id for point in done))
    batches.finish(connection, claims)
    for point in done:
        changes[point.job_id].update(chunks_indexed=1)
    versions.lock_jobs(connection, changes)
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
            tools.vectors.delete(sweep.physical, sweep.points)
            with tools.ledger.transaction() as connection:
                contraction.done(connection, sweep)
        count("points_deleted", len(sweep.points))
    return sum(len(sweep.points) for sweep in due)
