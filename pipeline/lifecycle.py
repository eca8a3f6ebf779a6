"""The states of jobs, versions, batches, remote batches and re-embeddings, and one table of allowed transitions each.

docs/lifecycle.md draws these tables; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pipeline.errors import IllegalTransition

JobState = Literal["queued", "running", "paused", "succeeded", "partial", "failed", "cancelled"]

Transitions = Mapping[str, frozenset[str]]

JOB: Transitions = {
    "queued": frozenset({"running", "paused", "succeeded", "partial", "failed", "cancelled"}),
    "running": frozenset({"paused", "succeeded", "partial", "failed", "cancelled"}),
    "paused": frozenset({"queued", "running", "succeeded", "partial", "failed", "cancelled"}),
    "succeeded": frozenset(),
    # A job that its enqueuer left half staged is partial, and goes on when the same key comes again.
    "partial": frozenset({"running"}),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

VERSION: Transitions = {
    "staged": frozenset({"open", "unchanged", "superseded", "failed", "cancelled"}),
    "open": frozenset({"published", "superseded", "failed", "cancelled"}),
    "published": frozenset(),
    "unchanged": frozenset(),
    "superseded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

BATCH: Transitions = {
    "ready": frozenset({"running", "cancelled", "dead"}),
    "running": frozenset({"ready", "waiting", "indexed", "dead", "cancelled"}),
    "waiting": frozenset({"ready", "dead", "cancelled"}),
    "indexed": frozenset(),
    "dead": frozenset({"ready"}),
    "cancelled": frozenset(),
}

# Of the Batch API. `planned` is where every creation of it begins, the second as the first.
REMOTE: Transitions = {
    "planned": frozenset({"uploading", "reconciled"}),
    "uploading": frozenset({"uploaded", "reconciled"}),
    "uploaded": frozenset({"creating", "reconciled"}),
    "creating": frozenset({"submitted", "uploaded", "planned", "reconciled"}),
    "submitted": frozenset({"ended"}),
    "ended": frozenset({"harvesting", "planned", "reconciled"}),
    "harvesting": frozenset({"reconciled"}),
    "reconciled": frozenset({"closed"}),
    # A second batch under its key has shown up late: it is cancelled, and harvested as the first was.
    "closed": frozenset({"submitted"}),
}

# With this the error of a remote batch begins that the server refused for having too many tokens enqueued.
TOKEN_LIMIT = "token_limit_exceeded"  # noqa: S105 - the server's word, and no secret

# Of a collection that gets the vectors of another model.
REEMBEDDING: Transitions = {
    "building": frozenset({"auditing", "switching", "cancelling"}),
    "auditing": frozenset({"building", "switching", "cancelling"}),
    "switching": frozenset({"building", "switched", "cancelling"}),
    "switched": frozenset({"done"}),
    "done": frozenset(),
    "cancelling": frozenset({"cancelled"}),
    "cancelled": frozenset(),
}

MACHINES: Mapping[str, Transitions] = {
    "job": JOB,
    "version": VERSION,
    "batch": BATCH,
    "remote": REMOTE,
    "reembedding": REEMBEDDING,
}

UNFINISHED_VERSIONS = ("staged", "open")
FINISHED_JOBS = ("succeeded", "partial", "failed", "cancelled")


def sources(machine: str, target: str) -> list[str]:
    """The states from which `target` may be reached: what a conditional UPDATE asks for in its WHERE."""
    found = sorted(state for state, targets in MACHINES[machine].items() if target in targets)
    if not found:
        raise IllegalTransition(f"no state of a {machine} leads to {target!r}; see docs/lifecycle.md")
    return found


def check(machine: str, state: str, target: str) -> None:
    """Raises IllegalTransition where the machine has no step from `state` to `target`."""
    allowed = MACHINES[machine].get(state)
    if allowed is None or target not in allowed:
        raise IllegalTransition(f"a {machine} cannot go from {state!r} to {target!r}; see docs/lifecycle.md")
