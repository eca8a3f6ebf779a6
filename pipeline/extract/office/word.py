"""Word documents (.docx) to Markdown: what a reader sees, without what runs along the pages, hides or was deleted.

Our own reader, because kreuzberg 4.10 loses text: angle brackets, footnotes, paragraphs with text boxes, list numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple
from xml.etree.ElementTree import Element

from pipeline.extract.blocks import Blocks, folded
from pipeline.extract.found import Found
from pipeline.extract.office.drawing import read_graphic
from pipeline.extract.office.numbering import Numbering, integer, value
from pipeline.extract.office.ooxml import Office
from pipeline.extract.office.package import Package
from pipeline.extract.office.styles import NO_STYLE, Style, is_on, outline_level, read_styles

_LAYOUT_CELL = 1500  # characters; a table with a longer cell holds parts of the page, not values
_LONGEST_HEADING = 300  # characters; a longer one is a paragraph that only looks like a heading
_MIN_ALT_WORDS = 4  # a description of a picture; shorter ones are labels
_PROPERTIES = ("w-pPr", "w-rPr", "w-sdtPr", "w-tblPr", "w-trPr", "w-tcPr", "w-sectPr")
_DELETED = ("w-del", "w-moveFrom", "w-delText", "w-delInstrText")
_LEFT_OUT = frozenset({*_PROPERTIES, *_DELETED, "w-instrText", "w-rt", "mc-Fallback"})
_TEXTS = frozenset({"w-t", "m-t", "a-t"})
_BREAKS = {"w-tab": "\t", "w-ptab": "\t", "w-br": "\n", "w-cr": "\n", "w-noBreakHyphen": "-"}
_NOTES = {"w-footnoteReference": "w-footnote", "w-endnoteReference": "w-endnote"}


class _Paragraph(NamedTuple):
    """level: of a heading, 0 for none. marker: what stands before an item of a list, None for no item."""

    text: str
    level: int
    marker: str | None
    depth: int
    style: Style


class _Document:
    def __init__(self, office: Office, name: str) -> None:
        self.office = office
        self.name = name
        self.blocks = Blocks()
        self.title = ""
        self._related = office.related(name)
        parts = {target.kind: target.name for target in self._related.values()}
        self._styles = read_styles(office.root(parts.get("styles", "")))
        self._numbering = Numbering(office.root(parts.get("numbering", "")))
        self._notes = {
            (note.tag, note.get("w-id", "")): note
            for kind in ("footnote", "endnote")
            for note in office.children(parts.get(f"{kind}s", ""), f"w-{kind}s")
        }
        self._cited: list[tuple[str, str]] = []  # notes that are referred to, and not written yet
        self._count = 0  # of notes
        self._boxes: list[Element] = []  # text boxes of the paragraph at hand
        self._graphics: list[Element] = []  # and its charts and diagrams
        self._code: list[str] = []
        self._fields: list[bool] = []  # the fields that are open: whether their result has begun

    def read(self) -> None:
        self._read(self.office.children(self.name, "w-body"))
        self._write_code()

    def _read(self, elements: Iterable[Element]) -> None:
        for element in elements:
            if element.tag == "w-p":
                self._write(self._paragraph(element))
                self._write_beside()
            elif element.tag == "w-tbl":
                self._table(element)
            elif element.tag == "w-sdt" and _is_contents(element):
                continue
            elif element.tag not in _LEFT_OUT:
                self._read(element)

    def _write(self, paragraph: _Paragraph) -> None:
        text, level, marker, depth, style = paragraph
        if style.is_code:
            self._code.append(text)
            return
        self._write_code()
        if style.is_contents or not text.strip():
            return
        if level and len(text) <= _LONGEST_HEADING:
            self.blocks.heading(level, f"{marker} {text}" if marker and marker != "-" else text)
            if style.name == "title":
                self.title = self.title or " ".join(text.split())
        elif marker:
            self.blocks.item(depth, text, marker)
        else:
            self.blocks.paragraph(text)

    def _write_code(self) -> None:
        if self._code:
            self.blocks.code("\n".join(self._code))
            self._code.clear()

    def _write_beside(self) -> None:
        """What hangs on the block just written: its text boxes, charts and notes."""
        boxes, self._boxes = self._boxes, []
        for box in boxes:
            self._read(box)
        graphics, self._graphics = self._graphics, []
        for graphic in graphics:
            read_graphic(graphic, self.office, self._related, self.blocks)
        cited, self._cited = self._cited, []
        for number, key in enumerate(cited, self._count - len(cited) + 1):
            paragraphs = [self._paragraph(part).text for part in self._notes[key].iter("w-p")]
            if text := " ".join(" ".join(paragraphs).split()):
                self.blocks.markdown(f"[^{number}]: {text}")

    def _paragraph(self, element: Element) -> _Paragraph:
        properties = element.find("w-pPr")
        key = value(properties, "w-pStyle")
        style = self._styles.get(key, NO_STYLE)
        pieces: list[str] = []
        self._inline(element, pieces, bool(style.hidden))
        while self._fields and not self._fields[-1]:
            self._fields.pop()  # an instruction ends with its paragraph, also where the file forgets to say so
        text = "".join(pieces)
        text = text.rstrip() if style.is_code else folded(text)
        level = outline_level(value(properties, "w-outlineLvl"))
        number = value(properties, "w-numPr/w-numId") or style.number
        depth = value(properties, "w-numPr/w-ilvl")
        at = integer(depth) if depth else style.depth if style.depth >= 0 else self._numbering.level_of(number, key)
        marker = self._numbering.next(number, at) if text and number not in {"", "0"} else None
        return _Paragraph(text, style.level if level is None else level, marker, at, style)

    def _inline(self, element: Iterable[Element], pieces: list[str], hidden: bool) -> None:
        for child in element:
            tag = child.tag
            if tag in _TEXTS:
                if all(self._fields) and not hidden:
                    pieces.append(child.text or "")
            elif tag in _BREAKS:
                pieces.append(_BREAKS[tag])
            elif tag == "w-r":
                self._inline(child, pieces, self._is_hidden(child, hidden))
            elif tag == "mc-AlternateContent":
                chosen = child.find("mc-Choice")
                chosen = child.find("mc-Fallback") if chosen is None else chosen
                self._inline(() if chosen is None else chosen, pieces, hidden)
            elif tag not in _LEFT_OUT and not self._aside(child, pieces):
                self._inline(child, pieces, hidden)

    def _aside(self, element: Element, pieces: list[str]) -> bool:
        """Whether it was something that stands beside the text: a field's mark, a note, a text box, a picture."""
        tag = element.tag
        if tag == "w-fldChar":
            self._field(element.get("w-fldCharType"))
        elif tag in _NOTES:
            self._cite((_NOTES[tag], element.get("w-id", "")), pieces)
        elif tag == "w-txbxContent":
            self._boxes.append(element)
        elif tag in {"c-chart", "dgm-relIds"}:
            self._graphics.append(element)
        elif tag == "wp-docPr":
            if len((element.get("descr") or "").split()) >= _MIN_ALT_WORDS:
                pieces.append(f" {element.get('descr')} ")
        else:
            return False
        return True

    def _is_hidden(self, run: Element, inherited: bool) -> bool:
        direct = is_on(run, "w-rPr/w-vanish")
        if direct is None and (key := value(run, "w-rPr/w-rStyle")):
            direct = self._styles.get(key, NO_STYLE).hidden or None
        return inherited if direct is None else direct

    def _field(self, kind: str | None) -> None:
        if kind == "begin":
            self._fields.append(False)
        elif self._fields:
            if kind == "separate":
                self._fields[-1] = True
            elif kind == "end":
                self._fields.pop()

    def _cite(self, key: tuple[str, str], pieces: list[str]) -> None:
        if key in self._notes and all(self._fields):
            self._count += 1
            self._cited.append(key)
            pieces.append(f"[^{self._count}]")

    def _table(self, table: Element) -> None:
        self._write_code()
        rows = [
            (row, list(_members(row, "w-tc"))) for row in _members(table, "w-tr") if row.find("w-trPr/w-del") is None
        ]
        if max((len(cells) for _, cells in rows), default=0) <= 1 or self._is_layout(table):
            for _, cells in rows:
                for cell in cells:
                    self._read(cell)
            return
        written: list[list[str]] = []
        for row, cells in rows:
            line = [""] * integer(value(row, "w-trPr/w-gridBefore"))
            for cell in cells:
                span = min(integer(value(cell, "w-tcPr/w-gridSpan")), 64)
                line += [self._cell(cell), *[""] * (span - 1)]
            written.append(line)
        self.blocks.table(written)
        self._write_beside()

    def _cell(self, cell: Element) -> str:
        paragraphs = [self._paragraph(part) for part in _paragraphs(cell)]
        return " ".join(f"{each.marker} {each.text}" if each.marker else each.text for each in paragraphs)

    def _is_layout(self, table: Element) -> bool:
        for cell in table.iter("w-tc"):
            if sum(len(part.text or "") for part in cell.iter("w-t")) > _LAYOUT_CELL:
                return True
        return any(self._styles.get(value(part, "w-pPr/w-pStyle"), NO_STYLE).level for part in table.iter("w-p"))


def _paragraphs(element: Element) -> Iterator[Element]:
    """The paragraphs in a cell, with those of tables in it; those of text boxes belong to the paragraph around."""
    for child in element:
        if child.tag == "w-p":
            yield child
        elif child.tag not in _LEFT_OUT:
            yield from _paragraphs(child)


def _members(element: Element, name: str) -> Iterator[Element]:
    """Rows of a table, or cells of a row: also those that a control or a tracked insertion wraps."""
    for child in element:
        if child.tag == name:
            yield child
        elif child.tag in {"w-sdt", "w-sdtContent", "w-ins", "w-customXml", "w-moveTo"}:
            yield from _members(child, name)


def _is_contents(control: Element) -> bool:
    return value(control, "w-sdtPr/w-docPartObj/w-docPartGallery").startswith("Table of")


def read_word(data: bytes, uri: str) -> Found:
    """The body in its order; text boxes and notes follow the paragraph that they hang on. Raises ExtractionFailed."""
    office = Office(Package(data, uri, "Word document"))
    document = _Document(office, office.main("word/document.xml"))
    document.read()
    title, metadata = office.properties()
    return Found(document.blocks.text(), title or document.title or document.blocks.heading_text, metadata)
