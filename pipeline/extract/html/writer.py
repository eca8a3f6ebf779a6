"""Writes Markdown from the operations that a page was read into."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    TEXT = "text"
    LINK = "link"  # text of a link
    WAY = "way"  # text of a link that leads to a page of the same series
    OPEN = "open"
    CLOSE = "close"
    BREAK = "break"


Op = tuple[Kind, str]
TEXTS = frozenset({Kind.TEXT, Kind.LINK, Kind.WAY})

LEVELS = {f"h{level}": level for level in range(1, 7)}
_SPACE = re.compile(r"[ \t\n\r\f\xa0]+")
_BREAK = "\0"  # stands for a line break until white space is folded; texts hold none
_AROUND_BREAK = re.compile(r" ?\x00 ?")
_MAX_NESTING = 12  # lists and quotes in each other; deeper ones are written at this depth
_FENCE = re.compile(r"^[ \t]*+(`{3,}+)", re.MULTILINE)


@dataclass(slots=True)
class _Container:
    """A quote or a list item: what lines in it begin with."""

    first: str
    rest: str
    begun: bool = False


@dataclass(slots=True)
class _List:
    ordered: bool
    number: int = 0


@dataclass(slots=True)
class _Table:
    layout: bool
    rows: list[list[list[str]]] = field(default_factory=list)


@dataclass
class _Writer:
    blocks: list[str] = field(default_factory=list)
    inline: list[str] = field(default_factory=list)
    containers: list[_Container] = field(default_factory=list)
    opened: list[tuple[str, bool]] = field(default_factory=list)  # li and blockquote: whether it got a container
    lists: list[_List] = field(default_factory=list)
    tables: list[_Table] = field(default_factory=list)
    heading: str = ""
    heading_level: int = 0
    pre: int = 0
    tight: bool = False

    # Where text goes: into a cell of a table of values, or into the paragraph at hand.
    def _cell(self) -> list[str] | None:
        if not self.tables or self.tables[-1].layout:
            return None
        rows = self.tables[-1].rows
        return rows[-1][-1] if rows and rows[-1] else None

    def text(self, text: str) -> None:
        cell = self._cell()
        (self.inline if cell is None else cell).append(text)

    def line_break(self) -> None:
        if self.pre and self._cell() is None:
            self.inline.append("\n")
        else:
            self.text(" " if self.heading_level or self._cell() is not None else _BREAK)

    def open(self, name: str) -> None:
        if name in {"table", "layout"}:
            self.flush()
            self.tables.append(_Table(name == "layout"))
        elif self.tables and not self.tables[-1].layout:
            self._open_in_table(name)
        elif self.pre:
            self._line_in_pre()
            if name == "pre":
                self.pre += 1
        elif self.heading_level:
            self.inline.append(" ")
        else:
            self._open_block(name)

    def _open_in_table(self, name: str) -> None:
        rows = self.tables[-1].rows
        if name == "tr":
            rows.append([])
        elif name in {"td", "th"}:
            if not rows:
                rows.append([])
            rows[-1].append([])
        elif (cell := self._cell()) is not None:
            cell.append(" ")

    def _open_block(self, name: str) -> None:
        self.flush()
        if name in LEVELS:
            self.heading_level = LEVELS[name]
        elif name == "pre":
            self.pre += 1
        elif name in {"ul", "ol", "menu", "dir"}:
            self.lists.append(_List(name == "ol"))
        elif name == "li":
            self._open_item()
        elif name == "blockquote":
            self._contain("blockquote", _Container("> ", "> "))

    def _open_item(self) -> None:
        marker = "- "
        if self.lists and self.lists[-1].ordered:
            self.lists[-1].number += 1
            marker = f"{self.lists[-1].number}. "
        self._contain("li", _Container(marker, " " * len(marker)))

    def _contain(self, name: str, container: _Container) -> None:
        room = len(self.containers) < _MAX_NESTING
        self.opened.append((name, room))
        if room:
            self.containers.append(container)

    def close(self, name: str) -> None:
        if name == "table":
            if self.tables:
                self._close_table(self.tables.pop())
        elif self.tables and not self.tables[-1].layout:
            if (cell := self._cell()) is not None:
                cell.append(" ")
        elif self.pre:
            self._line_in_pre()
            if name == "pre":
                self.pre -= 1
                if not self.pre:
                    self._write_code()
        elif self.heading_level:
            if name in LEVELS:
                self._write_heading()
        else:
            self._close_block(name)

    def _close_block(self, name: str) -> None:
        self.flush()
        if name in {"ul", "ol", "menu", "dir"} and self.lists:
            self.lists.pop()
        elif name in {"li", "blockquote"} and any(opened == name for opened, _ in self.opened[-3:]):
            while self.opened:
                opened, contained = self.opened.pop()
                if contained:
                    self.containers.pop()
                if opened == name:
                    break

    def _line_in_pre(self) -> None:
        if self.inline and not self.inline[-1].endswith("\n"):
            self.inline.append("\n")

    def flush(self) -> None:
        """Writes the paragraph at hand."""
        if not self.inline:
            return
        folded = _SPACE.sub(" ", "".join(self.inline)).strip(" \0")
        self.inline.clear()
        if folded:
            self._write(_AROUND_BREAK.sub("\n", folded))

    def _write_heading(self) -> None:
        text = _SPACE.sub(" ", "".join(self.inline).replace(_BREAK, " ")).strip()
        self.inline.clear()
        level, self.heading_level = self.heading_level, 0
        if text:
            self.heading = self.heading or text
            self._write(f"{'#' * level} {text}")

    def _write_code(self) -> None:
        code = "".join(self.inline).replace(_BREAK, "\n").replace("\xa0", " ").removeprefix("\n").rstrip()
        self.inline.clear()
        if code.strip():
            longest = max((len(found) for found in _FENCE.findall(code)), default=2)
            fence = "`" * (longest + 1)
            self._write(f"{fence}\n{code}\n{fence}")

    def _close_table(self, table: _Table) -> None:
        self.flush()  # of a table of values: its caption, and what is in no cell
        if table.layout:
            return
        rows = [[_SPACE.sub(" ", "".join(cell)).strip() for cell in row] for row in table.rows]
        rows = [row for row in rows if any(row)]
        if not rows:
            return
        if all(len(row) == 1 for row in rows):
            for row in rows:
                self._write(row[0])
            return
        lines = [f"| {' | '.join(row)} |" for row in rows]
        lines.insert(1, f"|{' --- |' * len(rows[0])}")
        self._write("\n".join(lines))

    def _write(self, text: str) -> None:
        """One block, with what its lines begin with; items of a list follow each other without a blank line."""
        if not self.containers:
            self._append(text, tight=False)
            return
        begins = bool(self.containers) and not self.containers[-1].begun and self.containers[-1].first != "> "
        first = ""
        for container in self.containers:
            first += container.rest if container.begun else container.first
            container.begun = True
        rest = "".join(container.rest for container in self.containers)
        head, *more = text.split("\n")
        self._append("\n".join([first + head, *((rest + line).rstrip() for line in more)]), tight=begins)

    def _append(self, block: str, tight: bool) -> None:
        if self.blocks:
            self.blocks.append("\n" if tight and self.tight else "\n\n")
        self.blocks.append(block)
        self.tight = tight


def write(ops: Iterable[Op]) -> tuple[str, str]:
    """The Markdown of the operations, and the first heading in it ("" where there is none)."""
    writer = _Writer()
    for kind, value in ops:
        if kind in TEXTS:
            writer.text(value)
        elif kind is Kind.OPEN:
            writer.open(value)
        elif kind is Kind.CLOSE:
            writer.close(value)
        else:
            writer.line_break()
    while writer.tables:
        writer.close("table")
    if writer.pre:
        writer.pre = 0
        writer._write_code()
    if writer.heading_level:
        writer._write_heading()
    writer.flush()
    return "".join(writer.blocks), writer.heading
