"""A local model whose vectors are not those that a server gives under its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.embedding.base import Embedded, Role
from pipeline.testing import ConstantEmbedder


class TurnedEmbedder(ConstantEmbedder):
    """Vectors that are not those of the model it is said to be."""

    def embed(self, texts: Any, role: Role = "passage", on_progress: Callable[[int], None] | None = None) -> Embedded:
        embedded = super().embed(texts, role, on_progress)
        return Embedded(np.roll(embedded.vectors, 1, axis=1), embedded.runs)
