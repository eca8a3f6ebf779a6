"""Running duties: each run is claimed on the duty's row, kept by a heartbeat, and told of there.

`DUTIES` are all there are. Ticks of beat, a worker in its place, `millrace duties run`: all come here, and the row
decides whether there is anything to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from celery import shared_task

from pipeline.assembly import Services
from pipeline.duties import OVER_BUDGET, Bounds
from pipeline.errors import DutyHeld, InvalidRequest, MillraceError, Unavailable, UnknownDuty
from pipeline.ledger import duties
from pipeline.ledger.duties import DutyClaim
from pipeline.observe import bound, logger, operation
from tasks import base, garbage, leaving, maintenance, openai_batch, reembedding, watching
from tasks.duty import Counts, Duty
from tasks.failures import tell
from tasks.heartbeat import Heartbeat

__all__ = ["DEFINITIONS", "DUTIES", "Counts", "Duty", "Run", "perform", "run_duty", "run_now"]

DUTIES: tuple[Duty, ...] = (
    *maintenance.DUTIES,
    *openai_batch.DUTIES,
    *reembedding.DUTIES,
    *garbage.DUTIES,
    *watching.DUTIES,
)

DEFINITIONS = tuple(duty.definition for duty in DUTIES)

_log = logger("duty")


@dataclass(frozen=True, slots=True)
class Run:
    """How one run went. error: in words, empty where there was none."""

    counts: Counts
    seconds: float
    error: str = ""


def run_duty(opened: Services, duty: Duty) -> Counts | None:
    """Runs the duty if it is due and nobody else has it; None otherwise. Its counts, or its error, go into its row."""
    with opened.ledger.transaction() as connection:
        claim = duties.claim(
            connection, duty.name, base.owner(), duty.interval_seconds, opened.settings.work.lease_seconds
        )
    return perform(opened, duty, claim).counts if claim is not None else None


def perform(opened: Services, duty: Duty, claim: DutyClaim) -> Run:
    """Runs a duty that is claimed, within the limits of its row. What goes wrong is in the result, whatever it is.

    Raises LedgerUnavailable where the row cannot be told: its lease runs out.
    """
    with bound(duty=duty.name):
        # Should its worker be killed, another one has the duty as soon as it would have a batch.
        heartbeat = Heartbeat(
            opened.ledger, f"duty {duty.name}", partial(duties.heartbeat, claim), opened.settings.work
        )

        def interrupted() -> bool:
            heartbeat.progress()
            return leaving.leaving()

        bounds = Bounds(
            duty.limit if claim.limit is None else claim.limit,
            duty.budget_seconds if claim.budget_seconds is None else claim.budget_seconds,
            interrupted=interrupted,
        )
        with heartbeat:
            run = attempt(opened, duty, bounds)
        with opened.ledger.transaction() as connection:
            result = {"error": run.error} if run.error else run.counts
            duties.finish(connection, claim, result, run.seconds, failed=bool(run.error))
    return run


def run_now(opened: Services, name: str, *, dry_run: bool = False) -> Run:
    """Runs a duty in this process, due or not, disabled or not. dry_run: changes nothing, and so needs no lease.

    Raises UnknownDuty; InvalidRequest for a dry run of a duty that has none; DutyHeld where somebody else runs it.
    """
    duty = named(name)
    if dry_run:
        if not duty.dry_runs:
            dry = ", ".join(duty.name for duty in DUTIES if duty.dry_runs)
            raise InvalidRequest(f"the duty {name} cannot say what it would do; of these a dry run can: {dry}")
        with opened.ledger.transaction() as connection:
            duties.register(connection, [duty.definition])
            (state,) = duties.states(connection, name)
        with bound(duty=name):
            return attempt(opened, duty, Bounds(state.limit, state.budget_seconds, dry_run=True))
    with opened.ledger.transaction() as connection:
        duties.register(connection, [duty.definition])
        claim = duties.claim(
            connection, name, base.owner(), duty.interval_seconds, opened.settings.work.lease_seconds, asked=True
        )
        holder = duties.holder(connection, name) if claim is None else None
    if claim is None:
        who, seconds = holder or ("another process", 0.0)
        raise DutyHeld(
            f"{who} runs the duty {name} now (its lease lasts {max(0.0, seconds):.0f} s, and longer while it gets on); "
            "try again when it is done"
        )
    try:
        return perform(opened, duty, claim)
    except KeyboardInterrupt:
        with opened.ledger.transaction() as connection:
            duties.release(connection, claim)
        raise


def named(name: str) -> Duty:
    """The duty of this name. Raises UnknownDuty."""
    for duty in DUTIES:
        if duty.name == name:
            return duty
    raise UnknownDuty(f"no duty {name!r}; there are {', '.join(sorted(duty.name for duty in DUTIES))}")


def attempt(opened: Services, duty: Duty, bounds: Bounds) -> Run:
    """The duty's function, timed; an error of it is told, and no more."""
    started = time.monotonic()
    counts: Counts = {}
    error = ""
    try:
        with operation(duty.task):
            counts = duty.run(opened, bounds)
    except MillraceError as failure:
        error = tell(failure)
        _log.warning("duty %s: %s", duty.name, error)
    except Exception as failure:  # noqa: BLE001 - its row says so; the next run may do better
        error = tell(failure)
        _log.exception("duty %s failed", duty.name)
    if bounds.out_of_time and not error:
        counts = {**counts, OVER_BUDGET: 1}
    return Run(counts, time.monotonic() - started, error)


def _task(duty: Duty) -> Callable[[], None]:
    def run() -> None:
        try:
            run_duty(base.services(), duty)
        except Unavailable as error:
            _log.warning("duty %s: %s", duty.name, error)

    return run


for _duty in DUTIES:
    shared_task(name=_duty.task)(_task(_duty))
