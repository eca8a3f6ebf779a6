"""Batches of the Batch API: what is on order, how far it is, what it cost."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.client.connection import Connected
from pipeline.ledger import remote
from pipeline.openai_batch import webhook
from pipeline.openai_batch.report import BatchStatus


class Batches(Connected):
    """What the Batch API is asked to do."""

    def batches(self, *, closed: int | None = 20) -> list[BatchStatus]:
        """Those that are at work, and the newest that are closed (so many; None: all), newest first."""
        with self._services.ledger.transaction() as own:
            return [BatchStatus.of(batch) for batch in remote.listing(own, closed=closed)]

    def batch(self, batch_id: int) -> BatchStatus:
        """How the batch is going. Raises UnknownBatch."""
        with self._services.ledger.transaction() as own:
            return BatchStatus.of(remote.find(own, batch_id))

    def cancel_batch(self, batch_id: int, reason: str = "somebody asked for it") -> bool:
        """Cancels a batch: what it has finished is kept, and what is still wanted of the rest is ordered anew.

        False where it has ended, or is being cancelled already. Raises UnknownBatch.
        """
        with self._services.ledger.transaction() as own:
            return remote.cancel(own, batch_id, reason)

    def openai_webhook(self, headers: Mapping[str, str], body: bytes | str) -> bool:
        """Takes a webhook that OpenAI has posted to the application: the batch that it is about is looked at soon.

        Whether it was about one that is waited for. Raises WebhookRejected (answer it with 400), InvalidSettings.
        """
        settings = self.settings
        return webhook.hint(self._services.ledger, settings.openai, settings.openai_batch, headers, body)
