"""deploy/prometheus against the table of metrics, the checks, the runbook, and Prometheus' own program."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import errors
from pipeline.errors import (
    BoughtElsewhere,
    BudgetExhausted,
    InvalidRequest,
    LeaseLost,
    MillraceError,
    ProviderLimited,
)
from pipeline.monitoring.checks import CHECKS
from pipeline.monitoring.metrics import METRICS, OPERATIONS

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "deploy" / "prometheus"


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DIRECTORY / "alerts.yml").read_text("utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_a_rule_is_about_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    # Given what is measured, what can be wrong, and the headings of the runbook
    series = {
        name: metric
        for metric in METRICS
        for name in (metric.exposed, *(f"{metric.exposed}_{end}" for end in ("bucket", "count", "sum")))
    }
    check = next(check for check in CHECKS if check.name == rule["labels"]["type"])
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "operations.md").read_text("utf-8"), re.MULTILINE)

    # When a rule is read, then it asks for metrics that are in the table, by labels that they have
    asked = re.findall(r"(millrace_\w+)(?:\{([^}]*)\})?", rule["expr"])
    assert asked or 'up{job="millrace"}' in rule["expr"]
    for name, matchers in asked:
        assert name in series
        for label, operation in re.findall(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"', matchers):
            assert label in series[name].labels
            if label == "operation":
                known = [each for each in operation.split("|") if any(re.fullmatch(each, one) for one in OPERATIONS)]
                assert known == operation.split("|")

    # And it is as severe as Millrace's own alert, and leads to the entry of the runbook
    assert rule["labels"]["severity"] == check.severity
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{check.name}"
    assert check.name in {heading.strip("`") for heading in headings}


@pytest.mark.external
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    for command, file in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        found = subprocess.run(
            ["promtool", "check", command, file], cwd=DIRECTORY, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stdout + found.stderr


def firing(at: str, *alerts: tuple[str, dict[str, str], str]) -> list[dict[str, Any]]:
    """That these rules (name, labels, summary), and no others, fire at this time."""
    known = {rule["alert"]: rule for rule in rules()}
    expected: dict[str, list[dict[str, Any]]] = {name: [] for name in known}
    for name, labels, summary in alerts:
        annotations = {**known[name]["annotations"], "summary": summary}
        expected[name].append({"exp_labels": {**known[name]["labels"], **labels}, "exp_annotations": annotations})
    return [{"eval_time": at, "alertname": name, "exp_alerts": found} for name, found in expected.items()]


@pytest.mark.external
def test_rules_fire_for_what_they_are_about_and_for_nothing_else(tmp_path: Path) -> None:
    # Given two workers that are well for ten minutes; and then more and more waits, one duty is not run,
    # Postgres' disk fills, searches are slow, and a half of them fail
    instances = ("one", "two")
    well = [
        *((f'up{{job="millrace", instance="{name}"}}', "1+0x40") for name in instances),
        *((f'millrace_cluster_workers{{instance="{name}"}}', "2+0x40") for name in instances),
        *((f'millrace_cluster_queue_messages{{instance="{name}", queue="normal"}}', "3+0x40") for name in instances),
        *((f'millrace_cluster_dead_letters{{instance="{name}"}}', "0+0x40") for name in instances),
        ('millrace_cluster_webhooks_dead{instance="one"}', "0+0x40"),
        ('millrace_process_resident_bytes{instance="one", process="0"}', "300000000+0x40"),
        ('millrace_cluster_storage{instance="one", sample="postgres.room_bytes"}', "100+0x40"),
        ('millrace_cluster_operation_runs{instance="one", operation="search"}', "100+0x40"),
        ('millrace_cluster_operation_runs{instance="two", operation="search"}', "100+0x40"),
    ]
    worse = [
        ('millrace_cluster_queue_ready_batches{instance="one", queue="normal"}', "10+0x9 10+100x30"),
        ('millrace_cluster_duty_overdue{instance="one", duty="reconcile"}', "0+0x9 1+0x30"),
        ('millrace_cluster_storage{instance="one", sample="postgres.bytes"}', "50+0x9 95+0x30"),
        ('millrace_cluster_operation_errors{instance="one", operation="search", error="other"}', "0+0x9 50+0x30"),
        ('millrace_cluster_operation_errors{instance="two", operation="search", error="other"}', "0+0x9 50+0x30"),
        ('millrace_cluster_operation_seconds{instance="one", operation="search", quantile="0.95"}', "0.1+0x9 3+0x30"),
    ]
    story = {
        "rule_files": [str(DIRECTORY / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": series, "values": values} for series, values in (*well, *worse)],
                "alert_rule_test": firing("9m")
                + firing(
                    "35m",
                    ("MillraceQueueSize", {"queue": "normal"}, "2510 batches wait for normal."),
                    ("MillraceDutyOverdue", {"duty": "reconcile"}, "The duty reconcile is overdue."),
                    ("MillraceDiskFilling", {"store": "postgres"}, "postgres takes 95% of its room."),
                    ("MillraceErrorRate", {"operation": "search"}, "50% of search fail."),
                    ("MillraceSlowOperation", {"operation": "search"}, "The p95 of search is 3s."),
                ),
            },
            {
                # And a stack of which nobody answers, but one worker that reaches neither Postgres nor Redis
                "interval": "1m",
                "input_series": [{"series": 'up{job="millrace", instance="one"}', "values": "1+0x10 0+0x20"}],
                "alert_rule_test": firing(
                    "9m",
                    ("MillracePostgresAway", {}, "No worker can read the ledger."),
                    ("MillraceRedisAway", {}, "No worker can reach Redis."),
                )
                + firing("25m", ("MillraceNoWorker", {}, "No worker answers Prometheus.")),
            },
        ],
    }
    (tmp_path / "story.yml").write_text(json.dumps(story))

    # When Prometheus' own program tells the story, then these fire and no others
    found = subprocess.run(
        ["promtool", "test", "rules", "story.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert found.returncode == 0, found.stdout + found.stderr


def test_faults_of_callers_are_no_errors_of_the_rule_and_all_others_are() -> None:
    (rule,) = [rule for rule in rules() if rule["labels"]["type"] == "error_rate"]
    left_out = re.findall(r'error!~"([^"]*)"', rule["expr"])[0]
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MillraceError)]

    excused = {kind for kind in classes if re.fullmatch(left_out, kind.__name__)}

    expected = InvalidRequest | LeaseLost | ProviderLimited | BoughtElsewhere | BudgetExhausted
    assert excused == {kind for kind in classes if issubclass(kind, expected)}
