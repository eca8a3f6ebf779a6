"""What is committed of a remote batch when something has become of it: one function for each thing that may have."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.lifecycle import TOKEN_LIMIT
from pipeline.openai_batch.answers import (
    GONE,
    REFUSED,
    WITHDRAWN,
    Batch,
    Failure,
    complaints_of,
    errors_of,
    has_ended,
    id_of,
    output_of,
    status_of,
    storable,
    whole_number,
)
from pipeline.openai_batch.steps import Change, Row, Timing

# How often each look comes later than the last one, and by how much chance moves them apart.
_GROWTH = 1.5
_SPREAD = 0.2
# Rests longer than the server says: a key that was rejected, an account without money.
_LONG_REST = 60.0


# -- time ------------------------------------------------------------------------------------------------------------


def until(then: datetime, seconds: float, now: datetime) -> float:
    """Seconds from now until so long after then; 0 where that is past."""
    return max(0.0, (then + timedelta(seconds=seconds) - now).total_seconds())


def poll_delay(before: float | None, timing: Timing, jitter: float) -> tuple[float, float]:
    """(what to remember as `poll_seconds`, seconds until the next look). before: what was remembered; None: nothing.

    10 s, growing by 1.5 up to 300 s. jitter: by chance, from 0 to 1; takes up to a fifth off, so that batches that were
    begun together are not asked for together for ever.
    """
    base = timing.first if before is None else min(max(before, timing.first) * _GROWTH, timing.most)
    return base, base * (1.0 - _SPREAD * jitter)


def rest_after(tries: int, timing: Timing, jitter: float = 0.0) -> float:
    """Seconds of rest after so many failed tries of a step."""
    grown = timing.first * _GROWTH ** min(tries, 64)
    return min(grown, timing.most) * (1.0 - _SPREAD * jitter)


def promised_end(row: Row, batch: Batch, timing: Timing) -> datetime:
    """When the server promised an end."""
    if (expires := whole_number(batch.get("expires_at"))) is not None:
        return _at(expires)
    # Of a stray of a row that never had a batch, its own time is all there is.
    begun = row.submitted_at or row.intent_at or _at(whole_number(batch.get("created_at")) or 0)
    return begun + timedelta(seconds=timing.window)


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(min(seconds, _FAR), UTC)


_FAR = 32_503_680_000  # the year 3000: there is no later date for a server that tells nonsense


# -- changes ---------------------------------------------------------------------------------------------------------


def tried(row: Row, failed: Failure, timing: Timing, jitter: float) -> Change:
    """The step was in vain, and is tried again after a rest."""
    seconds = max(rest_after(row.tries, timing, jitter), failed.seconds or 0.0)
    if failed.kind in {"denied", "quota"}:
        seconds = max(seconds, _LONG_REST)
    return Change({"error": failed.message}, seconds, failed=True)


def adopted(row: Row, batch: Batch, others: Sequence[Batch], now: datetime, timing: Timing, jitter: float) -> Change:
    """The server has it."""
    base, seconds = poll_delay(None, timing, jitter)
    columns = {
        **told(batch, others),
        "state": "submitted",
        "remote_id": id_of(batch),
        "submitted_at": now,
        "poll_seconds": base,
        "doubtful": row.doubtful or bool(others),
    }
    at_once = bool(others) or row.cancel_reason is not None or has_ended(batch)
    return Change(columns, 0.0 if at_once else seconds)


def ended(row: Row, remote: Batch, others: Sequence[Batch], now: datetime) -> Change:
    """It has, and so have all others under its key."""
    gone = any(status_of(batch) == GONE for batch in (remote, *others))
    columns = {
        **told(remote, others),
        "state": "ended",
        "ended_at": now,
        "poll_seconds": None,
        "error": complaint(remote) or None,
        "doubtful": row.doubtful or gone,
    }
    return Change(columns)


def told(remote: Batch, others: Sequence[Batch]) -> dict[str, Any]:
    """The batches as the server last told them."""
    return {
        "remote": storable(remote),
        "others": storable(list(others)),
        "status": status_of(remote),
        "output_file_id": output_of(remote),
        "error_file_id": errors_of(remote),
    }


def next_attempt(row: Row, seconds: float, why: str, *, doubtful: bool = False) -> Change:
    """It does not exist, and nothing that is still on its way can bring it about: it is begun anew."""
    columns: dict[str, Any] = {
        "state": "planned",
        "attempt": row.attempt + 1,
        "error": why,
        "status": None,
        "remote_id": None,
        "remote": {},
        "output_file_id": None,
        "error_file_id": None,
        "intent_at": None,
        "listings": 0,
        "fenced_at": None,
        "submitted_at": None,
        "ended_at": None,
        "poll_seconds": None,
        "doubtful": row.doubtful or doubtful,
    }
    return Change(columns, seconds)


def refused(failed: Failure) -> Change:
    """The server will not have it, whenever it is asked."""
    return Change({"state": "reconciled", "status": REFUSED, "error": failed.message}, settle=True)


def withdrawn() -> Change:
    """It is not wanted any more, and the server does not have it."""
    return Change({"state": "reconciled", "status": WITHDRAWN}, settle=True)


def reconciled(row: Row, now: datetime, *, doubtful: bool = False) -> Change:
    """All that there is of it is stored. doubtful: something that may have been paid for was not there to read."""
    columns = {
        "state": "reconciled",
        "status": status_of(row.remote) or row.status or GONE,
        "harvested_at": now,
        "error": complaint(row.remote) or None,
        "doubtful": row.doubtful or doubtful,
    }
    return Change(columns, settle=True)


def complaint(batch: Batch) -> str:
    """What the server says is wrong with the batch itself, code first; empty where nothing is. What is not the batch's
    fault comes first: packing looks for it."""
    found = sorted(complaints_of(batch), key=lambda one: one.code != TOKEN_LIMIT)
    return "; ".join(dict.fromkeys(f"{one.code}: {one.message}" for one in found[:3]))
