"""What a worker process does besides tasks: names itself, says that it is alive, opens nothing before it forks."""

from __future__ import annotations

import faulthandler
import os
import socket
import threading
import uuid
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import psutil
from billiard import current_process
from celery.signals import (
    task_postrun,
    task_prerun,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

from pipeline.broker import Broker
from pipeline.errors import Unavailable
from pipeline.ledger import fleet
from pipeline.ledger.engine import Ledger
from pipeline.monitoring import process
from pipeline.monitoring.cluster import ClusterStats
from pipeline.monitoring.reporting import configure, sink
from pipeline.monitoring.whole import Whole
from pipeline.observe import logger
from pipeline.settings import Settings, load_settings
from tasks import base, collector, leaving, memory, reports, slowness, vitals
from workers.light_import import leave_out_clients
from workers.understudy import Understudy
from workers.vigil import TRACE_SIGNAL, Vigil

_REPORT_SECONDS = 3.0
# Of what a worker can do without for a while: connections, and seconds for one statement.
_ASIDE = {"pool_size": 1, "timeout": 5.0}

_log = logger("worker")


def _sample_memory() -> Mapping[str, Any]:
    return process.sample().to_json()


class Presence:
    """The worker's row in the ledger, kept fresh by a thread of the main process, whatever its children do; and the
    watch over them, in a thread of its own."""

    def __init__(self, worker_id: str, queues: str, slots: int) -> None:
        self._worker_id = worker_id
        self._queues = queues
        self._slots = slots
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)
        settings = load_settings()
        self._ledger = Ledger(settings.postgres)
        self._memory = settings.memory
        self._vigil = Vigil(self._ledger, worker_id, settings.work)
        self._broker = Broker(settings.redis)
        # A scrape that is slow, and what asks for duties, must not take the connections of the sign of life and of the
        # vigil: this worker would be taken for dead.
        self._aside = Ledger(settings.postgres.model_copy(update=_ASIDE))
        self._understudy = Understudy(self._aside, self._broker)
        self._reports = reports.Collector(
            settings.metrics, settings.memory, sink(settings.redis, settings.metrics), _sample_memory
        )
        # Loaded here: beat, Flower and pool children need none of it.
        from pipeline.monitoring.exposition import Exposition
        from workers.metrics_server import MetricsServer

        self._stats = ClusterStats(settings.redis) if settings.metrics.enabled and settings.metrics.cluster else None
        whole = Whole(self._aside, self._broker, self._stats, settings.cost)
        self._metrics = MetricsServer(
            settings.metrics, Exposition(self._reports.totals, self._reports.processes, whole.read)
        )

    def start(self) -> None:
        self._reports.start()
        memory.enter(self._memory)
        self._thread.start()
        self._vigil.start()
        self._understudy.start()

    def stop(self) -> None:
        self._stop.set()
        self._vigil.stop()
        self._understudy.stop()
        self._thread.join(timeout=_REPORT_SECONDS)
        self._metrics.stop()
        self._aside.close()
        if self._stats is not None:
            self._stats.close()
        self._broker.close()
        self._reports.stop()
        memory.leave()

    def forget(self) -> None:
        """In a fresh child: none of this is its own."""
        self._metrics.forget()

    def _run(self) -> None:
        ledger = self._ledger
        host, pid = socket.gethostname(), os.getpid()
        succeeded = False
        answered = None  # when it was last asked to collect
        while not self._stop.is_set():
            try:
                with ledger.transaction() as connection:
                    if not succeeded and (dead := fleet.succeed(connection, self._worker_id, host, psutil.pid_exists)):
                        _log.warning("takes the place of %s, which died", ", ".join(dead))
                    asked = fleet.report(
                        connection,
                        self._worker_id,
                        host,
                        pid,
                        self._queues,
                        self._slots,
                        self._vigil.rates(),
                        processes=self._reports.processes(),
                        metrics_url=self._metrics.url,
                    )
                    slowness.look(connection)
                succeeded = True
                if asked is not None and asked != answered:
                    memory.ask()
                    answered = asked
            except Unavailable as error:
                _log.warning("no sign of life can be written: %s", error)
            except Exception:  # noqa: BLE001 - whatever it was: nobody else says that this worker lives
                _log.exception("no sign of life could be written")
            self._stop.wait(_REPORT_SECONDS)
        try:
            with ledger.transaction() as connection:
                fleet.leave(connection, self._worker_id)
        except Unavailable:
            pass  # its row goes stale by itself
        ledger.close()


_presence: list[Presence] = []
_child_reports: list[reports.ChildReports] = []  # of this process, where it is a pool child


def _name_worker(sender: Any = None, **_: Any) -> None:
    """Before the pool forks: children inherit the name under which claims are owned. New at every start, so that a
    worker that was killed and started again is not taken for the one that lost its claims."""
    os.environ[base.WORKER_ID_VARIABLE] = f"{sender}#{uuid.uuid4().hex[:8]}"
    os.environ[base.WORKER_SLOTS_VARIABLE] = str(sender.concurrency)
    # Large: once, for all children; beat and Flower load this module too, and need none of it.
    leave_out_clients()
    import_module("pipeline.vectors.qdrant")
    collector.before_fork()
    _load_and_configure()


def _load_and_configure() -> Settings:
    """What this process records, and which operations it tells of as slow, is as the settings say."""
    settings = load_settings()
    configure(settings.metrics, settings.logs, settings.alerts)
    slowness.enter(settings.logs.slow_seconds)
    return settings


def _announce(sender: Any = None, **_: Any) -> None:
    consumer = sender
    queues = ",".join(sorted(consumer.app.amqp.queues.consume_from))
    presence = Presence(base.worker_id(), queues, consumer.controller.concurrency)
    presence.start()
    _presence.append(presence)


def _withdraw(**_: Any) -> None:
    while _presence:
        _presence.pop().stop()


def _leave(**_: Any) -> None:
    leaving.announce()


def _enter_child(**_: Any) -> None:
    base.forget_services()
    for presence in _presence:
        presence.forget()
    faulthandler.register(TRACE_SIGNAL, file=2, all_threads=True)
    slot = current_process().index
    vitals.enter(slot)
    settings = _load_and_configure()
    _child_reports[:] = [reports.ChildReports(slot, settings.metrics, settings.memory, _sample_memory)]
    _child_reports[0].start()
    collector.enter_child()
    memory.enter(settings.memory)


def _leave_child(**_: Any) -> None:
    memory.leave()
    base.close_services()
    while _child_reports:
        _child_reports.pop().close()
    vitals.leave()


def _begin_task(**_: Any) -> None:
    vitals.begin()


def _end_task(**_: Any) -> None:
    vitals.end()


def connect() -> None:
    """Hangs this module onto Celery's signals."""
    worker_init.connect(_name_worker, weak=False)
    worker_ready.connect(_announce, weak=False)
    worker_shutting_down.connect(_leave, weak=False)
    worker_shutdown.connect(_withdraw, weak=False)
    worker_process_init.connect(_enter_child, weak=False)
    worker_process_shutdown.connect(_leave_child, weak=False)
    task_prerun.connect(_begin_task, weak=False)
    task_postrun.connect(_end_task, weak=False)
