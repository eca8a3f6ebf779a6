"""The Celery application of workers whose embedding costs nothing: `celery -A benchmarks.constant_worker worker`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery.signals import worker_process_init

from benchmarks.constant import NO_EVENTS_VARIABLE, ConstantVectors
from benchmarks.stages import DIRECTORY_VARIABLE, watch
from pipeline.assembly import Services
from pipeline.settings import load_settings
from tasks import base
from workers.app import app

__all__ = ["app"]

if os.environ.get(NO_EVENTS_VARIABLE):
    app.conf.worker_send_task_events = False


def _assemble(**_: Any) -> None:
    """In each pool child, after the worker's own beginning there: what the parent had opened is forgotten by then."""
    settings = load_settings()
    base.use_services(Services(settings, embedder=ConstantVectors(settings.home / "models")))
    if directory := os.environ.get(DIRECTORY_VARIABLE):
        watch(Path(directory))


worker_process_init.connect(_assemble, weak=False)
