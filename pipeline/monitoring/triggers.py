"""What the system does by itself when memory is short or an operation is too slow; pure.

It shrinks batches in steps, asks processes to give memory back, and asks for tuning of the index. When the cause is
over it goes back up in the same steps. Between two steps at least STEP_SECONDS pass, so that the effect of one is seen
before the next; and batches never become smaller than LEAST_SHARE of what they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.monitoring.alerts import Standing

# Names of overrides: the share of their size that batches have; and that tuning is wanted, for `tuning.check`.
SHARE = "embedding.batch_share"
TUNING = "tuning.asked"

LEAST_SHARE = 0.25
STEP_SECONDS = 300.0

MEMORY = "memory_pressure"
SLOW = "slow_operation"

# Operations that smaller batches make shorter, and those that the index does.
_OF_BATCHES = ("embed", "prepare", "extract", "chunk", "upsert", "complete")
# Of these, what somebody else's server takes its time for, whatever the batches are like.
_OF_OTHERS = ("embed.buy",)
_OF_THE_INDEX = ("search", "search.retrieve", "upsert")


@dataclass(frozen=True, slots=True)
class Share:
    """The share in effect. changed_at: when it was set, None: never. reason: as it was set."""

    value: float = 1.0
    changed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """What is to be done. share: another one, None: as it is; restored: the override goes, everything is as set.

    collect: subjects of memory alerts whose processes are asked to give memory back. tuning: why, None: it is not
    asked for. told: (key of an alert, what was done about it).
    """

    share: float | None = None
    restored: bool = False
    reason: str = ""
    collect: tuple[str, ...] = ()
    tuning: str | None = None
    told: tuple[tuple[tuple[str, str], str], ...] = ()


def respond(active: Sequence[Standing], share: Share, tuning_asked: bool, now: float) -> Response:
    """active: alerts that are raised and not cleared. tuning_asked: whether that is waited for already."""
    memory = [one for one in active if one.type == MEMORY]
    slow = [
        one
        for one in active
        if one.type == SLOW and one.subject.split(".", 1)[0] in _OF_BATCHES and one.subject not in _OF_OTHERS
    ]
    index = [one for one in active if one.type == SLOW and one.subject in _OF_THE_INDEX]
    shrinking = [*memory, *slow]
    due = share.changed_at is None or now - share.changed_at >= STEP_SECONDS

    # A condition that is gone, and whose alert only waits to clear, is no reason to go further.
    pressing = [one for one in shrinking if one.gone_at is None]
    value: float | None = None
    restored = False
    reason = ""
    told: list[tuple[tuple[str, str], str]] = []
    if pressing and due and share.value > LEAST_SHARE:
        value = max(LEAST_SHARE, share.value / 2)
        reason = "; ".join(one.message for one in pressing[:3])
        told += [(one.key, f"batches shrunk to {value:.0%} of their size") for one in pressing]
    elif not shrinking and due and share.value < 1.0:
        value = min(1.0, share.value * 2)
        reason = "what they were shrunk for is over"
    elif not shrinking and due and share.changed_at is not None and share.value >= 1.0:
        restored = True
    collect = tuple(sorted({one.subject for one in memory if one.gone_at is None}))
    tuning = None
    if index and not tuning_asked:
        tuning = index[0].message
        told += [(one.key, "tuning of the index asked for") for one in index]
    return Response(value, restored, reason, collect, tuning, tuple(told))
