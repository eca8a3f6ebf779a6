"""Other vectors for a collection: begun, looked at, cancelled."""

from __future__ import annotations

from pipeline import reembedding
from pipeline.client.connection import Connected
from pipeline.reembedding import ReembeddingStatus


class Reembeddings(Connected):
    """A collection gets the vectors of another model, while it is searched and added to."""

    def reembed(
        self,
        collection: str,
        model: str,
        *,
        provider: str | None = None,
        dimensions: int | None = None,
        max_cost: float | None = None,
        priority: str = "low",
        tenant: str | None = None,
        correlation_id: str | None = None,
    ) -> ReembeddingStatus:
        """Begins to build the vectors of another model beside those that the collection has; workers do the rest, and
        switch when everything is there and compared. `wait(status.job_id)` waits for that.

        provider: who embeds, then and from then on; None: the collection's own, or whose the model is. dimensions: of a
        model of OpenAI's that can have fewer. max_cost: US dollars. tenant: whose budget is spent.
        Raises UnknownCollection; InvalidRequest where the collection has this very model, is being re-embedded already,
        or has chunks that are too long for the model; ModelUnavailable; ProviderUnavailable.
        """
        return reembedding.start(
            self._services,
            collection,
            model,
            provider=provider,
            dimensions=dimensions,
            max_cost=max_cost,
            tenant=tenant or self.tenant,
            priority=priority,
            correlation_id=correlation_id,
        )

    def reembedding(self, collection: str) -> ReembeddingStatus:
        """How the collection's last re-embedding is going, or went. Raises UnknownCollection, InvalidRequest where it
        never had one."""
        return reembedding.status(self._services, collection)

    def retry_reembedding(self, collection: str) -> int:
        """Tries all texts again that could not be embedded. Returns how many. Raises as `reembedding`."""
        return reembedding.retry(self._services, collection)

    def cancel_reembedding(self, collection: str) -> ReembeddingStatus:
        """Ends it: the collection stays as it is, and what was built beside it goes. Raises UnknownCollection,
        InvalidRequest where none is under way."""
        return reembedding.cancel(self._services, collection)
