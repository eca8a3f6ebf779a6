"""What comes out of a tree of HTML pages, judged by what recurs and not by the extractor's own rules.

A line that comes out of many pages is furniture that came through, or a heading that the pages share. A run of words
that stands on one page only and does not come out is text that was lost; one that stands on many is furniture left out.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Figures, Options
from pipeline.errors import InvalidDocument
from pipeline.extract import extract
from pipeline.extract.html.noise import words
from pipeline.extract.text import decode

PAGES = 1000
EXAMPLES = 20
SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
# A line is recurring on this share of the pages, and on no fewer than so many.
RECURS = 0.1
RECURS_PAGES = 5
# A sentence on so many pages is no page's own.
SHARED_PAGES = 3
MIN_WORDS = 5

_LINE_NUMBERS = "span of line numbers"
_LINE_NUMBER = re.compile(r"\bline-?(?:no|nos|number|numbers)\b", re.IGNORECASE)
_SILENT = frozenset(
    {_LINE_NUMBERS, "script", "style", "title", "noscript", "template", "svg", "nav", "select", "button", "textarea"}
)
_VOID = frozenset({"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"})
_INLINE = words(
    """a abbr acronym b bdi bdo big cite code del dfn em font i img ins kbd label mark nobr q rp rt ruby s samp small
    span strike strong sub sup time tt u var wbr"""
)
_BREAK = re.compile(r"(?<=[.?!。])\s+")
_ENDED = re.compile(r"[.?!。][)\]\"'”’»]*$")
_CHARSET = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""")
_MARKS = re.compile(r"^(?:[#>|\s-]|\d+\. )+|[|\s]+$")
_HEADING = re.compile(r"#{1,6} ")
_FENCE = re.compile(r"[>\s]*(?:- |\d+\. )*(`{3,})$")
_TURNS = re.compile(r"[\[\s]*(?:next|prev|previous|up) ?: .*\b(?:up|previous|contents|index|next)\b", re.IGNORECASE)
_TOOLS = re.compile(r"\s*(?:\[(?:source|src)\]|Source Edit|¶)$")
_DIGITS = re.compile(r"\d+")
_NO_LETTERS = re.compile(r"[\W_]+")


class Missing(NamedTuple):
    """A run of words that its page says and that did not come out."""

    page: str
    run: str


class _Read(NamedTuple):
    """A page: what it says in the source, and the letters of what came out."""

    name: str
    runs: list[str]
    links: set[str]  # the letters of its blocks that are links and nothing else
    letters: str


