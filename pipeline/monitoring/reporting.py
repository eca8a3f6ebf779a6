"""How what a process has recorded gets to those who ask: in reports, every few seconds and once more at the end.

A process of an application, beat and the command line hand theirs to a sink (the cluster's figures in Redis) from a
thread of their own, a `Reporter`. Pool children send theirs to their worker's main process (`tasks/reports.py`), in
datagrams (`pieces`, `Report`), and that one hands over the sum. What cannot be handed over is kept, merged, and
bounded.
"""

from __future__ import annotations

import atexit
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.errors import Unavailable
from pipeline.monitoring.cluster import ClusterStats
from pipeline.observe import Measured, logger, recorder
from pipeline.settings import AlertSettings, LogSettings, MetricsSettings, RedisSettings

# Of a datagram: well below what a Unix socket takes (net.core.wmem_default is 208 KiB).
MOST_BYTES = 65_536
# How long whoever closes waits for the last report.
_LAST_SECONDS = 1.0

_log = logger("reporting")


class Sink(Protocol):
    """Takes what was recorded; the object is its own then. Raises Unavailable where it is away: then it keeps that,
    bounded, and hands it on at the next call."""

    def add(self, measured: Measured) -> None: ...
    def close(self) -> None: ...


def configure(metrics: MetricsSettings, logs: LogSettings, alerts: AlertSettings) -> None:
    """What this process records; and which operations it logs as slow: those that take longer than `logs.slow_seconds`,
    and, where they take their time by design, than `alerts.operation_times_ms`."""
    recorder.enabled = metrics.enabled
    recorder.slow_seconds = logs.slow_seconds
    recorder.slow_by_design = {name: most / 1000 for name, most in alerts.operation_times_ms.items()}


def sink(redis: RedisSettings, metrics: MetricsSettings) -> Sink | None:
    """Where this process' figures go; None where nobody wants them. Connects to nothing yet."""
    return ClusterStats(redis) if metrics.enabled and metrics.cluster else None


class Reporter:
    """Hands what a source has to a sink, in a thread of its own, every so often; what is left when it is closed, or
    else when the process ends in good order. source: by default what this process records."""

    def __init__(
        self, sink: Sink | None, every_seconds: float, source: Callable[[], Measured] = recorder.drain
    ) -> None:
        self._sink = sink
        self._away = False
        self._every = every_seconds
        self._source = source
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0

    def start(self) -> None:
        """May be called again, and in a forked child."""
        if self._pid != os.getpid():  # before, or in a child that inherited nothing but the object
            self._lock = threading.Lock()
            self._stop = threading.Event()
            self._thread = None
            self._pid = os.getpid()
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def close(self) -> None:
        """Hands over what is left, and waits a moment for it. May be called again."""
        recorder.forget(self.start)
        atexit.unregister(self.close)
        self._stop.set()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(_LAST_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self._report()
        self._report()
        if self._sink is not None:
            self._sink.close()

    def _report(self) -> None:
        try:
            measured = self._source()
            if self._sink is not None and (measured or self._away):
                self._sink.add(measured)
            self._away = False
        except Unavailable as error:
            if not self._away:
                _log.warning("figures are kept until they can be handed over: %s", error)
            self._away = True
        except Exception:  # noqa: BLE001 - whatever it was: nobody else reports
            _log.exception("a report failed")


def report_at_first_record(redis: RedisSettings, metrics: MetricsSettings) -> Reporter | None:
    """Of a process that is no worker: hands its figures on, from its first record on; None where nobody wants them."""
    where = sink(redis, metrics)
    if where is None or not redis.url.get_secret_value():
        return None
    reporter = Reporter(where, metrics.report_seconds)
    recorder.listen(reporter.start)
    return reporter


@dataclass(frozen=True, slots=True)
class Report:
    """Of one process. slot: of a pool child, from 0. memory: its newest sample; empty where there is none."""

    pid: int
    slot: int
    measured: Measured
    memory: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        return json.dumps(
            {"pid": self.pid, "slot": self.slot, "measured": self.measured.to_json(), "memory": dict(self.memory)},
            separators=(",", ":"),
        ).encode()

    @classmethod
    def from_bytes(cls, sent: bytes) -> Report:
        """Of what `to_bytes` made."""
        found = json.loads(sent)
        return cls(found["pid"], found["slot"], Measured.from_json(found["measured"]), found["memory"])


def pieces(report: Report, most_bytes: int = MOST_BYTES) -> Iterator[Report]:
    """The report in parts of which each fits into so many bytes; itself, where it does.

    One series alone is never cut: it takes a few kilobytes at most.
    """
    measured = report.measured
    several = len(measured.counts) + len(measured.sketches) + len(measured.gauges) + len(measured.slow) > 1
    if not several or len(report.to_bytes()) <= most_bytes:
        yield report
        return
    for half in _halves(measured):
        yield from pieces(Report(report.pid, report.slot, half, report.memory), most_bytes)


def _halves(measured: Measured) -> tuple[Measured, Measured]:
    halves = (Measured(), Measured())
    for number, (series, count) in enumerate(measured.counts.items()):
        halves[number % 2].counts[series] = count
    for number, (series, sketch) in enumerate(measured.sketches.items(), len(measured.counts)):
        halves[number % 2].sketches[series] = sketch
    for number, (series, value) in enumerate(measured.gauges.items(), len(measured.counts) + len(measured.sketches)):
        halves[number % 2].gauges[series] = value
    halves[0].slow, halves[1].slow = measured.slow[0::2], measured.slow[1::2]
    return halves
