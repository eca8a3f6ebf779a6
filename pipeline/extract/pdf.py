"""PDF to text, by kreuzberg (PDFium); the one place that knows kreuzberg and its errors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from pipeline.errors import ExtractionFailed, InvalidDocument


class Pdf(NamedTuple):
    text: str
    title: str
    metadata: dict[str, Any]


def read_pdf(data: bytes, uri: str) -> Pdf:
    """The text of every page in order, without the running heads and feet; raises ExtractionFailed."""
    import kreuzberg  # heavy, and a process that only enqueues never needs it

    # Its Markdown loses whatever stands in angle brackets; its plain pages keep every character and line.
    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        enable_quality_processing=False,
        output_format="plain",
        pages=kreuzberg.PageConfig(extract_pages=True),
    )
    try:
        result = kreuzberg.extract_bytes_sync(data, "application/pdf", config)
    except BaseException as error:
        if (translated := translate(error, uri)) is None:
            raise
        raise translated from error
    found: dict[str, Any] = dict(result.metadata)
    pages = [page["content"] for page in result.pages or ()] or [result.content]
    metadata: dict[str, Any] = {"pages": int(found.get("page_count") or len(pages))}
    for name, key in (
        ("authors", "authors"),
        ("subject", "description"),
        ("keywords", "keywords"),
        ("created_at", "created"),
    ):
        if value := found.get(name):
            metadata[key] = value
    return Pdf(join_pages(pages), str(found.get("title") or "").strip(), metadata)


def translate(error: BaseException, uri: str) -> InvalidDocument | None:
    """What an error of kreuzberg's means for the document; None for an error that is not kreuzberg's.

    A panic in its Rust core reaches Python as a BaseException of the module pyo3_runtime.
    """
    kind = type(error)
    module = kind.__module__.partition(".")[0]
    ours = any(base.__module__.partition(".")[0] in {"kreuzberg", "pyo3_runtime"} for base in kind.__mro__)
    if not ours and not isinstance(error, RuntimeError | OSError | ValueError | MemoryError):
        return None
    said = " ".join(str(getattr(error, "message", "") or error).split())
    lower = said.lower()
    if "password" in lower or "encrypt" in lower:
        return ExtractionFailed(f"{uri} is encrypted; save it without a password and ingest it again")
    if "page boundaries" in lower:
        return ExtractionFailed(f"{uri} is a PDF without pages")
    if module == "pyo3_runtime":
        return ExtractionFailed(f"{uri} cannot be read: the PDF reader broke down on it ({said[:200]})")
    if "FormatError" in said:
        return ExtractionFailed(f"{uri} is not a PDF that can be opened: it is broken, cut off, or something else")
    return ExtractionFailed(f"{uri} cannot be read as PDF: {said[:300] or kind.__name__}")


_DIGITS = re.compile(r"\d+")
_EDGE = 2  # lines at the top and at the bottom of a page where running heads and feet stand
_LONGEST_RUNNING = 120  # characters of a running line
_SENTENCE_END = re.compile(r"[.!?:;\"'”’)\]]\s*$")


def join_pages(pages: Sequence[str]) -> str:
    """One text of the pages: running heads, feet and page numbers left out, paragraphs that go on joined."""
    lines = [[line.rstrip() for line in page.split("\n")] for page in pages]
    heads, feet = _running(lines, at_end=False), _running(lines, at_end=True)
    text = ""
    for page in lines:
        body = "\n".join(_peel(_peel(page, heads, at_end=False), feet, at_end=True))
        if body:
            text += ("\n\n" if _SENTENCE_END.search(text[-3:]) else "\n") + body if text else body
    return text


def _strip_blank(page: list[str]) -> list[str]:
    start, end = 0, len(page)
    while start < end and not page[start].strip():
        start += 1
    while end > start and not page[end - 1].strip():
        end -= 1
    return page[start:end]


def _shape(line: str) -> str:
    """A line with its numbers taken for equal: `Chapter 3, page 7` is `Chapter #, page #`."""
    return _DIGITS.sub("#", " ".join(line.split()))


def _outermost(page: Sequence[str], at_end: bool) -> list[str]:
    """The outermost lines of a page that say something, from the edge inwards."""
    lines = reversed(page) if at_end else iter(page)
    return list(islice((line for line in lines if line.strip()), _EDGE))


def _running(pages: Sequence[list[str]], at_end: bool) -> set[str]:
    """The shapes of the lines that stand at one edge of many pages; a sentence is none, however often it is there."""
    if len(pages) < 3:
        return set()
    counts = Counter(shape for page in pages for shape in {_shape(line) for line in _outermost(page, at_end)})
    enough = max(3, len(pages) // 4)
    return {
        shape
        for shape, times in counts.items()
        if times >= enough and len(shape) <= _LONGEST_RUNNING and ("#" in shape or not _SENTENCE_END.search(shape))
    }


def _peel(page: list[str], running: set[str], at_end: bool) -> list[str]:
    """The page without running lines at one edge: from the edge inwards, up to the first line that is none."""
    step = -1 if at_end else 0
    for _ in range(_EDGE):
        page = _strip_blank(page)
        if not page or _shape(page[step]) not in running:
            break
        page = page[:-1] if at_end else page[1:]
    return _strip_blank(page)
