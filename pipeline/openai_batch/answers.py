"""What the server's answers mean: which errors are certain and which are not, and what a batch's own JSON says.

Answers are judged by status and code, as the server gave them; a batch is what `Batch.to_dict()` holds. Nothing of it
is trusted to be there or to have its type: compatible servers leave things out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.lifecycle import TOKEN_LIMIT

Batch = Mapping[str, Any]

FailureKind = Literal[
    "ambiguous",  # it may have happened: no answer, or one that says nothing
    "limited",  # it did not happen: asked to wait
    "denied",  # it did not happen: the key
    "quota",  # it did not happen: no money left
    "unseen",  # it did not happen: the file that was just uploaded is not visible yet, or is gone
    "gone",  # what was asked for does not exist
    "refused",  # it did not happen, and never will
]

# A batch in one of these never changes again.
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
# Words of our own for `status`, where the server has none: the creation was refused, it was never asked for, it is
# not there any more.
REFUSED, WITHDRAWN, GONE = "refused", "withdrawn", "gone"

_MOST_LETTERS = 500
_SECRET = re.compile(r"\b(sk|sess|whsec)[-_][A-Za-z0-9_*-]{4,}")
_NO_FILE = re.compile(
    r"(find|locate|no such|not found|does not exist).{0,40}\bfile|\bfile.{0,60}(not found|does not exist)", re.I
)
_NO_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded"})


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that did not succeed. seconds: to wait, where the server said so."""

    kind: FailureKind
    message: str
    seconds: float | None = None


def words_of(value: object) -> str:
    """A foreign text as it may be stored and shown: without what Postgres cannot hold, without keys, not too long."""
    text = value if isinstance(value, str) else str(value)
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")
    return _SECRET.sub(r"\1-...", text)[:_MOST_LETTERS]


def storable(value: Any) -> Any:
    """JSON of the server as it may be stored: every text of it as `words_of` leaves it."""
    if isinstance(value, str):
        return words_of(value)
    if isinstance(value, Mapping):
        return {words_of(name): storable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [storable(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def whole_number(value: object) -> int | None:
    """A count; None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


# -- errors ----------------------------------------------------------------------------------------------------------


def failure(status: int | None, code: str | None, message: object, seconds: float | None = None) -> Failure:
    """What an error of any request means. status: of HTTP; None: there was no answer, or none that could be read.

    code: the `code` of the error, or its `type`. For a request that creates something only "ambiguous" leaves open
    whether it did; "unseen" and "refused" are the same for all others.
    """
    return Failure(_kind(status, code or "", str(message)), words_of(message), seconds)


def _kind(status: int | None, code: str, message: str) -> FailureKind:
    if code in _NO_MONEY and status in {400, 402, 403, 429}:
        return "quota"
    known: dict[int, FailureKind] = {401: "denied", 403: "denied", 402: "quota", 429: "limited"}
    if status in known:
        return known[status]
    if status in {400, 404} and _NO_FILE.search(message):
        return "unseen"
    if status in {404, 410}:
        return "gone"
    # 408 and 409 may come after the request was carried out; 2xx that cannot be read, certainly.
    if status is None or status in {408, 409, 425} or status < 400 or status >= 500:
        return "ambiguous"
    return "refused"


# -- batches ---------------------------------------------------------------------------------------------------------


def status_of(batch: Batch) -> str:
    """The server's word; empty where it gives none. Words that nobody knows are no end."""
    found = batch.get("status")
    return words_of(found) if isinstance(found, str) else ""


def has_ended(batch: Batch) -> bool:
    """Whether it will never change again; one that is not there any more will not either."""
    return status_of(batch) in TERMINAL or status_of(batch) == GONE


def id_of(batch: Batch) -> str | None:
    found = batch.get("id")
    return found if isinstance(found, str) and found else None


def output_of(batch: Batch) -> str | None:
    """Id of the file of answers; None where there is none (null, or an empty name)."""
    found = batch.get("output_file_id")
    return found if isinstance(found, str) and found else None


def errors_of(batch: Batch) -> str | None:
    """Id of the file of errors; None where there is none."""
    found = batch.get("error_file_id")
    return found if isinstance(found, str) and found else None


def answered_of(batch: Batch) -> int | None:
    """How many lines its files hold, by its own count; None where it does not count."""
    counts = batch.get("request_counts")
    if not isinstance(counts, Mapping):
        return None
    completed, failed = whole_number(counts.get("completed")), whole_number(counts.get("failed"))
    return None if completed is None else completed + (failed or 0)


def completed_of(batch: Batch) -> int:
    counts = batch.get("request_counts")
    return (whole_number(counts.get("completed")) or 0) if isinstance(counts, Mapping) else 0


@dataclass(frozen=True, slots=True)
class Complaint:
    """An error of the batch itself, from its validation. line: of its file, as the server counts; None: of no line."""

    code: str
    message: str
    line: int | None


def complaints_of(batch: Batch) -> list[Complaint]:
    errors = batch.get("errors")
    data = errors.get("data") if isinstance(errors, Mapping) else None
    if not isinstance(data, Sequence) or isinstance(data, str):
        return []
    return [
        Complaint(words_of(one.get("code") or ""), words_of(one.get("message") or ""), whole_number(one.get("line")))
        for one in data
        if isinstance(one, Mapping)
    ]


def over_token_limit(batch: Batch) -> bool:
    """Whether it failed because too many tokens were enqueued: nothing of it was begun, and later it may be."""
    return status_of(batch) == "failed" and any(one.code == TOKEN_LIMIT for one in complaints_of(batch))


def file_was_unseen(batch: Batch) -> bool:
    """Whether it failed because its file could not be found."""
    found = complaints_of(batch)
    return (
        status_of(batch) == "failed"
        and bool(found)
        and all(one.line is None and _NO_FILE.search(f"{one.code.replace('_', ' ')} {one.message}") for one in found)
    )
