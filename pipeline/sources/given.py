"""What an application hands to `ingest`, as a stream of documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

from pipeline.document import Document, canonical
from pipeline.errors import InvalidRequest
from pipeline.settings import SourceSettings
from pipeline.sources import open_source
from pipeline.sources.base import Rejected, Source
from pipeline.sources.inline import InlineSource

# A path, glob or URL, several of them, documents in any inline form, or a Source.
Ingestible = str | Path | Source | Iterable[Any]


def open_given(
    given: Ingestible, settings: SourceSettings, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[Iterable[Document | Rejected], bytes]:
    """The documents, and what tells this request from another one under the same idempotency key.

    include, exclude: gitignore patterns for the files of directories. Raises InvalidRequest, SourceRefused.
    """
    places = _places(given)
    if places:
        opened = [open_source(place, settings, include=include, exclude=exclude) for place in places]
        names = [str(place) for place in places]
        patterns = [list(include), list(exclude)] if include or exclude else []
        return chain.from_iterable(opened), canonical([names, *patterns])
    if include or exclude:
        raise InvalidRequest("include and exclude choose among the files of a directory; no path is given here")
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


def _mark(item: Document | Rejected) -> tuple[str, ...]:
    if isinstance(item, Document):
        return item.uri, item.content_hash().hex(), item.meta_hash().hex()
    return item.uri, item.error
