"""Thresholds: those of the settings, and what was put in their place while it runs."""

from __future__ import annotations

import pytest

from pipeline.errors import InvalidRequest
from pipeline.monitoring.thresholds import THRESHOLDS, Thresholds, check
from pipeline.settings import AlertSettings


def test_the_settings_have_every_threshold() -> None:
    assert set(THRESHOLDS) <= set(AlertSettings.model_fields)
    assert {name: Thresholds(AlertSettings(), {}).of(name) for name in THRESHOLDS} == {
        "operation_time_ms": 1000.0,
        "error_rate": 0.05,
        "queue_size": 500.0,
        "queue_age_seconds": 3600.0,
        "memory_usage_mb": 800.0,
        "memory_percent": 80.0,
        "disk_percent": 90.0,
        "disk_days": 3.0,
        "budget_percent": 80.0,
    }


def test_what_is_set_of_one_thing_wins_over_what_is_set_of_all() -> None:
    found = Thresholds(
        AlertSettings(operation_times_ms={"embed": 5000.0}),
        {"alerts.operation_time_ms": 700.0, "alerts.operation_time_ms.search": 300.0, "embedding.batch_share": 0.5},
    )
    assert found.of("operation_time_ms", "search") == 300.0
    assert found.of("operation_time_ms", "dispatch") == 700.0
    assert found.of("operation_time_ms", "embed") == 5000.0
    listed = {one.name: one for one in found.listing()}
    assert (listed["operation_time_ms"].value, listed["operation_time_ms"].default) == (700.0, 1000.0)
    assert listed["operation_time_ms"].changed
    assert (listed["operation_time_ms.search"].default, listed["operation_time_ms.search"].changed) == (None, True)
    assert (listed["operation_time_ms.embed"].default, listed["operation_time_ms.embed"].changed) == (5000.0, False)
    assert "embedding.batch_share" not in listed


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("queue_sice", 1.0, "there are .*queue_size"),
        ("queue_size", 0.0, "over 0"),
        ("queue_size", float("nan"), "over 0"),
        ("error_rate", 5.0, "over 0 to 1"),
        ("queue_size.fast", 1.0, "no queue 'fast'"),
        ("memory_usage_mb.search", 1.0, "is one for all"),
        ("operation_time_ms.Drop table", 1.0, "no name of operation"),
        ("operation_time_ms.serach", 1.0, "no operation 'serach'"),
    ],
)
def test_a_threshold_that_is_none_is_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check(name, value)


def test_the_name_of_its_override() -> None:
    assert check("queue_size.high", 5.0) == "alerts.queue_size.high"
    assert check("alerts.error_rate", 0.5) == "alerts.error_rate"
