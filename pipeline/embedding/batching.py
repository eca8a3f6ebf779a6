"""Which texts share a run of the model: alike in length, and as many as the machine computes in good time.

A run costs what its padded tokens cost: the longest text of the run times the texts in it. So texts are sorted by
length over everything that is at hand, whichever document they come from, and cut by padded tokens. On two shared
cores that alone makes 29 texts/s out of 9 (600 texts of 20-160 words, float32).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

# What a new embedder begins with, before it has measured anything: small runs win on CPUs, by 20-40 % over 16,384.
START_TOKENS = 512
# How much a new measurement counts: half the weight is gone after about three runs, so one slow run decides nothing.
MEMORY = 0.8
# A run of few tokens measures the fixed costs of a run, not the speed of the machine.
TELLING_TOKENS = 64


def by_length(lengths: Sequence[int]) -> list[int]:
    """The positions of the texts, longest first (equal ones in order): the run that takes most memory comes first."""
    return sorted(range(len(lengths)), key=lambda position: -lengths[position])


def fitting(lengths: Sequence[int], limit: int) -> int:
    """How many of the leading texts share one run of at most `limit` padded tokens; one at least, if there is any.

    lengths: tokens of the texts, longest first.
    """
    return min(len(lengths), max(1, limit // max(1, lengths[0]))) if lengths else 0


class AdaptiveBatch:
    """Padded tokens of the next run: what the measured speed does in `target_seconds`, between a minimum and a maximum.

    Safe to use from several threads.
    """

    def __init__(self, min_tokens: int, max_tokens: int, target_seconds: float) -> None:
        self.min_tokens = min_tokens
        self.max_tokens = max(min_tokens, max_tokens)
        self.target_seconds = target_seconds
        self._lock = threading.Lock()
        self._speed: float | None = None

    @property
    def speed(self) -> float | None:
        """Padded tokens a second, as measured; None before the first run."""
        return self._speed

    @property
    def tokens(self) -> int:
        """Padded tokens that the next run may have."""
        speed = self._speed
        wanted = START_TOKENS if speed is None else speed * self.target_seconds
        return int(min(max(wanted, self.min_tokens), self.max_tokens))

    def measured(self, padded_tokens: int, seconds: float) -> None:
        """Takes in what a run took; runs too small to tell anything are left out."""
        if padded_tokens < TELLING_TOKENS or seconds <= 0:
            return
        speed = padded_tokens / seconds
        with self._lock:
            self._speed = speed if self._speed is None else MEMORY * self._speed + (1 - MEMORY) * speed
