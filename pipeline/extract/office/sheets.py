"""The sheets of a workbook as Markdown: a heading and a table each, row by row, in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.errors import DocumentTooLarge
from pipeline.extract.blocks import Blocks

_MAX_CELLS = 20_000_000  # of the table that is written, empty ones among them
_NEXT, _IS = "\x1f", "\x1e"  # stand between the cells of a row that waits; no text of a document keeps them

Row = Mapping[int, str]
"""The texts of the cells that have one, by their column."""


def write_sheet(name: str, rows: Iterable[Row], blocks: Blocks, uri: str) -> None:
    """Writes a sheet without its empty rows and columns; a sheet without a text is left out.

    Lines above the table with one cell only (the name of the table, as a rule) become paragraphs. Raises
    DocumentTooLarge.
    """
    waiting: list[str] = []
    used: set[int] = set()
    for row in rows:
        cells = {column: text for column, value in row.items() if (text := _line(value))}
        if cells:
            used.update(cells)
            waiting.append(_NEXT.join(f"{column}{_IS}{text}" for column, text in sorted(cells.items())))
    if not waiting:
        return
    blocks.heading(1, name)
    columns = sorted(used)
    if len(waiting) * len(columns) > _MAX_CELLS:
        raise DocumentTooLarge(
            f"{uri}: the sheet {name} has {len(waiting)} rows of {len(columns)} columns; save it as CSV, or split it"
        )
    start = 0
    if len(columns) > 1:
        while start < len(waiting) and _NEXT not in waiting[start]:
            blocks.paragraph(waiting[start].partition(_IS)[2])
            start += 1
    if len(columns) == 1:
        for line in waiting[start:]:
            blocks.paragraph(line.partition(_IS)[2])
        return
    places = {column: place for place, column in enumerate(columns)}
    lines: list[str] = []
    for index in range(start, len(waiting)):
        cells_of_line = [""] * len(columns)
        for cell in waiting[index].split(_NEXT):
            column, _, text = cell.partition(_IS)
            cells_of_line[places[int(column)]] = text.replace("|", "\\|")
        waiting[index] = ""
        lines.append(f"| {' | '.join(cells_of_line)} |")
        if len(lines) == 1:
            lines.append(f"|{' --- |' * len(columns)}")
    blocks.markdown("\n".join(lines))


def _line(text: str) -> str:
    return " ".join(text.replace(_NEXT, " ").replace(_IS, " ").split())
