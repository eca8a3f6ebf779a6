"""How a re-embedding is going, for applications."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.ledger.reembed_chunks import Left
from pipeline.ledger.reembeddings import Reembedding, State
from pipeline.status import JobStatus


@dataclass(frozen=True, slots=True)
class ReembeddingStatus:
    """state: building, auditing, switching (nearly there), switched (searches use the new vectors; the old ones are
    cleared away), done, cancelling, cancelled. model, before: name, provider and dimensions of the new and the old one.

    chunks: total (about), done, failed, and left: not among the new vectors yet. errors: of the first texts that
    failed; error: what keeps it from going on. audit: counts of what was found among the new vectors. cost: spent so
    far, US dollars. eta_seconds: until everything is embedded, where there is anything to tell it from. over_budget:
    a budget has paused its job; `waiting` says what to do.
    """

    collection: str
    state: State
    model: Mapping[str, Any]
    before: Mapping[str, Any]
    provider: str
    job_id: uuid.UUID
    chunks: Mapping[str, int]
    errors: Sequence[Mapping[str, Any]]
    error: str | None
    waiting: Mapping[str, Any] | None
    audit: Mapping[str, Any]
    cost: float
    rate: float | None
    eta_seconds: float | None
    created_at: str
    switched_at: str | None
    ended_at: str | None
    over_budget: bool = False

    @property
    def switched(self) -> bool:
        """Searches use the new vectors."""
        return self.switched_at is not None

    @property
    def over(self) -> bool:
        """Nothing more of it is to be waited for: the collection was switched, or it was cancelled."""
        return self.switched or self.state in ("cancelling", "cancelled")

    @property
    def stuck(self) -> bool:
        """It does not go on before somebody does something about what failed."""
        return not self.over and self.error is not None and self.chunks["left"] == self.chunks["failed"]

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form (docs/reembedding.md)."""
        return {
            "collection": self.collection,
            "state": self.state,
            "model": dict(self.model),
            "before": dict(self.before),
            "provider": self.provider,
            "job_id": str(self.job_id),
            "chunks": dict(self.chunks),
            "errors": [dict(error) for error in self.errors],
            "error": self.error,
            "waiting": dict(self.waiting) if self.waiting else None,
            "audit": dict(self.audit),
            "cost": self.cost,
            "rate": round(self.rate, 2) if self.rate is not None else None,
            "eta_seconds": round(self.eta_seconds, 1) if self.eta_seconds is not None else None,
            "created_at": self.created_at,
            "switched_at": self.switched_at,
            "ended_at": self.ended_at,
        }


def told(
    found: Reembedding, left: Left, errors: Sequence[Mapping[str, Any]], job: JobStatus | None
) -> ReembeddingStatus:
    """Of a row, what is left of its chunks, and its job (None: it is gone)."""
    finished = found.switched_at is not None or found.ended_at is not None
    total = job.chunks["total"] if job else found.chunks
    done = job.chunks["indexed"] if job else found.chunks
    return ReembeddingStatus(
        collection=found.collection,
        state=found.state,
        model=_model(found.model),
        before=_model(found.before),
        provider=found.provider,
        job_id=found.job_id,
        chunks={
            "total": total,
            "done": done,
            # Before the walk through all chunks is over, those that it has not come to have no row yet.
            "left": 0 if finished else max(left.total, 0 if found.walked else total - done),
            "failed": 0 if finished else left.failed,
        },
        errors=errors,
        error=found.error,
        waiting=job.waiting.to_json() if job and job.waiting else None,
        audit=found.audit,
        cost=job.cost.spent if job and job.cost else 0.0,
        rate=job.rate if job else None,
        eta_seconds=job.eta_seconds if job else None,
        created_at=found.created_at.isoformat(),
        switched_at=found.switched_at.isoformat() if found.switched_at else None,
        ended_at=found.ended_at.isoformat() if found.ended_at else None,
        over_budget=job is not None and job.over_budget,
    )


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: model.get(name) for name in ("name", "provider", "dimensions")}
