"""How this process is: its memory, its time, its threads and files. Cheap, and it never fails.

One sample costs about 0.05 ms; what is private to the process (USS) costs a walk over its page tables, tens of
milliseconds for a few hundred MB on a busy machine, and is looked at more rarely.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import resident
from pipeline.resident import Collection

# Between two measurements of USS, in seconds.
_UNIQUE_SECONDS = 120.0
_KIB = 1024
_LINUX = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """One process at one time; sizes in bytes, None: this system does not tell.

    at: seconds since the epoch. rss: resident. peak: the most that was resident so far. uss: private to this process,
    as of `uss_at`. c_heap: in use in the C heap, numpy's arrays and the model's weights included. python_blocks:
    blocks in use of Python's own allocator, which has all objects of up to 512 bytes. collections: of the collector's
    three generations. frozen: objects that it does not look at. model: files of the models that are loaded. collected:
    the last time that this process gave memory back. machine_percent: in use of the machine's memory, or of what its
    control group may have where that is nearer its end.
    """

    pid: int
    at: float
    rss: int
    peak: int
    uss: int | None
    uss_at: float | None
    c_heap: int | None
    python_blocks: int
    collections: tuple[int, ...]
    frozen: int
    model: int
    cpu_seconds: float
    threads: int
    files: int | None
    machine_percent: float | None
    collected: Collection | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ProcessMemory:
        """Of what `to_json` made."""
        collected = found["collected"]
        return cls(
            **{
                **found,
                "collections": tuple(found["collections"]),
                "collected": Collection(**collected) if collected else None,
            }
        )


class _Unique:
    """What is private to this process, as last measured."""

    def __init__(self) -> None:
        self._pid = -1
        self._size: int | None = None
        self._at: float | None = None
        self._due = 0.0

    def read(self) -> tuple[int | None, float | None]:
        """Bytes, and when they were measured."""
        now = time.monotonic()
        if self._pid != os.getpid() or now >= self._due:
            self._pid, self._due = os.getpid(), now + _UNIQUE_SECONDS
            if (size := _unique_bytes()) is not None:
                self._size, self._at = size, time.time()
        return self._size, self._at


_unique = _Unique()


def sample() -> ProcessMemory:
    """This process now."""
    uss, uss_at = _unique.read()
    rss = resident.resident_bytes()
    return ProcessMemory(
        pid=os.getpid(),
        at=time.time(),
        rss=rss,
        peak=max(rss, _peak_bytes()),
        uss=uss,
        uss_at=uss_at,
        c_heap=resident.c_heap_bytes(),
        python_blocks=sys.getallocatedblocks(),
        collections=tuple(int(generation["collections"]) for generation in gc.get_stats()),
        frozen=gc.get_freeze_count(),
        model=resident.held_bytes(),
        cpu_seconds=round(time.process_time(), 3),
        threads=threading.active_count(),
        files=_open_files(),
        machine_percent=_machine_percent(),
        collected=resident.last_collection(),
    )


def _peak_bytes() -> int:
    """The most that was resident. Linux: of this program (VmHWM); `ru_maxrss` would be the parent's where that was
    larger when it started us."""
    with suppress(OSError, ValueError, IndexError):
        for line in _lines("/proc/self/status") if _LINUX else ():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * _KIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KIB


def _machine_percent() -> float | None:
    if not _LINUX:
        import psutil  # not paid for where it is not needed

        return float(psutil.virtual_memory().percent)
    shares = []
    with suppress(OSError, ValueError, IndexError, KeyError, ZeroDivisionError):
        machine = {line.split(b":")[0]: int(line.split()[1]) for line in _lines("/proc/meminfo")}
        shares.append(1 - machine[b"MemAvailable"] / machine[b"MemTotal"])
    with suppress(OSError, ValueError, IndexError, KeyError, ZeroDivisionError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_bytes())  # "max" where there is none
        used = int(Path("/sys/fs/cgroup/memory.current").read_bytes())
        files = dict(line.split() for line in _lines("/sys/fs/cgroup/memory.stat"))
        shares.append((used - int(files[b"inactive_file"])) / limit)  # cached files go when there is need
    return round(100 * max(shares), 1) if shares else None


def _lines(path: str) -> list[bytes]:
    return Path(path).read_bytes().splitlines()


def _unique_bytes() -> int | None:
    if not _LINUX:
        import psutil  # not paid for where it is not needed

        with suppress(psutil.Error):
            return int(psutil.Process().memory_full_info().uss)
        return None
    with suppress(OSError, ValueError, IndexError):
        lines = _lines("/proc/self/smaps_rollup")
        return (
            sum(int(line.split()[1]) for line in lines if line.startswith((b"Private_Clean", b"Private_Dirty"))) * _KIB
        )
    return None


def _open_files() -> int | None:
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd")) - 1 if _LINUX else len(os.listdir("/dev/fd")) - 1
    return None
