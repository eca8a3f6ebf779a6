"""Whom an alert is told: the log, always; and what installed packages bring, by an entry point.

A package says in its pyproject.toml

    [project.entry-points."millrace.alerts"]
    pager = "my_package.alerts:page"

where `page(alert)` takes an `Alert`; `alert.event` is alert.raised or alert.cleared. It has CALL_SECONDS; one that
takes longer, or raises, is told of in the log and holds up nothing. Webhooks are told by the duty `webhooks`, which
tries them again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pipeline.ledger.alerts import Alert

GROUP = "millrace.alerts"
# Of one callback, for one alert.
CALL_SECONDS = 5.0

_LEVELS: Mapping[str, int] = {
    "low": logging.INFO,
    "medium": logging.WARNING,
    "high": logging.ERROR,
    "critical": logging.CRITICAL,
}
_log = logging.getLogger("millrace.alert")


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one callback. error: in words, empty where it took the alert."""

    callback: str
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"callback": self.callback, "ok": not self.error, "error": self.error or None}


def write_log(alert: Alert) -> Told:
    """One line of `millrace.alert`, with the alert's fields."""
    level = _LEVELS.get(alert.severity, logging.WARNING) if alert.cleared_at is None else logging.INFO
    about = f"{alert.type} {alert.subject}".rstrip()
    _log.log(
        level,
        "%s (%s) %s: %s",
        alert.event,
        alert.severity,
        about,
        alert.message,
        extra={
            "alert_event": alert.event,
            "alert_id": alert.id,
            "alert_type": alert.type,
            "subject": alert.subject,
            "severity": alert.severity,
            "metrics": dict(alert.metrics),
            "action": alert.action,
        },
    )
    return Told("log")


class Callbacks:
    """Those of installed packages. Thread-safe: each call has a thread of its own, and while one that hangs is still in
    its callback, that one is not called again."""

    def __init__(self, seconds: float = CALL_SECONDS, points: Sequence[EntryPoint] | None = None) -> None:
        """points: instead of those of installed packages."""
        self._seconds = seconds
        self._points = tuple(entry_points(group=GROUP) if points is None else points)
        self._lock = threading.Lock()
        self._under_way: set[str] = set()

    def tell(self, alert: Alert) -> list[Told]:
        """Tells the log and every callback. Returns what became of each; raises nothing, and takes CALL_SECONDS at
        most: they are called at the same time."""
        calls = [(point.name, self._begin(point, alert)) for point in self._points]
        told = [write_log(alert)]
        for name, call in calls:
            error = call(self._seconds)
            told.append(Told(name, error))
            if error:
                _log.error("callback %s of alerts: %s", name, error, extra={"alert_id": alert.id})
        return told

    def _begin(self, point: EntryPoint, alert: Alert) -> Callable[[float], str]:
        """Calls it in a thread; what is returned waits for it, so long at most, and says what went wrong."""
        with self._lock:
            if point.name in self._under_way:
                return lambda _: "it is still at an earlier alert, and was not called"
            self._under_way.add(point.name)
        errors: list[str] = []

        def call() -> None:
            try:
                point.load()(alert)
            except Exception as error:  # noqa: BLE001 - whatever code that is not ours raises
                errors.append(f"{type(error).__name__}: {error}")
            finally:
                with self._lock:
                    self._under_way.discard(point.name)

        # A daemon: a process that is told to end does not wait for it.
        thread = threading.Thread(target=call, name=f"alert {point.name}", daemon=True)
        thread.start()

        def wait(seconds: float) -> str:
            thread.join(seconds)
            if thread.is_alive():
                return f"it did not return within {seconds:g} s"
            return errors[0] if errors else ""

        return wait
