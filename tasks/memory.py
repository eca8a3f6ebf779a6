"""When a process of a worker gives memory back, and when a pool child is to be replaced.

Nothing is collected in the middle of a task: a child does it between two, right after the pool has been told of the
first one's end, or from a thread where no second one comes; the main process at any time.
"""

from __future__ import annotations

import mmap
import struct
import threading
import time

from pipeline import resident
from pipeline.observe import count, logger
from pipeline.resident import MIB
from pipeline.settings import MemorySettings
from tasks import collector, vitals

# How long it takes at most until an idle process does what it was asked for.
_LOOK_SECONDS = 3.0
_KIB = 1024

REPLACEMENTS = "memory_replacements"

# When (of the monotonic clock) somebody last asked all processes of this worker to collect: written by the main
# process, which makes it before it forks; 0.0: nobody has.
_TIME = struct.Struct("=d")
_asked = mmap.mmap(-1, _TIME.size)

_log = logger("memory")


def ask() -> None:
    """All processes of this worker are to collect when they are next idle, however small they are."""
    _TIME.pack_into(_asked, 0, time.monotonic())


class Keeper:
    """Keeps one process within its limits."""

    def __init__(self, settings: MemorySettings) -> None:
        self._settings = settings
        self._began = time.monotonic()
        self._collected_at = float("-inf")
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def look(self) -> None:
        """Collects, where that was asked for, or this process is above `soft_mb` and it was not done lately."""
        rss = resident.resident_bytes()
        if (why := self._why(rss)) is not None:
            self._collect(why)

    def after_task(self) -> int:
        """What is resident between two tasks, in bytes; above `hard_mb` only what a collection leaves."""
        collector.after_task()
        rss = resident.resident_bytes()
        hard = self._settings.hard_mb * MIB
        why = "hard" if rss > hard else self._why(rss)
        if why is None:
            return rss
        left = self._collect(why)
        if left > hard:
            count(REPLACEMENTS)
            _log.warning(
                "this pool child is replaced: %d MB are resident after a collection, and memory.hard_mb is %d",
                left // MIB,
                self._settings.hard_mb,
            )
        return left

    def _why(self, rss: int) -> str | None:
        if _TIME.unpack_from(_asked, 0)[0] > max(self._began, self._collected_at):
            return "asked"
        lately = time.monotonic() - self._collected_at < self._settings.collect_seconds
        return "soft" if rss > self._settings.soft_mb * MIB and not lately else None

    def _collect(self, why: str) -> int:
        with self._lock:
            self._collected_at = time.monotonic()
            return resident.collect(why).after

    def _run(self) -> None:
        while not self._stop.wait(min(_LOOK_SECONDS, self._settings.sample_seconds)):
            try:
                if not vitals.busy():
                    self.look()
            except Exception:  # noqa: BLE001 - whatever it was: the next look may do better
                _log.exception("a look at the memory failed")


_keeper: list[Keeper] = []


def enter(settings: MemorySettings) -> None:
    """This process is a pool child, or the main process of a worker, from now on."""
    _keeper[:] = [Keeper(settings)]
    _keeper[0].start()


def leave() -> None:
    while _keeper:
        _keeper.pop().stop()


def resident_after_task() -> int:
    """For the pool, between two tasks of a child: KiB resident, when what can be given back has been."""
    return (_keeper[0].after_task() if _keeper else resident.resident_bytes()) // _KIB
