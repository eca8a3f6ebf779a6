"""Alerts: what is wrong, who has seen it, and from when on it is."""

from __future__ import annotations

import getpass
from collections.abc import Iterable
from datetime import timedelta

from pipeline import alerting
from pipeline.client.connection import Connected
from pipeline.errors import InvalidRequest
from pipeline.intervals import seconds_between
from pipeline.ledger.alerts import Alert
from pipeline.monitoring.callbacks import Told
from pipeline.monitoring.thresholds import InEffect
from pipeline.settings import Severity


class Alerts(Connected):
    """Alerts are raised by workers; here they are listed, acknowledged, and their thresholds changed."""

    def alerts(
        self,
        *,
        severity: Severity | None = None,
        since: str | float | timedelta | None = None,
        cleared: bool = False,
        limit: int = 100,
    ) -> list[Alert]:
        """The alerts that are active, the newest first.

        severity: of this one and above. since: `30m`, `2h`, `1d`, seconds or a timedelta: those too that have cleared
        since then. cleared: all that are over too; they are kept for `garbage.alerts_days`. Raises InvalidRequest.
        """
        seconds = None if since is None else seconds_between(since, 1.0)
        return alerting.listing(self._services, severity, seconds, cleared=cleared, limit=limit)

    def acknowledge(
        self, ids: int | Iterable[int] = (), *, everything: bool = False, by: str | None = None
    ) -> list[int]:
        """Says that somebody has seen active alerts, by id, or everything. Returns those that nobody had seen before.

        They go on until they clear; one that is raised anew is not acknowledged. by: a name; default: of this user.
        Raises InvalidRequest where nothing is named, or there is no such alert.
        """
        wanted = [ids] if isinstance(ids, int) else sorted(set(ids))
        if not wanted and not everything:
            raise InvalidRequest("name the alerts by id, or say that all are meant")
        return alerting.acknowledge(self._services, None if everything else wanted, by or _user())

    def thresholds(self) -> list[InEffect]:
        """The thresholds that are in effect now, by name."""
        return alerting.thresholds(self._services)

    def set_threshold(self, name: str, value: float, *, reason: str | None = None) -> None:
        """Sets a threshold, such as `queue_size`, or one of an operation or queue, such as `operation_time_ms.search`.

        In effect within half a minute, without a restart of anything. Raises InvalidRequest.
        """
        alerting.set_threshold(self._services, name, value, reason or f"set by {_user()}")

    def unset_threshold(self, name: str) -> bool:
        """Back to the setting. False where nothing was set. Raises InvalidRequest."""
        return alerting.unset_threshold(self._services, name)

    def test_alert(self, *, by: str | None = None) -> tuple[Alert, list[Told]]:
        """Sends a test alert to the log, every callback that is installed here, and the webhook of the settings; says
        what became of each."""
        return alerting.test(self._services, by or _user())


def _user() -> str:
    """Who this process runs as; containers may have users without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"
