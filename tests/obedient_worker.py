"""The Celery application of a worker whose embedder does as it is told: `celery -A obedient_worker worker`.

OBEDIENT_WORKER_FILE names a file with its order, read before each text: empty or missing: embed at once; `slow S`: S
seconds a text, with progress; `sleep` and `hold`: hang, the latter in C with the interpreter's lock held; `die`: end
as with a segmentation fault. What hangs or dies crosses its order out first: it is done once.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from celery.signals import worker_process_init

from pipeline.assembly import Services
from pipeline.embedding.base import Embedded, Role
from pipeline.settings import load_settings
from pipeline.testing import ConstantEmbedder
from tasks import base
from workers.app import app

__all__ = ["app"]

FOR_EVER_SECONDS = 3600

_orders = Path(os.environ["OBEDIENT_WORKER_FILE"])


class ObedientEmbedder(ConstantEmbedder):
    """Reads its order before each text. So slow by its own account that no batches are claimed together."""

    @property
    def tokens_per_second(self) -> float | None:
        return 1.0

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        for _ in texts:
            order, _, seconds = (_orders.read_text() if _orders.exists() else "").partition(" ")
            if order == "slow":
                time.sleep(float(seconds))
            elif order:
                _orders.write_text("")
                _obey(order)
            if on_progress is not None:
                on_progress(0)
        return super().embed(texts, role, on_progress)


def _obey(order: str) -> None:
    if order == "sleep":
        time.sleep(FOR_EVER_SECONDS)
    elif order == "hold":
        re.match("(a+)+$", "a" * 60 + "b")  # for some centuries, and no other thread gets a turn
    elif order == "die":
        os.kill(os.getpid(), signal.SIGSEGV)


def _assemble(**_: Any) -> None:
    base.use_services(Services(load_settings(), embedder=ObedientEmbedder()))


worker_process_init.connect(_assemble, weak=False)
