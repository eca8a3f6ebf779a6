"""Writes the tables of docs/metrics.md from the table of the code; with `--check`, only says whether they agree.

    .venv/bin/python scripts/metrics_table.py [--check]

What stands between the begin and end marks is made here; the rest of the page is written by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from generated import write_or_check

from pipeline.monitoring.metrics import METRICS, OPERATIONS, Metric

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def metrics() -> Iterator[str]:
    yield "| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n"
    for metric in METRICS:
        yield f"| `{metric.exposed}` | {metric.kind} | {labels(metric)} | {meaning(metric)} |\n"


def labels(metric: Metric) -> str:
    return "; ".join(f"`{name}`: {values}" for name, values in zip(metric.labels, metric.values, strict=True))


def meaning(metric: Metric) -> str:
    unit = f" Unit: {metric.unit}." if metric.unit and metric.unit not in metric.name else ""
    return metric.help + unit


def operations() -> Iterator[str]:
    yield "| operation | meaning |\n| --- | --- |\n"
    for name, told in OPERATIONS.items():
        yield f"| `{name}` | {told} |\n"


def rewritten(page: str) -> str:
    """The page with its tables made anew; raises ValueError where a mark is missing."""
    for name, lines in (("metrics", metrics()), ("operations", operations())):
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"{PAGE} has no marks for {name}")
        before, rest = page.split(begin)
        page = before + begin + "".join(lines) + end + rest.split(end, 1)[1]
    return page


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, rewritten(PAGE.read_text("utf-8")), "metrics_table.py"))
