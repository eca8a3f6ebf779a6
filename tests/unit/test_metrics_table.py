"""The table of metrics against itself and against the code."""

from __future__ import annotations

import re

from pipeline.monitoring.metrics import METRICS, OPERATIONS, PROCESS_GAUGES
from pipeline.monitoring.process import ProcessMemory
from pipeline.observe import RELATIVE_ERROR, Sketch
from pipeline.settings import AlertSettings
from tasks.duties import DUTIES


def test_names_and_labels_are_those_that_prometheus_takes_and_no_name_is_there_twice() -> None:
    exposed = [metric.exposed for metric in METRICS]

    assert len(exposed) == len(set(exposed))
    assert all(re.fullmatch(r"millrace_[a-z][a-z_]*[a-z]", name) for name in exposed)
    assert all(re.fullmatch(r"[a-z]+", label) and label != "le" for metric in METRICS for label in metric.labels)


def test_every_label_says_what_its_values_can_be_and_every_metric_what_it_is() -> None:
    assert all(len(metric.values) == len(metric.labels) for metric in METRICS)
    assert all(metric.help.endswith(".") for metric in METRICS)


def test_every_duty_is_an_operation_and_no_other_is() -> None:
    assert {name for name in OPERATIONS if name.startswith("duty.")} == {duty.task for duty in DUTIES}


def test_thresholds_are_of_operations_that_there_are() -> None:
    assert set(AlertSettings().operation_times_ms) <= set(OPERATIONS)


def test_every_gauge_of_a_process_is_a_figure_that_processes_sample() -> None:
    assert set(PROCESS_GAUGES) <= set(ProcessMemory.__slots__)


def test_what_is_not_above_a_bound_of_a_histogram_is_counted_exactly() -> None:
    # Given values right beside every bound
    for metric in (metric for metric in METRICS if metric.kind == "histogram"):
        sketch = Sketch()
        values = [bound * factor for bound in metric.bounds for factor in (0.9999, 1.0001)] + [0.0, 1.0]
        for value in values:
            sketch.add(value)

        # When they are counted up to each, then none is on the wrong side, though quantiles are within 2 per cent alone
        assert sketch.counts_up_to(metric.bounds) == [
            sum(value <= bound for value in values) for bound in metric.bounds
        ]
        assert RELATIVE_ERROR == 0.02
