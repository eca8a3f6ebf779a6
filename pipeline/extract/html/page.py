"""HTML to Markdown: the text that a person would copy from the page, with its headings, lists, tables and code."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.extract.html.cuts import Cut, kept
from pipeline.extract.html.frame import frame
from pipeline.extract.html.markup import End, Start, Text, tokens
from pipeline.extract.html.metadata import PageMetadata
from pipeline.extract.html.noise import (
    LANDMARK_SCOPES,
    Content,
    Counts,
    Sign,
    block_name,
    is_contents_heading,
    is_menu,
    is_noise,
    look,
    words,
)
from pipeline.extract.html.ways import Way, is_handle, way_of
from pipeline.extract.html.writer import TEXTS, Kind, Op, write


class Page(NamedTuple):
    """What a page holds. title: of its head, or "". heading: its first one, or ""."""

    text: str
    title: str
    heading: str
    metadata: dict[str, Any]


_BLOCKS = words(
    """address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption
    figure footer form h1 h2 h3 h4 h5 h6 header hgroup html legend li main menu nav ol p pre search section summary
    table tbody td tfoot th thead tr ul"""
)
_VOID = words("area base br col embed hr img input link meta param source track wbr")
_HEADINGS = words("h1 h2 h3 h4 h5 h6")
_TITLED = _HEADINGS | words("p div")
_READ = words("a html")  # whose attributes are needed besides their looks
_LANDMARKS = words("header footer")
_TABLE_PARTS = words("table caption tbody thead tfoot tr td th")
# Which open element a start tag ends, where authors may leave out the end tag.
_ENDS: dict[str, frozenset[str]] = {
    "li": frozenset({"p", "li"}),
    "dt": frozenset({"p", "dt", "dd"}),
    "dd": frozenset({"p", "dt", "dd"}),
    "td": frozenset({"p", "td", "th"}),
    "th": frozenset({"p", "td", "th"}),
    "tr": frozenset({"p", "td", "th", "tr", "caption"}),
    **dict.fromkeys(
        ("tbody", "thead", "tfoot"), frozenset({"p", "td", "th", "tr", "tbody", "thead", "tfoot", "caption"})
    ),
    "a": frozenset({"a"}),
    "body": frozenset({"head"}),
}
_OPTIONAL_END = words("p li dt dd td th tr tbody thead tfoot html body a")
_SCOPES = words("td th caption table")

_MAX_DEPTH = 512  # elements that are open at once; what is nested deeper is read as if it were beside each other
_LAYOUT_CELL = 1500  # a cell with more characters than this holds a page, not a value
_LABEL = 16  # operations; what has more is no label
_LONG_RUN = 40  # characters of a text run outside of links that is likely prose
_SENTENCE = re.compile(r"[^\W\d_]{2}[.?!](?:\s|$)")
_SENTENCE_ENDS = frozenset(".?!")
_ASKED_SPACES = 2  # in the last part of a link that is a sentence
_MIN_ALT_WORDS = 4  # a description of a picture; shorter ones are labels of icons


@dataclass(slots=True)
class _Open:
    """An element whose end has not come yet."""

    name: str
    block: str  # what it is for the writer; "" where it is no block
    sign: Sign
    attributes: dict[str, str]
    at: int  # index of its first operation
    before: tuple[int, ...]  # the counts when it was opened
    alternative: str = ""  # of a link: what its pictures are said to show
    cells: list[tuple[int, int, Content]] = field(default_factory=list)  # of a row: operations and content of each
    columns: int = 0  # of a table


@dataclass
class _Reader:
    ops: list[Op] = field(default_factory=list)
    stack: list[_Open] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)
    counts: Counts = field(default_factory=Counts)
    cuts: list[Cut] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    metadata: PageMetadata = field(default_factory=PageMetadata)
    containers: list[tuple[int, int]] = field(default_factory=list)
    links: int = 0  # that are open
    headed: bool = False  # a heading has begun
    in_title: bool = False

    def text(self, text: str) -> None:
        if self.in_title:
            self.titles.append(text)
            return
        chars = sum(map(len, text.split()))
        self.counts.chars += chars
        if self.links:
            self.counts.linked += chars
            if text.rstrip()[-1:] in _SENTENCE_ENDS and text.count(" ") >= _ASKED_SPACES:
                self.counts.asked += 1
        elif chars:
            if chars >= _LONG_RUN:
                self.counts.prose += chars
            if _SENTENCE.search(text):
                self.counts.sentences += 1
        self.ops.append((Kind.LINK if self.links else Kind.TEXT, text))

    def start(self, token: Start) -> None:
        name = token.name
        if name == "title" and not self.names["svg"]:
            self.in_title = not self.titles
            self.titles.append("")
            return
        if name in _VOID:
            self._void(name, token)
            return
        ends = _ENDS.get(name, frozenset({"p"}) if name in _BLOCKS else frozenset())
        while self.stack and self.stack[-1].name in ends:
            self._close_top(True)
        written = token.attributes
        attributes = token.read() if name in _READ and written else {}
        if name == "html":
            self.metadata.language(attributes)
        if name == "time" and written:
            self.metadata.time(token.read())
        if name in {"html", "body"} and self.names[name]:
            return
        inside = name in _LANDMARKS and any(self.names[scope] for scope in LANDMARK_SCOPES)
        seen = look(name, written, inside)
        block = name in _BLOCKS
        pushed = block or name == "a" or seen is not Sign.NONE or self.names[name] > 0
        if not pushed or len(self.stack) >= _MAX_DEPTH:
            if block:
                self.ops.append((Kind.OPEN, "div"))
            return
        written_as = self._written_as(block_name(name, written)) if block else ""
        self.stack.append(_Open(name, written_as, seen, attributes, len(self.ops), self.counts.now()))
        self.names[name] += 1
        self.links += "href" in attributes
        if block:
            self.ops.append((Kind.OPEN, written_as))
        if written.endswith("/") and name in {"a", "p", "div", "span", "td", "li"} and _is_empty(written):
            self._close_top(True)

    def _written_as(self, name: str) -> str:
        if name == "title":  # of the page, where no heading comes before it
            name = "div" if self.headed else "h1"
        elif name == "line" and self.stack and self.stack[-1].block == "fragment":
            self.stack[-1].block = "pre"
            self.ops[self.stack[-1].at] = (Kind.OPEN, "pre")
        if name in _HEADINGS:
            self.headed = True
            self.counts.headings += 1
        return name

    def end(self, name: str) -> None:
        if name == "title":
            self.in_title = False
            return
        if name == "br":
            self.ops.append((Kind.BREAK, ""))
            return
        if not self.names[name]:
            return
        for depth in range(len(self.stack) - 1, -1, -1):
            found = self.stack[depth].name
            if found == name:
                break
            if found in _SCOPES and name not in _TABLE_PARTS:
                return  # an end tag in a cell cannot end what is around the table
        while len(self.stack) > depth + 1:
            self._close_top(False)
        self._close_top(True)

    def finish(self) -> None:
        while self.stack:
            self._close_top(False)

    def _close_top(self, by_tag: bool) -> None:
        element = self.stack.pop()
        name = element.name
        self.names[name] -= 1
        self.links -= "href" in element.attributes
        if element.block:
            self.ops.append((Kind.CLOSE, element.block))
        content = self.counts.since(element.before)
        if name == "a":
            self._close_link(element)
        elif self.names["table"] or name == "table":
            self._close_in_table(element, content)
        if element.sign is Sign.BODY:
            self.containers.append((element.at, len(self.ops)))
        short = name in _TITLED and content.chars <= _LONG_RUN
        if (short and is_contents_heading(self._label(element.at))) or is_noise(
            name, element.sign, content, by_tag or name in _OPTIONAL_END
        ):
            self._cut(element)

    def _cut(self, element: _Open) -> None:
        self.cuts.append(Cut(element.at, len(self.ops), element.name == "header", element.sign >= Sign.HIDDEN))
        if element.sign >= Sign.CLEAR and element.name != "a":  # what is around it is judged by the rest
            self.counts.forget(element.before)

    def _close_link(self, element: _Open) -> None:
        if "href" not in element.attributes:
            return
        label = self._label(element.at)
        self.counts.links += 1
        if element.attributes["href"].startswith("#"):
            self.counts.local += 1
        if is_handle(label, element.attributes):
            self._cut(element)
        else:
            way = way_of(label if label.strip() else element.alternative, element.attributes)
            self.counts.ways += way is not Way.NONE
            self.counts.turns += way is Way.TURN
            if way is not Way.NONE and len(self.ops) - element.at <= _LABEL:
                self.ops[element.at :] = [
                    (Kind.WAY, value) if kind is Kind.LINK else (kind, value) for kind, value in self.ops[element.at :]
                ]

    def _close_in_table(self, element: _Open, content: Content) -> None:
        name = element.name
        if name == "table":
            if element.columns <= 1:
                self.ops[element.at] = (Kind.OPEN, "layout")
            self._mark_layout()
        elif name in {"td", "th"}:
            if content.chars > _LAYOUT_CELL:
                self._mark_layout()
            if self.stack and self.stack[-1].name == "tr":
                self.stack[-1].cells.append((element.at, len(self.ops), content))
        elif name == "tr":
            self._close_row(element)
        elif name in _HEADINGS or (name == "pre" and self._has_lines(element.at)):
            self._mark_layout()

    def _close_row(self, row: _Open) -> None:
        table = next((outer for outer in reversed(self.stack) if outer.name == "table"), None)
        if table is not None:
            table.columns = max(table.columns, len(row.cells))
        plain = sum(content.chars - content.linked for _, _, content in row.cells)
        for start, end, content in row.cells:
            if is_menu(content, plain - (content.chars - content.linked)):
                self.cuts.append(Cut(start, end))

    def _mark_layout(self) -> None:
        """The innermost open table holds a part of the page, and not rows of values."""
        for element in reversed(self.stack):
            if element.name == "table":
                self.ops[element.at] = (Kind.OPEN, "layout")
                return

    def _has_lines(self, start: int) -> bool:
        return any(kind in TEXTS and "\n" in text for kind, text in self.ops[start:])

    def _label(self, start: int) -> str:
        if len(self.ops) - start > _LABEL:
            return "..."
        return "".join(text for kind, text in self.ops[start:] if kind in TEXTS)

    def _void(self, name: str, token: Start) -> None:
        if name == "br":
            self.ops.append((Kind.BREAK, ""))
        elif name == "hr":
            self.ops.append((Kind.OPEN, "div"))
        elif name == "img":
            self._picture(token.read().get("alt", ""))
        elif name == "meta":
            self.metadata.meta(token.read())
        elif name == "link":
            self.metadata.link(token.read())

    def _picture(self, alternative: str) -> None:
        link = next((element for element in reversed(self.stack) if element.name == "a"), None)
        if link is not None:
            link.alternative += alternative  # mostly an icon
        elif len(alternative.split()) >= _MIN_ALT_WORDS:
            self.text(f" {alternative} ")


def _is_empty(written: str) -> bool:
    """Whether `/` at the end of a tag is XHTML's mark of an empty element, and not of an unquoted value's end."""
    return written == "/" or written[-2:-1] in {" ", '"', "'", "\t", "\n"}


def read_page(source: str) -> Page:
    """The page's text as Markdown, without what is furniture; where nothing would be left, with it."""
    reader = _Reader()
    for token in tokens(source):
        match token:
            case Text(text):
                reader.text(text)
            case Start():
                reader.start(token)
            case End(name):
                reader.end(name)
    reader.finish()
    title = " ".join("".join(reader.titles).split())
    cuts = [*reader.cuts, *frame(reader.ops, reader.cuts, reader.containers, title)]
    text, heading = write(kept(reader.ops, cuts, title))
    if not text.strip():
        text, heading = write(kept(reader.ops, [cut for cut in reader.cuts if cut.always], title))
    return Page(text, title, heading, reader.metadata.values)
