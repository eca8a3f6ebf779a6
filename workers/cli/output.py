"""What commands print: tables for people, plain lines for pipes, one JSON object with `--json`.

Everything that is a command's result goes to stdout; progress, warnings and errors go to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

MAX_TABLE_CHARACTERS = 1000

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else.")


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on stdout; what JSON has no form for (ids, times, paths) as its string."""
    click.echo(json.dumps(content, ensure_ascii=False, default=str))


def say(line: str) -> None:
    """A line of the result."""
    click.echo(line)


def note(line: str) -> None:
    """A line beside the result, on stderr."""
    click.echo(line, err=True)


def for_people() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under headings in a terminal; in a pipe one row a line, its cells parted by tabs, without headings."""
    if not for_people():
        for row in rows:
            click.echo("\t".join(_cell(cell).replace("\t", " ").replace("\n", " ") for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(_cell(cell)) for cell in row))  # Text: brackets in a cell are no markup
    console = Console()
    # A row that is too wide is left for the terminal to wrap: cut or folded, an id could not be copied.
    wide = table.__rich_measure__(console, console.options.update(max_width=MAX_TABLE_CHARACTERS)).maximum
    Console(width=max(console.width, wide)).print(table)


@contextmanager
def waiting(what: str, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Shows on stderr that something is under way; the function it gives changes the words.

    In a terminal that is one line that moves; elsewhere a line each time the words change; `quiet` is silent.
    """
    if quiet:
        yield lambda _: None
    elif not sys.stderr.isatty():
        note(what)
        yield note
    else:
        from rich.console import Console
        from rich.markup import escape

        with Console(stderr=True).status(escape(what)) as status:
            yield lambda words: status.update(escape(words))


def _cell(value: object) -> str:
    return "" if value is None else str(value)
