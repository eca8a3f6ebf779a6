"""Room on the disk: writes are refused before it is full.

The engine writes to files with holes, mapped into memory: where the disk has no block for one the kernel kills the
process. So some room is kept, and who writes is told in time; reading goes on, and deleting too.
"""

from __future__ import annotations

import os
from pathlib import Path

from workers.embedded.vector_server.errors import Full

# The engine's log (32 MB a segment) and its segments grow by less between two questions; it matters on no real disk.
RESERVE_BYTES = 128 << 20

# The writes that make room, or need none to speak of.
FREEING = frozenset({"Delete", "DeletePayload", "ClearPayload", "DeleteVectors", "DeleteFieldIndex"})


class Room:
    """Asked before each write; the answer costs some microseconds."""

    def __init__(self, directory: Path, reserve: int = RESERVE_BYTES) -> None:
        self._directory = directory
        self._reserve = reserve

    def check(self, kind: str = "", wanted: int = 0) -> None:
        """Raises Full where the reserve, and so many bytes more, are not free. kind: of a write."""
        if kind in FREEING:
            return
        disk = os.statvfs(self._directory)
        free = disk.f_bavail * disk.f_frsize
        if free < self._reserve + wanted:
            raise Full(
                f"Service internal error: No space left on device: {free >> 20} MB are free at {self._directory}, "
                f"and {(self._reserve + wanted) >> 20} MB are needed"
            )


def size_of(directory: Path) -> int:
    """Bytes that the files below a directory have on the disk, holes left out."""
    return sum(
        os.stat(os.path.join(where, name)).st_blocks * 512 for where, _, names in os.walk(directory) for name in names
    )
