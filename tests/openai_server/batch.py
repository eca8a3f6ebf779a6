"""A batch: what is kept of it, and how OpenAI shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from openai_server import lines
from openai_server.fates import Fate
from openai_server.faults import Fault

WINDOW = 86_400.0
STATES = ("validating", "in_progress", "finalizing", "cancelling")
TERMINAL = ("failed", "completed", "expired", "cancelled")


@dataclass
class Batch:
    """times: when each state was entered. done: the share of the lines that was finished when it was last set."""

    id: str
    account: str
    state: str
    created_at: float
    input_file_id: str
    metadata: dict[str, str] | None
    endpoint: str = lines.URL
    entered_at: float = 0.0
    times: dict[str, float] = field(default_factory=dict)
    fate: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    tokens: int = 0
    model: str | None = None
    done: float | None = None
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    output_expires: int | None = None
    errors: list[dict[str, Any]] | None = None
    usage: int | None = None

    @property
    def destiny(self) -> Fate:
        return Fate([Fault(item["kind"], item["given"]) for item in self.fate])

    def shown(self, share: float) -> dict[str, Any]:
        """A batch as OpenAI shows it. share: of its lines that is finished by now."""
        status = self.destiny.get("status")
        other = status is not None and status.get("during", "in_progress") == self.state
        empty = "" if self.destiny.get("empty_ids") else None
        running = self.state in {"in_progress", "cancelling", "finalizing"}
        completed = round(share * self.total) if running else self.completed
        usage = None
        if self.usage is not None:
            usage = {"input_tokens": self.usage, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 0,
                     "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": self.usage}  # fmt: skip
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": None if self.errors is None else {"object": "list", "data": self.errors},
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": status.get("name", "reviewing") if status and other else self.state,
            "output_file_id": self.output_file_id or empty,
            "error_file_id": self.error_file_id or empty,
            "created_at": int(self.created_at),
            "expires_at": int(self.created_at + WINDOW),
            **{f"{state}_at": _whole(self.times.get(state)) for state in (*STATES[1:], *TERMINAL)},
            "request_counts": {"total": self.total, "completed": completed, "failed": self.failed},
            "metadata": self.metadata,
            "usage": usage,
        }


def _whole(at: float | None) -> int | None:
    return None if at is None else int(at)
