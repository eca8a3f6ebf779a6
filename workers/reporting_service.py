"""A process of ours that is no worker, such as Flower, tells the ledger every few seconds that it lives and what it
takes: its row of `services`. Beat has more to do with the ledger, and does this with it (`workers/clock.py`)."""

from __future__ import annotations

import atexit
import os
import socket
import threading

from pipeline.errors import MillraceError
from pipeline.ledger import services
from pipeline.ledger.engine import Ledger
from pipeline.monitoring import process
from pipeline.observe import logger
from pipeline.settings import PostgresSettings

_EVERY_SECONDS = 5.0
# How long the process waits for its last word to the ledger when it ends.
_LAST_SECONDS = 2.0

_log = logger("service")


class ReportingService:
    """The thread that does it. Where Postgres is away it tries again; nobody waits for it."""

    def __init__(self, name: str, postgres: PostgresSettings, every_seconds: float = _EVERY_SECONDS) -> None:
        self._name = name
        self._ledger = Ledger(postgres)
        self._every = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)

    def start(self) -> None:
        self._thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Takes its row with it."""
        self._stop.set()
        self._thread.join(timeout=_LAST_SECONDS)

    def _run(self) -> None:
        host, pid = socket.gethostname(), os.getpid()
        told = False
        while not self._stop.is_set():
            try:
                with self._ledger.transaction() as connection:
                    services.report(connection, self._name, host, pid, process.sample().to_json())
                told = False
            except MillraceError as error:
                if not told:
                    _log.warning("no sign of life can be written: %s", error)
                told = True
            self._stop.wait(self._every)
        try:
            with self._ledger.transaction() as connection:
                services.leave(connection, self._name, host, pid)
        except MillraceError:
            pass  # its row goes stale by itself
        self._ledger.close()
