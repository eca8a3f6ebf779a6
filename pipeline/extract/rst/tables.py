"""Tables of reStructuredText, drawn as grids or under rules, to rows of cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import east_asian_width

_RULE = re.compile(r"=+(?: +=+)*\s*$")
_SPAN = re.compile(r"-+(?: +-+)*\s*$")
_PAD = "\0"  # no clean text holds one


def _padded(line: str) -> str:
    """The line with a place for the second half of every character that is drawn two wide."""
    if line.isascii():
        return line
    return "".join(sign + _PAD if east_asian_width(sign) in "WF" else sign for sign in line)


def grid(lines: Sequence[str]) -> list[list[str]]:
    """The rows of a table whose cells are drawn with + - = and |; a cell over several columns stands in its first."""
    lines = [_padded(line) for line in lines]
    bounds = sorted({index for line in lines if line.startswith("+") for index, sign in enumerate(line) if sign == "+"})
    rows: list[list[str]] = []
    pieces: list[list[str]] = [[] for _ in bounds[1:]]

    def finish() -> None:
        if any(any(piece) for piece in pieces):
            rows.append([" ".join(filter(None, piece)) for piece in pieces])
        for piece in pieces:
            piece.clear()

    for line in lines:
        if line.startswith("+") and not line.strip("+-= "):
            finish()
            continue
        start = 0
        for end in range(1, len(bounds)):
            # A bar ends a cell, and so does the sign of a rule that is drawn in other columns only.
            if end == len(bounds) - 1 or line[bounds[end] : bounds[end] + 1] in {"|", "+", ""}:
                text = line[bounds[start] + 1 : bounds[end]].replace(_PAD, "").strip()
                if text.strip("-=+ "):
                    pieces[start].append(text)
                start = end
    finish()
    return rows


def is_rule(line: str) -> bool:
    """Whether the line is a rule of a simple table: of two columns or more, or one."""
    return bool(_RULE.match(line))


def simple_end(lines: Sequence[str], start: int) -> int:
    """The index after the last line of the simple table that begins here; `start` where there is no table."""
    rules = 0
    for index in range(start, len(lines)):
        if is_rule(lines[index]):
            rules += 1
            after = lines[index + 1] if index + 1 < len(lines) else ""
            if rules > 1 and not after.strip():
                return index + 1
    return start


def simple(lines: Sequence[str]) -> list[list[str]]:
    """The rows of a table under rules of =; a line without a first cell goes on with the row above."""
    starts = [match.start() for match in re.finditer("=+", lines[0])]
    lines = [_padded(line) for line in lines]
    rows: list[list[str]] = []
    fresh = True
    for line in lines:
        if is_rule(line) or not line.strip() or _SPAN.match(line):
            fresh = True
            continue
        ends = [*starts[1:], max(len(line), starts[-1]) + 1]
        cells = [line[start:end].replace(_PAD, "").strip() for start, end in zip(starts, ends, strict=True)]
        if cells[0] or fresh or not rows:
            rows.append(cells)
        else:
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
        fresh = False
    return rows
