"""Jupyter notebooks (.ipynb) to Markdown: the cells in order, code as code, what was printed beside it; no pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pipeline.errors import ExtractionFailed
from pipeline.extract.blocks import Blocks
from pipeline.extract.found import Found
from pipeline.extract.text import decode

_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_EMBEDDED = re.compile(r"data:[\w/+.-]{1,80};base64,[A-Za-z0-9+/=\s]*+")
_ESCAPES = re.compile("\x1b\\[[0-9;]*[A-Za-z]")  # colours of a terminal
_MAX_OUTPUT = 4000  # characters of what one cell printed; more is a log or a dump
_OBJECT = re.compile(r"\s*<[^\n]*(?: at 0x[0-9a-f]+|object|Figure|Axes)[^\n]*>\s*$")  # what only names an object


def read_notebook(data: bytes, uri: str) -> Found:
    """The cells of a notebook of format 3 or 4; raises ExtractionFailed for what is no notebook."""
    try:
        notebook = json.loads(decode(data))
    except (ValueError, RecursionError) as error:
        raise ExtractionFailed(f"{uri} is not a notebook that can be read: its JSON is broken ({error})") from error
    if not isinstance(notebook, dict):
        raise _no_notebook(uri)
    cells = notebook.get("cells")
    if not isinstance(cells, list):  # format 3
        sheets = notebook.get("worksheets")
        if not isinstance(sheets, list):
            raise _no_notebook(uri)
        cells = [cell for sheet in sheets for cell in _list(_dict(sheet).get("cells"))]
    about = _dict(notebook.get("metadata"))
    language = str(
        _dict(about.get("language_info")).get("name") or _dict(about.get("kernelspec")).get("language") or ""
    )
    blocks = Blocks()
    heading = ""
    for cell in map(_dict, cells):
        text = _joined(cell.get("source", cell.get("input")))
        kind = cell.get("cell_type")
        if kind == "code":
            blocks.code(text, str(cell.get("language") or language))
            for printed in _printed(cell):
                blocks.code(printed)
        elif kind == "heading":
            level = cell.get("level")
            blocks.heading(level if isinstance(level, int) else 1, text)
            heading = heading or " ".join(text.split())
        else:
            text = _EMBEDDED.sub("", text)
            blocks.markdown(text)
            heading = heading or (match[1] if (match := _HEADING.search(text)) else "")
    metadata: dict[str, Any] = {}
    if names := [str(name) for author in _list(about.get("authors")) if (name := _dict(author).get("name") or author)]:
        metadata["authors"] = names
    title = about.get("title")
    return Found(blocks.text(), title if isinstance(title, str) and title else heading, metadata)


def _no_notebook(uri: str) -> ExtractionFailed:
    return ExtractionFailed(f"{uri} is not a notebook: it has no cells; save it again from Jupyter")


def _printed(cell: dict[str, Any]) -> Iterator[str]:
    """What the cell printed, and its result where that is text."""
    for output in map(_dict, _list(cell.get("outputs"))):
        kind = output.get("output_type")
        text = ""
        if kind == "stream" and output.get("name", output.get("stream")) != "stderr":
            text = _joined(output.get("text"))
        elif kind in {"execute_result", "display_data", "pyout"}:
            found = _dict(output.get("data", output))
            text = _joined(found.get("text/markdown") or found.get("text/plain", found.get("text")))
        text = _ESCAPES.sub("", text)
        if text.strip() and not _OBJECT.match(text):
            yield text if len(text) <= _MAX_OUTPUT else text[:_MAX_OUTPUT].rpartition("\n")[0] or text[:_MAX_OUTPUT]


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
