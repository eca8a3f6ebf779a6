"""Who writes the documents of a drill, through the client that applications use, job after job without waiting."""

from __future__ import annotations

import threading
import time

from pipeline.client import Client
from pipeline.document import Document
from pipeline.errors import Transient
from workers.drill.corpus import Corpus, Record, Write
from workers.drill.plain import Away, Sql

_RETRY_SECONDS = 0.3
_LOOK_SECONDS = 0.1
# So much is under way at once: enough that every worker always has work, little enough that the drill ends soon.
_UNFINISHED_JOBS = 16
_UNFINISHED_DOCUMENTS = 100


class Writer(threading.Thread):
    """Writes until it is told to stop; then the write under way is brought to its end. `failure`: what ended it."""

    def __init__(self, client: Client, sql: Sql, collection: str, corpus: Corpus, record: Record) -> None:
        super().__init__(name="writer", daemon=True)
        self.written = 0
        self.retried = 0
        self.failure: Exception | None = None
        self._client = client
        self._sql = sql
        self._collection = collection
        self._corpus = corpus
        self._record = record
        self._told = threading.Event()

    def stop(self) -> None:
        self._told.set()

    def run(self) -> None:
        try:
            while not self._told.is_set():
                if self.written and self._enough():
                    self._told.wait(_LOOK_SECONDS)
                    continue
                self.write_next()
        except Exception as failure:  # noqa: BLE001 - told by whoever joins this thread
            self.failure = failure
        finally:
            self._sql.close()

    def write_next(self) -> None:
        """Raises what the client raises for good."""
        write = self._corpus.next()
        self._record.begin(write)
        self._write(write)
        self._record.acknowledge(write)
        self.written += 1

    def _write(self, write: Write) -> None:
        """Until it is acknowledged: under its key, what was cut off goes on and is not done twice."""
        while True:
            try:
                if write.deletes:
                    self._client.delete(list(write.contents), collection=self._collection, idempotency_key=write.key)
                else:
                    documents = [
                        Document(uri, content.text, "text/plain", {"label": content.label})
                        for uri, content in write.contents.items()
                        if content is not None
                    ]
                    self._client.ingest(documents, collection=self._collection, idempotency_key=write.key)
                return
            except Transient:
                self.retried += 1
                time.sleep(_RETRY_SECONDS)

    def _enough(self) -> bool:
        try:
            row = self._sql.one(
                """SELECT count(*) AS jobs,
                          coalesce(sum(j.documents_total - j.documents_indexed - j.documents_unchanged
                                       - j.documents_deleted - j.documents_failed - j.documents_superseded
                                       - j.documents_cancelled), 0) AS documents
                     FROM jobs j JOIN collections c ON c.id = j.collection_id
                    WHERE c.name = %(name)s AND j.finished_at IS NULL""",
                {"name": self._collection},
            )
        except Away:
            return True
        return bool(row["jobs"] >= _UNFINISHED_JOBS or row["documents"] >= _UNFINISHED_DOCUMENTS)
