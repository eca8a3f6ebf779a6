"""What a reader finds in a document, and how the texts of its pages become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Found(NamedTuple):
    """text: Markdown. title: "" where there is none. pages: where in `text` each begins; () for a format without.

    The keys of the metadata are the same in every format: authors, created, modified, language, subject,
    description, keywords, pages (docs/formats.md).
    """

    text: str
    title: str
    metadata: dict[str, Any]
    pages: tuple[int, ...] = ()


def join(texts: Sequence[str], separators: Sequence[str] = ()) -> tuple[str, tuple[int, ...]]:
    """One text of the pages, and where each begins; a page without text begins where the next one does.

    separators: what stands before each page that has a text, but for the first; a blank line unless given.
    """
    parts: list[str] = []
    pages: list[int] = []
    length = 0
    for index, text in enumerate(texts):
        if not text:
            pages.append(-1)
            continue
        if parts:
            parts.append(separators[index] if separators else "\n\n")
            length += len(parts[-1])
        pages.append(length)
        parts.append(text)
        length += len(text)
    following = length
    for index in range(len(pages) - 1, -1, -1):
        following = pages[index] = pages[index] if pages[index] >= 0 else following
    return "".join(parts), tuple(pages)
