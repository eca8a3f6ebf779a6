"""The thresholds of alerts: those of the settings, and what an operator has put in their place while it runs.

A threshold is of everything of its kind, or of one thing: `operation_time_ms` and `operation_time_ms.search`. What is
set of one thing wins, and of two of those what was set while it runs (`millrace alerts set`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.broker import WORK_QUEUES
from pipeline.errors import InvalidRequest
from pipeline.monitoring.metrics import OPERATIONS
from pipeline.settings import AlertSettings

# What names of overrides begin with that are thresholds.
PREFIX = "alerts."

_SUBJECT = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")


@dataclass(frozen=True, slots=True)
class Threshold:
    """name: as in section alerts of the settings. of: what a subject of it is, None: it is not set one by one.

    most: what it may be at most.
    """

    name: str
    unit: str
    of: str | None = None
    most: float = math.inf


THRESHOLDS: Mapping[str, Threshold] = {
    found.name: found
    for found in (
        Threshold("operation_time_ms", "ms", "operation"),
        Threshold("error_rate", "share", "operation", 1.0),
        Threshold("queue_size", "messages and batches", "queue"),
        Threshold("queue_age_seconds", "s", "queue"),
        Threshold("memory_usage_mb", "MiB"),
        Threshold("memory_percent", "%", None, 100.0),
        Threshold("disk_percent", "%", None, 100.0),
        Threshold("disk_days", "days"),
        Threshold("budget_percent", "%", None, 100.0),
    )
}


@dataclass(frozen=True, slots=True)
class InEffect:
    """One threshold as it is now. changed: whether it was set while running."""

    name: str
    value: float
    unit: str
    default: float | None
    changed: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "default": self.default,
            "changed": self.changed,
        }


class Thresholds:
    """What is in effect now."""

    def __init__(self, settings: AlertSettings, overrides: Mapping[str, float]) -> None:
        """overrides: of every name; those of alerts are taken."""
        self._settings = settings
        self._own = {name.removeprefix(PREFIX): value for name, value in overrides.items() if name.startswith(PREFIX)}

    def of(self, name: str, subject: str = "") -> float:
        """The threshold of this name for this subject. Raises KeyError for a name that is none."""
        specific = f"{name}.{subject}"
        if subject and specific in self._own:
            return self._own[specific]
        default = self._default(specific) if subject else None
        if default is not None:
            return default
        return self._own.get(name, float(getattr(self._settings, THRESHOLDS[name].name)))

    def named(self, name: str, subject: str) -> bool:
        """Whether there is one for this very subject."""
        specific = f"{name}.{subject}"
        return specific in self._own or self._default(specific) is not None

    def listing(self) -> list[InEffect]:
        """All that are in effect: one of each name, and those of one thing, by name."""
        names = {*THRESHOLDS, *(f"operation_time_ms.{name}" for name in self._settings.operation_times_ms)}
        found = []
        for name in sorted(names | {own for own in self._own if split(own) is not None}):
            base, _, subject = name.partition(".")
            found.append(
                InEffect(
                    name, self.of(base, subject), THRESHOLDS[base].unit, self._default(name), changed=name in self._own
                )
            )
        return found

    def _default(self, name: str) -> float | None:
        """What the settings say of this very name."""
        base, _, subject = name.partition(".")
        if not subject:
            return float(getattr(self._settings, base))
        return self._settings.operation_times_ms.get(subject) if base == "operation_time_ms" else None


def split(name: str) -> tuple[Threshold, str] | None:
    """A threshold and its subject by name; None where there is none of the name."""
    base, _, subject = name.partition(".")
    return (THRESHOLDS[base], subject) if base in THRESHOLDS else None


def check(name: str, value: float | None = None) -> str:
    """The name of the override that holds it. Raises InvalidRequest where there is no such threshold, or it cannot have
    this value."""
    found = split(name.removeprefix(PREFIX))
    if found is None:
        raise InvalidRequest(f"there is no threshold {name!r}; there are {', '.join(sorted(THRESHOLDS))}")
    threshold, subject = found
    if subject and threshold.of is None:
        raise InvalidRequest(f"{threshold.name} is one for all; set {threshold.name} without .{subject}")
    if subject and not _SUBJECT.fullmatch(subject):
        raise InvalidRequest(f"{subject!r} is no name of {threshold.of or 'anything'}")
    # What was set by an earlier version can be unset, whatever it was.
    if subject and threshold.of == "operation" and value is not None and subject not in OPERATIONS:
        raise InvalidRequest(
            f"there is no operation {subject!r}; docs/metrics.md lists them, `millrace stats` those that ran"
        )
    if subject and threshold.of == "queue" and subject not in WORK_QUEUES:
        raise InvalidRequest(f"there is no queue {subject!r}; there are {', '.join(WORK_QUEUES)}")
    if value is not None and not (math.isfinite(value) and 0 < value <= threshold.most):
        most = f" to {threshold.most:g}" if math.isfinite(threshold.most) else ""
        raise InvalidRequest(f"{threshold.name} is a number over 0{most} ({threshold.unit}), not {value:g}")
    return f"{PREFIX}{name.removeprefix(PREFIX)}"
