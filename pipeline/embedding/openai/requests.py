"""What goes into one request, and how many go at once: within the limits, and as fast as the server answers well."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

# A request begins with so many tokens before anything is measured; one is under way, then two, four, ...
_START_TOKENS = 8_192
_START_IN_FLIGHT = 1
_LEAST_TOKENS = 256
_OF_BURST = 1 / 3
# How much one answer may change the size of the next request.
_GROWTH, _SHRINKING = 1.5, 0.5
# Only a request of nearly the full size says whether a larger one would be slow.
_FULL = 0.8
# How much of what was measured before counts with each new answer.
_MEMORY = 0.9
# Sizes that differ by less than this say nothing of what a token takes.
_TELLING_SPREAD = 0.05
# Answers that take this many times the target, and the quickest ones, wait in a queue at the server.
_QUEUED = 2.0
# After so long the quickest answer is looked for anew: servers change.
_QUICKEST_SECONDS = 300.0


def fitting(counts: Sequence[int], inputs: int, tokens: int) -> int:
    """How many of the leading texts go into one request of at most so many texts and tokens; one at least, if any.

    counts: tokens of the texts.
    """
    size = total = 0
    for count in counts[:inputs]:
        total += count
        if size and total > tokens:
            break
        size += 1
    return size


def share_out(usage: int, counts: Sequence[int]) -> list[int]:
    """What the server counted for a request, shared out to its texts by what was counted here; the sum is `usage`."""
    total = sum(counts)
    if usage == total:
        return list(counts)
    if not total:
        return [usage // len(counts) + (place < usage % len(counts)) for place in range(len(counts))]
    shares, given, seen = [], 0, 0
    for count in counts:
        seen += count
        upto = usage * seen // total
        shares.append(upto - given)
        given = upto
    return shares


class _Latency:
    """What a request takes: so many seconds, and so many for each token; a straight line through the latest answers."""

    def __init__(self) -> None:
        self._count = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, tokens: float, seconds: float) -> None:
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        old = (self._count, self._x, self._y, self._xx, self._xy)
        self._count, self._x, self._y, self._xx, self._xy = (
            _MEMORY * before + now for before, now in zip(old, new, strict=True)
        )

    def line(self) -> tuple[float, float]:
        """Seconds of a request without tokens, and of each token (never 0)."""
        mean, seconds = self._x / self._count, self._y / self._count
        spread = self._xx / self._count - mean * mean
        if spread < (_TELLING_SPREAD * mean) ** 2:
            return 0.0, seconds / mean
        each = max((self._xy / self._count - mean * seconds) / spread, 1e-9)
        return max(0.0, seconds - each * mean), each


class Pace:
    """Tokens and texts of the next request, and how many may be under way. Thread-safe.

    The size is what takes `target_seconds`; where the way to the server alone takes that long, what takes as long as
    the way. How many are under way grows with good answers, and is taken back where answers wait in a queue at the
    server, or fail.
    """

    def __init__(self, in_flight: int, inputs: int, tokens: int, target_seconds: float) -> None:
        """in_flight, inputs, tokens: the most that there may be."""
        self._most_in_flight = in_flight
        self._most_inputs = inputs
        self._most_tokens = tokens
        self._target = target_seconds
        self._lock = threading.Lock()
        self._latency = _Latency()
        self._tokens = float(min(_START_TOKENS, tokens))
        self._in_flight = float(min(_START_IN_FLIGHT, in_flight))
        self._beginning = True
        self._quickest, self._since = float("inf"), time.monotonic()

    @property
    def tokens(self) -> int:
        return int(self._tokens)

    @property
    def inputs(self) -> int:
        return self._most_inputs

    @property
    def in_flight(self) -> int:
        return int(self._in_flight)

    def tokens_under(self, requests_per_minute: float, tokens_per_minute: float, burst: int) -> int:
        """Tokens of the next request under these limits. burst: what goes at once.

        A part of the burst, so that what runs off while nobody asks is not lost; but never so few that the limit of
        requests is reached first.
        """
        least = tokens_per_minute / max(1.0, requests_per_minute)
        wanted = max(min(self._tokens, _OF_BURST * burst), least)
        return max(1, min(int(wanted), burst, self._most_tokens))

    def answered(self, tokens: int, seconds: float) -> None:
        """A request of so many tokens was answered."""
        with self._lock:
            seconds, now = max(seconds, 1e-3), time.monotonic()
            if seconds < self._quickest or now - self._since > _QUICKEST_SECONDS:
                self._quickest, self._since = seconds, now
            shrunk = self._resize(tokens, seconds)
            if seconds > _QUEUED * max(self._target, self._quickest) and not shrunk:
                self._fewer(1 - 1 / (2 * self._in_flight))
            elif seconds <= self._target or not shrunk:
                more = 1.0 if self._beginning else 1 / self._in_flight
                self._in_flight = min(float(self._most_in_flight), self._in_flight + more)

    def _resize(self, tokens: int, seconds: float) -> bool:
        """The size of the next request; whether it is smaller than it was."""
        before = self._tokens
        self._latency.add(float(max(1, tokens)), seconds)
        way, each = self._latency.line()
        wanted = max(self._target - way, min(way, self._target)) / each
        if wanted < before and seconds > self._target:
            self._tokens = max(float(_LEAST_TOKENS), wanted, _SHRINKING * before)
        elif wanted > before and tokens >= _FULL * before:
            self._tokens = min(wanted, _GROWTH * before)
        self._tokens = min(self._tokens, float(self._most_tokens))
        return self._tokens < before

    def failed(self) -> None:
        """The server did not take a request, or did not answer it."""
        with self._lock:
            self._fewer(0.5)

    def too_many(self, inputs: int, tokens: int) -> None:
        """The server refuses requests that are larger than this, though all their texts are good."""
        with self._lock:
            self._most_inputs = max(1, min(self._most_inputs, inputs))
            self._most_tokens = max(1, min(self._most_tokens, tokens))
            self._tokens = min(self._tokens, float(self._most_tokens))

    def _fewer(self, factor: float) -> None:
        self._beginning = False
        self._in_flight = max(1.0, self._in_flight * factor)
