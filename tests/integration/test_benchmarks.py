"""That the benchmarks run, and tell what docs/performance.md says they tell. Their figures here mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks import audit, bare, enqueue, garbage, memory, monitoring, overhead, priority, soak, stack, unchanged
from benchmarks.report import Options
from benchmarks.stack import LiveStack
from pipeline.monitoring.trend import slope
from pipeline.observe import recorder

QUICK = Options(quick=True)


@pytest.fixture(scope="module")
def running() -> Iterator[LiveStack]:
    with stack.live_stack(
        constant=True, ingest={"prepare_documents": 1, "embed_chunks": 1}, metrics={"report_seconds": 0.5}
    ) as started:
        yield started


@pytest.fixture
def one_stack(running: LiveStack, monkeypatch: pytest.MonkeyPatch) -> LiveStack:
    """The benchmarks share a stack: starting one takes longer than all of them."""

    @contextmanager
    def shared(**_: Any) -> Iterator[LiveStack]:
        yield running

    for module in (audit, enqueue, garbage, memory, monitoring, overhead, priority, soak, unchanged):
        monkeypatch.setattr(module, "live_stack", shared)
    return running


@pytest.fixture
def one_set_of_bare_stages(running: LiveStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of both halves of the benchmark."""
    with bare.bare_stages(running.settings, overhead.PROCESSES) as started:

        @contextmanager
        def shared(*_: Any) -> Iterator[bare.BareStages]:
            yield started

        monkeypatch.setattr(overhead, "bare_stages", shared)
        yield


def test_unchanged_counts_every_document_of_the_tree(one_stack: LiveStack) -> None:
    figures = unchanged.measure(QUICK)

    assert figures["documents"] == 8
    assert figures["mean_bytes"] >= 10_000
    assert figures["documents_per_second"]["median"] > 0


def test_enqueue_times_single_jobs_and_bulk(one_stack: LiveStack) -> None:
    figures = enqueue.measure(QUICK)

    assert figures["jobs"] == 20
    assert 0 < figures["one_job_ms"]["p50"] <= figures["one_job_ms"]["p99"]
    assert set(figures["documents_per_second"]) == {"inline_1kb", "inline_10kb", "files_10kb"}


def test_priority_times_urgent_jobs_behind_a_backlog(one_stack: LiveStack) -> None:
    figures = priority.measure(QUICK)

    assert figures["high_jobs"] == 2
    assert figures["low_batches_waiting"]["when_the_first_came"] > 0
    assert 0 < figures["high_start_ms"]["p50"] <= figures["high_start_ms"]["max"]
    assert 0 <= figures["low_share"] < 1


@pytest.mark.usefixtures("one_set_of_bare_stages")
def test_overhead_does_the_same_work_on_both_sides(one_stack: LiveStack) -> None:
    figures = overhead.measure(QUICK)

    assert figures["chunks_a_round"] > 8
    assert figures["of_bare_stages"] > 0
    assert figures["cpu_seconds_per_1000_chunks"]["millrace"]["all"] > 0
    assert figures["cpu_seconds_per_1000_chunks"]["bare_stages"]["two processes"] > 0


def test_monitoring_measures_all_three_sides_and_what_a_call_costs(one_stack: LiveStack) -> None:
    figures = monitoring.measure(QUICK)

    assert set(figures["chunks_per_second"]) == {"bare", "watched", "events"}
    assert figures["chunks_a_round"] > 8
    assert figures["monitoring"]["of_bare"] > 0
    assert figures["celery_events"]["cpu_of_watched"] > 0
    # What the workers of a stack measure is there for everybody: several operations for each chunk.
    assert figures["monitoring"]["operations_per_1000_chunks"]["median"] > 1000
    assert min(figures["nanoseconds_a_call"].values()) > 0
    assert recorder.enabled


def test_audit_times_comparing_mending_and_making_again(one_stack: LiveStack) -> None:
    figures = audit.measure(QUICK)

    assert figures["points"] > 8
    assert {"audit", "audit_all_vectors", "repair", "rebuild"} == figures["points_per_second"].keys()
    assert min(rate["min"] for rate in figures["points_per_second"].values()) > 0
    assert figures["audit_peak_mb"] > 0


def test_garbage_takes_all_orphans_beside_a_writer_and_a_reader(one_stack: LiveStack) -> None:
    figures = garbage.measure(QUICK)

    assert figures["orphans"] == 1_000
    for kind in ("embeddings", "chunks_and_points"):
        assert figures[kind]["rows_per_second"] > 0
        assert figures[kind]["lock_wait_ms"] >= 0
        assert min(figures[kind][who]["count"] for who in ("writer", "reader")) > 0
    assert figures["alone"]["writer"]["p50_ms"] > 0


def test_memory_looks_at_every_process(one_stack: LiveStack) -> None:
    figures = memory.measure(QUICK)

    for tree in ("gigabyte", "tiny_files"):
        assert {
            "client",
            "general1",
            "general1 child",
            "express",
            "beat",
            "redis",
            "vector server",
            "Postgres, all",
        } <= (figures[tree]["rss_mb"].keys())
    assert figures["tiny_files"]["documents"] == 20
    assert figures["worker_child_peak_mb"] > 100


def test_soak_tells_the_slope_of_every_process_of_ours(one_stack: LiveStack) -> None:
    figures = soak.measure(Options(quick=True, minutes=0.2))

    # A machine that stood still for most of the time leaves nothing to judge, and that is told.
    names = {name.partition(" (")[0] for name in (*figures["processes"], *figures["too_short_to_judge"])}
    assert {"application", "vector server", "general1", "general1 child", "express", "express child", "beat"} <= names
    assert figures["done"]["documents"] >= soak.CHANGED
    assert figures["failed"] == sorted(
        name for name, one in figures["processes"].items() if one["mb_a_minute"] > soak.LIMIT
    )


def test_the_slope_of_a_soak_is_that_of_a_leak_and_not_of_what_comes_and_goes() -> None:
    # Given 3 MB a minute, under documents that come and go, one collection, and one outlier
    leak = [(at, 300 + at * 3 / 60 + at % 7 + (200 if at == 50 else 0)) for at in range(0, 600, 2)]
    steady = [(at, 300 + at % 7 - (40 if at > 300 else 0)) for at in range(0, 600, 2)]

    assert 60 * slope(leak) == pytest.approx(3, abs=0.2)
    assert 60 * slope(steady) <= 0.2
    assert slope([(0.0, 1.0)]) == 0.0
