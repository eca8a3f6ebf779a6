"""The checks of health: each costs what the table says, and the table is what the docs say."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.monitoring.checks import CHECKS, SEVERITIES, Judged, judge
from pipeline.monitoring.facts import (
    Budget,
    Disk,
    Facts,
    Failing,
    Late,
    Operation,
    Overdue,
    Process,
    Provider,
    Queue,
    Remote,
    Resting,
    Silent,
)
from pipeline.monitoring.thresholds import Thresholds
from pipeline.settings import AlertSettings

DOCS = Path(__file__).parents[2] / "docs"
MIB = 1024**2

WELL = Facts(
    queues={name: Queue(0, 0.0, 0) for name in ("high", "normal", "low")},
    consumed=frozenset({"high", "normal", "low", "control"}),
    beat_seconds=2.0,
    machines={"here": 40.0},
    operations={"search": Operation(1000, 0.0, 0.02)},
)
OF_SEARCH = Operation(100, 0.0, 0.02)

# name of the check -> facts that differ from those of a whole that is well in one way, and the points that it costs.
CASES: dict[str, tuple[Facts, int]] = {
    "postgres_away": (replace(WELL, ledger_error="Postgres does not answer"), 100),
    "redis_away": (replace(WELL, broker_error="Redis does not answer"), 40),
    "qdrant_away": (replace(WELL, vectors_error="Qdrant does not answer"), 40),
    "dependency_resting": (replace(WELL, resting=(Resting("postgres", "no room on its disk"),)), 40),
    "openai_key_rejected": (replace(WELL, provider=(Provider("KeyRejected", "invalid_api_key"),)), 30),
    "openai_quota_exhausted": (replace(WELL, provider=(Provider("QuotaExhausted", "insufficient_quota"),)), 30),
    "openai_away": (replace(WELL, provider=(Provider("ProviderUnavailable", "it does not answer"),)), 20),
    "openai_model_changed": (replace(WELL, model_changes=2), 5),
    "collection_lost": (replace(WELL, lost_collections=("notes",)), 30),
    "no_worker": (replace(WELL, consumed=frozenset({"high", "normal", "control"})), 25),
    "no_express": (replace(WELL, consumed=frozenset({"high", "normal", "low"})), 30),
    "worker_silent": (replace(WELL, silent_workers=(Silent("general1@here#1", 20.0),)), 10),
    "beat_away": (replace(WELL, beat_seconds=math.inf), 15),
    "duty_overdue": (replace(WELL, overdue=(Overdue("contract", 200.0),)), 10),
    "duty_failing": (replace(WELL, failing_duties=(Failing("contract", "it broke"),)), 5),
    "queue_size": (replace(WELL, queues={"low": Queue(501, 1.0, 0)}), 5),
    "queue_age": (replace(WELL, queues={"low": Queue(1, 3601.0, 0)}), 5),
    "dead_letters": (replace(WELL, open_letters=3), 5),
    "remote_batch_stuck": (replace(WELL, stuck_batches=(Remote("7", "it should have ended 2 h ago"),)), 10),
    "remote_batch_doubtful": (replace(WELL, doubtful_batches=(Remote("7", "it may be paid for twice"),)), 5),
    "job_late": (replace(WELL, late_jobs=(Late("0197", 7200.0),)), 10),
    "budget_exhausted": (replace(WELL, budgets=(Budget("acme", 10.0, 10.0),)), 10),
    "budget_near": (replace(WELL, budgets=(Budget("", 81.0, 100.0),)), 2),
    "schedule_failing": (replace(WELL, failing_schedules=(Failing("1", "it is away", 2),)), 5),
    "webhooks_given_up": (replace(WELL, webhooks_given_up=1), 5),
    "memory_usage": (
        replace(WELL, processes=(Process("general1@here child 0", "w", 801 * MIB),), hard_bytes=2000 * MIB),
        5,
    ),
    "memory_pressure": (replace(WELL, machines={"here": 81.0}), 5),
    "disk_filling": (replace(WELL, disks=(Disk("postgres", 91.0),)), 10),
    "slow_operation": (replace(WELL, operations={"search": replace(OF_SEARCH, p95=1.01)}), 5),
    "error_rate": (replace(WELL, operations={"search": replace(OF_SEARCH, error_rate=0.06)}), 10),
    "everything_paused": (replace(WELL, everything_paused=60.0), 10),
    "work_wedged": (replace(WELL, wedged=1), 10),
    "flower_away": (replace(WELL, flower_error="Flower does not answer"), 2),
}


def judged(facts: Facts, **overrides: float) -> Judged:
    own = {f"alerts.{name.replace('__', '.')}": value for name, value in overrides.items()}
    return judge(facts, Thresholds(AlertSettings(), own))


def test_a_whole_that_is_well_has_a_hundred_points_and_no_issues() -> None:
    assert (judged(WELL).score, judged(WELL).issues, judged(WELL).unknown) == (100, (), frozenset())


def test_every_check_has_a_case() -> None:
    assert set(CASES) == {check.name for check in CHECKS}


@pytest.mark.parametrize("name", CASES)
def test_each_check_alone_lowers_the_score_by_its_points(name: str) -> None:
    facts, points = CASES[name]

    found = judged(facts)

    (issue,) = found.issues
    (check,) = [check for check in CHECKS if check.name == name]
    assert (issue.name, issue.points, found.score) == (name, points, 100 - points)
    assert issue.points == check.points
    assert issue.severity in SEVERITIES
    assert issue.message
    assert issue.remedy
    assert "{" not in issue.remedy


def test_all_that_is_wrong_together_is_no_less_than_nothing() -> None:
    facts = WELL
    for case, _ in CASES.values():
        changed = {
            field.name: getattr(case, field.name)
            for field in fields(Facts)
            if getattr(case, field.name) != getattr(WELL, field.name)
        }
        facts = replace(facts, **changed)
    assert judged(facts).score == 0


def test_many_of_one_kind_cost_no_more_than_the_checks_most() -> None:
    facts = replace(WELL, failing_duties=tuple(Failing(f"duty{n}", "it broke") for n in range(50)))
    found = judged(facts)
    assert len(found.issues) == 50
    assert found.score == 80


def test_a_full_disk_is_critical_and_a_dependency_that_answers_again_is_waited_for() -> None:
    full, answering = (
        judged(replace(WELL, resting=(Resting("qdrant", error),))).conditions[0]
        for error in ("Qdrant has no room on its disk", "Qdrant did not answer")
    )
    assert (full.severity, full.for_seconds) == ("critical", 0)
    assert (answering.severity, answering.for_seconds) == ("high", 30)


def test_a_reconcile_that_is_late_is_critical() -> None:
    (issue,) = judged(replace(WELL, overdue=(Overdue("reconcile", 20.0),))).issues
    assert (issue.severity, issue.points) == ("critical", 30)
    # After an outage of Postgres all duties are late until they have run: that is nothing to call somebody for
    assert judged(replace(WELL, overdue=(Overdue("reconcile", 20.0),))).conditions[0].for_seconds == 20


def test_a_duty_that_is_disabled_is_told_of_as_that() -> None:
    (issue,) = judged(replace(WELL, overdue=(Overdue("reconcile", 20.0, disabled=True),))).issues
    assert issue.message == "duty reconcile is disabled; `millrace duties set reconcile --enable` lets it run again"


def test_where_redis_is_away_late_duties_are_no_trouble_of_their_own() -> None:
    found = judged(replace(WELL, broker_error="Redis does not", overdue=(Overdue("reconcile", 200.0),)))
    assert ([issue.name for issue in found.issues], "duty_overdue" in found.unknown) == (["redis_away"], True)


def test_the_worst_is_told_of_first() -> None:
    found = judged(replace(WELL, open_letters=1, flower_error="Flower does not answer", broker_error="Redis does not"))
    assert [issue.severity for issue in found.issues] == ["critical", "medium", "low"]


def test_where_postgres_is_away_everything_else_is_unknown() -> None:
    found = judged(Facts.without_ledger("Postgres does not answer"))
    assert found.score == 0
    assert [issue.name for issue in found.issues] == ["postgres_away"]
    assert found.unknown == {check.name for check in CHECKS} - {"postgres_away"}


def test_a_figure_between_its_threshold_and_the_lower_bound_costs_nothing_and_holds_an_alert() -> None:
    for size, firm in ((501, True), (500, False), (401, False)):
        found = judged(replace(WELL, queues={"low": Queue(size, 1.0, 0)}))
        (condition,) = found.conditions
        assert condition.firm is firm
        assert found.score == (95 if firm else 100)
    assert judged(replace(WELL, queues={"low": Queue(400, 1.0, 0)})).conditions == ()


def test_a_threshold_of_one_operation_wins_over_that_of_all() -> None:
    facts = replace(WELL, operations={"search": replace(OF_SEARCH, p95=0.3), "dispatch": replace(OF_SEARCH, p95=0.3)})
    assert judged(facts).issues == ()
    assert [issue.subject for issue in judged(facts, operation_time_ms__search=200).issues] == ["search"]
    assert [issue.subject for issue in judged(facts, operation_time_ms=200).issues] == ["dispatch", "search"]
    assert [issue.subject for issue in judged(facts, operation_time_ms=200, operation_time_ms__search=400).issues] == [
        "dispatch"
    ]


def test_work_that_takes_its_time_by_design_has_thresholds_of_its_own_and_a_few_runs_say_nothing() -> None:
    slow = {"embed": replace(OF_SEARCH, p95=9.0), "duty.contract": replace(OF_SEARCH, p95=9.0)}
    assert judged(replace(WELL, operations=slow)).issues == ()
    few = {"search": Operation(19, 1.0, 9.0)}
    assert judged(replace(WELL, operations=few)).issues == ()
    assert [issue.subject for issue in judged(replace(WELL, operations=slow), operation_time_ms__embed=8e3).issues] == [
        "embed"
    ]


def test_a_process_above_the_hard_limit_is_worse_than_one_above_the_threshold() -> None:
    facts = replace(WELL, processes=(Process("general1@here child 0", "w", 901 * MIB),))
    by_name = {issue.name: issue for issue in judged(facts).issues}
    assert (by_name["memory_usage"].severity, by_name["memory_usage"].points) == ("high", 10)
    assert "memory_pressure" in by_name


def test_only_pool_children_are_judged_by_their_share_of_the_hard_limit() -> None:
    facts = replace(WELL, processes=(Process("flower@here", "", 790 * MIB, child=False),))
    assert judged(facts).issues == ()


def test_that_openai_asks_to_wait_is_no_trouble() -> None:
    assert judged(replace(WELL, provider=(Provider("ProviderLimited", "429"),))).issues == ()


def test_openai_that_is_away_is_no_alert_before_it_has_lasted_and_a_rejected_key_is_one_at_once() -> None:
    away, rejected = (
        judged(replace(WELL, provider=(Provider(cause, "why"),))).conditions[0]
        for cause in ("ProviderUnavailable", "KeyRejected")
    )
    assert (away.severity, away.for_seconds) == ("high", 30)
    assert (rejected.severity, rejected.for_seconds) == ("critical", 0)


def test_a_late_job_is_told_by_its_id_and_one_that_will_be_late_before_it_is() -> None:
    late, soon = judged(
        replace(WELL, late_jobs=(Late("0197", 7200.0), Late("0198", -60.0, "it may not cost $2")))
    ).issues
    assert late.message == "job 0197 was needed 2.0 h ago"
    assert late.remedy.startswith("`millrace job 0197`")
    assert soon.message == "job 0198 will be late: it may not cost $2"


def test_a_budget_is_near_its_end_before_it_is_used_up_and_jobs_of_small_budgets_are_less_of_a_trouble() -> None:
    def of(used: float, jobs: int = 0, **thresholds: float) -> list[tuple[str, str, str]]:
        facts = replace(WELL, budgets=(Budget("acme", used, 10.0),), paused_by_budget=jobs)
        return [(issue.name, issue.subject, issue.severity) for issue in judged(facts, **thresholds).issues]

    assert of(7.9) == []
    assert of(8.0) == [("budget_near", "acme", "medium")]
    assert of(8.0, budget_percent=90) == []
    assert of(10.0) == [("budget_exhausted", "acme", "high")]
    assert of(0.0, jobs=2) == [("budget_exhausted", "jobs", "medium")]
    message = judged(replace(WELL, budgets=(Budget("", 10.0, 10.0),))).issues[0].message
    assert message == "this month's budget of all together is used up: $10.00 of $10.00"


def test_a_disk_is_judged_by_its_room_and_by_its_trend() -> None:
    def of(disk: Disk) -> list[tuple[str, int]]:
        return [(issue.severity, issue.points) for issue in judged(replace(WELL, disks=(disk,))).issues]

    assert of(Disk("qdrant", 40.0, 2.0)) == [("high", 10)]
    assert of(Disk("qdrant", 98.0)) == [("critical", 30)]
    assert of(Disk("qdrant", None)) == []
    assert of(Disk("qdrant", 90.0, 3.0)) == []


@given(st.lists(st.sampled_from(sorted(CASES)), max_size=6, unique=True))
def test_the_same_facts_give_the_same_score_and_more_that_is_wrong_never_a_better_one(names: list[str]) -> None:
    facts = WELL
    before = 100
    for name in names:
        case = CASES[name][0]
        changed = {
            field.name: getattr(case, field.name)
            for field in fields(Facts)
            if getattr(case, field.name) != getattr(WELL, field.name)
        }
        if any(getattr(facts, key) != getattr(WELL, key) for key in changed):
            continue  # two cases of one fact are not wrong at one time
        facts = replace(facts, **changed)
        found = judged(facts)
        assert found == judged(facts)
        assert found.score <= before
        assert found.score == max(0, 100 - sum(issue.points for issue in found.issues))
        before = found.score


def test_the_docs_name_every_check_with_its_points() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\w+) \| ([\d.]+) s \|", (DOCS / "health.md").read_text("utf-8"), re.M
    )
    assert rows == [
        (check.name, str(check.points), str(check.cap), check.severity, f"{check.for_seconds:g}") for check in CHECKS
    ]


def test_the_runbook_has_an_entry_for_every_alert() -> None:
    text = (DOCS / "operations.md").read_text("utf-8")
    runbook = text[text.index("## Runbook") :]
    entries = re.findall(r"^### (\w+)$", runbook, re.M)
    assert entries == [check.name for check in CHECKS]
    for name, entry in zip(entries, re.split(r"^### \w+$", runbook, flags=re.M)[1:], strict=True):
        for part in ("**Means:**", "**See:**", "**Do:**", "**If not:**"):
            assert part in entry, f"the runbook's entry {name} has no {part}"


def test_the_alerts_of_prometheus_lead_to_entries_of_the_runbook() -> None:
    rules = (DOCS.parent / "deploy" / "prometheus" / "alerts.yml").read_text("utf-8")
    named = set(re.findall(r"docs/operations\.md#(\w+)", rules))
    assert named
    assert named <= {check.name for check in CHECKS}


def test_the_figures_by_which_workers_are_counted_are_those_that_were_measured() -> None:
    operations, measured = ((DOCS / name).read_text("utf-8") for name in ("operations.md", "performance.md"))
    for figure in ("5,610", "11,678", "2,030 chunks/s"):
        assert figure in operations
        assert figure in measured
