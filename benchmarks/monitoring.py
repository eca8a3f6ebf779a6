"""What it costs that the system watches itself: `overhead`'s ingest with everything on, and with everything off.

Three sides take turns, each time in a fresh stack of the same size: *bare* (nothing is measured, logged or sampled),
*watched* (metrics, logs and sampling as they are by default), and *events* (watched, and the workers send the Celery
events that Flower lives on; Flower itself does not run). What counts is the ratio of each round, of chunks a second and
of seconds of CPU: the second is steadier where the machine has other things to do. Beside it, what one call costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import texts
from benchmarks.constant import NO_EVENTS_VARIABLE
from benchmarks.overhead import BYTES, FILES, PROCESSES, ROUNDS, WARM_FILES, ingest
from benchmarks.report import Figures, Options, ratio, say, summary
from benchmarks.stack import LiveStack, live_stack
from pipeline.monitoring.cluster import ClusterStats
from pipeline.monitoring.reporting import Reporter, configure, sink
from pipeline.observe import Recorder, count, observe, operation, recorder
from pipeline.settings import AlertSettings, LogSettings, MetricsSettings

CALLS = 100_000
# Longer than any benchmark: what is done so rarely is not done.
_NEVER = 1_000_000.0
# A stack at rest still works for itself: what grows less than this between two looks is no ingest any more.
_STEADY = 1.2

# The settings that switch off what there is, and the duties that watch.
_NOTHING: Mapping[str, Any] = {
    "metrics": {"enabled": False, "server": False, "cluster": False, "report_seconds": _NEVER},
    "logs": {"level": "error", "slow_seconds": 0.0},
    "memory": {"sample_seconds": _NEVER},
}
_WATCHING_DUTIES = ("alerts", "memory.report", "storage.sample", "gc.interpreter")


@dataclass(frozen=True)
class Side:
    """settings: by section, of the stack. duties: whether those that watch run. events: whether workers send them."""

    name: str
    settings: Mapping[str, Any]
    duties: bool
    events: bool


SIDES = (Side("bare", _NOTHING, False, False), Side("watched", {}, True, False), Side("events", {}, True, True))


@dataclass(frozen=True)
class Taken:
    """One ingest. cpu: of all processes of the stack; calls: recorded operations; both per 1,000 chunks."""

    chunks: int
    rate: float
    cpu: float
    calls: float


def measure(options: Options) -> Figures:
    """of_bare: what is left of the chunks a second; cpu_of_bare: how much more CPU is used; medians of the rounds."""
    files, rounds = options.take(FILES, ROUNDS)
    taken: dict[str, list[Taken]] = {side.name: [] for side in SIDES}
    with TemporaryDirectory(prefix="millrace-monitoring-") as directory:
        for number in range(rounds):
            tree, warm = Path(directory) / f"round{number}", Path(directory) / f"warm{number}"
            texts.write_tree(tree, number * 1_000_000, files, BYTES)
            texts.write_tree(warm, 900_000_000 + number * 1_000_000, 1 if options.quick else WARM_FILES, BYTES)
            # Each side is first in its turn: a machine that grows slower does not always slow the same one.
            for side in (*SIDES[number % len(SIDES) :], *SIDES[: number % len(SIDES)]):
                found = _turn(side, tree, warm)
                taken[side.name].append(found)
                say(f"round {number + 1} of {rounds}, {side.name}: {found.rate:,.0f} chunks/s")
    rates = {name: [one.rate for one in found] for name, found in taken.items()}
    cpu = {name: [one.cpu for one in found] for name, found in taken.items()}
    return {
        "files_a_round": files,
        "chunks_a_round": taken["bare"][0].chunks,
        "processes": PROCESSES,
        "chunks_per_second": {name: summary(found, 0) for name, found in rates.items()},
        "cpu_seconds_per_1000_chunks": {name: summary(found, 3) for name, found in cpu.items()},
        "monitoring": {
            "of_bare": ratio(rates["watched"], rates["bare"], 4),
            "cpu_of_bare": ratio(cpu["watched"], cpu["bare"], 4),
            "operations_per_1000_chunks": summary([one.calls for one in taken["watched"]], 0),
        },
        "celery_events": {
            "of_watched": ratio(rates["events"], rates["watched"], 4),
            "cpu_of_watched": ratio(cpu["events"], cpu["watched"], 4),
        },
        "nanoseconds_a_call": calls(CALLS // 100 if options.quick else CALLS),
    }


def calls(number: int) -> dict[str, int]:
    """What one call of each kind costs, in nanoseconds; the least of five."""
    enabled, slow = recorder.enabled, recorder.slow_seconds
    found = {}
    try:
        for state in (True, False):
            recorder.enabled, recorder.slow_seconds = state, 1.0 if state else 0.0
            for name, call in (("operation", _operation), ("count", _count), ("observe", _observe)):
                each = min(_seconds(call, number) for _ in range(5)) / number
                found[name if state else f"{name}, switched off"] = round(each * 1e9)
    finally:
        recorder.enabled, recorder.slow_seconds = enabled, slow
        recorder.drain()
    return found


def _seconds(call: Callable[[int], None], number: int) -> float:
    started = time.perf_counter()
    call(number)
    return time.perf_counter() - started


def _operation(number: int) -> None:
    for _ in range(number):
        with operation("embed"):
            pass


def _count(number: int) -> None:
    for _ in range(number):
        count("points_upserted", 3)


def _observe(number: int) -> None:
    for _ in range(number):
        observe("claim_size", 32.0, "embed")


def _turn(side: Side, tree: Path, warm: Path) -> Taken:
    """One ingest in a stack of its own."""
    environment = {} if side.events else {NO_EVENTS_VARIABLE: "1"}
    with (
        live_stack(constant=True, concurrency=PROCESSES, environment=environment, **side.settings) as stack,
        _reporting(stack, side),
    ):
        if not side.duties:
            _switch_off_duties(stack)
        ingest(stack, warm, f"{side.name}-{warm.name}")
        before, began = _operations(stack), stack.cpu_seconds()
        own = time.process_time()
        chunks, seconds = ingest(stack, tree, f"{side.name}-{tree.name}")
        own = time.process_time() - own
        used = sum(after - began.get(name, 0.0) for name, after in stack.cpu_seconds().items()) + own
        recorded = _recorded_since(stack, before) if side.duties else 0
    return Taken(chunks, chunks / seconds, used / chunks * 1000, recorded / chunks * 1000)


@contextmanager
def _reporting(stack: LiveStack, side: Side) -> Iterator[None]:
    """This process is the application: it measures and reports as its side does."""
    metrics = MetricsSettings(**side.settings.get("metrics", {}))
    configure(metrics, LogSettings(**side.settings.get("logs", {})), AlertSettings())
    reporter = Reporter(sink(stack.settings.redis, metrics), metrics.report_seconds)
    reporter.start()
    try:
        yield
    finally:
        reporter.close()
        fresh = Recorder()
        recorder.enabled, recorder.slow_seconds = fresh.enabled, fresh.slow_seconds


def _operations(stack: LiveStack) -> int:
    """How many were recorded in the last hour, of all processes."""
    figures = ClusterStats(stack.settings.redis)
    try:
        return sum(found.count for found in figures.read(60).operations.values())
    finally:
        figures.close()


def _recorded_since(stack: LiveStack, before: int) -> int:
    """With those that are still to come: a pool child reports to its worker, and that to the cluster."""
    recorded = 0
    while True:
        time.sleep(2 * stack.settings.metrics.report_seconds + 1.0)
        earlier, recorded = recorded, _operations(stack) - before
        if 0 < recorded < earlier * _STEADY:
            return recorded


def _switch_off_duties(stack: LiveStack) -> None:
    services = stack.services()
    try:
        with services.ledger.transaction() as connection:
            connection.execute("UPDATE duties SET enabled = false WHERE name = ANY(%s)", (list(_WATCHING_DUTIES),))
    finally:
        services.close()
