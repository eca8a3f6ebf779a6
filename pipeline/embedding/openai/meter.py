"""How much may go out now: requests and tokens of a minute, let through evenly.

Used capacity runs off at a steady rate; what is asked for goes when it fits into a small burst on top of that (GCRA, as
a leaking bucket). Burst and rate together never make more than the limit in any 60 seconds:

    burst = BURST_SECONDS' worth, at least one request;   rate = (limit - burst) / (60 s + JITTER_SECONDS)

so what flows for long is 0.96 of the limit. JITTER_SECONDS is what two requests may be nearer to each other at the
server than they were when they were let through.

The same arithmetic is in Lua (`script.py`), where the whole cluster shares one meter; this one is of a single process,
for the time when Redis is away. A test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

MINUTE = 60.0
BURST_SECONDS = 1.5
JITTER_SECONDS = 1.0
# A single text may need more tokens than the burst holds. Then the burst is as large as that for a while, and what runs
# off is less; more than this share of a limit is never let through at once.
MOST_OF_LIMIT = 0.9
# The large one that waits asks again within this time after it could go; meanwhile what is small waits too.
HOLD_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a minute, of whoever shares the meter."""

    requests: float
    tokens: float

    def scaled(self, share: float) -> Limits:
        return Limits(self.requests * share, self.tokens * share)

    @property
    def burst_requests(self) -> int:
        return max(1, int(self.requests * BURST_SECONDS / MINUTE))

    @property
    def burst_tokens(self) -> float:
        return max(1.0, self.tokens * BURST_SECONDS / MINUTE)


@dataclass(slots=True)
class Meter:
    """One meter. reserve: the share of the burst that only queries may use. Times in seconds, of any one clock.

    A new one begins with nothing but the reserve, so that who begins anew, having forgotten what went out a moment ago,
    has no second burst.
    """

    limits: Limits
    reserve: float
    at: float
    used_requests: float = 0.0
    used_tokens: float = 0.0
    big: float = 0.0
    big_until: float = 0.0
    held_until: float = 0.0
    paused_until: float = 0.0

    def __post_init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """As if the burst had just been used."""
        requests, tokens = self._reserves()
        self.used_requests = max(self.used_requests, self.limits.burst_requests - requests)
        self.used_tokens = max(self.used_tokens, self._burst_tokens() - tokens)

    def take(self, requests: int, tokens: float, *, query: bool, now: float) -> float:
        """0.0: it may go, and is charged; else the seconds after which to ask again, and nothing is charged."""
        self._run_off(now)
        tokens = min(tokens, MOST_OF_LIMIT * self.limits.tokens)
        self._grow(tokens, now)
        most_requests, most_tokens = float(self.limits.burst_requests), self._burst_tokens()
        requests_cost = min(float(requests), most_requests)
        if not query:
            reserved_requests, reserved_tokens = self._reserves()
            most_requests -= min(reserved_requests, most_requests - requests_cost)
            most_tokens -= min(reserved_tokens, most_tokens - tokens)
        wait = max(
            self.paused_until - now,
            (self.used_requests + requests_cost - most_requests) / self._rate_requests(),
            (self.used_tokens + tokens - most_tokens) / self._rate_tokens(),
        )
        large = tokens > self.limits.burst_tokens
        if not query and not large:
            wait = max(wait, self.held_until - now)
        if wait > _NO_WAIT:
            if large:  # what is small would always come in before it: it needs all of the burst
                self.held_until = now + wait + HOLD_SECONDS
                self.big_until += wait
            return wait
        if large:
            self.held_until = 0.0
        self.used_requests += requests_cost
        self.used_tokens += tokens
        return 0.0

    def correct(self, tokens: float, now: float) -> None:
        """So many tokens more were used than charged; fewer, where negative."""
        self._run_off(now)
        self.used_tokens = max(0.0, self.used_tokens + tokens)

    def pause(self, seconds: float, now: float) -> None:
        self.paused_until = max(self.paused_until, now + seconds)

    def change(self, limits: Limits, now: float) -> None:
        """Other limits from now on. What is used of a burst is the same share of a smaller one."""
        self._run_off(now)
        before = self.limits
        self.limits = limits
        self.used_requests *= min(1.0, limits.burst_requests / before.burst_requests)
        self.used_tokens *= min(1.0, limits.burst_tokens / before.burst_tokens)

    def _run_off(self, now: float) -> None:
        passed = max(0.0, now - self.at)
        self.used_requests = max(0.0, self.used_requests - passed * self._rate_requests())
        self.used_tokens = max(0.0, self.used_tokens - passed * self._rate_tokens())
        self.at = max(self.at, now)
        if now >= self.big_until:
            self.big = 0.0

    def _grow(self, tokens: float, now: float) -> None:
        """Makes room for what is larger than the burst; the room that is new begins as used."""
        if tokens <= self.limits.burst_tokens:
            return
        if tokens > self._burst_tokens():
            self.used_tokens += tokens - self._burst_tokens()
            self.big = tokens
        # Longer than any window that it can be in.
        self.big_until = now + 2 * MINUTE

    def _burst_tokens(self) -> float:
        return max(self.limits.burst_tokens, min(self.big, MOST_OF_LIMIT * self.limits.tokens))

    def _reserves(self) -> tuple[float, float]:
        if not self.reserve:
            return 0.0, 0.0
        # A query needs a whole request.
        return max(1.0, self.reserve * self.limits.burst_requests), self.reserve * self._burst_tokens()

    def _rate_requests(self) -> float:
        # Requests are whole ones: the last of a window may come at its very end.
        return (self.limits.requests - self.limits.burst_requests + 1) / (MINUTE + JITTER_SECONDS)

    def _rate_tokens(self) -> float:
        return (self.limits.tokens - self._burst_tokens()) / (MINUTE + JITTER_SECONDS)


# Sums of floats: what is short by a billionth fits.
_NO_WAIT = 1e-9
