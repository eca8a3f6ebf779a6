"""From how many seconds on an operation counts as slow, where that was set while the worker runs.

The worker's main process reads it from the ledger with its sign of life; its children, from memory that is made before
the fork and shared, with their own reports. Nothing is asked for it while work is done.
"""

from __future__ import annotations

import math
import mmap
import struct

from pipeline.ledger import overrides
from pipeline.ledger.engine import Connection
from pipeline.observe import recorder

_SECONDS = struct.Struct("=d")

# Imported by the worker's main process before it forks. NaN: nothing was set.
_memory = mmap.mmap(-1, _SECONDS.size)
_SECONDS.pack_into(_memory, 0, math.nan)


class _Own:
    """What the settings say."""

    default: float | None = None  # before `enter`


def enter(slow_seconds: float) -> None:
    """Of this process: the setting `logs.slow_seconds`, which goes where nothing else was set."""
    _Own.default = slow_seconds
    follow()


def look(connection: Connection) -> None:
    """In the main process: reads what was set, and tells the children."""
    _SECONDS.pack_into(_memory, 0, overrides.read(connection).get(overrides.SLOW_SECONDS, math.nan))
    follow()


def follow() -> None:
    """This process logs by what the main process read last."""
    if _Own.default is None:
        return
    (told,) = _SECONDS.unpack_from(_memory, 0)
    recorder.slow_seconds = _Own.default if math.isnan(told) else told
