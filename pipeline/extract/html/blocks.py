"""The text of a page block by block, as a reader sees it: what is between two ends of paragraphs, cells or lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.extract.html.cuts import Cut
from pipeline.extract.html.writer import LEVELS, TEXTS, Kind, Op

_NESTED = frozenset({"layout", "ul", "ol", "dl", "table", "menu", "dir", "blockquote"})


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Text between two ends of blocks. linked: characters of it in links. heading: its level, or 0."""

    start: int  # operations
    end: int
    said: str
    links: tuple[str, ...]
    ways: int  # of the links, those that lead to a page of the same series
    heading: int
    apart: bool  # in no list and no table: a paragraph of its own

    @property
    def plain(self) -> int:
        """Characters outside of links."""
        return len(self.said) - sum(map(len, self.links))

    @property
    def all_linked(self) -> bool:
        said = matter(self.said)
        return bool(self.links) and said == matter("".join(self.links))

    @property
    def all_ways(self) -> bool:
        return self.ways == len(self.links) and self.all_linked


def blocks_of(ops: Sequence[Op], outer: Sequence[Cut]) -> Iterator[Block]:
    """The text outside of the cuts, block by block."""
    said: list[str] = []
    links: list[str] = []
    start = position = heading = nested = ways = 0
    remaining = iter([*outer, Cut(len(ops), len(ops))])
    cut = next(remaining)
    while position <= len(ops):
        at_cut = position == cut.start
        kind, value = (Kind.CLOSE, "") if at_cut else ops[position]
        if kind in TEXTS:
            said.append(value)
            if kind is not Kind.TEXT:
                links.append(value)
                ways += kind is Kind.WAY
        else:
            if text := " ".join("".join(said).split()):
                labels = tuple(" ".join(link.split()) for link in links)
                yield Block(start, position, text, labels, ways, heading, apart=nested <= 0)
            said.clear()
            links.clear()
            ways = 0
            if kind is not Kind.BREAK:
                heading = LEVELS.get(value, 0) if kind is Kind.OPEN else 0
            if value in _NESTED:
                nested += 1 if kind is Kind.OPEN else -1
            start = position + (0 if at_cut else 1)
        if at_cut:
            if cut.start == len(ops):
                return
            position = start = cut.end
            cut = next(remaining)
        else:
            position += 1


def matter(text: str) -> str:
    return "".join(filter(str.isalnum, text))
