"""XML parts as small trees, one at a time: nothing outside of the part is ever opened, and nothing in it expands.

Names come as `prefix-local`, `w-p`, with the prefixes of the formats' own specifications, whatever a file calls them.
A name without a namespace has no prefix; a colon would mean something to `Element.find`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from pipeline.errors import ExtractionFailed

_NAMES = {
    # Office Open XML, transitional and strict
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main": "w",
    "http://purl.oclc.org/ooxml/wordprocessingml/main": "w",
    "http://schemas.openxmlformats.org/drawingml/2006/main": "a",
    "http://purl.oclc.org/ooxml/drawingml/main": "a",
    "http://schemas.openxmlformats.org/presentationml/2006/main": "p",
    "http://purl.oclc.org/ooxml/presentationml/main": "p",
    "http://schemas.openxmlformats.org/spreadsheetml/2006/main": "s",
    "http://purl.oclc.org/ooxml/spreadsheetml/main": "s",
    "http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing": "wp",
    "http://purl.oclc.org/ooxml/drawingml/wordprocessingDrawing": "wp",
    "http://schemas.openxmlformats.org/drawingml/2006/chart": "c",
    "http://purl.oclc.org/ooxml/drawingml/chart": "c",
    "http://schemas.openxmlformats.org/drawingml/2006/diagram": "dgm",
    "http://purl.oclc.org/ooxml/drawingml/diagram": "dgm",
    "http://schemas.openxmlformats.org/officeDocument/2006/math": "m",
    "http://purl.oclc.org/ooxml/officeDocument/math": "m",
    "http://schemas.openxmlformats.org/officeDocument/2006/relationships": "r",
    "http://purl.oclc.org/ooxml/officeDocument/relationships": "r",
    "http://schemas.openxmlformats.org/package/2006/relationships": "rel",
    "http://schemas.openxmlformats.org/package/2006/metadata/core-properties": "cp",
    "http://schemas.openxmlformats.org/markup-compatibility/2006": "mc",
    "urn:schemas-microsoft-com:vml": "v",
    # Dublin Core
    "http://purl.org/dc/elements/1.1/": "dc",
    "http://purl.org/dc/terms/": "dcterms",
    # books
    "http://www.idpf.org/2007/opf": "opf",
    "urn:oasis:names:tc:opendocument:xmlns:container": "ocf",
    "http://www.daisy.org/z3986/2005/ncx/": "ncx",
    "http://www.w3.org/2001/04/xmlenc#": "enc",
    # OpenDocument
    "urn:oasis:names:tc:opendocument:xmlns:office:1.0": "office",
    "urn:oasis:names:tc:opendocument:xmlns:text:1.0": "text",
    "urn:oasis:names:tc:opendocument:xmlns:table:1.0": "table",
    "urn:oasis:names:tc:opendocument:xmlns:drawing:1.0": "draw",
    "urn:oasis:names:tc:opendocument:xmlns:presentation:1.0": "presentation",
    "urn:oasis:names:tc:opendocument:xmlns:meta:1.0": "meta",
    "urn:oasis:names:tc:opendocument:xmlns:style:1.0": "style",
    "urn:oasis:names:tc:opendocument:xmlns:manifest:1.0": "manifest",
    "urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0": "svg",
    "http://www.w3.org/XML/1998/namespace": "xml",
}
_MAX_DEPTH = 200  # elements in each other; what reads them calls itself for each, and Python's stack ends at 1,000


class _Broken(Exception):
    pass


class _Reader:
    """Feeds expat, and keeps each finished child of the elements that are called `parent`."""

    def __init__(self, parent: str | None) -> None:
        self._parent = parent
        self._builder: TreeBuilder | None = None
        self._depth = 0
        self._from = 0  # depth at which the tree at hand begins
        self._inside = 0  # how deep the parent is; 0 outside of it
        self._names: dict[str, str] = {}
        self.done: list[Element] = []
        self.parser = parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.EntityDeclHandler = self._entity

    def _name(self, written: str) -> str:
        found = self._names.get(written)
        if found is None:
            space, _, local = written.rpartition(" ")
            found = f"{_NAMES.get(space, 'x')}-{local}" if space else local
            self._names[written] = found
        return found

    def _start(self, written: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _Broken(f"its elements are nested more than {_MAX_DEPTH} deep")
        name = self._name(written)
        if self._builder is None:
            if self._parent is not None and not self._inside:
                if name == self._parent:
                    self._inside = self._depth
                return
            self._builder = TreeBuilder()
            self._from = self._depth
        self._builder.start(name, {self._name(key): value for key, value in attributes.items()})

    def _end(self, written: str) -> None:
        if self._builder is not None:
            self._builder.end(self._name(written))
            if self._depth == self._from:
                self.done.append(self._builder.close())
                self._builder = None
        elif self._depth == self._inside:
            self._inside = 0
        self._depth -= 1

    def _text(self, text: str) -> None:
        if self._builder is not None:
            self._builder.data(text)

    def _entity(self, *declared: object) -> NoReturn:
        raise _Broken("it declares XML entities")


def children(pieces: Iterable[bytes], parent: str | None, uri: str, part: str) -> Iterator[Element]:
    """Each child of the elements named `parent` (None: the part's root itself), as soon as it is complete.

    Raises ExtractionFailed, naming the uri and the part, for what is no well-formed XML or declares entities.
    """
    reader = _Reader(parent)
    try:
        for piece in pieces:
            reader.parser.Parse(piece, False)
            yield from reader.done
            reader.done.clear()
        reader.parser.Parse(b"", True)
    except (expat.ExpatError, _Broken, LookupError, ValueError) as error:
        raise ExtractionFailed(f"{uri} is broken: its part {part} cannot be read ({error})") from error
    yield from reader.done


def root(data: bytes, uri: str, part: str) -> Element:
    """The root of a part; raises ExtractionFailed."""
    return next(children([data], None, uri, part))


def inner_text(element: Element | None) -> str:
    """All text in an element, with white space folded; "" for None."""
    return "" if element is None else " ".join("".join(element.itertext()).split())
