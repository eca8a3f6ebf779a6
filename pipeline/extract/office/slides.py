"""PowerPoint files (.pptx) to Markdown: a heading a slide, its texts, tables, charts and notes."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element

from pipeline.extract.blocks import Blocks, folded
from pipeline.extract.found import Found, join
from pipeline.extract.office.drawing import read_graphic
from pipeline.extract.office.ooxml import Office, Target
from pipeline.extract.office.package import Package

_RUNNING = frozenset({"dt", "ftr", "hdr", "sldNum"})  # placeholders that say the same on every slide
_TITLES = frozenset({"title", "ctrTitle"})
_LISTS = frozenset({"body", "obj", ""})  # placeholders whose paragraphs have bullets unless they say otherwise
_MIN_ALT_WORDS = 4  # a description of a picture; shorter ones are labels


class _Slide:
    def __init__(self, office: Office, related: dict[str, Target]) -> None:
        self.blocks = Blocks()
        self._office = office
        self._related = related

    def read(self, shapes: Iterable[Element]) -> None:
        for shape in shapes:
            if shape.tag == "mc-AlternateContent":
                chosen = shape.find("mc-Choice")
                chosen = shape.find("mc-Fallback") if chosen is None else chosen
                self.read(() if chosen is None else chosen)
            elif _is_hidden(shape):
                continue
            elif shape.tag == "p-grpSp":
                self.read(shape)
            elif shape.tag == "p-sp":
                self._text(shape)
            elif shape.tag == "p-graphicFrame":
                self._frame(shape)
            elif shape.tag == "p-pic":
                described = shape.find("p-nvPicPr/p-cNvPr")
                words = ("" if described is None else described.get("descr") or "").split()
                if len(words) >= _MIN_ALT_WORDS:
                    self.blocks.paragraph(" ".join(words))

    def _text(self, shape: Element) -> None:
        kind = _placeholder(shape)
        body = shape.find("p-txBody")
        if body is None or kind in _RUNNING:
            return
        if kind in _TITLES:
            self.blocks.heading(1, " ".join(_paragraph(paragraph) for paragraph in body.iterfind("a-p")))
            return
        paragraphs = [(paragraph, text) for paragraph in body.iterfind("a-p") if (text := _paragraph(paragraph))]
        listed = kind in _LISTS and len(paragraphs) > 1
        number = 0
        for paragraph, text in paragraphs:
            properties = paragraph.find("a-pPr")
            level = 0 if properties is None else int(properties.get("lvl", "0")[:1] or "0")
            marks = set() if properties is None else {mark.tag for mark in properties}
            if "a-buAutoNum" in marks:
                number += 1
                self.blocks.item(level, text, f"{number}.")
            elif "a-buChar" in marks or "a-buBlip" in marks or (listed and "a-buNone" not in marks):
                self.blocks.item(level, text)
            else:
                self.blocks.paragraph(text)
        self.blocks.break_list()

    def _frame(self, frame: Element) -> None:
        for table in frame.iter("a-tbl"):
            self.blocks.table(
                [
                    [" ".join(_paragraph(paragraph) for paragraph in cell.iter("a-p")) for cell in row.iterfind("a-tc")]
                    for row in table.iterfind("a-tr")
                ]
            )
        for tag in ("c-chart", "dgm-relIds"):
            for reference in frame.iter(tag):
                read_graphic(reference, self._office, self._related, self.blocks)

    def notes(self, part: Element) -> None:
        """The speaker's notes, marked as such."""
        texts = [
            text
            for shape in part.iter("p-sp")
            if _placeholder(shape) == "body"
            for paragraph in shape.iterfind("p-txBody/a-p")
            if (text := _paragraph(paragraph))
        ]
        if texts:
            self.blocks.markdown("\n\n".join(["Speaker notes: " + texts[0], *texts[1:]]))


def _placeholder(shape: Element) -> str | None:
    """The type of the placeholder that a shape fills, "" for one of no type; None for a shape that fills none."""
    found = shape.find("p-nvSpPr/p-nvPr/p-ph")
    return None if found is None else found.get("type", "")


def _is_hidden(shape: Element) -> bool:
    return any(child.get("hidden") in {"1", "true"} for group in shape[:1] for child in group.iterfind("p-cNvPr"))


def _paragraph(element: Element) -> str:
    pieces: list[str] = []
    for part in element.iter():
        if part.tag in {"a-t", "m-t"}:
            pieces.append(part.text or "")
        elif part.tag == "a-br":
            pieces.append("\n")
    return folded("".join(pieces))


def read_slides(data: bytes, uri: str) -> Found:
    """The slides in the order of the show, each a page; a hidden one has no text. Raises ExtractionFailed."""
    office = Office(Package(data, uri, "PowerPoint file"))
    name = office.main("ppt/presentation.xml")
    related = office.related(name)
    texts: list[str] = []
    first = ""
    for entry in office.children(name, "p-sldIdLst"):
        target = related.get(entry.get("r-id", ""))
        if target is None:
            continue
        slide = _read_slide(office, target.name)
        texts.append(slide.text())
        first = first or slide.heading_text
    title, metadata = office.properties()
    metadata["pages"] = len(texts)
    text, pages = join(texts)
    return Found(text, title or first, metadata, pages)


def _read_slide(office: Office, name: str) -> Blocks:
    part = office.root(name)
    if part is None:
        raise office.package.broken(f"its slide {name} is missing")
    related = office.related(name)
    slide = _Slide(office, related)
    if part.get("show") in {"0", "false"}:
        return slide.blocks
    tree = part.find("p-cSld/p-spTree")
    slide.read(() if tree is None else sorted(tree, key=lambda shape: _placeholder(shape) not in _TITLES))
    for target in related.values():
        if target.kind == "notesSlide" and (notes := office.root(target.name)) is not None:
            slide.notes(notes)
    return slide.blocks
