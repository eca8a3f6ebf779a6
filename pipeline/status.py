"""What an application is told: how a job is going, what an embedding cost, what a collection holds."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.embedding.base import ModelRun
from pipeline.ledger.diagnosis import Waiting
from pipeline.ledger.jobs import Job
from pipeline.ledger.usage import Usage
from pipeline.lifecycle import FINISHED_JOBS, JobState

_NOTHING_USED = Usage()


@dataclass(frozen=True, slots=True)
class JobCost:
    """US dollars: spent for a job, held back for its work under way, perhaps spent besides, and what may be spent at
    most (None: as the settings say)."""

    spent: float = 0.0
    reserved: float = 0.0
    doubtful: float = 0.0
    max: float | None = None

    def to_json(self, usage: Usage) -> dict[str, float | None]:
        return {
            "spent": self.spent,
            "reserved": self.reserved,
            "doubtful": self.doubtful,
            "max": self.max if self.max is None or math.isfinite(self.max) else None,
            "saved_by_cache": usage.cached_cost,
            "saved_by_batch": usage.batch_saved,
        }


@dataclass(frozen=True, slots=True)
class JobRoute:
    """Who embeds for a job, as it was decided: local, openai or openai_batch; why, for people; and when."""

    provider: str
    reason: str
    at: str

    def to_json(self) -> dict[str, str]:
        return {"provider": self.provider, "reason": self.reason, "at": self.at}


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How a job is going.

    documents: total, indexed, unchanged, deleted, failed, superseded, cancelled; and, not in the total, skipped: files
    that the source left out, because no extractor knows their formats. chunks: total (of the new versions),
    embedded (computed by this job), reused (carried over, or found in the cache), indexed. seconds: since it was made.
    expected_chunks: the total, with a guess for the documents that are not cut yet.
    dead_letters: failed documents that `retry` can try again; retry_of: the job whose failed documents this one tries.
    correlation_id: what the application called its request, in the log lines of the job's work.
    rate: chunks per second; eta_seconds: until it is done; both None while there is nothing to tell them from.
    cost: in US dollars; usage: what of it was bought, and what was found stored. Exact when the job has ended.
    route: who embeds for it, and why, where that was decided for it (docs/providers.md).
    """

    job_id: uuid.UUID
    kind: str
    collection: str
    tenant: str
    priority: str
    state: JobState
    stage: str
    documents: Mapping[str, int]
    chunks: Mapping[str, int]
    errors: Sequence[Mapping[str, str]]
    waiting: Waiting | None
    seconds: float
    created_at: str
    error: str | None = None
    expected_chunks: int = 0
    rate: float | None = None
    eta_seconds: float | None = None
    dead_letters: int = 0
    retry_of: uuid.UUID | None = None
    correlation_id: str | None = None
    cost: JobCost | None = None
    usage: Usage = _NOTHING_USED
    route: JobRoute | None = None

    @property
    def finished(self) -> bool:
        return self.state in FINISHED_JOBS

    @property
    def paused(self) -> bool:
        """It, its collection or everything is: nothing more of it is begun before somebody resumes that."""
        return self.waiting is not None and self.waiting.state == "paused"

    @property
    def over_budget(self) -> bool:
        """A budget has paused it: that has to be raised, and the job resumed."""
        # Both are read one after the other: where it was paused in between, the next look tells so of both.
        return self.state == "paused" and self.waiting is not None and self.waiting.over_budget

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form (README, "JSON")."""
        return {
            "job_id": str(self.job_id),
            "kind": self.kind,
            "collection": self.collection,
            "tenant": self.tenant,
            "priority": self.priority,
            "state": self.state,
            "stage": self.stage,
            "documents": dict(self.documents),
            "chunks": dict(self.chunks),
            "errors": [dict(error) for error in self.errors],
            "waiting": self.waiting.to_json() if self.waiting else None,
            "seconds": round(self.seconds, 3),
            "created_at": self.created_at,
            "error": self.error,
            "rate": round(self.rate, 2) if self.rate is not None else None,
            "eta_seconds": round(self.eta_seconds, 1) if self.eta_seconds is not None else None,
            "dead_letters": self.dead_letters,
            "retry_of": str(self.retry_of) if self.retry_of else None,
            "correlation_id": self.correlation_id,
            "route": self.route.to_json() if self.route else None,
            "cost": (self.cost or JobCost()).to_json(self.usage),
            "usage": self.usage.counts(),
        }


# A rate over less time than this says nothing: batches come in bursts.
_TELLING_SECONDS = 1.0

_DOCUMENTS = ("total", "indexed", "unchanged", "deleted", "failed", "superseded", "cancelled", "skipped")


def job_status(
    job: Job, errors: Sequence[Mapping[str, str]], waiting: Waiting | None, usage: Usage = _NOTHING_USED
) -> JobStatus:
    """A job's row as its status."""
    counters = job.counters
    indexed, embedded = counters["chunks_indexed"], counters["chunks_embedded"]
    status = JobStatus(
        job_id=job.id,
        kind=job.kind,
        collection=job.collection,
        tenant=job.tenant,
        priority=job.queue,
        state=job.state,
        stage=_stage(job),
        documents={name: counters[f"documents_{name}"] for name in _DOCUMENTS},
        chunks={
            "total": counters["chunks_total"],
            "embedded": embedded,
            "reused": max(0, indexed - embedded),
            "indexed": indexed,
        },
        errors=errors,
        waiting=waiting,
        seconds=job.seconds,
        created_at=job.created_at.isoformat(),
        error=job.error,
        expected_chunks=round(chunks_expected(counters)),
        retry_of=job.retry_of,
        correlation_id=job.correlation_id,
        route=_route(job),
        cost=JobCost(job.cost, job.cost_reserved, job.cost_doubtful, job.max_cost),
        usage=usage,
    )
    return status


