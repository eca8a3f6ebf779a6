"""Books (.epub) to Markdown: the chapters in reading order, each read as the web page that it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from pipeline.errors import ExtractionFailed
from pipeline.extract.found import Found
from pipeline.extract.office.elements import inner_text, root
from pipeline.extract.office.ooxml import iso_date
from pipeline.extract.office.package import Package, resolve

_CHAPTERS = frozenset({"application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document"})
_MAX_CHAPTERS = 10_000
_MIN_WORDS = 40  # beside its links; a table of contents with fewer is nothing else
_TAG = re.compile(rb"<[^<>]*+>")
_KEYS = {"dc-language": "language", "dc-description": "description"}


class Chapter(NamedTuple):
    """text: Markdown. heading: its first one, or ""."""

    text: str
    heading: str


ReadHtml = Callable[[bytes], Chapter]


def read_epub(data: bytes, uri: str, read_html: ReadHtml) -> Found:
    """The spine without the table of contents. Raises ExtractionFailed, also for a book that is locked."""
    package = Package(data, uri, "EPUB book")
    name = _package_name(package)
    book = root(package.read(name), uri, name)
    names = _spine(book, name)
    if not names:
        raise package.broken("its spine names no chapters")
    locked = _locked(package)
    if any(chapter.lower() in locked for chapter in names):
        raise ExtractionFailed(f"{uri} is encrypted (DRM); ingest a copy that is not")
    labels = _labels(package, book, name)
    texts: list[str] = []
    contents = _contents(book, name)
    for chapter in names:
        source = package.read(chapter)
        if chapter in contents and _words_beside_links(source) < _MIN_WORDS:
            continue
        text, heading = read_html(source)
        if text.strip():
            label = labels.get(chapter.lower(), "")
            # A chapter whose heading is a picture, or none, takes its name from the table of contents.
            texts.append(text if heading or not label else f"# {label}\n\n{text}")
    title, metadata = _properties(book)
    return Found("\n\n".join(texts), title, metadata)


def _package_name(package: Package) -> str:
    if "META-INF/container.xml" in package:
        container = root(package.read("META-INF/container.xml"), package.uri, "META-INF/container.xml")
        for entry in container.iter("ocf-rootfile"):
            name = resolve("", entry.get("full-path", ""))
            if name in package:
                return name
    found = [name for name in package.names() if name.lower().endswith(".opf")]
    if not found:
        raise package.broken("it has no package document")
    return found[0]


def _manifest(book: Element) -> dict[str, Element]:
    return {item.get("id", ""): item for item in book.iterfind("opf-manifest/opf-item")}


def _spine(book: Element, name: str) -> list[str]:
    """The names of the chapters' parts, each once, without the part that programs navigate by."""
    manifest = _manifest(book)
    found: dict[str, None] = {}
    for entry in book.iterfind("opf-spine/opf-itemref"):
        item = manifest.get(entry.get("idref", ""))
        if item is None or item.get("media-type", "") not in _CHAPTERS or len(found) >= _MAX_CHAPTERS:
            continue
        part = resolve(name, item.get("href", ""))
        if "nav" not in item.get("properties", "").split():
            found[part] = None
    return list(found)


def _contents(book: Element, name: str) -> set[str]:
    """The parts that are called the table of contents; some have more to say, as the front page of a manual."""
    return {
        resolve(name, entry.get("href", ""))
        for entry in book.iterfind("opf-guide/opf-reference")
        if entry.get("type") == "toc"
    }


def _words_beside_links(source: bytes) -> int:
    """How many words stand in no link."""
    beside = b" ".join(piece.partition(b"<a ")[0] for piece in source.partition(b"<body")[2].split(b"</a>"))
    return len(_TAG.sub(b" ", beside).split())


def _locked(package: Package) -> set[str]:
    """The parts that are encrypted (fonts often are, and do not matter)."""
    listing = "META-INF/encryption.xml"
    if listing not in package:
        return set()
    found = root(package.read(listing), package.uri, listing)
    return {resolve("", entry.get("URI", "")).lower() for entry in found.iter("enc-CipherReference")}


def _labels(package: Package, book: Element, name: str) -> dict[str, str]:
    """What the table of contents (NCX) calls each part, by its name in lower case."""
    for item in _manifest(book).values():
        if item.get("media-type") == "application/x-dtbncx+xml":
            part = resolve(name, item.get("href", ""))
            if part not in package:
                continue
            found: dict[str, str] = {}
            for point in root(package.read(part), package.uri, part).iter("ncx-navPoint"):
                content = point.find("ncx-content")
                if content is not None:
                    target = resolve(part, content.get("src", "")).lower()
                    found.setdefault(target, inner_text(point.find("ncx-navLabel")))
            return found
    return {}


def _properties(book: Element) -> tuple[str, dict[str, Any]]:
    title = ""
    metadata: dict[str, Any] = {}
    for entry in book.iterfind("opf-metadata//*"):
        text = inner_text(entry)
        if not text:
            continue
        if entry.tag == "dc-title":
            title = title or text
        elif entry.tag == "dc-creator":
            metadata.setdefault("authors", []).append(text)
        elif entry.tag == "dc-subject":
            metadata.setdefault("keywords", []).append(text)
        elif entry.tag == "dc-date" and iso_date(text):
            metadata.setdefault("created", text)
        elif entry.get("property") == "dcterms:modified" and iso_date(text):
            metadata.setdefault("modified", text)
        elif entry.tag in _KEYS:
            metadata.setdefault(_KEYS[entry.tag], text)
    return title, metadata
