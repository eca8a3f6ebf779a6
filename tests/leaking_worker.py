"""The Celery application of workers that keep some megabytes of some texts for ever: `celery -A leaking_worker worker`.

A text with the word `leaking` costs 40 MB that are never given back; one with `cyclic` the same in a cycle of objects,
which the collector finds. Every other text has the vector of `ConstantEmbedder`, as in the process of the test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from celery.signals import worker_process_init

from pipeline.assembly import Services
from pipeline.embedding.base import Embedded, Role
from pipeline.settings import load_settings
from pipeline.testing import ConstantEmbedder
from tasks import base
from workers.app import app

__all__ = ["app"]

_BYTES = 40 * 1024 * 1024

_leaked: list[bytes] = []


class LeakingEmbedder(ConstantEmbedder):
    """So slow by its own account that no batches are claimed together."""

    @property
    def tokens_per_second(self) -> float | None:
        return 1.0

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        for text in texts:
            if "leaking" in text:
                _leaked.append(b"x" * _BYTES)
            elif "cyclic" in text:
                cycle: list[Any] = [b"x" * _BYTES]
                cycle.append(cycle)
        return super().embed(texts, role, on_progress)


def _assemble(**_: Any) -> None:
    """In each pool child, after the worker's own beginning there."""
    base.use_services(Services(load_settings(), embedder=LeakingEmbedder()))


worker_process_init.connect(_assemble, weak=False)
