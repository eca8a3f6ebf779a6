"""Settings become opened services; the only place that wires."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

from pipeline.backpressure import Backlog
from pipeline.broker import Broker
from pipeline.chunking import Chunker
from pipeline.document import canonical
from pipeline.embedding.base import Embedder, ModelSpec
from pipeline.embedding.local import LocalEmbedder, resolve_spec
from pipeline.embedding.openai.spec import is_served, openai_spec
from pipeline.enqueue import recipe_hash
from pipeline.errors import InvalidRequest, InvalidSettings, ModelUnavailable
from pipeline.extract import EXTRACTOR
from pipeline.extract.isolation.extractor import Extractor
from pipeline.ledger.collections import Collection
from pipeline.ledger.engine import Ledger
from pipeline.lone_buying import record_besides
from pipeline.monitoring.batch_share import BatchShare
from pipeline.monitoring.callbacks import Callbacks
from pipeline.monitoring.cluster import ClusterStats
from pipeline.monitoring.storage import Storage
from pipeline.monitoring.storage_report import STORES, Store
from pipeline.openai_batch.service import BatchService
from pipeline.outages import tell_full
from pipeline.search import Searcher
from pipeline.settings import ChunkingSettings, EmbeddingSettings, Settings
from pipeline.tools import Tools
from pipeline.vectors.base import VectorStore
from pipeline.vectors.sparse import SparseEncoder
from pipeline.webhooks import Deliverer


@dataclass(frozen=True, slots=True)
class _Described:
    """As much of an embedder as a recipe is made of."""

    spec: ModelSpec

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        raise ModelUnavailable(f"{self.spec.name} is only spoken of")


class Services:
    """Everything that a process works with, each part opened at its first use. Thread-safe; close() closes all."""

    def __init__(
        self,
        settings: Settings,
        *,
        vectors: VectorStore | None = None,
        embedder: Embedder | None = None,
        paid_embedder: Embedder | None = None,
        extractor: Extractor | None = None,
    ) -> None:
        """vectors, embedder, paid_embedder, extractor: instead of those that the settings name."""
        self.settings = settings
        self.ledger = Ledger(settings.postgres)
        self.ledger.on_full = partial(tell_full, self.ledger)
        self.broker = Broker(settings.redis)
        self.backlog = Backlog(settings.ingest)
        self._vectors = vectors
        self._given_embedder = embedder
        self._given_paid = paid_embedder
        self.extractor = extractor or Extractor(settings.extraction)  # starts nothing before its first document
        self._lock = threading.Lock()
        self._embedders: dict[bytes, Embedder] = {}
        self._closing: list[Callable[[], None]] = []
        self._sparse: dict[bytes, SparseEncoder] = {}

    @property
    def vectors(self) -> VectorStore:
        with self._lock:
            if self._vectors is None:
                # qdrant-client takes a second to import, which a command that needs no vectors doesn't pay.
                from pipeline.vectors.qdrant import QdrantStore

                self._vectors = QdrantStore(self.settings.qdrant)
            return self._vectors

    @property
    def spec(self) -> ModelSpec:
        """The model that new collections are made with, where a request says nothing else."""
        return self.spec_for(self.settings.embedding.provider)

    def spec_for(self, provider: str, model: str | None = None, dimensions: int | None = None) -> ModelSpec:
        """The model of a new collection of this provider; model, dimensions: instead of those of the settings.

        Of `auto`: the local model where the server of section openai has the very same, or nothing is to be bought.
        Raises ModelUnavailable, InvalidSettings, InvalidRequest where there is no such model.
        """
        openai = self.settings.openai
        if provider == "auto":
            local = model is None and (is_served(self._local_spec, openai) or not openai.api_key.get_secret_value())
            provider = "local" if local or model == self._local_spec.name else "openai"
        if provider != "local":
            return (
                self._given_paid.spec if self._given_paid and model is None else openai_spec(openai, model, dimensions)
            )
        spec = self._local_spec
        if model is not None and model != spec.name:
            spec = resolve_spec(self.settings.embedding.model_copy(update={"model": model, "path": None}))
        if dimensions not in (None, spec.dimensions):
            raise InvalidRequest(f"{spec.name} makes vectors of {spec.dimensions} dimensions, not of {dimensions}")
        return spec

    @cached_property
    def _local_spec(self) -> ModelSpec:
        return self._given_embedder.spec if self._given_embedder else resolve_spec(self.settings.embedding)

    def embedder(self, model: Mapping[str, Any], provider: str | None = None) -> Embedder:
        """The embedder of a collection's model. provider: `local`, or `openai` (that of the Batch API too); None: whose
        the model is. Raises ModelUnavailable where that very model cannot be had here, or from there."""
        spec = ModelSpec.from_json(model)
        local = (provider or spec.provider) == "local"
        given = self._given_embedder if local else self._given_paid
        if given is not None and given.spec == spec:
            return given
        key = spec.fingerprint("passage") + spec.fingerprint("query") + (b"local" if local else b"openai")
        with self._lock:
            if key not in self._embedders:
                self._embedders[key] = self._local_embedder(spec) if local else self._paid_embedder(spec)
            return self._embedders[key]

    def _local_embedder(self, spec: ModelSpec) -> Embedder:
        return LocalEmbedder(self._settings_of(spec), self.settings.home / "models")

    def _paid_embedder(self, spec: ModelSpec) -> Embedder:
        from pipeline.embedding.openai.embedder import OpenAIEmbedder

        settings = self.settings
        local = partial(self.embedder, spec.to_json(), "local") if spec.provider == "local" else None
        besides = partial(record_besides, self.ledger, settings.openai, settings.cost, spec)
        made = OpenAIEmbedder(settings.openai, settings.redis, spec, local=local, on_besides=besides)
        self._closing.append(made.close)
        return made

    def sparse(self, config: Mapping[str, Any]) -> SparseEncoder:
        """The BM25 encoder of a collection."""
        key = canonical(dict(config))
        with self._lock:
            if key not in self._sparse:
                self._sparse[key] = SparseEncoder(dict(config) or None)
            return self._sparse[key]

    def chunker(self, settings: ChunkingSettings, embedder: Embedder) -> Chunker:
        """What cuts texts for a model. The limit of OpenAI's is a chapter: where nobody says how long a chunk is, it is
        `openai.chunk_tokens`."""
        most = embedder.spec.max_tokens
        if settings.max_tokens is None and embedder.spec.provider == "openai":
            settings = settings.model_copy(update={"max_tokens": min(most, self.settings.openai.chunk_tokens)})
        return Chunker(settings, embedder.count_tokens, most)

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

    def recipes_before(self, collection: Collection, chunking: ChunkingSettings | None = None) -> list[bytes]:
        """The hashes of the recipes that `recipe` would be under the models that the collection had before it was
        re-embedded: what was made by one of them is as it should be. chunking: by default that of the settings."""
        found = []
        for model in collection.former:
            described = cast(Embedder, _Described(ModelSpec.from_json(model)))
            # A size of chunks that this model did not take: nothing was made so.
            with suppress(InvalidSettings):
                found.append(recipe_hash(self.recipe(described, collection.sparse, chunking)))
        return found

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
            self.settings.openai,
            self.settings.openai_batch,
            self.settings.cost,
        )

    @cached_property
    def deliverer(self) -> Deliverer:
        return Deliverer(self.ledger, self.settings.webhooks)

    @cached_property
    def batch_service(self) -> BatchService:
        """What works on remote batches of the Batch API."""
        settings = self.settings
        return BatchService(self.ledger, settings.openai, settings.openai_batch, settings.cost)

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
        settings = self.settings
        return Searcher(
            self.ledger, self.vectors, self.embedder, self.sparse, settings.search, settings.openai, settings.cost
        )

    def close(self) -> None:
        if "deliverer" in self.__dict__:
            self.deliverer.close()
        if "figures" in self.__dict__:
            self.figures.close()
        if "batch_service" in self.__dict__:
            self.batch_service.close()
        for close in self._closing:
            close()
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
        if spec.provider != "local":
            raise ModelUnavailable(f"{spec.name} is a model of {spec.revision}, and not of this machine")
        raise ModelUnavailable(
            f"the collection was made with {spec.name} (revision {spec.revision[:12]}, {spec.precision}); this machine "
            f"is set to {own.model}. Set MILLRACE_EMBEDDING__MODEL and MILLRACE_EMBEDDING__PATH to that very model."
        )