def _route(job: Job) -> JobRoute | None:
    if job.routed is None or job.routed_at is None:
        return None
    return JobRoute(job.routed, job.route_reason or "", job.routed_at.isoformat())


def _stage(job: Job) -> str:
    if job.finished:
        return "done"
    if job.kind == "reembed":
        return "embedding"
    if job.sealed_at is None:
        return "staging"
    if to_prepare(job.counters) > 0:
        return "preparing"
    return "embedding"


def to_prepare(counters: Mapping[str, int]) -> int:
    """Documents of the job whose chunks are not known yet."""
    known = sum(counters[f"documents_{name}"] for name in ("unchanged", "prepared", "superseded", "cancelled"))
    return max(0, counters["documents_total"] - known)


def chunks_expected(counters: Mapping[str, int]) -> float:
    """Chunks that the job will have, going by those of the documents prepared so far."""
    prepared = counters["documents_prepared"]
    if not prepared:
        return float(counters["chunks_total"])
    return counters["chunks_total"] * (1 + to_prepare(counters) / prepared)


def average_rate(job: Job) -> float | None:
    """Chunks per second since the first of the job's batches was in the index; of that one, since its work began."""
    indexed = job.counters["chunks_indexed"]
    if job.indexing_seconds is not None and indexed > job.indexed_before and job.indexing_seconds > _TELLING_SECONDS:
        return (indexed - job.indexed_before) / job.indexing_seconds
    if job.started_at is None or not indexed:
        return None
    waited = (job.started_at - job.created_at).total_seconds()
    return indexed / max(job.seconds - waited, 0.001)


def recent_rate(samples: Sequence[tuple[float, int]]) -> float | None:
    """Chunks per second between the first and the last of (seconds, chunks indexed); None where that says nothing."""
    if not samples:
        return None
    (first, before), (last, after) = samples[0], samples[-1]
    return (after - before) / (last - first) if last - first > _TELLING_SECONDS and after > before else None


def with_rate(status: JobStatus, job: Job, rate: float | None) -> JobStatus:
    """The status of an unfinished job with how fast it is and when it will be done, if there is anything to go by."""
    if status.finished or rate is None:
        return status
    if job.kind != "reembed" and (job.sealed_at is None or not job.counters["documents_prepared"]):
        return replace(status, rate=rate)
    left = max(0.0, chunks_expected(job.counters) - job.counters["chunks_indexed"])
    return replace(status, rate=rate, eta_seconds=left / rate)


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """vectors: float32[n, dim], L2-normalised, in the order of the texts.

    hits, misses: texts whose vector was stored, or given twice, and texts that were computed. runs: what the model did.
    seconds: of the whole call.
    """

    model: str
    vectors: NDArray[np.float32]
    hits: int
    misses: int
    runs: tuple[ModelRun, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "dimensions": int(self.vectors.shape[1]),
            "vectors": [[float(value) for value in vector] for vector in self.vectors],
            "hits": self.hits,
            "misses": self.misses,
            "batches": [
                {"texts": run.texts, "padded_tokens": run.padded_tokens, "seconds": round(run.seconds, 4)}
                for run in self.runs
            ],
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection and what a search can find in it. provider: who embeds for its jobs, unless they say another."""

    name: str
    model: Mapping[str, Any]
    fields: Mapping[str, str]
    generation: int
    documents: int
    chunks: int
    qdrant_name: str
    created_at: str
    provider: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> CollectionInfo:
        """Of a row of `collections.listing`."""
        return cls(
            row["name"],
            row["model"],
            row["fields"],
            row["generation"],
            row["documents"],
            row["chunks"],
            row["physical"],
            row["created_at"].isoformat(),
            row["provider"],
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": dict(self.model),
            "fields": dict(self.fields),
            "generation": self.generation,
            "documents": self.documents,
            "chunks": self.chunks,
            "qdrant_name": self.qdrant_name,
            "created_at": self.created_at,
            "provider": self.provider,
        }
