"""That the benchmarks run, and tell what docs/performance.md says they tell. Their figures here mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks import audit, enqueue, memory, overhead, priority, stack, unchanged
from benchmarks.report import Options
from benchmarks.stack import LiveStack

QUICK = Options(quick=True)


@pytest.fixture(scope="module")
def running() -> Iterator[LiveStack]:
    with stack.live_stack(constant=True, ingest={"prepare_documents": 1, "embed_chunks": 1}) as started:
        yield started


@pytest.fixture
def one_stack(running: LiveStack, monkeypatch: pytest.MonkeyPatch) -> LiveStack:
    """The benchmarks share a stack: starting one takes longer than all of them."""

    @contextmanager
    def shared(**_: Any) -> Iterator[LiveStack]:
        yield running

    for module in (audit, enqueue, memory, overhead, priority, unchanged):
        monkeypatch.setattr(module, "live_stack", shared)
    return running


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


def test_overhead_does_the_same_work_on_both_sides(one_stack: LiveStack) -> None:
    figures = overhead.measure(QUICK)

    assert figures["chunks_a_round"] > 8
    assert figures["of_bare_stages"] > 0
    assert figures["cpu_seconds_per_1000_chunks"]["millrace"]["all"] > 0
    assert figures["cpu_seconds_per_1000_chunks"]["bare_stages"]["two processes"] > 0


def test_audit_times_comparing_mending_and_making_again(one_stack: LiveStack) -> None:
    figures = audit.measure(QUICK)

    assert figures["points"] > 8
    assert {"audit", "audit_all_vectors", "repair", "rebuild"} == figures["points_per_second"].keys()
    assert min(rate["min"] for rate in figures["points_per_second"].values()) > 0
    assert figures["audit_peak_mb"] > 0


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
    assert figures["tiny_files"]["documents"] == 50
    assert figures["worker_child_peak_mb"] > 100
