"""What takes long is logged with what it was about, and gets from any process to `millrace stats --slow`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from command_line import eventually
from pydantic import SecretStr
from reporters import let_them_end

from pipeline.errors import EmbeddingFailed
from pipeline.monitoring.cluster import ClusterStats
from pipeline.monitoring.reporting import Report, configure, pieces
from pipeline.observe import Measured, Slow, bound, operation, recorder
from pipeline.observe.measured import MOST_SLOW
from pipeline.observe.recorder import Recorder
from pipeline.settings import AlertSettings, LogSettings, MemorySettings, MetricsSettings, RedisSettings
from tasks import slowness, vitals
from tasks.reports import ChildReports, Collector

METRICS = MetricsSettings(report_seconds=0.5)
MEMORY = MemorySettings(sample_seconds=3600.0)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the recorder takes the time from."""
    made = Clock()
    module = sys.modules[Recorder.__module__]  # its package has an object of that name
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=made, time=made))
    return made


@pytest.fixture(autouse=True)
def tenth_of_a_second(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is slow here; and as it was afterwards."""
    let_them_end()
    monkeypatch.setattr(slowness._Own, "default", None)
    for name in ("enabled", "slow_seconds", "slow_by_design"):
        monkeypatch.setattr(recorder, name, getattr(recorder, name))
    recorder.drain()
    configure(METRICS, LogSettings(slow_seconds=0.1), AlertSettings(operation_times_ms={"prepare": 60_000.0}))
    yield
    recorder.drain()


def _run(clock: Clock, name: str, seconds: float, error: Exception | None = None) -> None:
    with operation(name):
        clock.now += seconds
        if error is not None:
            raise error


def test_a_slow_operation_is_logged_with_what_it_was_about(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    # Given operations of a job, one of them slow, one slow by design, one slow and failing
    with caplog.at_level(logging.WARNING, logger="millrace.slow"), bound(job_id="j7", batch_id=9):
        _run(clock, "search", 0.09)
        _run(clock, "prepare", 0.12)
        _run(clock, "upsert", 0.12)
        with pytest.raises(EmbeddingFailed):
            _run(clock, "embed", 0.12, EmbeddingFailed("no"))

    # Then those are told of that nobody expects to be slow
    slow = recorder.drain().slow
    assert [(run.operation, run.error) for run in slow] == [("upsert", None), ("embed", "EmbeddingFailed")]
    assert [run.seconds for run in slow] == pytest.approx([0.12, 0.12], abs=1e-5)
    assert all(dict(run.context) == {"job_id": "j7", "batch_id": "9"} for run in slow)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["upsert", "embed"]
    assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_zero_seconds_switches_it_off(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    configure(METRICS, LogSettings(slow_seconds=0.0), AlertSettings())
    _run(clock, "upsert", 1000.0)
    assert recorder.drain().slow == []
    assert caplog.records == []


def test_the_last_ones_are_kept_until_the_next_report() -> None:
    many = Measured()
    for number in range(MOST_SLOW + 5):
        many.add_slow(Slow("embed", float(number), 0.0, None, {}))
    many.merge(Measured(slow=[Slow("search", 1.0, 0.0, None, {})]))
    assert [run.seconds for run in many.slow] == [*map(float, range(6, MOST_SLOW + 5)), 1.0]


def test_they_go_through_a_datagram_whole_and_in_parts() -> None:
    runs = [Slow("embed", 1.5, 1_800_000_000.25, "other", {"job_id": str(n)}) for n in range(MOST_SLOW)]
    whole = Report(1, 0, Measured(counts={("claims", ("embed",)): 2.0}, slow=runs), {})
    assert Report.from_bytes(whole.to_bytes()).measured == whole.measured
    parts = [Report.from_bytes(part.to_bytes()) for part in pieces(whole, 600)]
    assert len(parts) > 3
    assert sorted((run for part in parts for run in part.measured.slow), key=lambda run: run.context["job_id"]) == (
        sorted(runs, key=lambda run: run.context["job_id"])
    )


def test_a_pool_child_tells_its_worker_and_its_worker_tells_everybody(redis_url: str, clock: Clock) -> None:
    # Given a worker's main process, that reports to Redis
    figures = ClusterStats(RedisSettings(url=SecretStr(redis_url)))
    collector = Collector(METRICS, MEMORY, ClusterStats(RedisSettings(url=SecretStr(redis_url))))
    collector.start()

    # When a child of it runs something slow, and ends
    child = os.fork()
    if child == 0:
        try:
            vitals.enter(0)
            reports = ChildReports(0, METRICS, MEMORY)
            reports.start()
            with bound(job_id="j7", task_id="t1"):
                _run(clock, "upsert", 0.15)
            reports.close()
            vitals.leave()  # the memory is shared with other tests
        finally:
            os._exit(0)
    os.waitpid(child, 0)

    # Then everybody can read it, among all figures of the worker
    (run,) = eventually(figures.slowest)
    assert (run.operation, run.host, dict(run.context)) == (
        "upsert",
        os.uname().nodename,
        {"job_id": "j7", "task_id": "t1"},
    )
    assert eventually(lambda: figures.read(5).operations.get("upsert")).max == pytest.approx(0.15, rel=0.02)
    assert len(figures.read(5).processes) == 1
    collector.stop()
    figures.close()
