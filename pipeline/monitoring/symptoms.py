"""What each check looks at: functions of the facts and the thresholds, and of nothing else.

None: what is asked about is not known now. A figure between its threshold and the lower bound is found, and not firm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.broker import CONTROL_QUEUE, WORK_QUEUES
from pipeline.monitoring.facts import Facts, Overdue
from pipeline.monitoring.thresholds import Thresholds
from pipeline.settings import Severity

# Of an operation that ran less often in the window, neither its p95 nor its share of errors says anything.
LEAST_RUNS = 20
# A figure that was over its threshold is not over it any more when it is below this share of it.
CLEAR_BELOW = 0.8
# A share of a disk changes slowly: its lower bound is so many per cent below; days until it is full, so many times as
# many as the threshold.
CLEAR_DISK_PERCENT = 5.0
CLEAR_DISK_DAYS = 1.5
# Beat says every few seconds that it is there.
BEAT_SECONDS = 30.0
# A disk with less than this left is full before somebody has read the mail.
NEARLY_FULL_PERCENT = 97.0
# What `LedgerFull` and `VectorsFull` say.
NO_ROOM = "no room"
# Duties whose lateness is felt by everything else.
VITAL_DUTIES = frozenset({"reconcile"})

_MIB = 1024**2
_MOST_LETTERS = 300


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a check found. firm: False where it would not begin now, but has not ended if it had begun.

    severity, points: where they are not those of the check.
    """

    subject: str
    message: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    firm: bool = True
    severity: Severity | None = None
    points: int | None = None


def _told(error: str | None, subject: str) -> list[Finding]:
    return [Finding(subject, error[:_MOST_LETTERS])] if error else []


def ledger_away(facts: Facts, _: Thresholds) -> list[Finding]:
    return _told(facts.ledger_error, "postgres")


def broker_away(facts: Facts, _: Thresholds) -> list[Finding] | None:
    return _told(facts.broker_error, "redis") if facts.others_asked else None


def vectors_away(facts: Facts, _: Thresholds) -> list[Finding] | None:
    return _told(facts.vectors_error, "qdrant") if facts.others_asked else None


