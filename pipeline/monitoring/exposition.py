"""What Prometheus is told: the totals of one worker, its processes, and the whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from pipeline.monitoring.metrics import CLUSTER, PROCESS_GAUGES, RECORDED, Metric
from pipeline.observe import Measured, Series, Sketch

_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

# Of bounds, so many digits are told: what is lost is a millionth.
_DIGITS = 6


class Exposition(Collector):
    """Collected anew at every scrape.

    totals: counts and sketches since the worker started. processes: the newest memory sample of each of its processes,
    with its `slot` (-1: the main process). whole: the figures of the ledger.
    """

    def __init__(
        self,
        totals: Callable[[], Measured],
        processes: Callable[[], Sequence[Mapping[str, Any]]],
        whole: Callable[[], Mapping[Series, float]],
    ) -> None:
        self._totals = totals
        self._processes = processes
        self._whole = whole

    def describe(self) -> Iterable[Any]:
        """Nothing beforehand: what there is is told when it is asked for."""
        return ()

    def collect(self) -> Iterator[Any]:
        totals = self._totals()
        yield from _counters(totals.counts)
        yield from _histograms(totals.sketches)
        yield from _of_processes(self._processes())
        yield from _gauges(self._whole())


def _counters(counts: Mapping[Series, float]) -> Iterator[_Family]:
    for metric, series in _by_metric(counts, "counter"):
        family = CounterMetricFamily(metric.exposed, metric.help, labels=metric.labels)
        for labels, number in series.items():
            family.add_metric(labels, number)
        yield family


def _histograms(sketches: Mapping[Series, Sketch]) -> Iterator[_Family]:
    for metric, series in _by_metric(sketches, "histogram"):
        family = HistogramMetricFamily(metric.exposed, metric.help, labels=metric.labels)
        for labels, sketch in series.items():
            upto = sketch.counts_up_to(metric.bounds)
            buckets = [(f"{bound:.{_DIGITS}g}", count) for bound, count in zip(metric.bounds, upto, strict=True)]
            family.add_metric(labels, [*buckets, ("+Inf", sketch.count)], sum_value=sketch.total)
        yield family


def _by_metric(found: Mapping[Series, Any], kind: str) -> Iterator[tuple[Metric, dict[tuple[str, ...], Any]]]:
    """In the order of the table, what is in it: label values -> what was measured."""
    by_name: dict[str, dict[tuple[str, ...], Any]] = defaultdict(dict)
    for (name, labels), measured in found.items():
        by_name[name][labels] = measured
    for metric in RECORDED.values():
        series = {labels: each for labels, each in by_name[metric.name].items() if len(labels) == len(metric.labels)}
        if metric.kind == kind and series:
            yield metric, series


def _of_processes(processes: Sequence[Mapping[str, Any]]) -> Iterator[_Family]:
    for field, metric in PROCESS_GAUGES.items():
        family = GaugeMetricFamily(metric.exposed, metric.help, labels=metric.labels)
        for process in processes:
            if (value := process.get(field)) is not None:
                family.add_metric(("main" if process["slot"] < 0 else str(process["slot"]),), value)
        if family.samples:
            yield family


def _gauges(whole: Mapping[Series, float]) -> Iterator[_Family]:
    for metric in CLUSTER.values():
        family = GaugeMetricFamily(metric.exposed, metric.help, labels=metric.labels)
        for (name, labels), value in whole.items():
            if name == metric.name:
                family.add_metric(labels, value)
        if family.samples:
            yield family
