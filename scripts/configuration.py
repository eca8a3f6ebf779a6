"""Writes the tables of docs/configuration.md from pipeline/settings; with `--check`, only says whether they agree.

    .venv/bin/python scripts/configuration.py [--check]

What stands between a section's begin and end mark is made here; the rest of the page is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import annotated_types
from generated import write_or_check
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from pipeline.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
TOP = "top"
HEAD = "| `millrace.toml` | environment | default | meaning |\n| --- | --- | --- | --- |\n"


def sections() -> dict[str, dict[str, FieldInfo]]:
    """The settings by section, as the classes declare them; those outside of any section are under `top`."""
    found: dict[str, dict[str, FieldInfo]] = {TOP: {}}
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found[name] = dict(kind.model_fields)
        else:
            found[TOP][name] = field
    return found


def shown_default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ("", ()):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, dict):
        plain = {name: item.model_dump() if isinstance(item, BaseModel) else item for name, item in value.items()}
        return f"`{json.dumps(plain)}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`"


def limits(field: FieldInfo) -> str:
    """Such as "1 to 64" or "over 0"; "one of a, b" for a choice; empty where anything goes."""
    low = high = ""
    for rule in field.metadata:
        match rule:
            case annotated_types.Ge(ge=bound):
                low = f"at least {bound}"
            case annotated_types.Gt(gt=bound):
                low = f"over {bound}"
            case annotated_types.Le(le=bound):
                high = f"{bound}"
            case annotated_types.MinLen(min_length=bound):
                low = f"at least {bound} character"
    if low and high:
        return f"{low.removeprefix('at least ')} to {high}"
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    return low or (f"at most {high}" if high else "") or (f"one of {', '.join(choices)}" if choices else "")


def rows(section: str, fields: dict[str, FieldInfo]) -> Iterator[str]:
    for name, field in fields.items():
        path = [name] if section == TOP else [section, name]
        meaning = (field.description or "").replace("|", "\\|")
        if limit := limits(field):
            meaning += f"; {limit}"
        yield f"| `{name}` | `MILLRACE_{'__'.join(path).upper()}` | {shown_default(field)} | {meaning} |\n"


def rewritten(page: str) -> str:
    """The page with every table made anew; raises ValueError where its marks are not those of the settings."""
    known = sections()
    marked = re.findall(r"<!-- begin (\w+) -->", page)
    if sorted(marked) != sorted(known):
        raise ValueError(f"docs/configuration.md has marks for {sorted(marked)}, the settings are {sorted(known)}")
    for section, fields in known.items():
        begin, end = f"<!-- begin {section} -->\n", f"<!-- end {section} -->"
        before, rest = page.split(begin)
        page = before + begin + HEAD + "".join(rows(section, fields)) + end + rest.split(end, 1)[1]
    return page


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, rewritten(PAGE.read_text("utf-8")), "configuration.py"))
