"""Numbers of a sheet as a person sees them: rounded as their format says, and dates in ISO 8601."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Literal, NamedTuple

_QUOTED = re.compile(r'"[^"]*"|\\.|_.|\*.|\[(?!h+\]|m+\]|s+\])[^\]]*\]', re.IGNORECASE)
_ELAPSED = re.compile(r"\[(?:h+|m+|s+)\]", re.IGNORECASE)
_DECIMALS = re.compile(r"[0#?][,]*\.([0#?]+)")
_FIRST_DAY = datetime(1899, 12, 30)
_FIRST_DAY_1904 = datetime(1904, 1, 1)
_LEAP_BUG = 60  # Excel counts a 29th of February 1900
_LAST_DAY = 2_958_466  # the 31st of December 9999, and one
_SECONDS = 86_400

# The formats that a file may name by their number alone.
BUILT_IN = {
    1: "0", 2: "0.00", 3: "#,##0", 4: "#,##0.00", 9: "0%", 10: "0.00%", 37: "#,##0", 38: "#,##0", 39: "#,##0.00",
    40: "#,##0.00", 41: "#,##0", 42: "#,##0", 43: "#,##0.00", 44: "#,##0.00", 14: "yyyy-mm-dd", 15: "d-mmm-yy",
    16: "d-mmm", 17: "mmm-yy", 18: "h:mm", 19: "h:mm:ss", 20: "h:mm", 21: "h:mm:ss", 22: "yyyy-mm-dd h:mm",
    45: "mm:ss", 46: "[h]:mm:ss", 47: "mm:ss.0",
    **dict.fromkeys([*range(27, 32), 36, *range(50, 59)], "yyyy-mm-dd"), 32: "h:mm", 33: "h:mm:ss",
}  # fmt: skip


class Shape(NamedTuple):
    """What a number format makes of a number. decimals: None where it does not say."""

    kind: Literal["number", "percent", "date", "time", "moment", "elapsed"]
    decimals: int | None


@lru_cache(maxsize=1024)
def shape_of(code: str) -> Shape:
    """What a format's code, as `#,##0.00` or `yyyy-mm-dd`, shows."""
    first = code.partition(";")[0]
    if _ELAPSED.search(_QUOTED.sub("", first)):
        return Shape("elapsed", None)
    bare = _QUOTED.sub("", first).lower().replace("general", "")
    has_date, has_time = bool(re.search("[yd]|mmm", bare)), bool(re.search("[hs]", bare))
    if has_date or has_time:
        return Shape("moment" if has_date and has_time else "date" if has_date else "time", None)
    if "m" in bare and not re.search("[0#]", bare):
        return Shape("date", None)
    decimals = _DECIMALS.search(bare)
    count = len(decimals[1]) if decimals else 0 if re.search("[0#]", bare) and "e" not in bare else None
    return Shape("percent" if "%" in bare else "number", None if "/" in bare else count)


def show(value: float, shape: Shape, from_1904: bool = False) -> str:
    """A number in a cell of this shape."""
    if shape.kind == "percent":
        return f"{_rounded(value * 100, shape.decimals)}%"
    if shape.kind == "elapsed":
        return _clock(value)
    if shape.kind == "number" or not 0 <= value < _LAST_DAY:
        return _rounded(value, shape.decimals)
    if shape.kind == "time" and value < 1:
        return _clock(value)
    days = value + (1 if value < _LEAP_BUG and not from_1904 else 0)
    moment = (_FIRST_DAY_1904 if from_1904 else _FIRST_DAY) + timedelta(seconds=round(days * _SECONDS))
    return show_moment(moment, shape.kind == "date")


def show_moment(moment: datetime, only_date: bool = False) -> str:
    """The date, with the time where there is one."""
    if only_date or not (moment.hour or moment.minute or moment.second):
        return moment.date().isoformat()
    return moment.isoformat(" ", "seconds")


def _clock(value: float) -> str:
    seconds = round(abs(value) * _SECONDS)
    return f"{'-' if value < 0 else ''}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _rounded(value: float, decimals: int | None) -> str:
    """As many digits as the format shows; ten where it does not say, which is what a cell of usual width has."""
    if not math.isfinite(value):
        return ""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    if decimals is not None and abs(value) < 1e15:
        return f"{value:.{min(decimals, 15)}f}" if round(value, min(decimals, 15)) else f"{value:.10g}"
    return f"{value:.10g}"
