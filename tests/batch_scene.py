"""Rows of remote batches and answers about them, and what the protocol says to them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from batch_worker_model import Row

from pipeline.openai_batch.answers import Failure
from pipeline.openai_batch.protocol import next_step
from pipeline.openai_batch.rendering import metadata_of
from pipeline.openai_batch.steps import Change, Timing

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMING = Timing()
SHA = b"\7" * 32
LOST = Failure("ambiguous", "no answer")
CREATING = Row("key", state="creating", inputs=3, sha256=SHA, file_id="file-1", intent_at=NOW, epoch=1)


def batch(number: int = 1, status: str = "in_progress", **more: Any) -> dict[str, Any]:
    ours = {"metadata": metadata_of("key", 1, SHA), "input_file_id": "file-1", "request_counts": {"completed": 0}}
    return {"id": f"batch-{number}", "status": status, "expires_at": int(NOW.timestamp()) + 86_400, **ours, **more}


def submitted(status: str = "in_progress", *others: dict[str, Any], **more: Any) -> Row:
    return replace(
        CREATING,
        state="submitted",
        remote_id="batch-1",
        remote=batch(1, status, **more),
        others=others,
        submitted_at=NOW,
    )


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def step(row: Row, now: datetime = NOW) -> Any:
    return next_step(row, now, TIMING)


def applied(row: Row, change: Change) -> Row:
    return replace(row, **change.columns)
