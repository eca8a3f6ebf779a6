"""PDF to text, by kreuzberg (PDFium); the one place that knows kreuzberg and its errors."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

from pipeline.errors import ExtractionFailed, InvalidDocument
from pipeline.extract.found import Found, join


def read_pdf(data: bytes, uri: str) -> Found:
    """The text of every page in order, without the running heads and feet; raises ExtractionFailed."""
    import kreuzberg  # heavy, and a process that only enqueues never needs it

    _claim_reader(uri)

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
        ("subject", "subject"),
        ("keywords", "keywords"),
        ("created_at", "created"),
    ):
        if value := found.get(name):
            metadata[key] = value
    text, starts = join_pages(pages)
    return Found(text, str(found.get("title") or "").strip(), metadata, starts)


# What kreuzberg and PDFium say, and what a person is told.
_MEANINGS = (
    (re.compile("password|encrypt", re.IGNORECASE), "is encrypted; save it without a password and ingest it again"),
    (
        re.compile(r"Boundary count (\d+) doesn't match page count (\d+)"),
        r"is damaged: only \1 of its \2 pages can be read",
    ),
    (re.compile("page boundaries"), "is a PDF without a page that can be read"),
    (re.compile("FormatError"), "is not a PDF that can be opened: it is broken, cut off, or something else"),
)
_reader_pid: list[int] = []


def _claim_reader(uri: str) -> None:
    """Its threads start at the first use and do not survive a fork: in a child, a call would wait for ever."""
    if not _reader_pid:
        _reader_pid.append(os.getpid())
    elif _reader_pid[0] != os.getpid():
        raise ExtractionFailed(
            f"{uri} was not read: this process was forked from one ({_reader_pid[0]}) that had read a PDF, after which "
            "the reader does not work; extract in the pool's children only"
        )


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
    if module == "pyo3_runtime":
        return ExtractionFailed(f"{uri} cannot be read: the PDF reader broke down on it ({said[:200]})")
    for pattern, meaning in _MEANINGS:
        if found := pattern.search(said):
            return ExtractionFailed(f"{uri} {found.expand(meaning)}")
    return ExtractionFailed(f"{uri} cannot be read as PDF: {said[:300] or kind.__name__}")


# A page number stands at an end of its line, or says that it is one.
_NUMBERS = re.compile(
    r"^\W{0,3}([0-9]{1,4})\b|\b([0-9]{1,4})\W{0,3}$|\b(?i:page) ([0-9]{1,4})\b|\b([0-9]{1,4}) ?(?:of|/) ?[0-9]"
)
_MANY_WORDS = 5
_EDGE = 2  # lines at the top and at the bottom of a page where running heads and feet stand
_LONGEST_RUNNING = 120  # characters of a running line
_SENTENCE_END = re.compile(r"[.!?:;\"'”’)\]]\s*$")


def join_pages(pages: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """One text of the pages, and where each begins in it: running heads, feet and page numbers left out, paragraphs
    that go on joined."""
    lines = [_strip_blank([line.rstrip() for line in page.split("\n")]) for page in pages]
    head, foot = _edge(lines, at_end=False), _edge(lines, at_end=True)
    bodies = ["\n".join(_peel(_peel(page, index, head), index, foot)) for index, page in enumerate(lines)]
    before, separators = "", []
    for body in bodies:
        separators.append("\n\n" if _SENTENCE_END.search(before[-3:]) else "\n")
        before = body or before
    return join(bodies, separators)


class _Edge(NamedTuple):
    """What runs along the top or the bottom of the pages."""

    at_end: bool
    lines: frozenset[str]  # that stand there, word for word, on many pages
    offset: int | None  # page number less index, where a number in the outermost line counts the pages


def _strip_blank(page: list[str]) -> list[str]:
    start, end = 0, len(page)
    while start < end and not page[start].strip():
        start += 1
    while end > start and not page[end - 1].strip():
        end -= 1
    return page[start:end]


def _outermost(page: Sequence[str], at_end: bool) -> list[str]:
    """The outermost lines of a page that say something, from the edge inwards."""
    lines = reversed(page) if at_end else iter(page)
    return list(islice((line for line in lines if line.strip()), _EDGE))


def _edge(pages: Sequence[list[str]], at_end: bool) -> _Edge:
    enough = max(3, len(pages) // 4)
    outermost = [_outermost(page, at_end) for page in pages]
    counts = Counter(line for lines in outermost for line in {_folded(line) for line in lines})
    offsets = Counter(offset for index, lines in enumerate(outermost) for offset in _offsets(lines[:1], index))
    offset, times = next(iter(offsets.most_common(1)), (0, 0))
    return _Edge(
        at_end,
        frozenset(line for line, times in counts.items() if times >= enough and _can_run(line)),
        offset if times >= enough else None,
    )


def _folded(line: str) -> str:
    return " ".join(line.split())


def _can_run(line: str) -> bool:
    """A sentence is no running line, however often it stands at an edge."""
    return len(line) <= _LONGEST_RUNNING and not _SENTENCE_END.search(line)


def _offsets(lines: Sequence[str], index: int) -> set[int]:
    """How far the numbers in the lines that may be page numbers are from the index of their page."""
    found = [match for line in lines if len(line) <= _LONGEST_RUNNING for match in _NUMBERS.finditer(line.strip())]
    return {int(next(filter(None, match.groups()))) - index for match in found}


def _peel(page: list[str], index: int, edge: _Edge) -> list[str]:
    """The page without running lines at one edge: from the edge inwards, up to the first line that is none.

    The last line of a page is left where it says more than a running line does.
    """
    for depth in range(_EDGE):
        if not page:
            break
        line = page[-1 if edge.at_end else 0]
        counts = depth == 0 and edge.offset is not None and edge.offset in _offsets([line], index)
        if not counts and _folded(line) not in edge.lines:
            break
        if len(page) == 1 and len(line.split()) > _MANY_WORDS:
            break
        page = _strip_blank(page[:-1] if edge.at_end else page[1:])
    return page
