"""What the worker's story is told with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.chunking import Chunker
from pipeline.embedding.base import Embedder
from pipeline.errors import InvalidDocument
from pipeline.extract import Extracted, Raw
from pipeline.ledger.engine import Ledger
from pipeline.monitoring.batch_share import BatchShare
from pipeline.settings import ChunkingSettings, CostSettings, IngestSettings, OpenAIBatchSettings, OpenAISettings
from pipeline.vectors.base import VectorStore
from pipeline.vectors.sparse import SparseEncoder

# Called whenever the work has got on; raises LeaseLost where it is not worth going on.
Progress = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Waits:
    """What a story comes to whose claims wait in the ledger for somebody else. Nobody is blamed."""

    reason: str


class FindEmbedder(Protocol):
    def __call__(self, model: Mapping[str, Any], provider: str | None = None) -> Embedder:
        """Who embeds with a collection's model. provider: `local` or `openai`; None: whose the model is."""
        ...


@dataclass(frozen=True, slots=True)
class Tools:
    """Embedder, chunker and sparse are found by what the collection was made with."""

    ledger: Ledger
    vectors: VectorStore
    embedder: FindEmbedder
    chunker: Callable[[ChunkingSettings, Embedder], Chunker]
    sparse: Callable[[Mapping[str, Any]], SparseEncoder]
    ingest: IngestSettings
    extract: Callable[[Sequence[Raw], Progress], Iterator[Extracted | InvalidDocument]]
    batch_share: BatchShare
    openai: OpenAISettings = field(default_factory=OpenAISettings)
    openai_batch: OpenAIBatchSettings = field(default_factory=OpenAIBatchSettings)
    cost: CostSettings = field(default_factory=CostSettings)
