"""What a staged version would become: its document's text, extracted, and cut into chunks."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.document import Chunk
from pipeline.errors import EmptyDocument, InvalidDocument
from pipeline.extract import Extracted, Raw
from pipeline.ledger.collections import Collection
from pipeline.ledger.versions import Staged
from pipeline.observe import operation, record
from pipeline.settings import ChunkingSettings
from pipeline.tools import Progress, Tools

# Characters of text that are cut into chunks together: their counting holds several times as much in memory.
_CUT_AT_ONCE = 8 * 1024 * 1024


@dataclass(slots=True)
class Draft:
    """A staged version with the chunks that it would have."""

    staged: Staged
    title: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    pages: tuple[int, ...] = ()
    chunks: list[Chunk] = field(default_factory=list)
    error: str | None = None

    def chunk_pages(self) -> list[int]:
        """The page that each chunk begins on, counted from 1; none for a format without pages."""
        return [bisect_right(self.pages, _first_word(chunk)) for chunk in self.chunks] if self.pages else []


def make_drafts(
    tools: Tools, collection: Collection, recipe: Mapping[str, Any], staged: Sequence[Staged], progress: Progress
) -> list[Draft]:
    """Extracts and chunks; a document that fails says so in its draft, the others go on."""
    drafts = [Draft(item, metadata=dict(item.metadata)) for item in staged]
    cutter = _Cutter(tools, collection, recipe, progress)
    to_read = [draft for draft in drafts if draft.staged.kind != "delete" and not draft.staged.same_as_published]
    raws = [Raw(draft.staged.content, draft.staged.media_type, draft.staged.uri) for draft in to_read]
    reading = _Timed(tools.extract(raws, progress))
    for draft, extracted in zip(to_read, reading, strict=True):
        if isinstance(extracted, InvalidDocument):
            draft.error = str(extracted)
            continue
        given_title = draft.staged.metadata.get("title")
        draft.title = given_title if isinstance(given_title, str) and given_title else extracted.title
        draft.metadata = {**extracted.metadata, **draft.staged.metadata}
        draft.pages = extracted.pages
        cutter.add(draft, extracted.text, extracted.markup)
    cutter.cut()
    if to_read:
        record("extract", reading.seconds)
    return drafts


class _Timed:
    """An iteration, and the seconds that were waited for it."""

    def __init__(self, found: Iterator[Extracted | InvalidDocument]) -> None:
        self._found = found
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Extracted | InvalidDocument]:
        return self

    def __next__(self) -> Extracted | InvalidDocument:
        started = time.perf_counter()
        try:
            return next(self._found)
        finally:
            self.seconds += time.perf_counter() - started


class _Cutter:
    """Cuts the texts of drafts into chunks: many at once, for they are counted together, but never endlessly many."""

    def __init__(self, tools: Tools, collection: Collection, recipe: Mapping[str, Any], progress: Progress) -> None:
        self._tools, self._collection, self._recipe, self._progress = tools, collection, recipe, progress
        self._drafts: list[Draft] = []
        self._texts: list[tuple[str, str]] = []
        self._characters = 0

    def add(self, draft: Draft, text: str, markup: str) -> None:
        self._drafts.append(draft)
        self._texts.append((text, markup))
        self._characters += len(text)
        if self._characters >= _CUT_AT_ONCE:
            self.cut()

    def cut(self) -> None:
        """Gives the drafts that were added their chunks; one that has none is said to be empty."""
        drafts, texts = self._drafts, self._texts
        self._drafts, self._texts, self._characters = [], [], 0
        if not texts:
            return
        with operation("chunk"):
            self._cut(drafts, texts)
        self._progress()

    def _cut(self, drafts: Sequence[Draft], texts: Sequence[tuple[str, str]]) -> None:
        embedder = self._tools.embedder(self._collection.model)
        chunker = self._tools.chunker(ChunkingSettings(**self._recipe.get("chunking", {})), embedder)
        for draft, found in zip(drafts, chunker.chunk_many(texts, self._progress), strict=True):
            draft.chunks = found
            if not found:
                draft.error = str(EmptyDocument(f"{draft.staged.uri} has no text"))


def _first_word(chunk: Chunk) -> int:
    """Where in the document's text the chunk's own text begins to say something."""
    return chunk.start + len(chunk.text) - len(chunk.text.lstrip())
