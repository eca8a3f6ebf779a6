"""Bytes to text: `extract` is the one entry; a reader per format is beside it.

A new format is a row in `pipeline.media.FORMATS` and a reader in `_READERS`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pipeline import media
from pipeline.errors import EmptyDocument, UnsupportedFormat
from pipeline.extract.text import clean, decode

_REVISION = 1  # raised whenever the text of some document comes out differently
EXTRACTOR = f"millrace-{_REVISION} kreuzberg-{version('kreuzberg')}"
"""What determines the text of a document, besides its bytes; a part of the recipe hash."""

Markup = Literal["markdown", "plain"]


@dataclass(frozen=True, slots=True)
class Extracted:
    """The text of a document. title: "" where the document names none. metadata: JSON values found in it.

    pages: where in `text` each page begins, in characters, page 1 first; () for a format without pages.
    """

    text: str
    markup: Markup
    title: str
    metadata: dict[str, Any] = field(default_factory=dict)
    pages: tuple[int, ...] = ()


def extract(data: bytes, media_type: str | None, uri: str) -> Extracted:
    """The text of a document: clean (no control characters, one kind of newline), the same for the same bytes.

    `media_type` None, or one that says nothing, is told from the name in `uri` and from the content. Raises
    UnsupportedFormat, ExtractionFailed and EmptyDocument, each naming the uri.
    """
    if not data:
        raise EmptyDocument(f"{uri} is empty; leave it out, or delete it from the collection if it should be gone")
    kind = media.detect(uri, data, media_type)
    format_ = media.format_of(kind)
    if format_ is None:
        raise UnsupportedFormat(
            f"{uri}: no extractor knows {media.essence(kind)}; convert it to text, Markdown, HTML or PDF"
        )
    found = _READERS[format_](data, kind, uri)
    text = clean(found.text)
    if not text.strip():
        raise EmptyDocument(f"{uri} has no text; leave it out, or delete it from the collection if it should be gone")
    return Extracted(text, found.markup, _line(found.title), _clean_values(found.metadata))


def _plain(data: bytes, kind: str, uri: str) -> Extracted:
    return Extracted(decode(data, media.charset(kind)), "plain", "")


_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_UNDERLINED = re.compile(r"^(\S[^\n]*)\n(?:=+|-{3,})[ \t]*$", re.MULTILINE)


def _markdown(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.front_matter import split

    values, text = split(clean(decode(data, media.charset(kind))))
    title = str(values.pop("title", "") or "")
    if not title:
        head = text[:4000]
        found = [match for pattern in (_HEADING, _UNDERLINED) if (match := pattern.search(head))]
        title = min(found, key=lambda match: match.start())[1] if found else ""
    return Extracted(text, "markdown", title, values)


_META_CHARSET = re.compile(
    rb"""<(?:meta[^>]{0,200}?charset|\?xml[^>]{0,200}?encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE
)
_META_BYTES = 4096


def _html(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.html import read_page

    declared = _META_CHARSET.search(data[:_META_BYTES])
    page = read_page(
        clean(decode(data, media.charset(kind) or (declared[1].decode("ascii", "replace") if declared else None)))
    )
    return Extracted(page.text, "markdown", page.title or page.heading, page.metadata)


def _pdf(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.pdf import read_pdf

    found = read_pdf(data, uri)
    return Extracted(found.text, "plain", found.title, found.metadata)


_READERS: dict[media.Format, Callable[[bytes, str, str], Extracted]] = {
    "plain": _plain,
    "markdown": _markdown,
    "html": _html,
    "pdf": _pdf,
}


def name_title(uri: str) -> str:
    """A title for a document that names none: the last part of its uri, without the extension."""
    path = uri
    if "://" in uri:
        try:
            path = unquote(urlsplit(uri).path)
        except ValueError:
            path = uri
    base = posixpath.basename(path.rstrip("/"))
    return clean(posixpath.splitext(base)[0] or base)


_MAX_TITLE = 300  # characters
_MAX_VALUE = 2000  # characters of one value of metadata; longer ones are texts, and cut
_MAX_ITEMS = 100


def _line(title: str) -> str:
    return " ".join(clean(title).split())[:_MAX_TITLE].rstrip()


def _clean_values(values: dict[str, Any]) -> dict[str, Any]:
    """The values without what JSON in Postgres cannot hold, and none of them endless."""
    cleaned = {_line(key): _clean_value(value) for key, value in values.items()}
    return {key: value for key, value in cleaned.items() if key and value not in (None, "", [])}


def _clean_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean_value(item) for item in value[:_MAX_ITEMS]]
    return clean(value)[:_MAX_VALUE] if isinstance(value, str) else value
