"""The figures of the whole for Prometheus: read from the ledger when somebody asks, and kept for a few seconds.

Every worker that is asked tells the same: they are not to be added up (docs/metrics.md says max by).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import get_args

from pipeline.broker import WORK_QUEUES, Broker
from pipeline.duties import is_overdue
from pipeline.errors import MillraceError
from pipeline.ledger import backlog, buying_signs, circuits, duties, figures, jobs, overrides
from pipeline.ledger.engine import Connection, Ledger
from pipeline.lifecycle import JobState
from pipeline.monitoring import storage
from pipeline.monitoring.cluster import ClusterStats
from pipeline.monitoring.triggers import SHARE
from pipeline.observe import Series, logger
from pipeline.settings import CostSettings

KEPT_SECONDS = 10.0
# With a hundred thousand ready batches the ledger counts for a fifth of a second; many workers are asked, and they must
# not keep it busy: what took long is kept for a hundred times as long, but not so long that it is old.
_KEPT_SHARE = 100.0
_MOST_KEPT_SECONDS = 60.0
WINDOW_MINUTES = 5.0
_SEVERITIES = ("low", "medium", "high", "critical")
_KINDS = ("prepare", "embed", "delete")

_log = logger("metrics")


class Whole:
    """Thread-safe. What is away is left out: an old figure would look like a new one."""

    def __init__(
        self, ledger: Ledger, broker: Broker, stats: ClusterStats | None, cost: CostSettings | None = None
    ) -> None:
        """stats: None where processes do not sum their figures in Redis. cost: None: the defaults."""
        self._cost = cost or CostSettings()
        self._ledger = ledger
        self._stats = stats
        self._broker = broker
        self._lock = threading.Lock()
        self._found: dict[Series, float] = {}
        self._good_until = float("-inf")

    def read(self) -> Mapping[Series, float]:
        """By metric (as `CLUSTER` of the table names it) and label values."""
        with self._lock:
            if time.monotonic() >= self._good_until:
                started = time.monotonic()
                ledger = self._of_ledger()
                took = time.monotonic() - started if ledger else 0.0  # one that was away is asked again soon
                self._found = {**ledger, **self._of_broker(), **self._of_processes()}
                kept = min(_MOST_KEPT_SECONDS, max(KEPT_SECONDS, took * _KEPT_SHARE))
                self._good_until = time.monotonic() + kept
            return self._found

    def _of_ledger(self) -> dict[Series, float]:
        try:
            with self._ledger.transaction() as connection:
                return {
                    **_work(connection),
                    **_duties(connection),
                    **_stored(connection),
                    **_bought(connection, self._cost),
                }
        except MillraceError as error:
            _log.warning("the figures of the ledger are left out: %s", error)
            return {}

    def _of_broker(self) -> dict[Series, float]:
        try:
            return {("queue_messages", (queue,)): float(depth) for queue, depth in self._broker.depths().items()}
        except MillraceError as error:
            _log.warning("the figures of Redis are left out: %s", error)
            return {}

    def _of_processes(self) -> dict[Series, float]:
        """Applications among them, which serve no /metrics."""
        if self._stats is None:
            return {}
        try:
            window = self._stats.read(WINDOW_MINUTES)
        except MillraceError as error:
            _log.warning("the figures of all processes are left out: %s", error)
            return {}
        found: dict[Series, float] = {}
        for name, told in window.operations.items():
            found["operation_runs", (name,)] = float(told.count)
            for quantile, seconds in (("0.5", told.p50), ("0.95", told.p95), ("0.99", told.p99)):
                found["operation_seconds", (name, quantile)] = seconds
            for error_class, times in told.errors_by_class.items():
                found["operation_errors", (name, error_class)] = float(times)
        return found


def _work(connection: Connection) -> dict[Series, float]:
    found: dict[Series, float] = {}
    depth = backlog.depth(connection)
    for queue in WORK_QUEUES:
        found["queue_ready_batches", (queue,)] = depth[queue]["ready_batches"]
        found["queue_oldest_seconds", (queue,)] = depth[queue]["oldest_seconds"]
    by_state, leased = jobs.by_state(connection), figures.leases(connection)
    found |= {("jobs", (state,)): float(by_state.get(state, 0)) for state in get_args(JobState)}
    found |= {("leases", (kind,)): float(leased.get(kind, 0)) for kind in _KINDS}
    now = figures.figures(connection)
    return found | {
        ("batches_tried", ()): float(now.tried),
        ("dead_letters", ()): float(now.letters),
        ("staged_bytes", ()): float(now.staged_bytes),
        ("webhooks_owed", ()): float(now.owed),
        ("webhooks_dead", ()): float(now.given_up),
        ("workers", ()): float(now.workers),
        ("slots", ()): float(now.slots),
    }


def _duties(connection: Connection) -> dict[Series, float]:
    found: dict[Series, float] = {}
    for state in duties.states(connection):
        labels = (state.name,)
        if state.ran_seconds_ago is not None:
            found["duty_seconds_since_run", labels] = state.ran_seconds_ago
        if state.took_seconds is not None:
            found["duty_last_seconds", labels] = state.took_seconds
        found["duty_overdue", labels] = float(is_overdue(state))
        found["duty_failed", labels] = float(state.failed)
        score = state.result.get("score") if state.name == "alerts" else None
        if isinstance(score, int | float):
            found["health_score", ()] = float(score)
    return found


def _stored(connection: Connection) -> dict[Series, float]:
    raised = figures.raised_alerts(connection)
    found: dict[Series, float] = {("alerts", (severity,)): float(raised.get(severity, 0)) for severity in _SEVERITIES}
    found["batch_share", ()] = overrides.read(connection).get(SHARE, 1.0)
    return found | {("storage", (name,)): value for name, value in storage.newest(connection).items()}


def _bought(connection: Connection, cost: CostSettings) -> dict[Series, float]:
    now = buying_signs.provider_state(circuits.find(connection, circuits.OPENAI))
    found: dict[Series, float] = {("provider", (state,)): float(state == now) for state in buying_signs.PROVIDER_STATES}
    on_order = buying_signs.on_order(connection)
    found |= {("remote_batches", (state,)): float(count) for state, count in on_order.states.items()}
    spent = buying_signs.month(connection)
    found |= {("month_dollars", (kind,)): getattr(spent, kind) for kind in ("spent", "doubtful", "reserved")}
    for budget in reversed(buying_signs.used_budgets(connection, cost, 0.0)):
        found["budget_used", ("tenant" if budget.tenant else "all",)] = budget.percent / 100
    return found | {
        ("remote_texts", ()): float(on_order.inputs),
        ("unpacked_texts", ()): float(on_order.unpacked),
        ("remote_batches_stuck", ()): float(len(buying_signs.stuck(connection))),
        ("remote_batches_doubtful", ()): float(len(buying_signs.doubtful(connection))),
        ("jobs_late", ()): float(len(buying_signs.late(connection))),
        ("jobs_over_budget", ()): float(buying_signs.paused_by_budget(connection)),
    }
