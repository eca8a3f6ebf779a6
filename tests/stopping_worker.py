"""The Celery application of a worker that stops itself, as SIGSTOP does, in the middle of its work: `celery -A
stopping_worker worker`. Everything else about it is real.

STOPPING_WORKER_DIRECTORY holds a file for each place where it shall stop (once): extract, embed, delete. When it has
stopped there the file is `PLACE.stopped`; and each task that has ended leaves a file `ended-NAME`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from celery.signals import task_postrun, worker_process_init

from pipeline.assembly import Services
from pipeline.settings import load_settings
from tasks import base
from workers.app import app

__all__ = ["app"]

_directory = Path(os.environ["STOPPING_WORKER_DIRECTORY"])


def _stop(place: str) -> None:
    """Stops this worker, main process and child, if that is wanted here."""
    wanted = _directory / place
    if wanted.exists():
        wanted.rename(_directory / f"{place}.stopped")
        os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        # The signal is for the whole process; this thread may run on for a moment.
        threading.Event().wait(0.05)


class _Before:
    """Something real, of which one method stops first."""

    def __init__(self, real: Any, method: str, place: str) -> None:
        self._real, self._method, self._place = real, method, place

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name != self._method:
            return found

        def stopping(*given: Any, **named: Any) -> Any:
            _stop(self._place)
            return found(*given, **named)

        return stopping


def _assemble(**_: Any) -> None:
    services = Services(load_settings())
    tools = services.tools
    embedder: Callable[..., Any] = tools.embedder
    services.__dict__["tools"] = replace(
        tools,
        embedder=lambda *asked: _Before(embedder(*asked), "embed", "embed"),
        vectors=_Before(tools.vectors, "delete", "delete"),
        extract=_Before(tools, "extract", "extract").extract,
    )
    base.use_services(services)


def _tell(sender: Any = None, **_: Any) -> None:
    (_directory / f"ended-{sender.name}").touch()


worker_process_init.connect(_assemble, weak=False)
task_postrun.connect(_tell, weak=False)
