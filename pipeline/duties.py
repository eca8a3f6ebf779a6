"""How far one run of a duty may go, and which duties are in trouble."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.errors import InvalidRequest
from pipeline.ledger.duties import DutyState

# A duty that has not ended a run for so many intervals, and at least for so many seconds, is overdue.
_OVERDUE_INTERVALS = 3.0
_OVERDUE_SECONDS = 30.0
# Without it nothing that broke is taken up again.
RECONCILE = "reconcile"
_RECONCILE_OVERDUE_SECONDS = 15.0
# What died waits for it, and so does everybody who waits for that.
_RECONCILE_MOST_SECONDS = 60.0
# One step is one transaction, which is to be short.
_MOST_ROWS = 100_000
# Once or twice is a dependency that was away for a moment.
_FAILING_RUNS = 3

# In the result of a run that ended because its time was up: there may be more to do.
OVER_BUDGET = "over_budget"

TroubleKind = Literal["overdue", "failing", "disabled"]


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Bounds:
    """rows: of one step, at most. seconds: that a run may take; it ends after the step in which they are over.

    dry_run: nothing is changed; the counts say what would be. interrupted: whether its process wants it to end; called
    after each step.
    """

    rows: int
    seconds: float
    dry_run: bool = False
    interrupted: Callable[[], bool] = field(default=_never, repr=False, compare=False)
    _began: float = field(default_factory=time.monotonic, init=False, repr=False, compare=False)

    @property
    def over(self) -> bool:
        """Whether the run is to end; to be asked after each step, as a long run shows by it that it gets on."""
        return self.interrupted() or self.out_of_time

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() - self._began >= self.seconds


def check_change(name: str, interval_seconds: float | None, limit: int | None) -> None:
    """Raises InvalidRequest for an interval or a limit with which the duty could not do its work."""
    if name == RECONCILE and interval_seconds is not None and interval_seconds > _RECONCILE_MOST_SECONDS:
        raise InvalidRequest(
            f"reconcile takes up what dead workers leave behind: at least every {_RECONCILE_MOST_SECONDS:g} seconds, "
            f"not every {interval_seconds:g}"
        )
    if limit is not None and not 1 <= limit <= _MOST_ROWS:
        raise InvalidRequest(f"the rows of one step are from 1 to {_MOST_ROWS:,}, not {limit:,}")


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a duty; message says what to do."""

    duty: str
    kind: TroubleKind
    message: str


def overdue_seconds(state: DutyState) -> float:
    """How long after its last run a duty is overdue."""
    least = _RECONCILE_OVERDUE_SECONDS if state.name == RECONCILE else _OVERDUE_SECONDS
    return max(least, _OVERDUE_INTERVALS * state.interval_seconds)


def is_overdue(state: DutyState) -> bool:
    return state.enabled and state.waited_seconds > overdue_seconds(state)


def failing(states: Iterable[DutyState]) -> list[DutyState]:
    """The duties that are enabled and failed several times in a row."""
    return [state for state in states if state.enabled and state.failures >= _FAILING_RUNS]


def troubles(states: Iterable[DutyState]) -> list[Trouble]:
    """What an operator has to know of duties: overdue ones, failing ones, and `reconcile` where it is disabled."""
    return [trouble for state in states for trouble in _troubles_of(state)]


def _troubles_of(state: DutyState) -> Iterator[Trouble]:
    name = state.name
    if not state.enabled and name == RECONCILE:
        yield Trouble(
            name,
            "disabled",
            "the duty reconcile is disabled: what a dead worker or a lost message leaves behind is not taken up; "
            "`millrace duties set reconcile --enable`",
        )
    if is_overdue(state):
        held = f"{state.owner} is at it" if state.owner else "nobody runs it"
        yield Trouble(
            name,
            "overdue",
            f"the duty {name} has not ended a run for {state.waited_seconds:.0f} s (every "
            f"{state.interval_seconds:g} s), {held}; are beat and a worker running? `millrace duties run {name}` "
            "runs it here",
        )
    if state.enabled and state.failures >= _FAILING_RUNS:
        error = str(state.result.get("error", "")).partition("\n")[0]
        yield Trouble(name, "failing", f"the duty {name} failed {state.failures} times in a row: {error}")


def to_json(state: DutyState) -> dict[str, Any]:
    """A duty as `millrace duties --json` tells it; times in seconds."""
    return {
        "name": state.name,
        "what": state.what,
        "enabled": state.enabled,
        "every_seconds": state.interval_seconds,
        "limit": state.limit,
        "budget_seconds": state.budget_seconds,
        "dry_runs": state.dry_runs,
        "changed": list(state.changed),
        "last_run": state.last_run.isoformat() if state.last_run is not None else None,
        "ran_seconds_ago": state.ran_seconds_ago,
        "took_seconds": state.took_seconds,
        "next_in_seconds": max(0.0, state.due_seconds) if state.enabled else None,
        "result": dict(state.result),
        "failed": state.failed,
        "failures": state.failures,
        "running": state.owner,
        "overdue": is_overdue(state),
        "troubles": [trouble.message for trouble in _troubles_of(state)],
    }
