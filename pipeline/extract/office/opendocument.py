"""OpenDocument texts and presentations (.odt, .odp) to Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from xml.etree.ElementTree import Element

from pipeline.errors import ExtractionFailed
from pipeline.extract.blocks import Blocks, folded
from pipeline.extract.found import Found, join
from pipeline.extract.office.elements import children, inner_text, root
from pipeline.extract.office.ooxml import iso_date, split_words
from pipeline.extract.office.package import Package

_CONTENT = "content.xml"
_LEFT_OUT = frozenset(
    {
        "office-annotation",
        "office-annotation-end",
        "office-forms",
        "text-tracked-changes",
        "text-table-of-content",
        "text-illustration-index",
        "text-table-index",
        "text-object-index",
        "text-alphabetical-index",
        "text-user-index",
        "text-sequence-decls",
        "text-variable-decls",
        "text-ruby-text",
        "text-note-citation",
        "svg-title",
    }
)
_BREAKS = {"text-tab": "\t", "text-line-break": "\n"}
_RUNNING = frozenset({"header", "footer", "date-time", "page-number"})  # frames that say the same on every slide
_MAX_SPACES = 100
_MAX_COLUMNS = 1000
_MIN_ALT_WORDS = 4  # a description of a picture; shorter ones are labels
_LAYOUT_CELL = 1500  # characters; a table with a longer cell holds parts of the page, not values
_KEYS = {"dc-description": "description", "dc-subject": "subject", "dc-language": "language"}


class _Document:
    def __init__(self, ordered: dict[str, frozenset[int]], hidden: frozenset[str]) -> None:
        self.blocks = Blocks()
        self.title = ""
        self._ordered = ordered  # styles of lists: the levels that are numbered
        self._hidden = hidden  # styles of text that is not shown
        self._beside: list[Element] = []  # text boxes and tables of the paragraph at hand
        self._notes: list[Element] = []
        self._count = 0

    def read(self, elements: Iterable[Element]) -> None:
        for element in elements:
            tag = element.tag
            if tag == "text-h":
                level = element.get("text-outline-level", "1")
                self.blocks.heading(int(level[:1]) if level[:1].isdecimal() else 1, self.inline(element))
                self._write_beside()
            elif tag == "text-p":
                text = self.inline(element)
                if element.get("text-style-name") == "Title" and text:
                    self.title = self.title or " ".join(text.split())
                    self.blocks.heading(1, text)
                else:
                    self.blocks.paragraph(text)
                self._write_beside()
            elif tag == "text-list":
                self._list(element, 0, "")
                self.blocks.break_list()
            elif tag == "table-table":
                self._table(element)
            elif tag == "draw-frame" and element.get("presentation-class") in _RUNNING:
                continue
            elif tag == "draw-frame" and element.get("presentation-class") == "title":
                self.blocks.heading(1, " ".join(map(self.inline, element.iter("text-p"))))
            elif tag == "svg-desc":
                self.blocks.paragraph(_described(element))
            elif tag not in _LEFT_OUT:
                self.read(element)

    def inline(self, element: Element) -> str:
        pieces: list[str] = []
        self._inline(element, pieces)
        return folded("".join(pieces))

    def _inline(self, element: Element, pieces: list[str]) -> None:
        if element.get("text-style-name") in self._hidden:
            return
        pieces.append(" ".join((element.text or "").split("\n")))
        for child in element:
            tag = child.tag
            if tag in _BREAKS:
                pieces.append(_BREAKS[tag])
            elif tag == "text-s":
                count = child.get("text-c", "1")
                pieces.append(" " * min(int(count) if count.isdecimal() else 1, _MAX_SPACES))
            elif tag == "text-note":
                self._count += 1
                self._notes.append(child)
                pieces.append(f"[^{self._count}]")
            elif tag.startswith(("draw-", "table-")):
                self._beside.append(child)
            elif tag not in _LEFT_OUT:
                self._inline(child, pieces)
            pieces.append(" ".join((child.tail or "").split("\n")))

    def _write_beside(self) -> None:
        beside, self._beside = self._beside, []
        for element in beside:
            self.read([element])
        notes, self._notes = self._notes, []
        for number, note in enumerate(notes, self._count - len(notes) + 1):
            text = " ".join(" ".join(map(self.inline, note.iter("text-p"))).split())
            if text:
                self.blocks.markdown(f"[^{number}]: {text}")

    def _list(self, element: Element, level: int, style: str) -> None:
        style = element.get("text-style-name", style)
        numbered = level in self._ordered.get(style, frozenset())
        number = 0
        for item in element:
            first = item.tag == "text-list-item"
            number += first
            for part in item:
                if part.tag == "text-list":
                    self._list(part, level + 1, style)
                elif part.tag == "text-p" and first:
                    self.blocks.item(level, self.inline(part), f"{number}." if numbered else "-")
                    self._write_beside()
                    first = False
                else:
                    self.read([part])

    def _table(self, table: Element) -> None:
        rows = [list(_cells(row)) for row in _rows(table)]
        cells = [cell for row in rows for cell, _ in row]
        layout = any(sum(map(len, cell.itertext())) > _LAYOUT_CELL for cell in cells)
        if layout or any(next(cell.iter("text-h"), None) is not None for cell in cells):
            self.read(cells)
            return
        self.blocks.table(
            [
                [text for cell, times in row for text in [self._cell(cell), *[""] * (times - 1)]][:_MAX_COLUMNS]
                for row in rows
            ]
        )
        self._write_beside()

    def _cell(self, cell: Element) -> str:
        return " ".join(self.inline(part) for part in cell.iter() if part.tag in {"text-p", "text-h"})


def _described(element: Element) -> str:
    words = inner_text(element).split()
    return " ".join(words) if len(words) >= _MIN_ALT_WORDS else ""


def _rows(table: Element) -> Iterator[Element]:
    for child in table:
        if child.tag == "table-table-row":
            yield child
        elif child.tag in {"table-table-header-rows", "table-table-rows", "table-table-row-group"}:
            yield from _rows(child)


def _cells(row: Element) -> Iterator[tuple[Element, int]]:
    for cell in row:
        if cell.tag in {"table-table-cell", "table-covered-table-cell"}:
            times = cell.get("table-number-columns-repeated", "1")
            yield cell, min(int(times), _MAX_COLUMNS) if times.isdecimal() and len(times) < 9 else 1


def read_opendocument(data: bytes, uri: str) -> Found:
    """A text, or the slides of a presentation (each a page). Raises ExtractionFailed."""
    package = Package(data, uri, "OpenDocument file")
    manifest = "META-INF/manifest.xml"
    if manifest in package:
        for _ in root(package.read(manifest), uri, manifest).iter("manifest-encryption-data"):
            raise ExtractionFailed(f"{uri} is encrypted; save it without a password and ingest it again")
    if _CONTENT not in package:
        raise package.broken(f"it has no {_CONTENT}")
    ordered, hidden = _styles(package)
    document = _Document(ordered, hidden)
    document.read(children(package.stream(_CONTENT), "office-text", uri, _CONTENT))
    text = document.blocks.text()
    pages: tuple[int, ...] = ()
    first = document.title or document.blocks.heading_text
    title, metadata = _properties(package)
    if not text:
        slides = list(_slides(package, ordered, hidden))
        text, pages = join([slide.text() for slide in slides])
        first = next((slide.heading_text for slide in slides if slide.heading_text), "")
        if slides:
            metadata["pages"] = len(slides)
    return Found(text, title or first, metadata, pages)


def _slides(package: Package, ordered: dict[str, frozenset[int]], hidden: frozenset[str]) -> Iterator[Blocks]:
    for page in children(package.stream(_CONTENT), "office-presentation", package.uri, _CONTENT):
        if page.tag != "draw-page":
            continue
        slide = _Document(ordered, hidden)
        slide.read(part for part in page if part.tag != "presentation-notes")
        notes = [
            text
            for paragraph in page.iterfind("presentation-notes/draw-frame/draw-text-box//text-p")
            if (text := slide.inline(paragraph))
        ]
        if notes:
            slide.blocks.markdown("\n\n".join(["Speaker notes: " + notes[0], *notes[1:]]))
        yield slide.blocks


def _styles(package: Package) -> tuple[dict[str, frozenset[int]], frozenset[str]]:
    """Which levels of which styles of lists are numbered, and which styles of text are hidden."""
    ordered: dict[str, frozenset[int]] = {}
    hidden: set[str] = set()
    for name, parent in (
        ("styles.xml", "office-styles"),
        ("styles.xml", "office-automatic-styles"),
        (_CONTENT, "office-automatic-styles"),
    ):
        for style in children(package.stream(name), parent, package.uri, name) if name in package else ():
            key = style.get("style-name", "")
            if style.tag == "text-list-style":
                ordered[key] = frozenset(
                    int(level) - 1
                    for entry in style.iterfind("text-list-level-style-number")
                    if (level := entry.get("text-level", "")).isdecimal() and len(level) < 3
                )
            elif any(entry.get("text-display") == "none" for entry in style.iterfind("style-text-properties")):
                hidden.add(key)
    return ordered, frozenset(hidden)


def _properties(package: Package) -> tuple[str, dict[str, Any]]:
    name = "meta.xml"
    title, editor = "", ""
    metadata: dict[str, Any] = {}
    for entry in children(package.stream(name), "office-meta", package.uri, name) if name in package else ():
        text = inner_text(entry)
        if not text:
            continue
        if entry.tag == "dc-title":
            title = text
        elif entry.tag == "meta-initial-creator":
            metadata["authors"] = [text]
        elif entry.tag == "dc-creator":
            editor = text
        elif entry.tag == "meta-keyword":
            metadata.setdefault("keywords", []).extend(split_words(text))
        elif entry.tag in {"meta-creation-date", "dc-date"} and iso_date(text):
            metadata["created" if entry.tag == "meta-creation-date" else "modified"] = text
        elif entry.tag in _KEYS:
            metadata[_KEYS[entry.tag]] = text
    if editor:
        metadata.setdefault("authors", [editor])
    return title, metadata
