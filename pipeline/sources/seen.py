"""Which names have been met before, in 8 to 32 bytes a name: a table of millions of rows must not grow the process."""

from __future__ import annotations

import hashlib
from array import array

_FIRST_SLOTS = 1 << 10


class Seen:
    """A set of names that only grows. Two names are taken for one with a chance of n²/2^65 (n: names in all)."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _FIRST_SLOTS))
        self._count = 0

    def add(self, name: str) -> bool:
        """Whether the name is new."""
        mark = (
            int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") or 1
        )
        if not self._put(self._slots, mark):
            return False
        self._count += 1
        if self._count * 2 > len(self._slots):
            grown = array("Q", bytes(16 * len(self._slots)))
            for other in self._slots:
                if other:
                    self._put(grown, other)
            self._slots = grown
        return True

    @staticmethod
    def _put(slots: array[int], mark: int) -> bool:
        size = len(slots)
        place = mark % size
        while slots[place]:
            if slots[place] == mark:
                return False
            place = (place + 1) % size
        slots[place] = mark
        return True
