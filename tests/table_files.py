"""Tables on disk, read as rows."""

from __future__ import annotations

from pathlib import Path

from pipeline.document import Document
from pipeline.settings import SourceSettings
from pipeline.sources import Rejected, Rows, open_source

SETTINGS = SourceSettings()


def read(path: Path, rows: Rows, settings: SourceSettings = SETTINGS) -> tuple[list[Document], dict[str, str]]:
    """The documents, and why the rejected ones were, by uri."""
    found = list(open_source(path, settings, rows=rows))
    rejected = {item.uri.rpartition("/")[2]: item.error for item in found if isinstance(item, Rejected)}
    return [item for item in found if isinstance(item, Document)], rejected


def names(documents: list[Document]) -> list[str]:
    return [document.uri.rpartition("/")[2] for document in documents]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
