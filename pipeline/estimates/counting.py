"""What documents are made of: chunks and tokens, and which of them are stored, on their way, or new."""

from __future__ import annotations

import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.document import Document, embedding_key
from pipeline.drafts import make_drafts
from pipeline.embedding.base import ModelSpec
from pipeline.ledger import estimating
from pipeline.ledger.collections import Collection
from pipeline.ledger.versions import Staged
from pipeline.tools import Tools

_MOST_ERRORS = 100

Kind = Literal["new", "cached", "ordered", "repeated"]
KINDS: tuple[Kind, ...] = ("new", "cached", "ordered", "repeated")


@dataclass(frozen=True, slots=True)
class Counted:
    """Texts and their tokens, as the collection's model counts them."""

    texts: int = 0
    tokens: int = 0

    def __add__(self, other: Counted) -> Counted:
        return Counted(self.texts + other.texts, self.tokens + other.tokens)


class Tally:
    """What was counted so far. documents: by what becomes of them. kinds: of the chunks, each of one kind.

    The keys that came before are kept in a file of its own, gone when it is closed: there may be more than fit into
    memory.
    """

    def __init__(self) -> None:
        self.documents: Counter[str] = Counter()
        self.chunks = Counted()
        self.kinds: dict[Kind, Counted] = dict.fromkeys(KINDS, Counted())
        self.errors: list[dict[str, str]] = []
        self._seen = sqlite3.connect("", isolation_level=None)
        self._seen.execute("PRAGMA journal_mode = OFF")
        self._seen.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def close(self) -> None:
        self._seen.close()

    def failed(self, uri: str, error: str) -> None:
        self.documents["failed"] += 1
        if len(self.errors) < _MOST_ERRORS:
            self.errors.append({"uri": uri, "error": error})

    def add(self, kind: Kind, tokens: int) -> None:
        """A chunk."""
        self.chunks += Counted(1, tokens)
        self.kinds[kind] += Counted(1, tokens)

    def is_first(self, key: bytes) -> bool:
        """Whether no text with this key came before."""
        return self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1


@dataclass(frozen=True, slots=True)
class Cutting:
    """How documents are cut: with a collection's model, and the recipe of its jobs."""

    tools: Tools
    collection: Collection
    recipe: Mapping[str, Any]
    tenant: str
    fingerprint: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", ModelSpec.from_json(self.collection.model).fingerprint("passage"))

    def parts(self, documents: Sequence[Document]) -> Iterator[list[Document]]:
        """As prepare batches are cut, so that as much is in memory at once as in a worker."""
        settings = self.tools.ingest
        part: list[Document] = []
        size = 0
        for document in documents:
            part.append(document)
            size += len(document.data)
            if len(part) >= settings.prepare_documents or size >= settings.prepare_bytes:
                yield part
                part, size = [], 0
        if part:
            yield part

    def count(self, documents: Sequence[Document], tally: Tally) -> None:
        """Adds what a part is made of."""
        wanted: dict[bytes, int] = {}
        staged = [self._staged(item) for item in documents]
        for draft in make_drafts(self.tools, self.collection, self.recipe, staged, lambda: None):
            if draft.error:
                tally.failed(draft.staged.uri, draft.error)
                continue
            tally.documents["new"] += 1
            for chunk in draft.chunks:
                key = embedding_key(self.fingerprint, chunk.text)
                if tally.is_first(key):
                    wanted[key] = chunk.tokens
                else:
                    tally.add("repeated", chunk.tokens)
        with estimating.read_only(self.tools.ledger.transaction) as connection:
            stored = estimating.stored(connection, list(wanted))
            ordered = estimating.ordered(connection, [key for key in wanted if key not in stored])
        for key, tokens in wanted.items():
            tally.add("cached" if key in stored else "ordered" if key in ordered else "new", tokens)

    def _staged(self, item: Document) -> Staged:
        return Staged(
            version_id=0,
            document_id=0,
            job_id=uuid.UUID(int=0),
            kind="ingest",
            uri=item.uri,
            tenant=self.tenant,
            metadata=item.metadata,
            media_type=item.media_type,
            content=item.data,
            published_version=None,
            same_as_published=False,
        )
