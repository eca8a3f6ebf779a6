"""Of what pool children died: the worker's main process, which reaps them, writes it down for the work they held."""

from __future__ import annotations

import threading
from typing import Any

from billiard.exceptions import WorkerLostError
from celery.signals import task_failure

from pipeline.broker import TASKS
from pipeline.errors import MillraceError
from pipeline.ledger import blame
from pipeline.ledger.engine import Ledger
from pipeline.observe import logger
from pipeline.settings import load_settings
from tasks.base import parse_id

# How billiard tells it: `Worker exited prematurely: signal 11 (SIGSEGV) Job: 7.`
_BEFORE, _AFTER = "prematurely: ", " Job:"

_log = logger("worker")


def how(error: BaseException) -> str:
    """Such as `signal 11 (SIGSEGV)`; what is not told in billiard's words, whole."""
    told = str(error)
    return told.partition(_BEFORE)[2].partition(_AFTER)[0].strip() or told


def _note(sender: Any = None, exception: BaseException | None = None, args: Any = (), **_: Any) -> None:
    """Celery's signal, in the thread that every child's messages pass through: it waits for no ledger."""
    if isinstance(exception, WorkerLostError) and args and getattr(sender, "name", "") in TASKS.values():
        threading.Thread(target=_write, args=(args[0], how(exception)), name="death", daemon=True).start()


def _write(batch_id: object, told: str) -> None:
    ledger = Ledger(load_settings().postgres)
    try:
        with ledger.transaction() as connection:
            blame.note_death(connection, parse_id(batch_id), told)
    except MillraceError as error:
        _log.warning("how a pool child died is not written down (%s): %s", told, error)
    finally:
        ledger.close()


def connect() -> None:
    """Hangs this module onto Celery's signals."""
    task_failure.connect(_note, weak=False)
