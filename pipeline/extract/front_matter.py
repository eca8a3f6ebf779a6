"""The head of a Markdown file between `---` lines: the part of YAML that people write there."""

from __future__ import annotations

import re
import tomllib
from typing import Any

_MAX_LINES = 500
_MAX_LINE = 4000  # characters; a longer one is no front matter, and would make the patterns below slow
_KEY = re.compile(r"([A-Za-z_][\w .:-]*?)\s*:(?:\s+(.*))?$")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,15})$")
_DECIMAL = re.compile(r"[-+]?[0-9]{1,15}\.[0-9]{1,15}$")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "yes": True, "no": False}


def split(text: str) -> tuple[dict[str, Any], str]:
    """(values, the rest of the text); ({}, text) where the text begins with no front matter.

    Values are scalars and lists of scalars; what is nested deeper is left out. A text that merely begins with a
    rule (`---`) is left as it is: every line up to the next one must look like front matter.
    """
    if text.startswith("+++\n"):
        return _toml(text)
    if not text.startswith("---\n"):
        return {}, text
    lines = text[4:].split("\n", _MAX_LINES)[:_MAX_LINES]
    end = next((number for number, line in enumerate(lines) if line.rstrip() in {"---", "..."}), None)
    if end is None or any(len(line) > _MAX_LINE for line in lines[:end]):
        return {}, text
    values = _yaml(lines[:end])
    if values is None:
        return {}, text
    length = 4 + sum(len(line) + 1 for line in lines[: end + 1])
    return values, text[length:]


def _toml(text: str) -> tuple[dict[str, Any], str]:
    end = text.find("\n+++", 3)
    if end < 0:
        return {}, text
    try:
        found = tomllib.loads(text[4 : end + 1])
    except (ValueError, RecursionError):  # a number of thousands of digits is no TOMLDecodeError
        return {}, text
    values = {key: value.isoformat() if hasattr(value, "isoformat") else value for key, value in found.items()}
    return {key: value for key, value in values.items() if _is_plain(value)}, text[end + 4 :].lstrip("\n")


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str | bool | int | float) for item in value)
    return isinstance(value, str | bool | int | float)


def _yaml(lines: list[str]) -> dict[str, Any] | None:
    values: dict[str, Any] = {}
    key: str | None = None
    block: str | None = None  # how the lines below the key are joined: "\n" for |, " " for >, "" for a list or nothing
    below: list[str] = []

    def finish() -> None:
        if key is None or not below:
            return
        if block:
            values[key] = block.join(below).strip()
        elif all(line.startswith("- ") or line == "-" for line in below):
            values[key] = [item for line in below if (item := _scalar(line[1:].strip())) is not None]
        elif isinstance(values.get(key), str):
            values[key] = " ".join([values[key], *below])

    for line in lines:
        stripped = line.strip()
        if not stripped or (stripped.startswith("#") and not block):
            continue
        if key is not None and (line[0] in " \t" or stripped.startswith("- ") or stripped == "-"):
            below.append(stripped)
            continue
        match = _KEY.match(line)
        if match is None or line[0] in " \t":
            return None
        finish()
        key, written, below = match[1], (match[2] or "").strip(), []
        block = {"|": "\n", ">": " "}.get(written[:1]) if len(written) <= 2 else None
        if written and not block and (value := _value(written)) is not None:
            values[key] = value
    finish()
    return values if key is not None else None


def _value(written: str) -> Any:
    if written.startswith("["):
        if not written.endswith("]"):
            return None
        items = (_scalar(item.strip()) for item in _split_items(written[1:-1]))
        return [item for item in items if item is not None and item != ""]
    if written[0] in "{&*!":
        return None
    return _scalar(written)


def _split_items(text: str) -> list[str]:
    return re.findall(r"""(?>(?:"[^"]*+"|'[^']*+'|[^,"']++)+)""", text)


def _scalar(written: str) -> str | bool | int | float | None:
    if len(written) >= 2 and written[0] == written[-1] and written[0] in "'\"":
        inner = written[1:-1]
        return inner.replace("''", "'") if written[0] == "'" else inner.replace('\\"', '"').replace("\\\\", "\\")
    written = re.sub(r"(?<!\s)\s+#.*$", "", written)
    if written.lower() in _WORDS:
        return _WORDS[written.lower()]
    if _INTEGER.match(written):
        return int(written)
    return float(written) if _DECIMAL.match(written) else written
