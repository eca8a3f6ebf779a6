"""Remote batches as people and programs are told of them: `millrace batches`, `client.batches()`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pipeline.ledger.remote import RemoteBatch
from pipeline.openai_batch.answers import completed_of, id_of, whole_number


def waits_for(batch: RemoteBatch) -> str | None:
    """What has to happen next, in words; None: nothing, it is closed."""
    if batch.closed_at is not None:
        return None
    if batch.held:
        return f"a worker is at it ({batch.owner})"
    if batch.error and batch.tries:
        return f"{batch.error}; tried again {_when(batch)}"
    return "a worker" if (batch.due_seconds or 0.0) <= 0 else _of_state(batch)


def _of_state(batch: RemoteBatch) -> str:
    if batch.state == "creating":
        return f"whether it was created: it is looked for {_when(batch)}, and not created again before that is known"
    if batch.state == "submitted":
        asked = "it is being cancelled; " if batch.cancel_reason else ""
        return f"{asked}the provider ({_progress(batch)}); it is asked {_when(batch)}"
    return f"the next step, {_when(batch)}"


def done_of(batch: RemoteBatch) -> int:
    """Texts that have their vector; while the server is at it, those that it has finished."""
    return batch.done if batch.ended_at is not None else max(batch.done, completed_of(batch.remote))


def _progress(batch: RemoteBatch) -> str:
    done = done_of(batch)
    return f"{batch.status or 'submitted'}, {done:,} of {batch.inputs:,}" if done else batch.status or "submitted"


def _when(batch: RemoteBatch) -> str:
    seconds = max(0.0, batch.due_seconds or 0.0)
    return f"in {seconds:.0f} s" if seconds < 120 else f"in {seconds / 60:.0f} min"


def counts_of(batch: RemoteBatch) -> dict[str, int]:
    """By the server's own count while it has it; else by ours."""
    counts = batch.remote.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    return {name: whole_number(counts.get(name)) or 0 for name in ("total", "completed", "failed")}


def to_json(batch: RemoteBatch) -> dict[str, Any]:
    """The stable JSON form (docs/batch-api.md). Times in UTC, costs in US dollars."""
    return {
        "batch_id": batch.id,
        "key": batch.key,
        "state": batch.state,
        "status": batch.status,
        "remote_id": batch.remote_id,
        "attempt": batch.attempt,
        "model": batch.spec.get("name"),
        "age_seconds": batch.age_seconds,
        "inputs": batch.inputs,
        "tokens": batch.tokens,
        "bytes": batch.bytes,
        "counts": counts_of(batch),
        "done": batch.done,
        "failed": batch.failed,
        "missing": batch.missing,
        "cost": batch.cost,
        "jobs": list(batch.jobs),
        "need_by": _time(batch.need_by),
        "waiting": _waiting(batch),
        "cancel_reason": batch.cancel_reason,
        "doubtful": batch.doubtful,
        "duplicates": [found for other in batch.others if (found := id_of(other)) is not None],
        "error": batch.error,
        "created_at": _time(batch.created_at),
        "submitted_at": _time(batch.submitted_at),
        "ended_at": _time(batch.ended_at),
        "harvested_at": _time(batch.harvested_at),
        "closed_at": _time(batch.closed_at),
    }


def _waiting(batch: RemoteBatch) -> dict[str, Any] | None:
    reason = waits_for(batch)
    return None if reason is None else {"reason": reason, "until": _time(batch.next_at)}


def _time(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat() if moment is not None else None
