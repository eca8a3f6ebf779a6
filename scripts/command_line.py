"""Writes the reference part of docs/command-line.md from the commands themselves; with `--check`, only compares.

.venv/bin/python scripts/command_line.py [--check]
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from generated import write_or_check

from workers.cli.main import COMMANDS

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"
BEGIN, END = "<!-- begin commands -->\n", "<!-- end commands -->"


def reference() -> str:
    """Every command with its arguments and options, in the order of `millrace --help`."""
    return "\n".join("".join(_command(command)) for command in COMMANDS)


def _command(command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"millrace {command.name}")
    arguments = " ".join(command.collect_usage_pieces(context))
    yield f"## {command.name}\n\n```\nmillrace {command.name} {arguments}\n```\n\n"
    text = inspect.cleandoc(command.help or "")
    yield re.sub(r"[ \t]*\n(?!\n)(?<!\n\n)", " ", text).replace("\b ", "").strip() + "\n"
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [record for record in records if record and record[1]]
    if rows:
        yield "\n| option | |\n| --- | --- |\n"
        yield from (f"| `{_cell(names)}` | {_cell(meaning)} |\n" for names, meaning in rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def rewritten(page: str) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + reference() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, rewritten(PAGE.read_text("utf-8")), "command_line.py"))
