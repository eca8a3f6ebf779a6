"""Whether this worker is leaving: what takes long hands its work back then, for another worker to go on with."""

from __future__ import annotations

import mmap

# One byte of memory that the pool's children share with the worker's main process, which imports this before it forks.
# Set from a signal handler: no lock.
_flag = mmap.mmap(-1, 1)


def announce() -> None:
    _flag[0] = 1


def leaving() -> bool:
    return _flag[0] != 0
