"""The numbers and bullets that Word puts before paragraphs: they are nowhere in the text, only counted."""

from __future__ import annotations

import re
from typing import NamedTuple
from xml.etree.ElementTree import Element

_LEVEL = re.compile("%([1-9])")
_MAX_NUMBER = 5000  # what is counted in Roman numerals or letters; beyond it, in figures
_ROMAN = (
    (1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"),
    (50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"),
)  # fmt: skip


class _Level(NamedTuple):
    kind: str  # bullet, none, decimal, lowerLetter, ...
    pattern: str  # as "%1.%2."
    start: int


class Numbering:
    """Counts the paragraphs of every list of one document, in its order."""

    def __init__(self, part: Element | None) -> None:
        self._abstract: dict[str, dict[int, _Level]] = {}
        self._lists: dict[str, str] = {}  # number of a list: its definition
        self._restarts: dict[str, dict[int, int]] = {}
        self._linked: dict[str, dict[str, int]] = {}  # definition: style of paragraphs: their level
        self._counts: dict[str, dict[int, int]] = {}
        self._begun: set[str] = set()
        for entry in () if part is None else part:
            if entry.tag == "w-abstractNum":
                definition = entry.get("w-abstractNumId", "")
                self._abstract[definition] = dict(map(_level, entry.iterfind("w-lvl")))
                self._linked[definition] = {
                    style: integer(level.get("w-ilvl", "0"))
                    for level in entry.iterfind("w-lvl")
                    if (style := value(level, "w-pStyle"))
                }
            elif entry.tag == "w-num":
                number = entry.get("w-numId", "")
                self._lists[number] = value(entry, "w-abstractNumId")
                self._restarts[number] = {
                    integer(override.get("w-ilvl", "0")): integer(start)
                    for override in entry.iterfind("w-lvlOverride")
                    if (start := value(override, "w-startOverride"))
                }

    def level_of(self, number: str, style: str) -> int:
        """The level of paragraphs of this style in a list."""
        return self._linked.get(self._lists.get(number, ""), {}).get(style, 0)

    def next(self, number: str, level: int) -> str | None:
        """What stands before the next paragraph of this list at this level: "-" for a bullet, as "2.1" for a number,
        "" for nothing; None where no such list is defined."""
        definition = self._lists.get(number)
        levels = self._abstract.get(definition or "", {})
        if definition is None or level not in levels:
            return None
        counts = self._counts.setdefault(definition, {})
        if number not in self._begun:
            self._begun.add(number)
            for restarted, start in self._restarts[number].items():
                counts[restarted] = start - 1
        found = levels[level]
        counts[level] = counts.get(level, found.start - 1) + 1
        for deeper in [other for other in counts if other > level]:
            del counts[deeper]
        if found.kind == "bullet":
            return "-"
        if found.kind == "none":
            return ""

        def count(match: re.Match[str]) -> str:
            of = levels.get(int(match[1]) - 1, found)
            return _written(counts.get(int(match[1]) - 1, of.start), of.kind)

        return _LEVEL.sub(count, found.pattern).strip()


def _level(entry: Element) -> tuple[int, _Level]:
    return integer(entry.get("w-ilvl", "0")), _Level(
        value(entry, "w-numFmt") or "decimal", value(entry, "w-lvlText"), integer(value(entry, "w-start") or "0")
    )


def _written(number: int, kind: str) -> str:
    if 0 < number <= _MAX_NUMBER:
        if kind in {"lowerLetter", "upperLetter"}:
            letter = chr(ord("a") + (number - 1) % 26) * ((number - 1) // 26 + 1)
            return letter if kind == "lowerLetter" else letter.upper()
        if kind in {"lowerRoman", "upperRoman"}:
            written = _roman(number)
            return written if kind == "lowerRoman" else written.upper()
    return f"{number:02d}" if kind == "decimalZero" else str(number)


def _roman(number: int) -> str:
    written = ""
    for amount, letters in _ROMAN:
        written += letters * (number // amount)
        number %= amount
    return written


def value(element: Element | None, path: str) -> str:
    """The w-val of a descendant; "" where there is none."""
    found = None if element is None else element.find(path)
    return "" if found is None else found.get("w-val", "")


def integer(text: str) -> int:
    """A small number as an attribute writes it; 0 for anything else."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,6}", text) else 0
