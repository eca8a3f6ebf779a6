"""The styles of a Word document, as far as they say what a paragraph is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from pipeline.extract.office.numbering import value

_HEADING = re.compile(r"heading ([1-9])\b")
_MAX_CHAIN = 20  # styles that one is based on; a circle among them ends here
_CODE = frozenset({"source code", "html preformatted", "code", "preformatted text", "macro text"})


@dataclass(frozen=True, slots=True)
class Style:
    """level: of a heading, 0 for none. number and depth: the list its paragraphs are in, "" and -1 for none."""

    name: str = ""
    level: int = 0
    number: str = ""
    depth: int = -1
    hidden: bool = False

    @property
    def is_contents(self) -> bool:
        """Whether its paragraphs are a table of contents: it repeats the headings."""
        return self.name.startswith(("toc ", "table of figures"))

    @property
    def is_code(self) -> bool:
        return self.name in _CODE


NO_STYLE = Style()


def read_styles(part: Element | None) -> dict[str, Style]:
    """The styles by their id ("" for the default of paragraphs), with what they take from those they are based on."""
    entries = () if part is None else part.iterfind("w-style")
    found = {entry.get("w-styleId", ""): entry for entry in entries}
    styles = {key: _style(key, found) for key in found}
    for key, entry in found.items():
        if entry.get("w-type") == "paragraph" and entry.get("w-default") in {"1", "true", "on"}:
            styles[""] = styles[key]
    return styles


def _style(key: str, found: dict[str, Element]) -> Style:
    chain: list[Element] = []
    while key in found and len(chain) < _MAX_CHAIN:
        chain.append(found[key])
        key = value(found[key], "w-basedOn")
    name = value(chain[0], "w-name").lower()
    level = next((level for entry in chain if (level := _level(entry)) is not None), 0)
    number = next((number for entry in chain if (number := value(entry, "w-pPr/w-numPr/w-numId"))), "")
    depth = next((depth for entry in chain if (depth := value(entry, "w-pPr/w-numPr/w-ilvl"))), "")
    hidden = next((hidden for entry in chain if (hidden := is_on(entry, "w-rPr/w-vanish")) is not None), False)
    return Style(name, level, number, int(depth) if depth.isdecimal() and len(depth) == 1 else -1, hidden)


def _level(entry: Element) -> int | None:
    name = value(entry, "w-name").lower()
    if name == "title":
        return 1
    if match := _HEADING.match(name):
        return int(match[1])
    return outline_level(value(entry, "w-pPr/w-outlineLvl"))


def outline_level(written: str) -> int | None:
    """The heading level (1 for the highest, 0 for body text) of an outline level; None where none is written."""
    return (int(written) + 1) % 10 if len(written) == 1 and written.isdecimal() else None


def is_on(element: Element | None, path: str) -> bool | None:
    """Whether a switch such as w-vanish is on; None where it is not mentioned."""
    found = None if element is None else element.find(path)
    return None if found is None else found.get("w-val", "1") not in {"0", "false", "off"}
