"""How far one run of a duty may go."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Bounds:
    """rows: of one step, at most. seconds: that a run may take; it ends after the step in which they are over.

    dry_run: nothing is changed; the counts say what would be.
    """

    rows: int
    seconds: float
    dry_run: bool = False
    _began: float = field(default_factory=time.monotonic, init=False, repr=False, compare=False)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self._began >= self.seconds