def resting(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.resting is None:
        return None
    return [
        Finding(
            found.dependency,
            found.error[:_MOST_LETTERS],
            # One that has answered again just now rests for some seconds more; a disk does not empty itself.
            severity="critical" if NO_ROOM in found.error else None,
        )
        for found in facts.resting
    ]


def lost_collections(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.lost_collections is None:
        return None
    return [Finding(name, f"collection {name} was found missing in Qdrant") for name in facts.lost_collections]


def unconsumed_queues(facts: Facts, _: Thresholds) -> list[Finding] | None:
    consumed = facts.consumed
    if consumed is None:
        return None
    return [
        Finding(queue, f"no live worker consumes the queue {queue}") for queue in WORK_QUEUES if queue not in consumed
    ]


def express_missing(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.consumed is None:
        return None
    message = f"no live worker consumes the queue {CONTROL_QUEUE}: what is left behind is not taken up"
    return [] if CONTROL_QUEUE in facts.consumed else [Finding("", message)]


def silent_workers(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.silent_workers is None:
        return None
    return [
        Finding(found.name, f"worker {found.name} has not reported for {found.seconds:.0f} s")
        for found in facts.silent_workers
    ]


def beat_away(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.beat_seconds is None:
        return None
    if facts.beat_seconds <= BEAT_SECONDS:
        return []
    since = "at all" if math.isinf(facts.beat_seconds) else f"for {facts.beat_seconds:.0f} s"
    return [Finding("", f"beat was not heard of {since}")]


def overdue_duties(facts: Facts, _: Thresholds) -> list[Finding] | None:
    # Where Redis is away no tick reaches anybody: that is what is wrong, and told of.
    if facts.overdue is None or facts.broker_error:
        return None
    return [
        Finding(
            found.name,
            _late(found),
            {"overdue_seconds": round(found.seconds, 1)},
            severity="critical" if found.name in VITAL_DUTIES else None,
            points=30 if found.name in VITAL_DUTIES else None,
        )
        for found in facts.overdue
    ]


def _late(found: Overdue) -> str:
    if found.disabled:
        return f"duty {found.name} is disabled; `millrace duties set {found.name} --enable` lets it run again"
    return f"duty {found.name} has not ended a run for {found.seconds:.0f} s"


def failing_duties(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.failing_duties is None:
        return None
    return [
        Finding(found.name, f"duty {found.name} failed: {found.error[:_MOST_LETTERS]}")
        for found in facts.failing_duties
    ]


def failing_schedules(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.failing_schedules is None:
        return None
    return [
        Finding(
            found.name,
            f"schedule {found.name} failed {found.times} times in a row: {found.error[:_MOST_LETTERS]}",
            {"failures": found.times},
        )
        for found in facts.failing_schedules
    ]


def _over(value: float, threshold: float) -> bool | None:
    """True: over it. False: not over it any more. None: in between."""
    return True if value > threshold else False if value <= threshold * CLEAR_BELOW else None


def large_queues(facts: Facts, thresholds: Thresholds) -> list[Finding] | None:
    if facts.queues is None:
        return None
    found = []
    for name, queue in facts.queues.items():
        limit = thresholds.of("queue_size", name)
        if (over := _over(queue.size, limit)) is not False:
            message = f"{queue.size:,} batches wait in queue {name} (threshold {limit:g})"
            found.append(Finding(name, message, {"size": queue.size, "threshold": limit}, bool(over)))
    return found


def old_queues(facts: Facts, thresholds: Thresholds) -> list[Finding] | None:
    if facts.queues is None:
        return None
    found = []
    for name, queue in facts.queues.items():
        limit = thresholds.of("queue_age_seconds", name)
        if (over := _over(queue.oldest_seconds, limit)) is not False:
            message = f"the oldest batch of queue {name} waits for {queue.oldest_seconds:.0f} s (threshold {limit:g})"
            found.append(Finding(name, message, {"seconds": queue.oldest_seconds, "threshold": limit}, bool(over)))
    return found


def open_letters(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.open_letters is None:
        return None
    message = f"{facts.open_letters:,} documents could not be indexed"
    return [Finding("", message, {"open": facts.open_letters})] if facts.open_letters else []


def webhooks_given_up(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.webhooks_given_up is None:
        return None
    message = f"{facts.webhooks_given_up:,} webhooks were given up in the last day"
    return [Finding("", message, {"given_up": facts.webhooks_given_up})] if facts.webhooks_given_up else []


def memory_usage(facts: Facts, thresholds: Thresholds) -> list[Finding] | None:
    if facts.processes is None:
        return None
    limit, hard = thresholds.of("memory_usage_mb"), facts.hard_bytes / _MIB
    found = []
    for process in facts.processes:
        mib = process.rss / _MIB
        if (over := _over(mib, limit)) is not False:
            message = f"process {process.name} has {mib:,.0f} MiB resident (threshold {limit:g}, hard limit {hard:g})"
            metrics = {"rss_mb": round(mib, 1), "threshold": limit, "hard_mb": hard}
            worse = mib > hard
            found.append(
                Finding(
                    process.name,
                    message,
                    metrics,
                    bool(over),
                    severity="high" if worse else None,
                    points=10 if worse else None,
                )
            )
    return found


def memory_pressure(facts: Facts, thresholds: Thresholds) -> list[Finding] | None:
    """Machines, and pool children by their share of the hard limit."""
    if facts.processes is None:
        return None
    limit = thresholds.of("memory_percent")
    shares = [
        (process.name, f"process {process.name} has {{:.0f}} % of memory.hard_mb", 100 * process.rss / facts.hard_bytes)
        for process in facts.processes
        if process.child
    ]
    shares += [
        (host, f"machine {host} uses {{:.0f}} % of its memory", used) for host, used in (facts.machines or {}).items()
    ]
    found = []
    for subject, message, percent in shares:
        if (over := _over(percent, limit)) is not False:
            metrics = {"percent": round(percent, 1), "threshold": limit}
            found.append(Finding(subject, f"{message.format(percent)} (threshold {limit:g})", metrics, bool(over)))
    return found


def filling_disks(facts: Facts, thresholds: Thresholds) -> list[Finding] | None:
    if facts.disks is None:
        return None
    most, days = thresholds.of("disk_percent"), thresholds.of("disk_days")
    found = []
    for disk in facts.disks:
        used = disk.used_percent or 0.0
        left = math.inf if disk.days is None else disk.days
        full = True if used > most else None if used > most - CLEAR_DISK_PERCENT else False
        soon = True if left < days else None if left < days * CLEAR_DISK_DAYS else False
        if full is False and soon is False:
            continue
        told = (
            f"{used:.0f} % of its room is used (threshold {most:g} %)"
            if disk.used_percent is not None
            else "its room is unknown"
        )
        ahead = f", full in {left:.1f} days by its trend (threshold {days:g})" if math.isfinite(left) else ""
        metrics = {"used_percent": round(used, 1)} | ({"days": round(left, 2)} if math.isfinite(left) else {})
        worse = used > NEARLY_FULL_PERCENT
        found.append(
            Finding(
                disk.name,
                f"{disk.name}: {told}{ahead}",
                metrics,
                full is True or soon is True,
                severity="critical" if worse else None,
                points=30 if worse else None,
            )
        )
    return found


def slow_operations(facts: Facts, thresholds: Thresholds) -> list[Finding] | None:
    if facts.operations is None:
        return None
    found = []
    for name, measured in facts.operations.items():
        if measured.count < LEAST_RUNS or (
            name.startswith("duty.") and not thresholds.named("operation_time_ms", name)
        ):
            continue
        limit, p95 = thresholds.of("operation_time_ms", name), measured.p95 * 1000
        if (over := _over(p95, limit)) is not False:
            message = f"p95 of {name} is {p95:,.0f} ms over {measured.count:,} runs (threshold {limit:g})"
            metrics = {"p95_ms": round(p95, 1), "runs": measured.count, "threshold": limit}
            found.append(Finding(name, message, metrics, bool(over)))
    return found


def failing_operations(facts: Facts, thresholds: Thresholds) -> list[Finding] | None:
    if facts.operations is None:
        return None
    found = []
    for name, measured in facts.operations.items():
        if measured.count < LEAST_RUNS:
            continue
        limit = thresholds.of("error_rate", name)
        if (over := _over(measured.error_rate, limit)) is not False:
            message = f"{measured.error_rate:.1%} of {measured.count:,} runs of {name} failed (threshold {limit:.1%})"
            metrics = {"error_rate": round(measured.error_rate, 4), "runs": measured.count, "threshold": limit}
            found.append(Finding(name, message, metrics, bool(over)))
    return found


def everything_paused(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.queues is None:
        return None
    seconds = facts.everything_paused
    return [] if seconds is None else [Finding("", f"everything is paused, for {seconds:.0f} s")]


def wedged_work(facts: Facts, _: Thresholds) -> list[Finding] | None:
    if facts.wedged is None:
        return None
    message = f"{facts.wedged} batches are held by processes that make no progress"
    return [Finding("", message, {"batches": facts.wedged})] if facts.wedged else []


def flower_away(facts: Facts, _: Thresholds) -> list[Finding] | None:
    return _told(facts.flower_error, "flower") if facts.others_asked else None
