"""Writes the table of docs/duties.md from the duties themselves; with `--check`, only says whether they agree.

    .venv/bin/python scripts/duties.py [--check]

What stands between the marks is made here; the rest of the page is written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from generated import write_or_check

from tasks.duties import DUTIES
from workers.cli.sync import interval

PAGE = Path(__file__).parents[1] / "docs" / "duties.md"
BEGIN, END = "<!-- begin duties -->\n", "<!-- end duties -->"
HEAD = "| duty | every | limit | budget | dry run | what it does |\n| --- | --- | --- | --- | --- | --- |\n"


def table() -> str:
    return HEAD + "".join(
        f"| `{duty.name}` | {interval(duty.interval_seconds)} | {duty.limit:,} | {interval(duty.budget_seconds)} "
        f"| {'yes' if duty.dry_runs else 'no'} | {_cell(duty.what)} |\n"
        for duty in DUTIES
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def rewritten(page: str) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, rewritten(PAGE.read_text("utf-8")), "duties.py"))
