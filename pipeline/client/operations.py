"""What operators ask for: is everything there, how is the whole."""

from __future__ import annotations

from typing import Any

from pipeline.audit import AuditReport, audit
from pipeline.client.connection import DEFAULT_COLLECTION, Connected
from pipeline.health import health
from pipeline.ledger import collections


class Operations(Connected):
    """The whole, and whether it is whole."""

    def audit(self, collection: str = DEFAULT_COLLECTION) -> AuditReport:
        """Compares the ledger with the index, point by point; changes nothing."""
        with self._services.ledger.transaction() as own:
            found = collections.get(own, collection)
        return audit(self._services.ledger, self._services.vectors, found)

    def status(self) -> dict[str, Any]:
        """Health, queues (messages and ready batches), jobs by state, live workers."""
        return health(self._services)
