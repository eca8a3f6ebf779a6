"""The duty by which collections get the vectors of another model."""

from __future__ import annotations

from pipeline import reembedding
from pipeline.assembly import Services
from pipeline.duties import Bounds
from tasks.duty import Counts, Duty


def reembed(opened: Services, bounds: Bounds) -> Counts:
    """Lets re-embeddings go on: chunks into batches, what was built compared, the collection switched, the rest cleared
    away. Where there is none, it asks one question."""
    return reembedding.advance(opened, bounds)


DUTIES = (Duty("reembed", 3.0, 2000, reembed, budget_seconds=10.0),)
