"""What operators ask for: is everything there, how is the whole."""

from __future__ import annotations

from typing import Any

from pipeline.audit import AuditReport, OnProgress, audit
from pipeline.client.connection import DEFAULT_COLLECTION, Connected
from pipeline.health import health
from pipeline.ledger import collections
from pipeline.ledger.collections import Collection
from pipeline.monitoring.storage_report import StorageReport
from pipeline.rebuild import Rebuilt, mend, rebuild


class Operations(Connected):
    """The whole, and whether it is whole."""

    def audit(
        self,
        collection: str = DEFAULT_COLLECTION,
        *,
        repair: bool = False,
        sample: int | None = None,
        all_vectors: bool = False,
        on_progress: OnProgress | None = None,
    ) -> AuditReport:
        """Compares the ledger with the index, point by point; changes nothing, unless it is to repair.

        repair: what is missing or wrong is put back from the durable embeddings, what does not belong there is deleted.
        sample: of so many points, by chance, the vector and payload are compared too (default: section audit of the
        settings); all_vectors: of every one. on_progress gets the part that is done, 0 to 1, and the counts so far.
        Raises UnknownCollection; VectorsUnavailable, LedgerUnavailable: then it can be run again.
        """
        check = mend if repair else audit
        return check(
            self._services.tools,
            self._known(collection),
            self.settings.audit,
            sample=sample,
            all_vectors=all_vectors,
            on_progress=on_progress,
        )

    def rebuild(
        self, collection: str = DEFAULT_COLLECTION, *, fresh: bool = False, on_progress: OnProgress | None = None
    ) -> Rebuilt:
        """Makes a collection that Qdrant has lost again, from the ledger alone; what is there stays.

        Ingest and searches go on meanwhile (as far as they go: `degraded` says "lost"). Killed, it goes on where
        it was when it is run again. fresh: what Qdrant has of it is dropped first. Raises as `audit` does.
        """
        return rebuild(
            self._services.tools, self._known(collection), self.settings.audit, fresh=fresh, on_progress=on_progress
        )

    def _known(self, name: str) -> Collection:
        with self._services.ledger.transaction() as own:
            return collections.get(own, name)

    def storage(self) -> StorageReport:
        """What Postgres, Qdrant and Redis hold, how fast it grows, and when they are full. One that does not answer is
        left out, and told of in `errors`."""
        return self._services.storage.read()

    def status(self) -> dict[str, Any]:
        """Health, queues (messages and ready batches), jobs by state, live workers."""
        return health(self._services)
