"""Whom the vigil of a worker's main process leaves alone."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from pydantic import SecretStr

from pipeline.ledger.engine import Ledger
from pipeline.settings import PostgresSettings, WorkSettings
from tasks import vitals
from workers.embedded.ports import free_port
from workers.vigil import TRACE_SIGNAL, Vigil

SLOT = 501  # of no pool child that there is
WORK = WorkSettings(stall_seconds=0.3, heartbeat_seconds=0.1, lease_seconds=0.3)


@pytest.fixture
def hanging_child() -> Iterator[int]:
    """The pid of a pool child that has begun a task and makes no progress."""
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        faulthandler.register(TRACE_SIGNAL)
        vitals.enter(SLOT)
        vitals.begin()
        vitals.beat()
        os.write(writes, b".")
        time.sleep(600)
        os._exit(0)
    os.read(reads, 1)
    for end in (reads, writes):
        os.close(end)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    cleaner = os.fork()
    if not cleaner:
        vitals.enter(SLOT)
        vitals.leave()
        os._exit(0)
    os.waitpid(cleaner, 0)
    for child in vitals.children():
        vitals.bury(child)


def test_who_makes_no_progress_while_the_ledger_is_away_waits_for_it(hanging_child: int) -> None:
    ledger = Ledger(
        PostgresSettings(url=SecretStr(f"postgresql://nobody@127.0.0.1:{free_port()}/none"), connect_timeout=0.1)
    )
    vigil = Vigil(ledger, "worker@here#1", WORK)

    vigil.start()
    deadline = time.monotonic() + 10 * WORK.stall_seconds
    while time.monotonic() < deadline:
        assert psutil.Process(hanging_child).status() != psutil.STATUS_ZOMBIE, "it was killed"
        time.sleep(0.05)
    vigil.stop()
    ledger.close()
