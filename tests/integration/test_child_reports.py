"""What pool children tell their worker's main process, through the socket that they share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from command_line import eventually
from reporters import let_them_end

from pipeline.observe import count, observe, recorder
from pipeline.settings import MemorySettings, MetricsSettings
from tasks import vitals
from tasks.reports import ChildReports, Collector

METRICS = MetricsSettings(report_seconds=3600.0)
MEMORY = MemorySettings(sample_seconds=3600.0)


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    let_them_end()
    recorder.clear()
    yield
    recorder.clear()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector(METRICS, MEMORY, sample=lambda: {"rss": 1})
    made.start()
    yield made
    made.stop()


def child(slot: int, work: Any, *, killed: bool = False) -> int:
    """A process in a slot of the pool that does some work, reports once more unless it is killed, and ends. Returns its
    pid."""
    if (pid := os.fork()) == 0:
        try:
            vitals.enter(slot)
            reports = ChildReports(slot, METRICS, MEMORY, lambda: {"rss": 100 + slot})
            reports.start()
            work(reports)
            if not killed:
                reports.close()
            vitals.leave()  # the memory is shared with other tests
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return pid


def is_counted(collector: Collector, expected: float) -> bool:
    return counted(collector) == expected


def counted(collector: Collector) -> float:
    return collector.totals().counts.get(("counted", ()), 0.0)


def test_children_that_come_and_go_never_turn_a_total_back(collector: Collector) -> None:
    # Given children one after the other in the same slot, and another beside them
    def work(_: ChildReports) -> None:
        count("counted", 5)
        observe("observed", 2.0)

    for number in range(1, 4):
        # When each has done some work and ended, then it is in the total, and stays there
        child(0, work)
        child(1, work)
        eventually(partial(is_counted, collector, 10 * number))
    assert collector.totals().sketches["observed", ()].count == 6


def test_a_killed_child_takes_with_it_what_it_had_not_reported_and_no_more(collector: Collector) -> None:
    def work(reports: ChildReports) -> None:
        count("counted", 5)
        reports.report()
        count("counted", 100)

    child(0, work, killed=True)

    eventually(lambda: counted(collector) == 5)


def test_where_nobody_reads_a_child_keeps_what_it_has_for_its_next_report() -> None:
    # Given a socket that is full, since the main process does not read
    reports = ChildReports(0, METRICS, MEMORY)
    told = 0
    while True:
        count("counted", 1)
        told += 1
        if not reports.report():
            break
        assert told < 10_000

    # When more is recorded, and somebody reads at last, then nothing is missing, and nothing is there twice
    count("counted", 1)
    collector = Collector(METRICS, MEMORY)
    collector.start()
    eventually(reports.report)
    eventually(lambda: counted(collector) == told + 1)
    collector.stop()


def test_memory_is_shown_of_processes_that_live(collector: Collector) -> None:
    # Given the main process, and a child that has ended
    pid = child(1, lambda _: None)
    eventually(collector.processes)
    assert [process["slot"] for process in collector.processes()] == [-1]
    assert collector.processes()[0] == {"rss": 1, "pid": os.getpid(), "slot": -1}

    # When one lives in the slot, then it is shown under its number; none that was there before it is
    reading, writing = os.pipe()
    if (living := os.fork()) == 0:
        vitals.enter(1)
        ChildReports(1, METRICS, MEMORY, lambda: {"rss": 101}).report()
        os.read(reading, 1)
        vitals.leave()
        os._exit(0)
    shown = eventually(lambda: [process for process in collector.processes() if process["slot"] == 1])
    assert shown == [{"rss": 101, "pid": living, "slot": 1}]
    assert living != pid
    os.write(writing, b"x")
    os.waitpid(living, 0)
    os.close(reading)
    os.close(writing)
