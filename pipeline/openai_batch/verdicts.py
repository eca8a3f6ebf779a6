"""What becomes of the texts of a batch that has ended without their vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.ledger.remote_items import MOST_ATTEMPTS
from pipeline.openai_batch.answers import (
    GONE,
    REFUSED,
    WITHDRAWN,
    Batch,
    complaints_of,
    file_was_unseen,
    over_token_limit,
)

Fate = Literal["done", "again", "dead"]


# Of a line -> what becomes of its text, and whether it is blamed for it.
_OF_LINES: Mapping[str, tuple[Fate, bool]] = {
    "embedded": ("done", False),
    "expired": ("again", False),
    "cancelled": ("again", False),
    "limited": ("again", False),
    "denied": ("again", False),
    "failed": ("again", True),
    "garbled": ("again", True),
    "unreadable": ("again", True),
    "wrong_count": ("again", True),
    "wrong_index": ("again", True),
    "wrong_dimensions": ("again", True),
    "not_finite": ("again", True),
    "zeros": ("again", True),
    "missing": ("again", True),
    "refused": ("dead", True),
}

# How a batch ended -> whether its texts without a line are blamed for that.
_OF_BATCHES = {"completed": True, "failed": True, REFUSED: True, "expired": False, "cancelled": False}
_UNBLAMED = {
    "expired": "the batch expired before its turn came",
    "cancelled": "the batch was cancelled before its turn came",
    WITHDRAWN: "the batch was cancelled before it was begun",
    GONE: "the server does not know the batch any more",
}


@dataclass(frozen=True, slots=True)
class Item:
    """A text of a batch that has no vector yet. outcome, message: of its line, as `lines` names it; None: it has none.

    attempts: those that it was blamed for before.
    """

    key: bytes
    attempts: int = 0
    outcome: str | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """fate: "again": it is packed anew; "dead": it is given up, and a dead letter says why; "done": it has its vector.

    blamed: this was one of its attempts. reason: in a few words, for people.
    """

    fate: Fate
    blamed: bool
    reason: str


def verdict(item: Item, status: str, batch_error: str = "") -> Verdict:
    """Of one text. status: how its batch ended, the server's word or ours. batch_error: why it did so."""
    if item.outcome is not None:
        fate, blamed = _OF_LINES.get(item.outcome, ("again", True))
        reason = f"{item.outcome}: {item.message}" if item.message else item.outcome
    else:
        fate, blamed = "again", _OF_BATCHES.get(status, False)
        reason = _UNBLAMED.get(status) or batch_error or "missing: in neither file of the batch"
    if fate == "again" and blamed and item.attempts + 1 >= MOST_ATTEMPTS:
        return Verdict("dead", True, f"{reason} (after {item.attempts + 1} attempts)")
    return Verdict(fate, blamed, reason)


def verdicts(
    items: Sequence[Item], *, status: str, remote: Batch, inputs: int, error: str | None = None
) -> dict[bytes, Verdict]:
    """Of all texts of the batch that have no vector, by key.

    status: how it ended; remote: the batch as the server last told it; inputs: lines that its file had; error: why its
    creation was refused. Where its validation names lines, their texts are dead (they would be named again) and the
    others are innocent. Which they are is known while every text of the file is still there: none was answered.
    """
    complaints = complaints_of(remote) if status == "failed" else []
    batch_error = "; ".join(dict.fromkeys(f"{one.code}: {one.message}" for one in complaints[:3])) or error or ""
    if over_token_limit(remote) or file_was_unseen(remote):
        return {item.key: Verdict("again", False, batch_error) for item in items}
    named = _named([item.key for item in items], inputs, remote) if status == "failed" else {}
    if named:
        innocent = Verdict("again", False, "another text of its batch was rejected")
        return {item.key: Verdict("dead", True, named[item.key]) if item.key in named else innocent for item in items}
    return {item.key: verdict(item, status, batch_error) for item in items}


def _named(keys: Iterable[bytes], inputs: int, remote: Batch) -> dict[bytes, str]:
    """The keys of the lines that the validation names, and what it says of them."""
    ordered = sorted(keys)
    complaints = [(one.line, one) for one in complaints_of(remote) if one.line is not None]
    if len(ordered) != inputs or not complaints:
        return {}
    first = 0 if any(line == 0 for line, _ in complaints) else 1
    return {
        ordered[line - first]: f"{one.code}: {one.message}"
        for line, one in complaints
        if 0 <= line - first < len(ordered)
    }
