"""What this process keeps in memory: how much that is, what of it is a model's, and how it is given back.

Every layer may say what it holds (`hold`) and how it lets go of what it could do without (`on_pressure`). Who measures
and collects, and when, is decided above: `pipeline/monitoring/process.py` and `tasks/memory.py`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from pipeline.observe import count, logger, observe

MIB = 1024 * 1024
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# Names of metrics: how often this process collected, how long that took, how much it gave back.
COLLECTIONS = "memory_collections"
COLLECTION_SECONDS = "memory_collection_seconds"
COLLECTED_BYTES = "memory_collected_bytes"

_log = logger("memory")


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection. at: seconds since the epoch; before, after: resident bytes; why: soft, hard or asked."""

    at: float
    before: int
    after: int
    seconds: float
    why: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Statm:
    """/proc/self/statm, kept open: a microsecond a look. It is of who opened it, so a child opens it anew."""

    def __init__(self) -> None:
        self._pid = -1
        self._fd = -1

    def read(self) -> int:
        """Resident bytes. Raises OSError where there is no such file."""
        if self._pid != os.getpid():
            # The parent's descriptor is left alone: the number may be another file's by now.
            self._fd, self._pid = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC), os.getpid()
        return int(os.pread(self._fd, 128, 0).split(b" ", 2)[1]) * _PAGE_BYTES


_statm = _Statm() if sys.platform == "linux" else None


class _State:
    """Of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: dict[str, int] = {}
        self.releases: list[Callable[[], Callable[[], None] | None]] = []
        self.last: Collection | None = None

    def enter_child(self) -> None:
        """The parent's lock may be taken in this copy of it, and what it collected is its own."""
        self.lock = threading.Lock()
        self.last = None


_state = _State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.enter_child)


def resident_bytes() -> int:
    """The resident set of this process (RSS). Shared pages count in every process that has touched them."""
    if _statm is not None:
        with suppress(OSError, ValueError, IndexError):
            return _statm.read()
    import psutil  # not paid for where it is not needed

    return int(psutil.Process().memory_info().rss)


def hold(name: str, size: int) -> None:
    """This process holds a model of so many bytes under this name; 0: no longer."""
    with _state.lock:
        if size:
            _state.held[name] = size
        else:
            _state.held.pop(name, None)


def held_bytes() -> int:
    """Of all models that this process holds."""
    with _state.lock:
        return sum(_state.held.values())


def on_pressure(release: Callable[[], None]) -> None:
    """Called at every collection, from any thread, for as long as its object lives: lets go of what can be had again.

    What it raises is logged, and does not hold up the collection.
    """
    found: Callable[[], Callable[[], None] | None]
    found = weakref.WeakMethod(release) if hasattr(release, "__self__") else (lambda: release)
    with _state.lock:
        _state.releases.append(found)


def collect(why: str) -> Collection:
    """Lets go of what can be had again, collects all generations, and hands what is free back to the system."""
    began, before = time.perf_counter(), resident_bytes()
    for release in _living():
        try:
            release()
        except Exception:  # noqa: BLE001 - somebody's cache; what the others hold is wanted all the same
            _log.exception("a cache could not let go of what it holds")
    gc.collect()
    trim()
    done = Collection(time.time(), before, resident_bytes(), time.perf_counter() - began, why)
    _state.last = done
    count(COLLECTIONS, 1, why)
    observe(COLLECTION_SECONDS, done.seconds)
    count(COLLECTED_BYTES, max(0, before - done.after))
    _log.info(
        "collected (%s): %d MB resident before, %d MB after, in %.2f s",
        *(why, before // MIB, done.after // MIB, done.seconds),
        extra={"before_bytes": before, "after_bytes": done.after, "seconds": done.seconds, "why": why},
    )
    return done


def last_collection() -> Collection | None:
    """The last one of this process."""
    return _state.last


def trim() -> None:
    """Hands the free memory of the C heap back to the system, where the C library knows how to (glibc)."""
    if (malloc_trim := _libc("malloc_trim")) is not None:
        malloc_trim(0)


def c_heap_bytes() -> int | None:
    """Bytes of the C heap that are in use, mapped ones included (numpy's, the model's, large objects of Python); None
    where the C library does not tell."""
    mallinfo = _libc("mallinfo2")
    if mallinfo is None:
        return None
    found = mallinfo()
    return int(found.uordblks) + int(found.hblkhd)


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc 2.33 and later."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    )


@cache
def _libc(name: str) -> Any:
    """A function of glibc; None elsewhere, and where this glibc has no such function."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None and name == "mallinfo2":
        function.restype = _Mallinfo
    return function


def _living() -> list[Callable[[], None]]:
    with _state.lock:
        living = [(found, release) for found in _state.releases if (release := found()) is not None]
        _state.releases[:] = [found for found, _ in living]
    return [release for _, release in living]
