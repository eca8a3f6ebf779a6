"""The Celery application of workers whose embedder really breaks its process on marked texts.

`celery -A poison_worker worker`. Every other text has the vector of `ConstantEmbedder`, as in the process of the test.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil
from celery.signals import worker_process_init

from pipeline.assembly import Services
from pipeline.embedding.base import Embedded, Role
from pipeline.settings import load_settings
from pipeline.testing import ConstantEmbedder
from tasks import base
from workers.app import app

__all__ = ["app"]

_MEGABYTE = 1024 * 1024
_ROOM = 200 * _MEGABYTE


def _segfault() -> None:
    ctypes.string_at(0)


def _eat() -> None:
    """Asks for more memory than the process may have: a real MemoryError, of which the process does not die."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + _ROOM, limits[1]))
    eaten = []
    try:
        while True:
            eaten.append(bytearray(_MEGABYTE))
    finally:
        eaten.clear()
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _eat_until_killed() -> None:
    """Takes memory, and is killed for it with no time for a word, as the kernel does where there is none left."""
    process = psutil.Process()
    most = process.memory_info().rss + _ROOM
    eaten = []
    while process.memory_info().rss < most:
        eaten.append(b"x" * _MEGABYTE)
    os.kill(os.getpid(), signal.SIGKILL)


POISON: Mapping[str, Callable[[], None]] = {
    "segfaulting": _segfault,
    "memoryless": _eat,
    "devouring": _eat_until_killed,
}


class PoisonousEmbedder(ConstantEmbedder):
    """Does to its process what a word in a text says."""

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        for word, harm in POISON.items():
            if any(word in text.split() for text in texts):
                harm()
        return super().embed(texts, role, on_progress)


def _assemble(**_: Any) -> None:
    """In each pool child, after the worker's own beginning there."""
    base.use_services(Services(load_settings(), embedder=PoisonousEmbedder()))


worker_process_init.connect(_assemble, weak=False)
