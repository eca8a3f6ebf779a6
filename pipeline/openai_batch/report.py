"""Remote batches as people and programs are told of them: `millrace batches`, `client.batches()`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from pipeline.ledger.remote import RemoteBatch
from pipeline.openai_batch.answers import completed_of, id_of, whole_number


@dataclass(frozen=True, slots=True)
class BatchStatus(RemoteBatch):
    """How a remote batch is going: its row, what it waits for in words, and its JSON form."""

    @classmethod
    def of(cls, batch: RemoteBatch) -> BatchStatus:
        return cls(**{column.name: getattr(batch, column.name) for column in fields(batch)})

    @property
    def waits_for(self) -> str | None:
        """What has to happen next, in words; None: nothing, it is closed."""
        if self.closed_at is not None:
            return None
        if self.held:
            return f"a worker is at it ({self.owner})"
        if self.error and self.tries:
            return f"{self.error}; tried again {_when(self)}"
        return "a worker" if (self.due_seconds or 0.0) <= 0 else _of_state(self)

    @property
    def done_by_now(self) -> int:
        """Texts that have their vector; while the server is at it, those that it has finished."""
        return self.done if self.ended_at is not None else max(self.done, completed_of(self.remote))

    def to_json(self) -> dict[str, Any]:
        """The stable JSON form (docs/batch-api.md). Times in UTC, costs in US dollars."""
        return {
            "batch_id": self.id,
            "key": self.key,
            "state": self.state,
            "status": self.status,
            "remote_id": self.remote_id,
            "attempt": self.attempt,
            "model": self.spec.get("name"),
            "age_seconds": self.age_seconds,
            "inputs": self.inputs,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "counts": _counts(self),
            "done": self.done,
            "failed": self.failed,
            "missing": self.missing,
            "cost": self.cost,
            "jobs": list(self.jobs),
            "need_by": _time(self.need_by),
            "waiting": _waiting(self),
            "cancel_reason": self.cancel_reason,
            "doubtful": self.doubtful,
            "duplicates": [found for other in self.others if (found := id_of(other)) is not None],
            "error": self.error,
            "created_at": _time(self.created_at),
            "submitted_at": _time(self.submitted_at),
            "ended_at": _time(self.ended_at),
            "harvested_at": _time(self.harvested_at),
            "closed_at": _time(self.closed_at),
        }


def _of_state(batch: BatchStatus) -> str:
    if batch.state == "creating":
        return f"whether it was created: it is looked for {_when(batch)}, and not created again before that is known"
    if batch.state == "submitted":
        asked = "it is being cancelled; " if batch.cancel_reason else ""
        return f"{asked}the provider ({_progress(batch)}); it is asked {_when(batch)}"
    return f"the next step, {_when(batch)}"


def _progress(batch: BatchStatus) -> str:
    done = batch.done_by_now
    return f"{batch.status or 'submitted'}, {done:,} of {batch.inputs:,}" if done else batch.status or "submitted"


def _when(batch: BatchStatus) -> str:
    seconds = max(0.0, batch.due_seconds or 0.0)
    return f"in {seconds:.0f} s" if seconds < 120 else f"in {seconds / 60:.0f} min"


def _counts(batch: BatchStatus) -> dict[str, int]:
    """By the server's own count while it has it; else by ours."""
    counts = batch.remote.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    return {name: whole_number(counts.get(name)) or 0 for name in ("total", "completed", "failed")}


def _waiting(batch: BatchStatus) -> dict[str, Any] | None:
    """until: None where its time has come: it waits for a worker, or has one."""
    reason = batch.waits_for
    if reason is None:
        return None
    return {"reason": reason, "until": _time(batch.next_at) if (batch.due_seconds or 0.0) > 0 else None}


def _time(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat() if moment is not None else None
