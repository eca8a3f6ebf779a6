"""Duties: what the system does on a timer, how that goes, and how often."""

from __future__ import annotations

from datetime import timedelta

from pipeline.client.connection import Connected
from pipeline.duties import check_change
from pipeline.errors import InvalidRequest, UnknownDuty
from pipeline.intervals import seconds_between
from pipeline.ledger import duties, services
from pipeline.ledger.duties import DutyState
from pipeline.ledger.services import Service

_LEAST_INTERVAL_SECONDS = 1.0
_MOST_INTERVAL_SECONDS = 30 * 86_400.0
_LEAST_BUDGET_SECONDS = 0.1
_MOST_BUDGET_SECONDS = 600.0


class Duties(Connected):
    """Duties, and the clock that asks for them."""

    def duties(self) -> list[DutyState]:
        """Every duty with its last run, by name; `pipeline.duties.troubles` tells what is wrong with them."""
        with self._services.ledger.transaction() as own:
            return duties.states(own)

    def change_duty(
        self,
        name: str,
        *,
        every: str | float | timedelta | None = None,
        limit: int | None = None,
        budget: str | float | timedelta | None = None,
        enabled: bool | None = None,
        reset: bool = False,
    ) -> DutyState:
        """Sets how a duty runs, in effect within ten seconds; what is None stays. Returns it as it is then.

        every: interval of its runs (30s, 15m, 1h, 1d, seconds, timedelta); limit: rows of one step; budget: of one run,
        as `every`; reset: first of all, everything is as the code has it. Raises UnknownDuty, InvalidRequest.
        """
        if every is None and limit is None and budget is None and enabled is None and not reset:
            raise InvalidRequest("nothing is changed: give an interval, a limit, a budget, enabled, or reset")
        interval = None
        if every is not None:
            interval = seconds_between(every, _LEAST_INTERVAL_SECONDS, _MOST_INTERVAL_SECONDS)
        seconds = None
        if budget is not None:
            seconds = seconds_between(budget, _LEAST_BUDGET_SECONDS, _MOST_BUDGET_SECONDS)
        check_change(name, interval, limit)
        with self._services.ledger.transaction() as own:
            changed = duties.change(
                own, name, interval_seconds=interval, limit=limit, budget_seconds=seconds, enabled=enabled, reset=reset
            )
            found = duties.states(own)
            if not changed:
                names = ", ".join(state.name for state in found) or "none: no beat or worker has written them down yet"
                raise UnknownDuty(f"no duty {name!r}; there are {names}")
        return next(state for state in found if state.name == name)

    def beats(self) -> list[Service]:
        """The processes that ask for duties on time, those too that fell silent within the last hour. One is enough, a
        second does no harm; while none lives, workers ask in its place."""
        with self._services.ledger.transaction() as own:
            return services.listing(own, services.BEAT)
