"""Whether this worker is leaving: work is handed back then, for another worker to go on with at once."""

from __future__ import annotations

import mmap


class Leaving(Exception):
    """This worker was told to stop: its work goes back, blamed on nobody."""

    harmless = True  # no failure of the operation in whose middle it came

    def __init__(self) -> None:
        super().__init__("its worker was stopped; another one goes on")


# One byte of memory that the pool's children share with the worker's main process, which imports this before it forks.
# Set from a signal handler: no lock.
_flag = mmap.mmap(-1, 1)


def announce() -> None:
    _flag[0] = 1


def leaving() -> bool:
    return _flag[0] != 0


def check() -> None:
    """Raises Leaving where this worker was told to stop."""
    if leaving():
        raise Leaving