class _Reading(HTMLParser):
    """The text of a page block by block, read as simply as can be: what is between two tags that are no inline ones."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self.links: list[str] = []  # blocks that are links and nothing else
        self._plain = 0  # letters outside of links
        self._inline: list[str] = []
        self._open: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "span" and _LINE_NUMBER.search(dict(attrs).get("class") or ""):
            tag = _LINE_NUMBERS
        if tag not in _INLINE:
            self._flush()
        if tag in _VOID:
            return
        self._open.append(tag)
        self._silent += tag in _SILENT

    def handle_endtag(self, tag: str) -> None:
        if tag not in _INLINE:
            self._flush()
        if tag == "span" and self._open[-1:] == [_LINE_NUMBERS]:
            tag = _LINE_NUMBERS
        if tag not in self._open[-50:]:
            return
        while self._open:
            last = self._open.pop()
            self._silent -= last in _SILENT
            if last == tag:
                return

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._inline.append(data)
            if "a" not in self._open[-5:]:
                self._plain += len(letters(data))

    def _flush(self) -> None:
        block = " ".join("".join(self._inline).split())
        self._inline.clear()
        plain, self._plain = self._plain, 0
        if block:
            if not plain:
                self.links.append(block)
            self.blocks.append(_TOOLS.sub("", block))

    def close(self) -> None:
        super().close()
        self._flush()


def _reading(source: str) -> _Reading:
    reading = _Reading()
    reading.feed(source)
    reading.close()
    return reading


def _runs(reading: _Reading) -> list[str]:
    """What a page says in runs of five words or more, in the order of the page; navigation elements left out."""
    blocks = (block for block in reading.blocks if not _TURNS.match(block))
    parts = (part for block in blocks for part in _BREAK.split(block))
    return [part for part in parts if len(part.split()) >= MIN_WORDS and letters(part)]


def is_sentence(run: str) -> bool:
    """Whether a run of words ends like a sentence; the rest are headings, entries of lists and cells of tables."""
    return _ENDED.search(run) is not None


def _pattern(run: str) -> str:
    """The run without its numbers: the years of a copyright are no reason to tell two footers apart."""
    return _DIGITS.sub("0", run)


def letters(text: str) -> str:
    """The letters and digits of a text: what is the same in it however it is marked up and spaced."""
    return _NO_LETTERS.sub("", text)


def lines(text: str) -> list[tuple[bool, str]]:
    """(whether it is a heading, what it says) of every line of a Markdown text that is no code, without its marks."""
    found: list[tuple[bool, str]] = []
    fence = ""
    for line in text.splitlines():
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1] == fence):
            fence = "" if fence else mark[1]
        elif not fence and (said := _MARKS.sub("", line)):
            found.append((_HEADING.match(line) is not None, said))
    return found


def pages_of(tree: Path, limit: int) -> list[Path]:
    """HTML pages under a directory, spread evenly over it, at most `limit`."""
    found = sorted(path for path in tree.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return found[:: max(1, -(-len(found) // limit))]


def recurring(pages: Sequence[Iterable[str]]) -> list[tuple[str, int]]:
    """Lines that are on many of the pages, with the number of those; most frequent first."""
    counts = Counter(line for page in pages for line in set(page))
    least = max(RECURS_PAGES, len(pages) * RECURS)
    return [(line, count) for line, count in counts.most_common() if count >= least]


def measure(options: Options) -> Figures:
    """Figures of a tree of HTML pages; `options.corpus` is needed."""
    if options.corpus is None:
        raise SystemExit("python -m benchmarks extraction needs --corpus, a directory of HTML pages")
    limit, _ = options.take(PAGES, 1)
    heads: list[set[str]] = []
    plain: list[set[str]] = []
    read: list[_Read] = []
    failed: list[str] = []
    seconds = 0.0
    for path in pages_of(options.corpus, limit):
        data = path.read_bytes()
        name = path.relative_to(options.corpus).as_posix()
        started = time.perf_counter()
        try:
            text = extract(data, "text/html", name).text
        except InvalidDocument as error:
            failed.append(str(error))
            continue
        seconds += time.perf_counter() - started
        said = lines(text)
        heads.append({line for heading, line in said if heading})
        plain.append({line for heading, line in said if not heading})
        declared = _CHARSET.search(data[:4096])
        source = decode(data, declared[1].decode("ascii", "replace") if declared else None)
        reading = _reading(source)
        read.append(_Read(name, _runs(reading), set(map(letters, reading.links)), letters(text)))
    on_pages = Counter(run for page in read for run in set(map(_pattern, page.runs)))
    own = [Missing(page.name, run) for page in read for run in page.runs if on_pages[_pattern(run)] < SHARED_PAGES]
    came_out = {page.name: page.letters for page in read}
    missing = [one for one in own if letters(one.run) not in came_out[one.page]]
    shared = [(page, run) for page in read for run in set(page.runs) if on_pages[_pattern(run)] >= SHARED_PAGES]
    left_out = {run for page, run in shared if letters(run) not in page.letters}
    sentences = [one for one in own if is_sentence(one.run)]
    lost = [one for one in missing if is_sentence(one.run)]
    recurring_lines = recurring(plain)
    linked = dict(recurring([page.links for page in read]))
    recurring_links = [(line, count) for line, count in recurring_lines if 2 * linked.get(letters(line), 0) >= count]
    return {
        "pages": len(read),
        "pages_per_second": round(len(read) / seconds, 1) if seconds else 0.0,
        "pages_without_text": len(failed),
        "sentences": len(sentences),
        "sentences_missing": len(lost),
        "other_runs": len(own) - len(sentences),
        "other_runs_missing": len(missing) - len(lost),
        "shared_runs_left_out": len(left_out),
        "recurring_lines": len(recurring_lines),
        "recurring_lines_of_links": len(recurring_links),
        "recurring_line_examples": [f"{count}: {line[:160]}" for line, count in recurring_lines[:EXAMPLES]],
        "recurring_lines_of_links_examples": [f"{count}: {line[:160]}" for line, count in recurring_links[:EXAMPLES]],
        "recurring_heading_examples": [f"{count}: {line[:160]}" for line, count in recurring(heads)[:EXAMPLES]],
        "missing_sentence_examples": [f"{one.page}: {one.run[:300]}" for one in lost[:EXAMPLES]],
        "other_missing_examples": [f"{one.page}: {one.run[:160]}" for one in missing if one not in lost][:EXAMPLES],
        "left_out_examples": sorted(run[:160] for run in left_out)[:EXAMPLES],
        "without_text_examples": failed[:EXAMPLES],
    }
