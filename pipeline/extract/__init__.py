"""Bytes to text: `extract` is the one entry; a reader per format is beside it.

A new format is a row in `pipeline.media.FORMATS` and a reader in `_READERS`.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pipeline import media
from pipeline.errors import EmptyDocument
from pipeline.extract.found import Found
from pipeline.extract.text import clean, clean_pages, decode

if TYPE_CHECKING:
    from pipeline.extract.html.page import Page

_REVISION = 2  # raised whenever the text of some document comes out differently
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


class Raw(NamedTuple):
    """A document as it came: its bytes, the media type if one was declared, its name."""

    data: bytes
    media_type: str | None
    uri: str


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
        raise media.unsupported(uri, kind)
    found = _READERS[format_](data, kind, uri)
    text, pages = clean_pages(found.text, found.pages)
    if not text.strip():
        raise EmptyDocument(f"{uri} has no text; leave it out, or delete it from the collection if it should be gone")
    return Extracted(text, found.markup, _line(found.title), _clean_values(found.metadata), pages)


def _plain(data: bytes, kind: str, uri: str) -> Extracted:
    return Extracted(decode(data, media.charset(kind)), "plain", "")


# The closing hashes of a heading are taken off afterwards: in a pattern they take time with the cube of its length.
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]++([^\s][^\n]*+)$", re.MULTILINE)
_UNDERLINED = re.compile(r"^(\S[^\n]*)\n(?:=+|-{3,})[ \t]*$", re.MULTILINE)


def _markdown(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.front_matter import split

    values, text = split(clean(decode(data, media.charset(kind))))
    title = str(values.pop("title", "") or "")
    if not title:
        head = text[:4000]
        found = [match for pattern in (_HEADING, _UNDERLINED) if (match := pattern.search(head))]
        title = _without_closing(min(found, key=lambda match: match.start())[1]) if found else ""
    return Extracted(text, "markdown", title, values)


def _without_closing(heading: str) -> str:
    """`Title` of `Title ##`, and `C#` of `C#`."""
    heading = heading.rstrip(" \t")
    bare = heading.rstrip("#")
    return heading if bare and bare[-1] not in " \t" else bare.rstrip(" \t")


_META_CHARSET = re.compile(
    rb"""<(?:meta[^>]{0,200}?charset|\?xml[^>]{0,200}?encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE
)
_META_BYTES = 4096


def _page(data: bytes, charset: str | None) -> Page:
    from pipeline.extract.html.page import read_page

    declared = _META_CHARSET.search(data[:_META_BYTES])
    return read_page(clean(decode(data, charset or (declared[1].decode("ascii", "replace") if declared else None))))


def _html(data: bytes, kind: str, uri: str) -> Extracted:
    page = _page(data, media.charset(kind))
    return Extracted(page.text, "markdown", page.title or page.heading, page.metadata)


def _pdf(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.pdf import read_pdf

    found = read_pdf(data, uri)
    return Extracted(found.text, "plain", found.title, found.metadata, found.pages)


def _word(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.office.word import read_word

    return _markdown_of(read_word(data, uri))


def _slides(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.office.slides import read_slides

    return _markdown_of(read_slides(data, uri))


def _workbook(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.office.workbook import read_workbook

    return _markdown_of(read_workbook(data, uri))


def _epub(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.epub import Chapter, read_epub

    def read(part: bytes) -> Chapter:
        page = _page(part, None)
        return Chapter(page.text, page.heading)

    return _markdown_of(read_epub(data, uri, read))


def _mail(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.mail import read_mail

    return _markdown_of(read_mail(data, uri, lambda part, charset: _page(part, charset).text))


def _rst(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.rst.document import read_rst

    return _markdown_of(read_rst(clean(decode(data, media.charset(kind)))))


def _notebook(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.notebook import read_notebook

    return _markdown_of(read_notebook(data, uri))


def _opendocument(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.office.opendocument import read_opendocument

    return _markdown_of(read_opendocument(data, uri))


def _rtf(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.office.rtf import read_rtf

    return _markdown_of(read_rtf(data, uri))


def _ole(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.office.legacy import refuse

    refuse(data, kind, uri)


def _csv(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.tables import write_csv

    return Extracted(write_csv(decode(data, media.charset(kind)), uri), "plain", "")


def _parquet(data: bytes, kind: str, uri: str) -> Extracted:
    from pipeline.extract.tables import write_parquet

    return Extracted(write_parquet(data, uri), "plain", "")


def _markdown_of(found: Found) -> Extracted:
    return Extracted(found.text, "markdown", found.title, found.metadata, found.pages)


_READERS: dict[media.Format, Callable[[bytes, str, str], Extracted]] = {
    "plain": _plain,
    "markdown": _markdown,
    "html": _html,
    "pdf": _pdf,
    "word": _word,
    "slides": _slides,
    "workbook": _workbook,
    "epub": _epub,
    "mail": _mail,
    "rst": _rst,
    "notebook": _notebook,
    "opendocument": _opendocument,
    "rtf": _rtf,
    "ole": _ole,
    "csv": _csv,
    "parquet": _parquet,
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
    cleaned = {_line(key): _clean_value(value) for key, value in islice(values.items(), _MAX_ITEMS)}
    return {key: value for key, value in cleaned.items() if key and value not in (None, "", [])}


def _clean_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean_value(item) for item in value[:_MAX_ITEMS]]
    if isinstance(value, dict):
        return _clean_values(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return clean(value)[:_MAX_VALUE] if isinstance(value, str) else value
