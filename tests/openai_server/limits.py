"""Requests and tokens in a minute, as OpenAI counts them: two buckets an account, full at first, filled evenly."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from openai_server.answers import ApiError
from openai_server.store import Store

MINUTE = 60.0


@dataclass
class _Bucket:
    level: float
    at: float


class Limits:
    """Settings `rpm`, `tpm` (None: no limit) and `burst_seconds`: how much of a minute's worth a full bucket holds."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def reset(self) -> None:
        with self._lock:
            self._buckets.clear()

    def charge(self, account: str, tokens: int) -> dict[str, str]:
        """The rate headers of the answer. Raises ApiError 429 where a limit is reached; nothing is charged then."""
        rpm, tpm = self.store.setting("rpm"), self.store.setting("tpm")
        share = float(self.store.setting("burst_seconds", MINUTE)) / MINUTE
        wanted = [(name, limit, cost) for name, limit, cost in (("requests", rpm, 1), ("tokens", tpm, tokens)) if limit]
        now = time.monotonic()
        headers: dict[str, str] = {}
        with self._lock:
            for name, limit, cost in wanted:
                bucket = self._filled(account, name, limit, limit * share, now)
                if bucket.level < min(cost, limit * share):
                    wait = (min(cost, limit * share) - bucket.level) / limit * MINUTE
                    raise self._refusal(name, limit, bucket.level, cost, wait)
            for name, limit, cost in wanted:
                bucket = self._buckets[account, name]
                bucket.level -= cost
                headers[f"x-ratelimit-limit-{name}"] = str(limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.level)))
                headers[f"x-ratelimit-reset-{name}"] = duration((limit * share - bucket.level) / limit * MINUTE)
        return headers

    def _filled(self, account: str, name: str, limit: float, most: float, now: float) -> _Bucket:
        bucket = self._buckets.setdefault((account, name), _Bucket(most, now))
        bucket.level = min(most, bucket.level + (now - bucket.at) * limit / MINUTE)
        bucket.at = now
        return bucket

    def _refusal(self, name: str, limit: int, level: float, cost: int, wait: float) -> ApiError:
        short = {"requests": "RPM", "tokens": "TPM"}[name]
        message = (
            f"Rate limit reached for requests on {name} per min ({short}): Limit {limit}, Used {limit - int(level)}, "
            f"Requested {cost}. Please try again in {duration(wait)}."
        )
        headers = {
            "retry-after-ms": str(max(1, int(wait * 1000 + 0.999))),
            "retry-after": str(max(1, int(wait + 0.999))),
            f"x-ratelimit-limit-{name}": str(limit),
            f"x-ratelimit-remaining-{name}": str(max(0, int(level))),
            f"x-ratelimit-reset-{name}": duration(wait),
        }
        return ApiError(429, message, type=name, code="rate_limit_exceeded", headers=headers)


def duration(seconds: float) -> str:
    """As OpenAI writes it: `12ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    if seconds < 1:
        return f"{int(seconds * 1000 + 0.999)}ms"
    whole = int(seconds)
    if seconds < MINUTE:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{left}s"
