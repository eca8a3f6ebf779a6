"""Settings become opened services; the only place that wires."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

from pipeline.backpressure import Backlog
from pipeline.broker import Broker
from pipeline.chunking import Chunker
from pipeline.document import canonical
from pipeline.embedding.base import Embedder, ModelSpec
from pipeline.embedding.local import LocalEmbedder, resolve_spec
from pipeline.errors import ModelUnavailable
from pipeline.extract import EXTRACTOR
from pipeline.extract.isolation.extractor import Extractor
from pipeline.ledger.engine import Ledger
from pipeline.monitoring.batch_share import BatchShare
from pipeline.monitoring.callbacks import Callbacks
from pipeline.monitoring.cluster import ClusterStats
from pipeline.monitoring.storage import Storage
from pipeline.monitoring.storage_report import STORES, Store
from pipeline.outages import tell_full
from pipeline.search import Searcher
from pipeline.settings import ChunkingSettings, EmbeddingSettings, Settings
from pipeline.tools import Tools
from pipeline.vectors.base import VectorStore
from pipeline.vectors.sparse import SparseEncoder
from pipeline.webhooks import Deliverer


class Services:
    """Everything that a process works with, each part opened at its first use. Thread-safe; close() closes all."""

    def __init__(
        self,
        settings: Settings,
        *,
        vectors: VectorStore | None = None,
        embedder: Embedder | None = None,
        extractor: Extractor | None = None,
    ) -> None:
        """vectors, embedder, extractor: instead of those that the settings name."""
        self.settings = settings
        self.ledger = Ledger(settings.postgres)
        self.ledger.on_full = partial(tell_full, self.ledger)
        self.broker = Broker(settings.redis)
        self.backlog = Backlog(settings.ingest)
        self._vectors = vectors
        self._given_embedder = embedder
        self.extractor = extractor or Extractor(settings.extraction)  # starts nothing before its first document
        self._lock = threading.Lock()
        self._embedders: dict[bytes, Embedder] = {}
        self._sparse: dict[bytes, SparseEncoder] = {}

    @property
    def vectors(self) -> VectorStore:
        with self._lock:
            if self._vectors is None:
                # qdrant-client takes a second to import, which a command that needs no vectors doesn't pay.
                from pipeline.vectors.qdrant import QdrantStore

                self._vectors = QdrantStore(self.settings.qdrant)
            return self._vectors

    @cached_property
    def spec(self) -> ModelSpec:
        """The model that new collections are made with."""
        return self._given_embedder.spec if self._given_embedder else resolve_spec(self.settings.embedding)

    def embedder(self, model: Mapping[str, Any]) -> Embedder:
        """The embedder of a collection's model. Raises ModelUnavailable where that very model cannot be had here."""
        spec = ModelSpec.from_json(model)
        if self._given_embedder is not None and self._given_embedder.spec == spec:
            return self._given_embedder
        key = spec.fingerprint("passage") + spec.fingerprint("query")
        with self._lock:
            if key not in self._embedders:
                self._embedders[key] = LocalEmbedder(self._settings_of(spec), self.settings.home / "models")
            return self._embedders[key]

    def sparse(self, config: Mapping[str, Any]) -> SparseEncoder:
        """The BM25 encoder of a collection."""
        key = canonical(dict(config))
        with self._lock:
            if key not in self._sparse:
                self._sparse[key] = SparseEncoder(dict(config) or None)
            return self._sparse[key]

    def chunker(self, settings: ChunkingSettings, embedder: Embedder) -> Chunker:
        return Chunker(settings, embedder.count_tokens, embedder.spec.max_tokens)

    def recipe(
        self, embedder: Embedder, sparse: Mapping[str, Any], chunking: ChunkingSettings | None = None
    ) -> dict[str, Any]:
        """What determines the chunks and vectors of a document: part of every job, and hashed into its versions.

        chunking: by default that of the settings.
        """
        chunking = chunking or self.settings.chunking
        return {
            "chunking": chunking.model_dump(mode="json"),
            "chunker": self.chunker(chunking, embedder).recipe(),
            "extractor": EXTRACTOR,
            "model": embedder.spec.fingerprint("passage").hex(),
            "sparse": dict(sparse),
        }

    @cached_property
    def tools(self) -> Tools:
        return Tools(
            self.ledger,
            self.vectors,
            self.embedder,
            self.chunker,
            self.sparse,
            self.settings.ingest,
            self.extractor.extract_many,
            self.batch_share,
        )

    @cached_property
    def deliverer(self) -> Deliverer:
        return Deliverer(self.ledger, self.settings.webhooks)

    @cached_property
    def figures(self) -> ClusterStats:
        """What all processes measured."""
        return ClusterStats(self.settings.redis)

    @cached_property
    def alert_callbacks(self) -> Callbacks:
        return Callbacks()

    @cached_property
    def batch_share(self) -> BatchShare:
        return BatchShare()

    @cached_property
    def storage(self) -> Storage:
        settings = self.settings
        addresses: dict[Store, str] = {store: getattr(settings, store).url.get_secret_value() for store in STORES}
        return Storage(self.ledger, self.vectors, settings.redis, settings.storage, settings.home, addresses)

    @cached_property
    def searcher(self) -> Searcher:
        return Searcher(self.ledger, self.vectors, self.embedder, self.sparse, self.settings.search)

    def close(self) -> None:
        if "deliverer" in self.__dict__:
            self.deliverer.close()
        if "figures" in self.__dict__:
            self.figures.close()
        self.broker.close()
        self.extractor.close()
        if self._vectors is not None:
            self._vectors.close()
        self.ledger.close()

    def _settings_of(self, spec: ModelSpec) -> EmbeddingSettings:
        """The embedding settings under which this machine has the model: its own, or the collection's by name."""
        own = self.settings.embedding
        precision = spec.precision if spec.precision in ("float32", "int8") else own.precision
        for settings in (own, own.model_copy(update={"model": spec.name, "precision": precision, "path": None})):
            if resolve_spec(settings) == spec:
                return settings
        raise ModelUnavailable(
            f"the collection was made with {spec.name} (revision {spec.revision[:12]}, {spec.precision}); this machine "
            f"is set to {own.model}. Set MILLRACE_EMBEDDING__MODEL and MILLRACE_EMBEDDING__PATH to that very model."
        )
