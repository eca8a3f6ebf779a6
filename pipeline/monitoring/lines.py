"""Log lines as they are read: rendered for people, taken apart, found by what they are about."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

LEVELS: Mapping[str, int] = {
    name: logging.getLevelNamesMapping()[name.upper()] for name in ("debug", "info", "warning", "error", "critical")
}
# In which order a line tells what every line has; what is bound and what the caller added come behind it.
FIRST = ("time", "level", "logger", "event", "process", "host", "pid")
# Keys of the context whose values are several, parted by spaces: in JSON they are lists.
LISTS = ("batches", "jobs", "correlation_ids")

_COLOURS = {"debug": "2", "warning": "33", "error": "31", "critical": "1;31"}
_LEFT_OUT = frozenset({*FIRST, "exception", "stack"})


def for_people(fields: Mapping[str, Any], *, colour: bool = False, local: bool = False) -> str:
    """The fields of a line as people read them; an exception follows on lines of its own.

    local: the time of day of this machine, and no process, which stands elsewhere on the screen.
    """
    level = str(fields.get("level", ""))
    when = str(fields.get("time", ""))
    if local:
        with suppress(ValueError):
            when = datetime.fromisoformat(when).astimezone().strftime("%H:%M:%S.%f")[:-3]
    who = "" if local else f" {fields.get('process', '')}[{fields.get('pid', '')}]"
    name = str(fields.get("logger", "")).removeprefix("millrace.")
    added = " ".join(f"{key}={_short(value)}" for key, value in fields.items() if key not in _LEFT_OUT)
    shown = f"{level:<8}"
    if colour:
        shown = _paint(shown, _COLOURS.get(level, "32"))
        when, name, added = _paint(when, "2"), _paint(name, "36"), _paint(added, "2") if added else ""
    line = f"{when}{who} {shown} {name}: {fields.get('event', '')}" + (f"  {added}" if added else "")
    details = [str(fields[key]) for key in ("exception", "stack") if fields.get(key)]
    return "\n".join([line, *details])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(character in text for character in ' "\n\t=') else text


def _paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m"


def read_line(line: str) -> dict[str, Any] | None:
    """The fields of a line that `configure` has made; None for what other programs wrote."""
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and "time" in fields and "event" in fields else None


def matches(fields: Mapping[str, Any], wanted: Mapping[str, str], level: str | None = None) -> bool:
    """Whether a line is about all of these (`job_id`, `batch_id`, `correlation_id`), and at least of this level."""
    if level is not None and LEVELS.get(str(fields.get("level")), 0) < LEVELS[level]:
        return False
    return all(value in _values(fields, key) for key, value in wanted.items())


_SEVERAL = {"job_id": "jobs", "batch_id": "batches", "correlation_id": "correlation_ids"}


def _values(fields: Mapping[str, Any], key: str) -> Iterable[str]:
    several = fields.get(_SEVERAL.get(key, ""), ())
    return (str(fields.get(key)), *(map(str, several) if isinstance(several, list) else ()))
