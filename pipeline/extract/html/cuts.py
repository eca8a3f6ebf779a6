"""What is left of a page when its furniture is taken out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.extract.html.writer import TEXTS, Kind, Op


@dataclass(frozen=True, slots=True)
class Cut:
    """Operations that are left out. A page's header gives its first-level heading back where it is the page's title.

    always: what no reader sees; it stays out even where nothing else is left.
    """

    start: int
    end: int
    is_header: bool = False
    always: bool = False


def outermost(cuts: Iterable[Cut]) -> list[Cut]:
    """The cuts that lie in no other one, in order."""
    outer: list[Cut] = []
    for cut in sorted(cuts, key=lambda cut: (cut.start, -cut.end)):
        if not outer or cut.start >= outer[-1].end:
            outer.append(cut)
    return outer


def kept(ops: list[Op], cuts: list[Cut], title: str) -> list[Op]:
    """The operations outside of the cuts (of which one may lie in another)."""
    left: list[Op] = []
    spared: list[tuple[int, list[Op]]] = []
    position = 0
    for cut in outermost(cuts):
        left.extend(ops[position : cut.start])
        if cut.is_header and (heading := _title_heading(ops, cut, title)):
            spared.append((len(left), heading))
        position = cut.end
    left.extend(ops[position:])
    if spared and (Kind.OPEN, "h1") not in left:
        at, heading = spared[0]
        left[at:at] = heading
    return left


def _title_heading(ops: list[Op], cut: Cut, title: str) -> list[Op]:
    """The heading of a header, where the page's title begins with it: then it is the page's, not the site's."""
    inside = ops[cut.start : cut.end]
    try:
        start = inside.index((Kind.OPEN, "h1"))
        heading = inside[start : inside.index((Kind.CLOSE, "h1"), start) + 1]
    except ValueError:
        return []
    said = " ".join("".join(text for kind, text in heading if kind in TEXTS).split())
    return heading if said and title.startswith(said) else []
