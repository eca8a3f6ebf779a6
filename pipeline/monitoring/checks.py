"""What can be wrong with the whole: one table, by which health is counted and alerts are raised.

Every check is a function of the facts and the thresholds, and nothing else: the same facts give the same score. What
each costs, and its remedy, is in docs/health.md; what to do about each, in docs/operations.md. Tests compare both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.monitoring import buying_symptoms, symptoms
from pipeline.monitoring.facts import Facts
from pipeline.monitoring.symptoms import Finding
from pipeline.monitoring.thresholds import Thresholds
from pipeline.settings import Severity

SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")


# None: what is asked about is not known now.
Find = Callable[[Facts, Thresholds], Iterable[Finding] | None]


@dataclass(frozen=True, slots=True)
class Check:
    """points: each finding costs, all of them `most` together. for_seconds: it must last before it is an alert; 0: it
    is one at once. remedy: of the message; {subject} is that of the finding."""

    name: str
    points: int
    severity: Severity
    for_seconds: float
    what: str
    remedy: str
    find: Find = field(repr=False, compare=False)
    most: int = 0
    critical_at_once: bool = True

    @property
    def cap(self) -> int:
        return max(self.most, self.points)


@dataclass(frozen=True, slots=True)
class Issue:
    """Something that is wrong, as `status` shows it."""

    name: str
    points: int
    severity: Severity
    subject: str
    message: str
    remedy: str

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "points": self.points,
            "severity": self.severity,
            "subject": self.subject,
            "message": self.message,
            "remedy": self.remedy,
        }


@dataclass(frozen=True, slots=True)
class Condition:
    """What a check found, as alerts take it: its key is type and subject."""

    type: str
    subject: str
    severity: Severity
    message: str
    metrics: Mapping[str, float]
    firm: bool
    for_seconds: float

    @property
    def key(self) -> tuple[str, str]:
        return self.type, self.subject


@dataclass(frozen=True, slots=True)
class Judged:
    """conditions: in the order of the table, then by subject. unknown: checks that could not be made."""

    conditions: tuple[Condition, ...]
    unknown: frozenset[str]
    issues: tuple[Issue, ...]

    @property
    def score(self) -> int:
        """100: nothing is wrong; 0: the worst."""
        return max(0, 100 - sum(issue.points for issue in self.issues))


def judge(facts: Facts, thresholds: Thresholds) -> Judged:
    """Makes all checks."""
    conditions: list[Condition] = []
    issues: list[Issue] = []
    unknown: set[str] = set()
    for check in CHECKS:
        findings = check.find(facts, thresholds)
        if findings is None:
            unknown.add(check.name)
            continue
        left = check.cap
        for found in sorted(findings, key=lambda found: found.subject):
            severity = found.severity or check.severity
            at_once = severity == "critical" and check.critical_at_once
            for_seconds = 0.0 if at_once else check.for_seconds
            conditions.append(
                Condition(
                    check.name, found.subject, severity, found.message, dict(found.metrics), found.firm, for_seconds
                )
            )
            if found.firm:
                points = min(left, check.points if found.points is None else found.points)
                left -= points
                remedy = check.remedy.replace("{subject}", found.subject)
                issues.append(Issue(check.name, points, severity, found.subject, found.message, remedy))
    # What is read first is the worst; of two that are alike, as the table has them.
    issues.sort(key=lambda issue: (-rank(issue.severity), -issue.points))
    return Judged(tuple(conditions), frozenset(unknown), tuple(issues))


def rank(severity: str) -> int:
    """Of a severity among all; raises ValueError for none."""
    return SEVERITIES.index(severity)


def remedy_of(name: str, subject: str) -> str:
    """What to do about an alert; empty for a type that is none of the checks."""
    return next((check.remedy.replace("{subject}", subject) for check in CHECKS if check.name == name), "")


CHECKS: tuple[Check, ...] = (
    Check(
        *("postgres_away", 100, "critical", 0.0),
        "Postgres does not answer",
        "start Postgres, or check MILLRACE_POSTGRES__URL; work stands still and goes on by itself, nothing is lost",
        symptoms.ledger_away,
    ),
    Check(
        *("redis_away", 40, "critical", 0.0),
        "Redis does not answer",
        "start Redis, or check MILLRACE_REDIS__URL; jobs are safe in Postgres and go on by themselves",
        symptoms.broker_away,
    ),
    Check(
        *("qdrant_away", 40, "critical", 0.0),
        "Qdrant does not answer",
        "start Qdrant, or check MILLRACE_QDRANT__URL; embedding waits and goes on by itself",
        symptoms.vectors_away,
    ),
    Check(
        *("dependency_resting", 40, "high", 30.0),
        "Postgres or Qdrant answers and takes nothing; because its disk is full: critical",
        "make room on the disk of {subject} (`millrace storage`); work goes on by itself when there is room",
        symptoms.resting,
        most=60,
    ),
    Check(
        *("openai_key_rejected", 30, "critical", 0.0),
        "OpenAI (or the server of section openai) rejects the key",
        "set MILLRACE_OPENAI__API_KEY to a valid one for every worker and restart them; work waits, nothing is lost",
        buying_symptoms.key_rejected,
    ),
    Check(
        *("openai_quota_exhausted", 30, "critical", 0.0),
        "the account at OpenAI is out of credit",
        "add credit to the account, or raise its limit there; work goes on by itself within a minute",
        buying_symptoms.quota_exhausted,
    ),
    Check(
        *("openai_away", 20, "high", 30.0),
        "OpenAI (or the server of section openai) does not answer",
        "check MILLRACE_OPENAI__BASE_URL and the provider's status page; what is bought waits and goes on by itself",
        buying_symptoms.provider_away,
    ),
    Check(
        *("openai_model_changed", 5, "high", 0.0),
        "OpenAI (or the server of section openai) answered under another model's name than before",
        "see whether the server has another model now; where it has, put the former back, or re-embed its collections",
        buying_symptoms.model_changed,
    ),
    Check(
        *("collection_lost", 30, "critical", 0.0),
        "Qdrant has lost a collection",
        "run `millrace rebuild {subject}`: it puts everything back without embedding anything again",
        symptoms.lost_collections,
        most=60,
    ),
    Check(
        *("no_worker", 25, "high", 30.0),
        "no live worker consumes a queue",
        "start a worker: `millrace worker` (or `docker compose up -d worker`); its log says why it ended",
        symptoms.unconsumed_queues,
        most=75,
    ),
    Check(
        *("no_express", 30, "high", 30.0),
        "no live worker consumes the control queue",
        "start one: `millrace worker --express` (or `docker compose up -d express`)",
        symptoms.express_missing,
    ),
    Check(
        *("worker_silent", 10, "medium", 30.0),
        "a worker has stopped reporting without leaving",
        "look at its log and its machine; what it held is taken up by others, and its row is forgotten in ten minutes",
        symptoms.silent_workers,
        most=30,
    ),
    Check(
        *("beat_away", 15, "high", 30.0),
        "beat is not there",
        "start it: `millrace beat` (or `docker compose up -d beat`); workers do the vital duties meanwhile",
        symptoms.beat_away,
    ),
    Check(
        *("duty_overdue", 10, "high", 20.0),
        "a duty has not run for longer than it may (reconcile: 30 points, critical)",
        "look at `millrace duties`; `millrace duties run {subject}` runs it here",
        symptoms.overdue_duties,
        most=40,
        critical_at_once=False,  # after an outage all of them are late, until the next second
    ),
    Check(
        *("duty_failing", 5, "medium", 60.0),
        "the last run of a duty failed",
        "look at `millrace duties` and at the log of the express worker",
        symptoms.failing_duties,
        most=20,
    ),
    Check(
        *("queue_size", 5, "medium", 60.0),
        "more batches wait in a queue than the threshold",
        "add workers (docs/operations.md says how many), or raise the threshold: `millrace alerts set "
        "queue_size.{subject} N`",
        symptoms.large_queues,
        most=15,
    ),
    Check(
        *("queue_age", 5, "medium", 60.0),
        "the oldest batch of a queue waits for longer than the threshold",
        "`millrace jobs` says what each waits for; add workers, or give the job another priority",
        symptoms.old_queues,
        most=15,
    ),
    Check(
        *("dead_letters", 5, "medium", 0.0),
        "there are open dead letters",
        "`millrace dead` says why; then `millrace retry --all` or `millrace discard --all`",
        symptoms.open_letters,
    ),
    Check(
        *("remote_batch_stuck", 10, "high", 60.0),
        "a batch of the Batch API is past its end, or nothing is done for it",
        "`millrace batches` shows batch {subject}; see that a worker runs, and the batch on the provider's pages",
        buying_symptoms.stuck_batches,
        most=30,
    ),
    Check(
        *("remote_batch_doubtful", 5, "high", 0.0),
        "a batch of the Batch API may have been paid for twice, or nobody knows whether it was created",
        "`millrace batches` shows batch {subject}; compare with the provider's pages. It is settled by itself",
        buying_symptoms.doubtful_batches,
        most=15,
    ),
    Check(
        *("job_late", 10, "high", 0.0),
        "a job is not done by its `need_by`, or will not be",
        "`millrace job {subject}` says why; more workers, a higher priority, or a larger `max_cost` bring it sooner",
        buying_symptoms.late_jobs,
        most=30,
    ),
    Check(
        *("budget_exhausted", 10, "high", 0.0),
        "a budget is used up, and what it pays for is paused (jobs that need more than their own: medium)",
        "`millrace cost` shows the budgets; raise one there, then `millrace resume` the jobs that it paused",
        buying_symptoms.exhausted_budgets,
        most=20,
    ),
    Check(
        *("budget_near", 2, "medium", 0.0),
        "more of a month's budget is used than `alerts.budget_percent`",
        "`millrace cost` shows what it went for; raise it, or let less be bought",
        buying_symptoms.nearly_used_budgets,
        most=6,
    ),
    Check(
        *("schedule_failing", 5, "medium", 0.0),
        "the last run of a schedule failed",
        "`millrace schedules` shows it; mend its source, then `millrace schedules run ID`",
        symptoms.failing_schedules,
        most=15,
    ),
    Check(
        *("webhooks_given_up", 5, "medium", 0.0),
        "webhooks were given up in the last day",
        "see docs/webhooks.md, When nothing arrives: the endpoint did not take them for about a day",
        symptoms.webhooks_given_up,
    ),
    Check(
        *("memory_usage", 5, "medium", 60.0),
        "a process has more resident memory than the threshold (over memory.hard_mb: 10 points, high)",
        "it collects and trims by itself, and a pool child is replaced at the hard limit; see docs/memory.md",
        symptoms.memory_usage,
        most=20,
    ),
    Check(
        *("memory_pressure", 5, "high", 30.0),
        "a machine, or a process by its hard limit, uses more than `alerts.memory_percent` of its memory",
        "the system shrinks batches and collects; give {subject} more memory, or run fewer pool children",
        symptoms.memory_pressure,
        most=15,
    ),
    Check(
        *("disk_filling", 10, "high", 60.0),
        "storage is nearly full, or will be within days (over 97 %: 30 points, critical)",
        "make room for {subject} or give it a larger disk; `millrace storage` shows what takes it",
        symptoms.filling_disks,
        most=40,
    ),
    Check(
        *("slow_operation", 5, "medium", 60.0),
        "the p95 of an operation is over its threshold",
        "`millrace stats` shows it beside the others; the system shrinks batches or asks for tuning",
        symptoms.slow_operations,
        most=20,
    ),
    Check(
        *("error_rate", 10, "high", 60.0),
        "more of the runs of an operation fail than the threshold",
        "`millrace stats` shows the errors by class, `millrace logs` the messages",
        symptoms.failing_operations,
        most=30,
    ),
    Check(
        *("everything_paused", 10, "low", 3600.0),
        "everything is paused",
        "`millrace resume --all` when that is over",
        symptoms.everything_paused,
    ),
    Check(
        *("work_wedged", 10, "high", 0.0),
        "batches are held by processes that make no progress",
        "their worker ends such a process by itself; where it does not, end it: `millrace status` names the workers",
        symptoms.wedged_work,
    ),
    Check(
        *("flower_away", 2, "low", 60.0),
        "Flower does not answer where its address is known",
        "start it: `millrace flower` (or `docker compose up -d flower`); nothing depends on it",
        symptoms.flower_away,
    ),
)
