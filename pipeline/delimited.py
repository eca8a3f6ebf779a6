"""Tables in text: what separates their columns, and what the columns are called."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import islice
from typing import Any

_SNIFFED_ROWS = 20
_DELIMITERS = ",;\t|"


def unique_names(header: Sequence[Any]) -> list[str]:
    """Names for the columns: one without a name gets its number, one that was there already a number behind it."""
    names: dict[str, None] = {}
    for position, value in enumerate(header, 1):
        name = base = (
            " ".join(str(value if value is not None else "").replace("\0", "").split()) or f"column_{position}"
        )
        number = 2
        while name in names:
            name, number = f"{base}_{number}", number + 1
        names[name] = None
    return list(names)


def sniff_delimiter(sample: str, name: str) -> str:
    """The delimiter that cuts the first rows into the most columns, the same number in each."""
    preferred = "\t" if name.lower().endswith((".tsv", ".tab", ".tsv.gz")) else ","
    best, best_score = preferred, (0.0, 0)
    for delimiter in dict.fromkeys(preferred + _DELIMITERS):
        try:
            rows = [
                row
                for row in islice(csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter), _SNIFFED_ROWS)
                if row
            ]
        except csv.Error:
            continue
        width = len(rows[0]) if rows else 1
        if width > 1:
            # The last row of the sample may be cut.
            score = round(sum(len(row) == width for row in rows) / len(rows), 1), width
            if score > best_score:
                best, best_score = delimiter, score
    return best
