"""Blocks of Markdown, as the readers of office files write them: headings, paragraphs, lists, tables, code."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FENCE = re.compile(r"^[ \t]*+(`{3,}+)", re.MULTILINE)
_SPACE = re.compile(r"[ \t\xa0]+")
_MAX_LEVEL = 6
_INDENT = "  "


class Blocks:
    """Collects blocks, and joins them: a blank line between two, none between items of a list."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._tight = False
        self.heading_text = ""  # the first one

    def heading(self, level: int, text: str) -> None:
        """level: 1 for the highest; deeper than six is six."""
        if text := " ".join(text.split()):
            self.heading_text = self.heading_text or text
            self._add(f"{'#' * min(max(level, 1), _MAX_LEVEL)} {text}")

    def paragraph(self, text: str) -> None:
        """A paragraph; its line breaks stay."""
        if text := folded(text):
            self._add(text)

    def item(self, level: int, text: str, marker: str = "-") -> None:
        """An item of a list. level: 0 for the outermost."""
        if text := folded(text):
            first = f"{_INDENT * min(level, 8)}{marker} "
            self._add(hang(first, text), tight=True)

    def listed(self, text: str) -> None:
        """An item of a list that is Markdown already, with its marker."""
        self._add(text.rstrip(), tight=True)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """A table whose first row is its head; empty rows and columns are left out, one column is paragraphs."""
        cells = [[" ".join(cell.split()) for cell in row] for row in rows]
        width = max(map(len, cells), default=0)
        used = [column for column in range(width) if any(column < len(row) and row[column] for row in cells)]
        cells = [[row[column] if column < len(row) else "" for column in used] for row in cells]
        cells = [row for row in cells if any(row)]
        if len(used) == 1:
            for row in cells:
                self.paragraph(row[0])
        elif cells:
            lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells]
            lines.insert(1, f"|{' --- |' * len(used)}")
            self._add("\n".join(lines))

    def code(self, text: str, language: str = "") -> None:
        """Text as it stands."""
        if text.strip():
            longest = max((len(found) for found in _FENCE.findall(text)), default=2)
            fence = "`" * (longest + 1)
            self._add(f"{fence}{language}\n{text.strip(chr(10)).rstrip()}\n{fence}")

    def markdown(self, text: str) -> None:
        """What is Markdown already."""
        if text := text.strip("\n").rstrip():
            self._add(text)

    def _add(self, block: str, tight: bool = False) -> None:
        separator = ("\n" if tight and self._tight else "\n\n") if self._parts else ""
        self._parts.append(separator + block)
        self._length += len(separator) + len(block)
        self._tight = tight

    def __len__(self) -> int:
        """Characters written so far."""
        return self._length

    @property
    def next_start(self) -> int:
        """Where the next block begins, when it is no further item of the list at hand."""
        return self._length + 2 if self._parts else 0

    def break_list(self) -> None:
        """What comes next does not go on with the list at hand."""
        self._tight = False

    def text(self) -> str:
        return "".join(self._parts)


def hang(first: str, text: str) -> str:
    """The text behind `first`, its other lines indented as far."""
    pad = " " * len(first)
    head, *others = text.split("\n")
    return "\n".join([first + head, *(pad + line if line else "" for line in others)])


def folded(text: str) -> str:
    """The text with runs of blanks as one, line by line, without empty lines around."""
    return "\n".join(_SPACE.sub(" ", line).strip() for line in text.split("\n")).strip("\n")
