"""How pool children report to their worker's main process: what they have recorded, and how much memory they take.

One datagram a report, through a socket that is made before the fork, as `vitals` is. Nobody waits: where the main
process does not read, the child keeps what it has for its next report. It reports once more when it ends; one that is
killed takes at most `metrics.report_seconds` with it. The main process adds everything up, so that a child that was
replaced does not turn a counter back.
"""

from __future__ import annotations

import atexit
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.monitoring.reporting import Report, Reporter, Sink, pieces
from pipeline.observe import Measured, logger, recorder
from pipeline.settings import MemorySettings, MetricsSettings
from tasks import slowness, vitals
from tasks.spent import NetworkBytes, ProcessorTime

Sample = Callable[[], Mapping[str, Any]]

# A child that ends tries so long to be heard.
_LAST_SECONDS = 1.0
_RETRY_SECONDS = 0.02
_DATAGRAM = 1 << 18
# How long reading waits before it looks whether it is to stop.
_LOOK_SECONDS = 0.5

MAIN = "main"

# Imported by the worker's main process before it forks.
_receiving, _sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
_receiving.setblocking(False)
_sending.setblocking(False)
atexit.register(_receiving.close)
atexit.register(_sending.close)

_log = logger("reports")


def _nothing() -> Mapping[str, Any]:
    return {}


# -- in a child ------------------------------------------------------------------------------------------------------


class ChildReports:
    """The reports of one pool child, from a thread of its own."""

    def __init__(self, slot: int, metrics: MetricsSettings, memory: MemorySettings, sample: Sample = _nothing) -> None:
        """slot: of the pool, from 0. sample: measures the memory of this process."""
        self._slot = slot
        self._every = min(metrics.report_seconds, memory.sample_seconds)
        self._sample = sample
        self._processor = ProcessorTime()
        self._unsent = Measured()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Reports once more; what nobody takes within a second is lost with this process."""
        self._stop.set()
        self._thread.join(_LAST_SECONDS)
        deadline = time.monotonic() + _LAST_SECONDS
        while not self.report() and time.monotonic() < deadline:
            time.sleep(_RETRY_SECONDS)

    def report(self) -> bool:
        """False where the main process does not read: what it was not told is kept."""
        slowness.follow()
        self._processor.count()
        self._unsent.merge(recorder.drain())
        whole, self._unsent = self._unsent, Measured()
        waits = False
        for piece in pieces(Report(os.getpid(), self._slot, whole, self._sample())):
            if waits or not _send(piece):
                waits = True
                self._unsent.merge(piece.measured)
        return not waits

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self.report()
            except Exception:  # noqa: BLE001 - whatever it was: nobody else reports
                _log.exception("a report failed")


def _send(report: Report) -> bool:
    try:
        _sending.send(report.to_bytes())
    except OSError:  # full, or the main process is gone
        return False
    return True


# -- in the main process ---------------------------------------------------------------------------------------------


class Collector:
    """Reads what the children send, adds it up with what the main process itself records, and hands it on."""

    def __init__(
        self,
        metrics: MetricsSettings,
        memory: MemorySettings,
        sink: Sink | None = None,
        sample: Sample = _nothing,
    ) -> None:
        """sink: is handed what was recorded, every `metrics.report_seconds`. sample: measures the memory of this
        process."""
        self._sample = sample
        self._sample_seconds = memory.sample_seconds
        self._processor = ProcessorTime()
        self._network = NetworkBytes()
        self._own = threading.Lock()
        self._lock = threading.Lock()
        self._totals = Measured()
        self._delta = Measured()
        self._memory: dict[str, Mapping[str, Any]] = {}
        self._pids: dict[str, int] = {}
        self._reporter = Reporter(sink, metrics.report_seconds, self._take)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._reporter.start()

    def stop(self) -> None:
        """Hands over what is left; call it when the children have ended."""
        self._stop.set()
        self._thread.join(_LOOK_SECONDS * 2)
        self._read()
        self._reporter.close()

    def totals(self) -> Measured:
        """Counts and sketches since this worker started, of its children that are gone too."""
        self._add_own()
        with self._lock:
            copy = Measured()
            copy.merge(self._totals)
            return copy

    def processes(self) -> list[dict[str, Any]]:
        """The newest memory sample of each process that lives, with its `pid` and its `slot` (-1: this one)."""
        with self._lock:
            return [
                {**memory, "pid": self._pids[process], "slot": -1 if process == MAIN else int(process)}
                for process, memory in sorted(self._memory.items())
                if memory and self._lives(process)
            ]

    def _lives(self, process: str) -> bool:
        return process == MAIN or any(
            str(child.slot) == process and child.pid == self._pids[process] for child in vitals.children()
        )

    def _take(self) -> Measured:
        self._add_own()
        with self._lock:
            delta, self._delta = self._delta, Measured()
        return delta

    def _add_own(self) -> None:
        with self._own:
            self._processor.count()
            self._network.count()
            self._add(MAIN, os.getpid(), recorder.drain(), {})

    def _add(self, process: str, pid: int, measured: Measured, memory: Mapping[str, Any]) -> None:
        added = Measured(measured.counts, measured.sketches)
        with self._lock:
            if self._pids.get(process) != pid:
                self._pids[process] = pid
                self._memory.pop(process, None)
            self._totals.merge(added)
            self._delta.merge(added)
            self._delta.merge(Measured(slow=measured.slow))
            if memory:
                self._memory[process] = memory

    def _run(self) -> None:
        sampled = 0.0
        while not self._stop.is_set():
            try:
                if time.monotonic() - sampled >= self._sample_seconds:
                    sampled = time.monotonic()
                    self._add(MAIN, os.getpid(), Measured(), self._sample())
                if select.select([_receiving], [], [], _LOOK_SECONDS)[0]:
                    self._read()
            except Exception:  # noqa: BLE001 - whatever it was: nobody else reads what the children say
                _log.exception("reports of the children were not read")
                self._stop.wait(_LOOK_SECONDS)

    def _read(self) -> None:
        while True:
            try:
                sent = _receiving.recv(_DATAGRAM)
            except BlockingIOError:
                return
            try:
                report = Report.from_bytes(sent)
            except (ValueError, KeyError, TypeError) as error:
                _log.warning("a report of %d bytes cannot be read: %s", len(sent), error)
                continue
            self._add(str(report.slot), report.pid, report.measured, report.memory)
