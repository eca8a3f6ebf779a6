"""What a process has spent since it was last asked: processor time, and bytes of the network."""

from __future__ import annotations

import time
from collections import Counter

import psutil

from pipeline.observe import count

_LOOPBACK = "lo"


class ProcessorTime:
    """Of this process."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def count(self) -> None:
        seconds = time.process_time()
        count("process_cpu_seconds", seconds - self._seconds)
        self._seconds = seconds


class NetworkBytes:
    """Of the machine, or of the container: systems do not count them by process."""

    def __init__(self) -> None:
        self._last = _network()

    def count(self) -> None:
        now = _network()
        for labels, number in now.items():
            # An interface that went away took its count with it.
            count("network_bytes", max(0, number - self._last[labels]), *labels)
        self._last = now


def _network() -> Counter[tuple[str, str]]:
    """(sent or received, loopback or other) -> bytes so far."""
    found: Counter[tuple[str, str]] = Counter()
    for name, counted in psutil.net_io_counters(pernic=True).items():
        interface = "loopback" if name.startswith(_LOOPBACK) else "other"
        found["sent", interface] += counted.bytes_sent
        found["received", interface] += counted.bytes_recv
    return found
