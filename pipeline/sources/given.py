"""What an application hands to `ingest`, as a stream of documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

from pipeline.document import Document, canonical
from pipeline.errors import InvalidRequest
from pipeline.settings import SourceSettings
from pipeline.sources import open_source
from pipeline.sources.base import Item, Known, Rejected, Source, documents_since, skipped
from pipeline.sources.inline import InlineSource
from pipeline.sources.rows import Rows

# A path, glob or URL, several of them, documents in any inline form, or a Source.
Ingestible = str | Path | Source | Iterable[Any]


class Several:
    """The documents of several sources, one source after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def __iter__(self) -> Iterator[Item]:
        return chain.from_iterable(self._sources)

    @property
    def skipped(self) -> int:
        return sum(skipped(source) for source in self._sources)

    def since(self, known: Known) -> Iterator[Item]:
        return chain.from_iterable(documents_since(source, known) for source in self._sources)


def open_given(
    given: Ingestible,
    settings: SourceSettings,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rows: Rows | None = None,
) -> tuple[Iterable[Item], bytes]:
    """The documents, and what tells this request from another one under the same idempotency key.

    include, exclude: gitignore patterns for the files of directories. rows: how the rows of tables become documents.
    Raises InvalidRequest, SourceRefused.
    """
    places = _places(given)
    if places:
        opened = [open_source(place, settings, include=include, exclude=exclude, rows=rows) for place in places]
        names = [str(place) for place in places]
        patterns = [list(include), list(exclude)] if include or exclude else []
        mapping = [rows.to_json()] if rows is not None else []
        return Several(opened), canonical([names, *patterns, *mapping])
    if include or exclude or rows is not None:
        raise InvalidRequest("include, exclude and rows are about files and directories; no path is given here")
    if isinstance(given, Mapping):
        return InlineSource([given], settings), canonical(given)
    if isinstance(given, list | tuple):
        found = list(InlineSource(given, settings))
        return found, canonical([_mark(item) for item in found])
    if isinstance(given, Source):
        return given, canonical(type(given).__qualname__)
    return InlineSource(cast(Iterable[Any], given), settings), canonical("stream")


def _places(given: Ingestible) -> list[str | Path]:
    """The paths, globs and URLs that were given; none where documents were."""
    if isinstance(given, str | Path):
        return [given]
    if isinstance(given, list | tuple) and all(isinstance(item, str | Path) for item in given):
        return list(given)
    return []


def _mark(item: Item) -> tuple[str, ...]:
    if isinstance(item, Document):
        return item.uri, item.content_hash().hex(), item.meta_hash().hex()
    return (item.uri, item.error) if isinstance(item, Rejected) else (item.uri,)
