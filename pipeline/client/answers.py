"""Answers out: search, embeddings, what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.cached_embedding import embed_cached
from pipeline.client.connection import DEFAULT_COLLECTION, Connected
from pipeline.embedding.base import Role
from pipeline.ledger import collections, documents
from pipeline.lone_buying import Payment
from pipeline.observe import operation
from pipeline.search import SearchResult, typed_filters
from pipeline.status import CollectionInfo, EmbedResult


class Answers(Connected):
    """Questions; none of them changes a document."""

    def search(
        self,
        query: str,
        *,
        collection: str = DEFAULT_COLLECTION,
        limit: int = 10,
        filters: Mapping[str, Any] | None = None,
        tenant: str | None = None,
    ) -> SearchResult:
        """The best chunks for the query, hybrid (dense and BM25), best first.

        filters: metadata key (or "uri") -> value, or a list of which one must match.
        Raises UnknownCollection, InvalidFilter, InvalidRequest, VectorsUnavailable.
        """
        with operation("search"):
            return self._services.searcher.search(
                query, collection, limit=limit, filters=filters or {}, tenant=tenant or self.tenant
            )

    def embed(self, texts: Sequence[str], *, role: Role = "passage") -> EmbedResult:
        """The texts' vectors under the model of the settings: stored ones, or computed (or bought) and stored.

        Raises InvalidRequest, ModelUnavailable; where they are bought BudgetExhausted, ProviderUnavailable.
        """
        spec = self._services.spec
        payment = None
        if spec.provider != "local":
            payment = Payment(self.settings.openai, self.settings.cost, self.tenant)
        embedder = self._services.embedder(spec.to_json())
        return embed_cached(self._services.ledger, embedder, texts, role, payment)

    def collections(self) -> list[CollectionInfo]:
        """Every collection, by name."""
        with self._services.ledger.transaction() as own:
            rows = collections.listing(own)
        return [CollectionInfo.from_row(row) for row in rows]

    def documents(
        self,
        *,
        collection: str = DEFAULT_COLLECTION,
        prefix: str = "",
        filters: Mapping[str, Any] | None = None,
        after: str = "",
        limit: int = 100,
        tenant: str | None = None,
    ) -> list[dict[str, Any]]:
        """Published documents by uri: uri, title, metadata, chunks, generation, published_at.

        filters: as for `search`. after: the last uri of the page before. Raises UnknownCollection, InvalidFilter.
        """
        with self._services.ledger.transaction() as own:
            found = collections.get(own, collection)
            typed = typed_filters(filters or {}, found)
            rows = documents.published(
                own, found.id, tenant or self.tenant, prefix=prefix, filters=typed, after=after, limit=limit
            )
        return [{**row, "published_at": row["published_at"].isoformat()} for row in rows]

    def uris(
        self,
        *,
        collection: str = DEFAULT_COLLECTION,
        prefix: str = "",
        after: str = "",
        limit: int = 5000,
        tenant: str | None = None,
    ) -> list[str]:
        """The uris of documents that are published or on their way, and not on their way out, in order."""
        with self._services.ledger.transaction() as own:
            found = collections.get(own, collection)
            return documents.wanted_uris(own, found.id, tenant or self.tenant, prefix=prefix, after=after, limit=limit)
