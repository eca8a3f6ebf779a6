"""Text into chunks that fit the model, whole: structure first, the model's own token count as the judge.

Splitting by tokens directly costs a fifth of the machine (540 chunks/s); by characters it costs nothing (47,000
chunks/s). So the text is cut by characters, every piece is counted in one call (6,500 chunks/s), and only what is over
the limit is cut again, smaller. Where a cut falls depends on the text around it and on nothing else in the document, so
that a change in one place leaves most chunks of the other places as they are.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from pipeline.document import Chunk, encodable
from pipeline.errors import InvalidSettings
from pipeline.settings import ChunkingSettings

# Raised whenever the same text would be cut elsewhere, so that documents are prepared again.
ALGORITHM = 1
# Of English prose, documentation and source code, special tokens counted: 3.4 to 3.6 with BERT's vocabulary. At 3.5 one
# piece in eight is over the limit and cut again, and a chunk is filled to three quarters on average.
CHARACTERS_PER_TOKEN = 3.5
# The splitter takes time with the square of a line's length (1 MB: 6 s; Chinese: 40 s): longer ones are cut in steps.
LONG_LINE = 8_192
# And what it holds in memory grows with the text, so that long texts are cut in steps too.
LONG_TEXT = 262_144
# A piece below this share of the limit is joined with its neighbour in the same section.
TINY = 8
# Pieces of a piece may be a little longer than their equal share, so that a cut finds a good place.
SLACK = 1.1
# The text that must be new in a chunk, however large the overlap: what one character takes in a byte-level vocabulary.
MIN_FRESH_TOKENS = 4
OVERLAP_ROUNDS = 4

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True, slots=True)
class _Piece:
    """text[start:end] of a source; tokens 0: not counted yet."""

    source: int
    start: int
    end: int
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Source:
    text: str
    markdown: bool
    headings: _Headings


class Chunker:
    """Cuts documents into chunks of at most `max_tokens` tokens, as the model counts them.

    settings: `max_tokens` (none: the model's own limit) and `overlap_tokens`.
    count_tokens: tokens of each text with the model's special tokens, never truncated.
    model_max_tokens: the model's limit, special tokens included.
    Raises InvalidSettings for a limit over the model's, or an overlap that is not smaller than the limit.
    """

    def __init__(self, settings: ChunkingSettings, count_tokens: CountTokens, model_max_tokens: int) -> None:
        limit = settings.max_tokens if settings.max_tokens is not None else model_max_tokens
        if limit > model_max_tokens:
            raise InvalidSettings(
                f"MILLRACE_CHUNKING__MAX_TOKENS is {limit}, but the embedding model takes {model_max_tokens} tokens; "
                f"set it to {model_max_tokens} or less, or choose a model that takes more (MILLRACE_EMBEDDING__MODEL)"
            )
        if settings.overlap_tokens >= limit:
            raise InvalidSettings(
                f"MILLRACE_CHUNKING__OVERLAP_TOKENS is {settings.overlap_tokens} and must be smaller than "
                f"the {limit} tokens of a chunk (MILLRACE_CHUNKING__MAX_TOKENS)"
            )
        self.max_tokens = limit
        self.overlap_tokens = settings.overlap_tokens
        self._count = count_tokens
        self._special: int | None = None

    def recipe(self) -> dict[str, Any]:
        """What decides the chunks of a text, besides the model: goes into the recipe hash of a version."""
        return {
            "chunker": f"semantic-text-splitter {version('semantic-text-splitter')}",
            "algorithm": ALGORITHM,
            "max_tokens": self.max_tokens,
            "overlap_tokens": self.overlap_tokens,
        }

    def chunk_many(
        self, texts: Sequence[tuple[str, str]], on_progress: Callable[[], None] = lambda: None
    ) -> list[list[Chunk]]:
        """The chunks of each (text, markup "markdown" or "plain"), in order; none for a text of white space.

        Every character that is not white space is in a chunk, no chunk is empty or over the limit, and the same text
        gives the same chunks. All texts are counted together: hand over as many as there are.
        `on_progress` is called after every step of cutting: tens of megabytes take minutes on a busy machine.
        `Chunk.section` is the path of headings that a chunk of Markdown begins under, such as "Guide > Install".
        """
        sources = []
        for text, markup in texts:
            clean, markdown = encodable(text), markup == "markdown"
            sources.append(_Source(clean, markdown, _Headings(clean if markdown else "")))
        limit = self._fresh_tokens()
        pieces: list[_Piece] = []
        for index in range(len(sources)):
            for piece in self._cut(sources, index, limit):
                pieces.append(piece)
                on_progress()
        pieces = self._counted(sources, pieces)
        on_progress()
        pieces = self._fitted(sources, pieces, limit)
        on_progress()
        pieces = self._fitted(sources, self._without_tiny(sources, pieces, limit), limit)
        chunks: list[list[Chunk]] = [[] for _ in sources]
        for piece, whole in zip(pieces, self._overlapping(sources, pieces), strict=True):
            source, found = sources[piece.source], chunks[piece.source]
            section = source.headings.path(source.text, piece.start, piece.end)
            found.append(Chunk(len(found), source.text[whole.start : whole.end], whole.tokens, section, piece.start))
        return chunks

    def _special_tokens(self) -> int:
        """Tokens that the model adds to every text."""
        if self._special is None:
            self._special = self._count([""])[0]
            if self._special + MIN_FRESH_TOKENS > self.max_tokens:
                raise InvalidSettings(
                    f"{self.max_tokens} tokens of a chunk (MILLRACE_CHUNKING__MAX_TOKENS) are too few: "
                    f"the model itself adds {self._special} to every text"
                )
        return self._special

    def _fresh_tokens(self) -> int:
        """Tokens of a chunk without what it shares with the one before; a quarter of the limit at least."""
        least = max(self.max_tokens // 4, self._special_tokens() + MIN_FRESH_TOKENS)
        return max(self.max_tokens - self.overlap_tokens, least)

    def _cut(self, sources: Sequence[_Source], index: int, limit: int) -> Iterator[_Piece]:
        """The first cut, by characters."""
        source = sources[index]
        capacity = max(1, int((limit - self._special_tokens()) * CHARACTERS_PER_TOKEN))
        for start, end, prose in _stretches(source.text):
            splitter = _splitter(source.markdown and prose, capacity)
            window = max(LONG_TEXT if prose else LONG_LINE, 8 * capacity)
            for first, last in _in_steps(splitter, source.text, start, end, window):
                yield _Piece(index, first, last)

    def _counted(self, sources: Sequence[_Source], pieces: Sequence[_Piece]) -> list[_Piece]:
        """The pieces that are more than white space, with their tokens; what has none yet is counted in one call."""
        pieces = [piece for piece in pieces if _text(sources, piece).strip()]
        new = [piece for piece in pieces if not piece.tokens]
        counts = iter(self._count([_text(sources, piece) for piece in new]) if new else [])
        return [piece if piece.tokens else replace(piece, tokens=next(counts)) for piece in pieces]

    def _fitted(self, sources: Sequence[_Source], pieces: list[_Piece], limit: int) -> list[_Piece]:
        """The pieces, those over the limit cut again until none is."""
        while any(piece.tokens > limit for piece in pieces):
            fitted: list[_Piece] = []
            for piece in pieces:
                fitted += [piece] if piece.tokens <= limit else self._smaller(sources, piece, limit)
            pieces = self._counted(sources, fitted)
        return pieces

    def _smaller(self, sources: Sequence[_Source], piece: _Piece, limit: int) -> list[_Piece]:
        """A piece over the limit, in as many parts as its tokens ask for."""
        if piece.end - piece.start == 1:
            raise InvalidSettings(
                f"{limit} tokens of a chunk (MILLRACE_CHUNKING__MAX_TOKENS) are too few: "
                f"one character takes {piece.tokens}"
            )
        special = self._special_tokens()
        return self._parts(sources, piece, max(2, -(-(piece.tokens - special) // (limit - special))))

    def _parts(self, sources: Sequence[_Source], piece: _Piece, parts: int) -> list[_Piece]:
        """A piece cut into about so many parts of about equal length."""
        length = piece.end - piece.start
        capacity = min(length - 1, max(1, int(length / parts * SLACK)))
        splitter = _splitter(sources[piece.source].markdown, capacity)
        found = splitter.chunk_indices(_text(sources, piece))
        return [_Piece(piece.source, piece.start + at, piece.start + at + len(text)) for at, text in found]

    def _without_tiny(self, sources: Sequence[_Source], pieces: Sequence[_Piece], limit: int) -> list[_Piece]:
        """Headings that were cut from their text, and rests: joined with the neighbour of the same section.

        Where the two are too long together, the longer one is cut in halves first: a heading with half of its text.
        """
        special = self._special_tokens()
        tiny = (limit - special) // TINY + special
        joined: list[_Piece] = []
        before = ""
        for piece in pieces:
            source = sources[piece.source]
            section = source.headings.path(source.text, piece.start, piece.end)
            last = joined[-1] if joined else None
            # The same section; or the first one below a heading that stands alone.
            near = section == before or (last is not None and last.tokens < tiny and section.startswith(f"{before} > "))
            before = section
            # A piece without tokens was joined already; it keeps what it has.
            if last is None or last.source != piece.source or not near or not last.tokens:
                joined.append(piece)
                continue
            if min(last.tokens, piece.tokens) >= tiny:
                joined.append(piece)
                continue
            joined.pop()
            if last.tokens + piece.tokens - special <= limit:
                joined.append(_Piece(piece.source, last.start, piece.end))
            elif last.tokens < tiny:
                first, *rest = self._parts(sources, piece, 2)
                joined += [replace(first, start=last.start), *rest]
            else:
                *rest, final = self._parts(sources, last, 2)
                joined += [*rest, replace(final, end=piece.end)]
        return self._counted(sources, joined)

    def _overlapping(self, sources: Sequence[_Source], pieces: Sequence[_Piece]) -> list[_Piece]:
        """The pieces, each begun up to `overlap_tokens` tokens earlier, at a word, inside the piece before."""
        if not self.overlap_tokens:
            return list(pieces)
        wide = dict.fromkeys(range(len(pieces)), int(self.overlap_tokens * CHARACTERS_PER_TOKEN))
        found = list(pieces)
        for _ in range(OVERLAP_ROUNDS):
            tried: list[tuple[int, _Piece]] = []
            for index, characters in wide.items():
                start = _earlier(sources, pieces, index, characters)
                if start is not None:
                    tried.append((index, replace(pieces[index], start=start, tokens=0)))
            counts = self._count([_text(sources, piece) for _, piece in tried]) if tried else []
            wide = {}
            for (index, piece), tokens in zip(tried, counts, strict=True):
                over = tokens - min(pieces[index].tokens + self.overlap_tokens, self.max_tokens)
                if over <= 0:
                    found[index] = replace(piece, tokens=tokens)
                else:  # as much less as there is too much, and a little more
                    share = 1 - over / max(1, tokens - pieces[index].tokens)
                    wide[index] = int((pieces[index].start - piece.start) * max(0.0, share) / SLACK)
        return found


def _text(sources: Sequence[_Source], piece: _Piece) -> str:
    return sources[piece.source].text[piece.start : piece.end]


def _splitter(markdown: bool, capacity: int) -> MarkdownSplitter | TextSplitter:
    return MarkdownSplitter(capacity) if markdown else TextSplitter(capacity)


# Looked for where lines begin and nowhere else: else every character of a line of nearly that length is a start to try.
_LONG_LINES = re.compile(rf"(?<![^\r\n])[^\r\n]{{{LONG_LINE + 1},}}")


def _stretches(text: str) -> Iterator[tuple[int, int, bool]]:
    """(start, end, whether it is made of lines of a usual length) of the stretches that a text consists of."""
    done = 0
    for line in _LONG_LINES.finditer(text):
        if line.start() > done:
            yield done, line.start(), True
        yield line.start(), line.end(), False
        done = line.end()
    if done < len(text):
        yield done, len(text), True


def _in_steps(
    splitter: MarkdownSplitter | TextSplitter, text: str, start: int, end: int, window: int
) -> Iterator[tuple[int, int]]:
    """The pieces of text[start:end], of which the splitter sees one window at a time.

    The last piece of a window is cut by its end, so the next window begins with that piece.
    """
    while start < end:
        stop = min(end, start + window)
        found = [(start + at, start + at + len(piece)) for at, piece in splitter.chunk_indices(text[start:stop])]
        start = found.pop()[0] if stop < end and len(found) > 1 else stop
        yield from found


def _earlier(sources: Sequence[_Source], pieces: Sequence[_Piece], index: int, characters: int) -> int | None:
    """Where a piece begins that takes in up to so many characters, whole words, of the one before; None: it cannot."""
    piece, before = pieces[index], pieces[index - 1]
    if index == 0 or before.source != piece.source or characters < 1:
        return None
    text = sources[piece.source].text
    start = max(piece.start - characters, before.start)
    if start > before.start and not text[start - 1].isspace():
        while start < piece.start and not text[start].isspace():
            start += 1
    while start < piece.start and text[start].isspace():
        start += 1
    return start if start < before.end else None


_HEADING = re.compile(
    r"^ {0,3}(?:(?P<fence>`{3,}|~{3,})[^\r\n]*"
    r"|(?P<level>\#{1,6})(?:[ \t]++(?P<title>[^\r\n]*+))?"
    r"|(?P<over>[^\s#>|`~*+\-][^\r\n]*)\r?\n {0,3}(?P<under>={2,}|-{2,})[ \t]*)$",
    re.MULTILINE,
)
_MARKUP = ((re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"), (re.compile(r"(\*\*|__|`)(.+?)\1"), r"\2"))
# Every chunk below a heading carries it; what is longer is a text that somebody marked as a heading.
MAX_TITLE = 300


def _without_closing(title: str) -> str:
    """The text of a heading `# title ##`, of which `title ##` is given. (As a pattern it takes quadratic time.)"""
    title = title.rstrip(" \t")
    bare = title.rstrip("#")
    return title if bare and bare[-1] not in " \t" else bare.rstrip(" \t")


class _Headings:
    """The headings of a Markdown text, and under which of them a place is."""

    def __init__(self, text: str) -> None:
        self.spans: list[tuple[int, int]] = []
        self.paths: list[str] = []
        open_levels: list[tuple[int, str]] = []
        fence = ""
        for found in _HEADING.finditer(text):
            mark = found["fence"]
            if mark:
                if not fence:
                    fence = mark
                elif mark[0] == fence[0] and len(mark) >= len(fence):
                    fence = ""
            if mark or fence:
                continue
            level = len(found["level"]) if found["level"] else 1 if found["under"][0] == "=" else 2
            title = (_without_closing(found["title"] or "") if found["level"] else found["over"])[:MAX_TITLE]
            for pattern, plain in _MARKUP:
                title = pattern.sub(plain, title)
            open_levels = [*(item for item in open_levels if item[0] < level), (level, title.strip())]
            self.spans.append(found.span())
            self.paths.append(" > ".join(name for _, name in open_levels if name))

    def path(self, text: str, start: int, end: int) -> str:
        """The headings above the first line of text[start:end] that is no heading itself."""
        following = bisect_left(self.spans, (start, 0))
        while following < len(self.spans):
            first, last = self.spans[following]
            if first >= end or text[start:first].strip():
                break
            start = last
            following += 1
        return self.paths[following - 1] if following else ""
