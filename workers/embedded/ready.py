"""Tells the supervisor that a Celery worker takes work: loaded with `--include`, it writes the file that
MILLRACE_READY_FILE names once the worker has connected and its pool is up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery.signals import worker_ready

from workers.programs import READY_VARIABLE


@worker_ready.connect(weak=False)  # type: ignore[untyped-decorator, unused-ignore]
def tell_supervisor(**_: Any) -> None:
    """Writes the pid; does nothing in a worker that no supervisor started."""
    if path := os.environ.get(READY_VARIABLE):
        Path(path).write_text(str(os.getpid()), "ascii")
