"""Who searches all the while, and checks every answer against what the ledger had published before the question.

A question about one document must find all of it, in one version that is no older than the published one; a question
about anything must never mix two versions of a document. A deleted document must not be found.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.client import Client
from pipeline.errors import InvalidRequest, Transient
from pipeline.search import Result
from workers.drill.corpus import Content, Record
from workers.drill.plain import Away, Sql

_PAUSE_SECONDS = 0.15
_SHARE_AIMED = 0.7
_WHOLE = 200  # more chunks than any document has
_LISTED = 20
_SNAPSHOT_SECONDS = 2.0


@dataclass(slots=True)
class Searches:
    """made: answers that were checked. unverified: answers while Postgres was away, which promise nothing. unanswered:
    questions that ended with an error that says so. anomalies: answers that must not be."""

    made: int = 0
    unverified: int = 0
    unanswered: int = 0
    incomplete: int = 0
    anomalies: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, int]:
        return {
            "made": self.made,
            "unverified": self.unverified,
            "unanswered": self.unanswered,
            "incomplete": self.incomplete,
            "anomalies": len(self.anomalies),
        }


class Searcher(threading.Thread):
    """Searches until it is told to stop. `failure`: what ended it before."""

    def __init__(self, client: Client, sql: Sql, collection: str, record: Record, seed: int) -> None:
        super().__init__(name="searcher", daemon=True)
        self.searches = Searches()
        self.failure: Exception | None = None
        self._client = client
        self._sql = sql
        self._collection = collection
        self._record = record
        self._random = random.Random(f"searcher {seed}")  # noqa: S311 - nothing secret is chosen
        self._told = threading.Event()
        self._published: dict[str, str] = {}  # uri -> the key of the write that is published, as of `_looked`
        self._looked = float("-inf")

    def stop(self) -> None:
        self._told.set()

    def run(self) -> None:
        try:
            while not self._told.wait(_PAUSE_SECONDS):
                self.search_next()
        except Exception as failure:  # noqa: BLE001 - told by whoever joins this thread
            self.failure = failure
        finally:
            self._sql.close()

    def search_next(self) -> None:
        """Once there is something to be found. Raises what the client raises for good."""
        uris = self._record.uris()
        if not uris:
            return
        try:
            if self._random.random() < _SHARE_AIMED:
                self._aimed(self._random.choice(uris))
            else:
                self._open(self._random.choice(uris))
        except (Away, Transient):
            self.searches.unanswered += 1
        except InvalidRequest:
            # The collection, or its field, is made with the first write.
            if self.searches.made:
                raise

    def _aimed(self, uri: str) -> None:
        """All chunks of one document."""
        published = self._read_published([uri])
        answer = self._client.search(_question(uri), collection=self._collection, filters={"uri": uri}, limit=_WHOLE)
        if not self._counts(answer.degraded):
            return
        possible = self._record.since(uri, published.get(uri))
        if possible is None or not matches(list(answer.results), possible, whole=True):
            found = sorted({result.text[:24] for result in answer.results})
            self._anomaly(f"{uri}: {len(found)} chunks that are no whole version of it: {found[:5]}")

    def _open(self, uri: str) -> None:
        """The best chunks of all documents."""
        if time.monotonic() - self._looked > _SNAPSHOT_SECONDS:
            self._published = self._read_published()
            self._looked = time.monotonic()
        published = self._published
        answer = self._client.search(_question(uri), collection=self._collection, limit=20)
        if not self._counts(answer.degraded):
            return
        by_uri: dict[str, list[Result]] = defaultdict(list)
        for result in answer.results:
            by_uri[result.uri].append(result)
        for found, results in by_uri.items():
            possible = self._record.since(found, published.get(found))
            if possible is None or not matches(results, possible, whole=False):
                self._anomaly(f"{found}: chunks of no version that it could have: {[r.text[:24] for r in results]}")

    def _counts(self, degraded: Iterable[str]) -> bool:
        if "unverified" in degraded:
            self.searches.unverified += 1
            return False
        if "incomplete" in degraded:
            self.searches.incomplete += 1
            return False
        self.searches.made += 1
        return True

    def _read_published(self, uris: list[str] | None = None) -> dict[str, str]:
        """uri -> the key of the write that is published, of these documents or of all."""
        rows = self._sql.rows(
            """SELECT d.uri, j.idempotency_key AS key FROM collections c JOIN documents d ON d.collection_id = c.id
                 JOIN versions v ON v.id = d.published_version JOIN jobs j ON j.id = v.job_id
                WHERE c.name = %(name)s AND (%(uris)s::text[] IS NULL OR d.uri = ANY(%(uris)s::text[]))""",
            {"name": self._collection, "uris": uris},
        )
        return {row["uri"]: row["key"] for row in rows}

    def _anomaly(self, what: str) -> None:
        if len(self.searches.anomalies) < _LISTED:
            self.searches.anomalies.append(what)


def matches(results: list[Result], possible: list[Content | None], *, whole: bool) -> bool:
    """Whether all the chunks are of one of the contents that the document may have; with `whole`, are all of it."""
    if not results:
        return not whole or None in possible
    texts = ["".join(result.text.split()) for result in results]
    labels = {result.metadata.get("label") for result in results}
    for content in {content for content in possible if content is not None and {content.label} == labels}:
        bare = "".join(content.text.split())
        if all(text in bare for text in texts) and (not whole or sum(map(len, texts)) == len(bare)):
            return True
    return False


def _question(uri: str) -> str:
    """Words that are in the documents, other ones for each uri."""
    chosen = random.Random(uri)  # noqa: S311 - nothing secret is chosen
    return " ".join(chosen.sample(("mill", "stone", "water", "flour", "bridge", "oven", "lease", "batch"), 4))
