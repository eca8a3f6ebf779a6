"""The Celery application of a worker to which some texts are never read to their end: `celery -A waiting_worker`."""

from __future__ import annotations

from typing import Any

from celery.signals import worker_process_init
from waiting_reader import PROGRAM

from pipeline.assembly import Services
from pipeline.extract.isolation.extractor import Extractor
from pipeline.settings import load_settings
from tasks import base
from workers.app import app

__all__ = ["app"]


def _assemble(**_: Any) -> None:
    settings = load_settings()
    base.use_services(Services(settings, extractor=Extractor(settings.extraction, PROGRAM)))


worker_process_init.connect(_assemble, weak=False)
