"""When an alert is raised, held and cleared: pure, from what is open and what the checks found.

A condition must last (`for_seconds` of its check) before it is raised; it is held while it is anywhere above its lower
bound, and cleared when it has been gone for CLEAR_SECONDS. So a figure that swings around its threshold raises one
alert, and a restart that takes seconds raises none. What cannot be looked at now is neither seen nor gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.monitoring.checks import Condition, rank

# How long a condition must be gone before its alert clears: four looks of the duty.
CLEAR_SECONDS = 120.0
# Of a condition that was not looked at for so long it is not known that it lasted; it begins anew.
GAP_SECONDS = 120.0

# risen: its severity is higher than what was told.
Event = Literal["raised", "risen", "cleared"]


@dataclass(frozen=True, slots=True)
class Standing:
    """An open alert, or one that is on its way (raised_at: None). Times in seconds of the ledger's clock.

    id: None before it is written. began_at: when it was first seen; gone_at: since when it is not any more.
    """

    type: str
    subject: str
    severity: str
    message: str
    began_at: float
    seen_at: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    raised_at: float | None = None
    gone_at: float | None = None
    cleared_at: float | None = None
    id: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.type, self.subject

    @property
    def active(self) -> bool:
        """Raised, and not cleared."""
        return self.raised_at is not None and self.cleared_at is None


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one: how it stands now, what is told of it, and whether it is forgotten (it never was raised)."""

    standing: Standing
    event: Event | None = None
    forgotten: bool = False


def step(
    standing: Iterable[Standing], conditions: Sequence[Condition], unknown: Collection[str], now: float
) -> list[Step]:
    """One evaluation. standing: those that are open, one of each key. unknown: types that could not be looked at.

    Those that do not change are left out.
    """
    found: dict[tuple[str, str], Condition] = {}
    for condition in conditions:
        found.setdefault(condition.key, condition)
    open_ones = {one.key: one for one in standing}
    steps = [
        _seen(open_ones.get(key), condition, now)
        for key, condition in found.items()
        if key in open_ones or condition.firm
    ]
    steps += [_gone(one, now) for key, one in open_ones.items() if key not in found and one.type not in unknown]
    return [made for made in steps if made.forgotten or made.standing != open_ones.get(made.standing.key)]


def _seen(one: Standing | None, condition: Condition, now: float) -> Step:
    if one is not None and one.raised_at is not None:
        return _held(one, condition, now)
    if one is not None and not condition.firm:
        return Step(one, forgotten=True)
    lasted = one is not None and now - one.seen_at <= GAP_SECONDS
    began = one.began_at if one is not None and lasted else now
    seen = Standing(
        condition.type,
        condition.subject,
        condition.severity,
        condition.message,
        began,
        now,
        dict(condition.metrics),
        id=one.id if one is not None else None,
    )
    if now - began >= condition.for_seconds:
        return Step(replace(seen, raised_at=now), "raised")
    return Step(seen)


def _held(one: Standing, condition: Condition, now: float) -> Step:
    """In the band below its threshold it keeps the words and figures with which it was over it."""
    held = replace(one, seen_at=now, gone_at=None)
    if not condition.firm:
        return Step(held)
    held = replace(held, message=condition.message, metrics=dict(condition.metrics))
    if rank(condition.severity) > rank(one.severity):
        return Step(replace(held, severity=condition.severity), "risen")
    return Step(held)


def _gone(one: Standing, now: float) -> Step:
    if one.raised_at is None:
        return Step(one, forgotten=True)
    gone_at = now if one.gone_at is None else one.gone_at
    gone = replace(one, gone_at=gone_at)
    if now - gone_at >= CLEAR_SECONDS:
        return Step(replace(gone, cleared_at=now), "cleared")
    return Step(gone)
