"""How each pool child is: the child writes it, and the worker's main process reads it, without a word between them.

It is memory that is made before the fork and shared, so that it can be read of a child that hangs, in C and with the
interpreter's lock held, and of one that is dead. Times are of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

# More children than one worker will ever have; those beyond are not watched.
_SLOTS = 512
_PRIORITIES = 3
# Each field is eight bytes of its own, written at once.
_INTEGER, _TIME = struct.Struct("=q"), struct.Struct("=d")
_PID, _FALLEN, _BEGAN, _PROGRESSED, _BEAT, _DONE = 0, 8, 16, 24, 32, 40
_SLOT_BYTES = _DONE + 8 * _PRIORITIES

# Imported by the worker's main process before it forks.
_memory = mmap.mmap(-1, _SLOTS * _SLOT_BYTES)


@dataclass(frozen=True, slots=True)
class Vitals:
    """Of the child in a slot. pid: 0 where there is none. fallen: one that was here before it, and left no word.

    began: its task, 0.0 without one; progressed: the task, last; beat: its heartbeat, last, 0.0 without one.
    """

    slot: int
    pid: int
    fallen: int
    began: float
    progressed: float
    beat: float


class _Own:
    """The slot of this process; None in a process that is no pool child."""

    base: int | None = None


def enter(slot: int) -> None:
    """This process is the pool child of the slot from now on."""
    if not 0 <= slot < _SLOTS:
        return
    _Own.base = base = slot * _SLOT_BYTES
    if (before := _read_integer(base + _PID)) not in (0, os.getpid()):
        _INTEGER.pack_into(_memory, base + _FALLEN, before)
    for field in (_BEGAN, _PROGRESSED, _BEAT):
        _TIME.pack_into(_memory, base + field, 0.0)
    _INTEGER.pack_into(_memory, base + _PID, os.getpid())


def leave() -> None:
    """This child ends in good order: it holds nothing."""
    if _Own.base is not None:
        _INTEGER.pack_into(_memory, _Own.base + _PID, 0)
        _Own.base = None


def begin() -> None:
    """A task begins."""
    progress()
    _write_time(_BEGAN, time.monotonic())


def end() -> None:
    """The task has ended."""
    _write_time(_BEGAN, 0.0)


def busy() -> bool:
    """Whether this process has a task; never one that is no pool child."""
    return _Own.base is not None and _read_time(_Own.base + _BEGAN) != 0.0


def progress() -> None:
    """The task has got on, or waits for something that it need not be interrupted for."""
    _write_time(_PROGRESSED, time.monotonic())


def beat() -> None:
    """The heartbeat of a claim beats."""
    _write_time(_BEAT, time.monotonic())


def quiet() -> None:
    """There is no claim any more to beat for."""
    _write_time(_BEAT, 0.0)


def count(priority: int, batches: int) -> None:
    """So many batches of this priority are done."""
    if _Own.base is not None and 0 <= priority < _PRIORITIES:
        at = _Own.base + _DONE + 8 * priority
        _INTEGER.pack_into(_memory, at, _read_integer(at) + batches)


def children() -> Iterator[Vitals]:
    """Of every slot that somebody is or was in."""
    for slot in range(_SLOTS):
        base = slot * _SLOT_BYTES
        pid, fallen = _read_integer(base + _PID), _read_integer(base + _FALLEN)
        if pid or fallen:
            times = (_read_time(base + field) for field in (_BEGAN, _PROGRESSED, _BEAT))
            yield Vitals(slot, pid, fallen, *times)


def bury(vitals: Vitals) -> None:
    """The main process has seen to a dead child: it is not told again."""
    base = vitals.slot * _SLOT_BYTES
    if vitals.fallen and _read_integer(base + _FALLEN) == vitals.fallen:
        _INTEGER.pack_into(_memory, base + _FALLEN, 0)


def done() -> tuple[int, ...]:
    """Batches done by all children so far, by priority."""
    return tuple(
        sum(_read_integer(slot * _SLOT_BYTES + _DONE + 8 * priority) for slot in range(_SLOTS))
        for priority in range(_PRIORITIES)
    )


def _write_time(field: int, value: float) -> None:
    if _Own.base is not None:
        _TIME.pack_into(_memory, _Own.base + field, value)


def _read_integer(at: int) -> int:
    return int(_INTEGER.unpack_from(_memory, at)[0])


def _read_time(at: int) -> float:
    return float(_TIME.unpack_from(_memory, at)[0])
