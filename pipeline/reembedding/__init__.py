"""A collection gets the vectors of another model, while it is searched and added to (docs/reembedding.md).

`request` begins, cancels and tells of it; `steps` is what the duty `reembed` does; `checking` compares what was built.
"""

from __future__ import annotations

from pipeline.reembedding.request import cancel, retry, start, status
from pipeline.reembedding.status import ReembeddingStatus
from pipeline.reembedding.steps import advance, drop_doomed

__all__ = ["ReembeddingStatus", "advance", "cancel", "drop_doomed", "retry", "start", "status"]
