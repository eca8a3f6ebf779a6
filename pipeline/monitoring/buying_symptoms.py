"""What the checks of bought embeddings look at: functions of the facts and the thresholds, as those of `symptoms`."""

from __future__ import annotations

from pipeline.ledger.budgets import dollars
from pipeline.monitoring.facts import Budget, Facts
from pipeline.monitoring.symptoms import Finding
from pipeline.monitoring.thresholds import Thresholds

# What a circuit is open for, by the class of the error: each is a check of its own, and what is none of them is away.
KEY_REJECTED, QUOTA_EXHAUSTED, LIMITED = "KeyRejected", "QuotaExhausted", "ProviderLimited"
# What a budget of all together is called.
EVERYBODY = "all"

_MOST_LETTERS = 300


def _open_for(facts: Facts, *causes: str) -> list[Finding] | None:
    if facts.provider is None:
        return None
    return [Finding("openai", found.error[:_MOST_LETTERS]) for found in facts.provider if found.cause in causes]


def key_rejected(facts: Facts, _: Thresholds) -> list[Finding] | None:
    return _open_for(facts, KEY_REJECTED)


def quota_exhausted(facts: Facts, _: Thresholds) -> list[Finding] | None:
    return _open_for(facts, QUOTA_EXHAUSTED)


def provider_away(facts: Facts, _: Thresholds) -> list[Finding] | None:
    """That it asks to wait is no trouble, but for who waits: the diagnosis of jobs says so."""
    if facts.provider is None:
        return None
    others = (KEY_REJECTED, QUOTA_EXHAUSTED, LIMITED)
    return [Finding("openai", found.error[:_MOST_LETTERS]) for found in facts.provider if found.cause not in others]


def model_changed(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.model_changes is None:
        return None
    message = "a server answered under another model's name than before; the logs of who asked it say which"
    return [Finding("openai", message, {"changes": facts.model_changes})] if facts.model_changes else []


def doubtful_batches(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.doubtful_batches is None:
        return None
    return [Finding(found.name, found.message[:_MOST_LETTERS]) for found in facts.doubtful_batches]


def stuck_batches(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.stuck_batches is None:
        return None
    return [Finding(found.name, found.message[:_MOST_LETTERS]) for found in facts.stuck_batches]


def late_jobs(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.late_jobs is None:
        return None
    found = []
    for late in facts.late_jobs:
        when = f"was needed {_ago(late.seconds)} ago" if late.seconds > 0 else "will be late"
        message = f"job {late.name} {when}" + (f": {late.why}" if late.why else "")
        found.append(Finding(late.name, message[:_MOST_LETTERS], {"late_seconds": round(late.seconds, 1)}))
    return found


def _ago(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def exhausted_budgets(facts: Facts, _: Thresholds) -> list[Finding] | None:
    """What nothing more may be spent of, and work that was paused for it."""
    if facts.budgets is None or facts.paused_by_budget is None:
        return None
    found = [
        Finding(
            budget.tenant or EVERYBODY,
            f"this month's budget of {_whose(budget.tenant)} is used up: {_used(budget)}",
            {"used": round(budget.used, 6), "limit": budget.limit},
        )
        for budget in facts.budgets
        if budget.used >= budget.limit
    ]
    if facts.paused_by_budget:
        count = facts.paused_by_budget
        who = "a job is paused, since its" if count == 1 else f"{count:,} jobs are paused, since their"
        message = f"{who} budget does not suffice; `millrace cost` names the budget"
        # Each has said why itself, to whoever asked for it.
        found.append(Finding("jobs", message, {"jobs": facts.paused_by_budget}, severity="medium"))
    return found


def nearly_used_budgets(facts: Facts, thresholds: Thresholds) -> list[Finding] | None:
    if facts.budgets is None:
        return None
    limit = thresholds.of("budget_percent")
    return [
        Finding(
            budget.tenant or EVERYBODY,
            f"{budget.percent:.0f} % of this month's budget of {_whose(budget.tenant)} is used: {_used(budget)} "
            f"(threshold {limit:g} %)",
            {"percent": round(budget.percent, 1), "threshold": limit},
        )
        for budget in facts.budgets
        if limit <= budget.percent and budget.used < budget.limit
    ]


def _used(budget: Budget) -> str:
    return f"{dollars(budget.used)} of {dollars(budget.limit)}"


def _whose(tenant: str) -> str:
    return f"tenant {tenant}" if tenant else "all together"
