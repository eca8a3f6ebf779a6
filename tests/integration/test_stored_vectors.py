"""What is in the index is what is stored, also where two workers computed a text at once and came to other numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

import numpy as np
from workshop import COLLECTION, Workshop

from pipeline import Document, Settings
from pipeline.embedding.base import Embedded, Role
from pipeline.testing import ConstantEmbedder

TEXT = "The same words in two documents"


class OvertakenEmbedder(ConstantEmbedder):
    """Lets somebody else work while it computes; its vectors are its own, as an int8 model's are in other company."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        embedded = super().embed(texts, role, on_progress)
        self._meanwhile()
        return Embedded(-embedded.vectors, embedded.runs)


def test_who_was_overtaken_puts_the_stored_vector_into_the_index(settings: Settings) -> None:
    # Given two batches with the same text, each for a worker of its own
    other = Workshop(settings)
    for uri in ("one", "two"):
        other.put([Document(uri, TEXT, "text/plain")])
        other.prepare()
    first, second = (batch.id for batch in other.ready("embed"))
    slow = Workshop(settings, embedder=OvertakenEmbedder(lambda: void(other.perform(second, alone=True))))

    # When one is done while the other computes
    slow.perform(first, alone=True)

    # Then both points have the one vector that is stored
    (stored,) = other.sql("SELECT vector FROM embeddings")
    points = {
        row["uri"]: row["point_id"]
        for row in other.sql("SELECT d.uri, c.point_id FROM chunks c JOIN documents d ON d.id = c.document_id")
    }
    physical = other.value("SELECT physical FROM collections WHERE name = %(name)s", name=COLLECTION)
    found = other.services.vectors.points(physical, [UUID(str(point)) for point in points.values()])
    assert len(found) == 2
    for point in found.values():
        np.testing.assert_allclose(point.dense, np.frombuffer(stored["vector"], "<f4"), atol=1e-6)
    slow.close()
    other.close()


def void(_: object) -> None:
    """The outcome of the overtaking is seen in the index."""
