"""What a server says about its limits: how much in a minute, how much is left of it, and when to ask again."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
# Nobody waits longer for a limit than this, whatever a header says; then the server is asked again.
LONGEST_PAUSE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Rates:
    """Of a minute: what may be asked for, what is left of it, and seconds until all of it is back; None: not said."""

    requests: int | None = None
    tokens: int | None = None
    requests_left: int | None = None
    tokens_left: int | None = None
    requests_back: float | None = None
    tokens_back: float | None = None

    def __bool__(self) -> bool:
        return self != _NOTHING


_NOTHING = Rates()


def read_rates(headers: Mapping[str, str]) -> Rates:
    """The `x-ratelimit-*` headers of an answer (names in any case); what makes no sense is as if it were not there."""
    found = {name.lower(): value for name, value in headers.items()}
    return Rates(
        requests=_whole(found.get("x-ratelimit-limit-requests"), least=1),
        tokens=_whole(found.get("x-ratelimit-limit-tokens"), least=1),
        requests_left=_whole(found.get("x-ratelimit-remaining-requests")),
        tokens_left=_whole(found.get("x-ratelimit-remaining-tokens")),
        requests_back=parse_duration(found.get("x-ratelimit-reset-requests")),
        tokens_back=parse_duration(found.get("x-ratelimit-reset-tokens")),
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until the server may be asked again, 0 to LONGEST_PAUSE_SECONDS; None where it does not say.

    From `retry-after-ms`, `retry-after` (seconds or an HTTP date), or the reset of the limit of which nothing is left.
    """
    found = {name.lower(): value for name, value in headers.items()}
    milliseconds = _number(found.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    given = found.get("retry-after")
    if given is not None:
        seconds = _number(given)
        if seconds is None:
            seconds = _until(given, found.get("date"))
        if seconds is not None:
            return _bounded(seconds)
    rates = read_rates(headers)
    waits = [
        back
        for left, back in ((rates.requests_left, rates.requests_back), (rates.tokens_left, rates.tokens_back))
        if left == 0 and back is not None
    ]
    return _bounded(max(waits)) if waits else None


def parse_duration(value: str | None) -> float | None:
    """Seconds of `12ms`, `1.5s`, `6m0s`, `1h0m0s`, or of a bare number; None of anything else."""
    text = (value or "").strip().lower()
    parts = _PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    return _number(text)


def _until(date: str, server_now: str | None) -> float | None:
    """Seconds until an HTTP date, by the server's own clock where it tells it: ours may differ."""
    moment = _moment(date)
    if moment is None:
        return None
    now = _moment(server_now) if server_now else None
    return moment.timestamp() - (now.timestamp() if now else time.time())


def _moment(date: str) -> datetime | None:
    try:
        return parsedate_to_datetime(date)
    except (TypeError, ValueError):
        return None


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def _whole(value: str | None, least: int = 0) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number >= least else None


def _bounded(seconds: float) -> float:
    return min(max(0.0, seconds), LONGEST_PAUSE_SECONDS)
