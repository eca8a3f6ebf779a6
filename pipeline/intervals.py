"""Spans of time, as people write them."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from pipeline.errors import InvalidRequest

# Of schedules. A listing of a large tree takes longer than this; and whoever wants less waits for events, not for a
# clock.
MIN_EVERY_SECONDS = 10.0
MAX_EVERY_SECONDS = 366 * 86_400.0

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_EVERY = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])", re.ASCII)


def seconds_between(
    every: str | float | timedelta, least: float = MIN_EVERY_SECONDS, most: float = MAX_EVERY_SECONDS
) -> float:
    """The interval of `30s`, `15m`, `1h`, `1d`, of seconds or of a timedelta. Raises InvalidRequest, also where it is
    less than `least` seconds or more than `most`."""
    if isinstance(every, timedelta):
        seconds = every.total_seconds()
    elif isinstance(every, str):
        match = _EVERY.fullmatch(every.strip())
        if match is None:
            raise InvalidRequest(f"{every!r} is not an interval; write it as 30s, 15m, 1h or 1d")
        seconds = float(match[1]) * _UNITS[match[2]]
    else:
        seconds = float(every)
    if not math.isfinite(seconds) or not least <= seconds <= most:
        longest = "a year" if most == MAX_EVERY_SECONDS else f"{most:g} seconds"
        raise InvalidRequest(f"an interval is from {least:g} seconds to {longest}, not {every!r}")
    return seconds
