"""The frame of a page: what stands around its text and is told by where it stands, and not by what it is called.

Above the first heading there are banners, trails and menus; below the last paragraph there are colophons; outside of
the element that holds the text there are sidebars. Each rule takes only short things that say nothing themselves.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from pipeline.extract.html.blocks import Block, blocks_of, matter
from pipeline.extract.html.cuts import Cut, outermost
from pipeline.extract.html.writer import Op

_FEW = 12  # blocks above the first heading of a page that says little; more are its list of links
_SHORT = 300  # characters of a block of a frame
_MUCH_BODY = 400  # characters outside of links that a page has at least, before anything is taken for its frame
_SHARE = 0.6  # of the page's text outside of links that the element with the text holds
_LETTERS = 10  # links of one letter in a row
_NUMERAL = 3  # characters of the number of a chapter, or of a word beside such numbers: *Top*, *Ind*
_ENTRIES = 4  # words of that kind in a row of numbers
_LONE = 30  # letters outside of the links of such a row
_LIST = 8  # operations of a list of links
_NAME = re.compile(r"[^\W\d_]+(?:[ .-]+[^\W\d_]+){1,3}")  # of a person
_SENTENCE = re.compile(r"\w[^.?!]{20,}[.?!](?:\s|$)")
_PARTS = re.compile(r"\s+[-–—|·»«:/]+\s+|: |::| » ")
# Possessive: each character is looked at once, whatever the block.
_NUMBER = re.compile(r"[\W_]*+(?:(?:v|version|release|edition)[\W_]*+)?\d[\w.+~-]*+[\W_]*+", re.IGNORECASE)
_AFTER_NAME = re.compile(
    r"(?>(?:[\W_]|v?\d[\w.+~-]*+|(?:version|release|edition|documentation|manual|reference|docs|guide|home|api)\b)*)",
    re.IGNORECASE,
)
_RIGHTS = re.compile(
    r"(?:©|\(c\) |copyright\b(?=[^.]{0,80}(?:©|\(c\)|\b(?:19|20)\d\d))|all rights reserved|licen[sc]ed under|"
    r"distributed under)",
    re.IGNORECASE,
)
_MAKING = re.compile(
    r"(?:(?:page |document |site )?last (?:updated?|modified|changed|revised|generated)\b|"
    r"this (?:page|document|documentation|manual|file|site|website) (?:was |is |were |has been )?"
    r"(?:automatically |last )*(?:generated|built|created|produced|converted|maintained|updated|modified|formatted)\b|"
    r"(?:automatically )?(?:built|generated|created|produced|made|powered|rendered|published|formatted|hosted|"
    r"(?:web ?site |page )?design(?:ed)?)(?: automatically| on .{1,40})? (?:by|with|using|from|at)\b|"
    r"report (?:a |an )?(?:bug|issue|problem|error)s?\b|valid x?html|back to (?:the )?top|"
    r"[^\W\d_]+ version \d[\w.]*,? released\b|(?:time|date|updated|revised) ?: .{0,40}\d|"
    r"other languages:|available languages:|about automatic language selection|"
    r"(?:e-?mail|send|submit|mail) (?:your )?(?:comments|feedback|corrections|suggestions)\b)",
    re.IGNORECASE,
)
_DATE = re.compile(r"(?:[^\W\d]{3,10}\.? \d{1,2},? \d{4}|\d{1,2}\.? [^\W\d]{3,10}\.? \d{4}|\d{4}-\d\d-\d\d)[\s\d:.]*")
_LAST_UPDATE = re.compile(r"last (?:updated?|modified|changed)\b", re.IGNORECASE)
_TURN = re.compile(r"\b(?:next|prev(?:ious)?|up)\s?:(?!:)", re.IGNORECASE)
_ONLY_WAYS = re.compile(
    r"(?>(?:[\s|·•\[\]«»<>←→-]*+(?:next|prev(?:ious)?|contents|table of contents|index|up|home|top)\b)+)"
    r"[\s|·•\[\]«»<>←→-]*+",
    re.IGNORECASE,
)
_WORDS = re.compile(r"[^\W\d_]+(?>(?: [^\W\d_]+)*)")
_BARS = re.compile(r" [|·•] ")  # between links to pages of the same site
_MATTER = re.compile(r"[^\W_]")


def frame(ops: Sequence[Op], cuts: Sequence[Cut], containers: Sequence[tuple[int, int]], title: str) -> list[Cut]:
    """What more to cut. containers: (start, end) of elements that say of themselves that they hold the text."""
    outer = outermost(cuts)
    blocks = list(blocks_of(ops, outer))
    plain = sum(block.plain for block in blocks)
    held = _held(blocks, containers, plain)
    found = _outside(blocks, held) if held and plain >= _MUCH_BODY else set()
    found.update(block for block in blocks if _leads_on(block))
    found.update((*_alphabet(blocks), *_row_of_ways(blocks)))
    rest = [block for block in blocks if block not in found]
    body = held[0].start if held else len(ops)
    found.update(_above(rest, [cut.start for cut in outer if not cut.always], title, body))
    found.update(_below(rest, outer))
    return [Cut(block.start, block.end) for block in found]


def _held(blocks: Sequence[Block], containers: Sequence[tuple[int, int]], plain: int) -> Sequence[Block]:
    """The blocks in the innermost element that holds most of the text; () where none says that it does."""
    starts = [block.start for block in blocks]
    sums = [0]
    for block in blocks:
        sums.append(sums[-1] + block.plain)
    held: tuple[int, int] | None = None
    for start, end in containers:
        first, last = bisect_left(starts, start), bisect_left(starts, end)
        if (
            last > first
            and sums[last] - sums[first] >= plain * _SHARE
            and (held is None or last - first < held[1] - held[0])
        ):
            held = first, last
    return () if held is None else blocks[held[0] : held[1]]


def _outside(blocks: Sequence[Block], held: Sequence[Block]) -> set[Block]:
    """Menus beside what holds the text."""
    found: set[Block] = set()
    before = [block for block in blocks if block.start < held[0].start]
    after = [block for block in blocks if block.start > held[-1].start]
    for side in (before, after):
        run: list[Block] = []
        for block in side:
            if block.heading == 1 or _is_text(block):
                found.update(_menu(run))
                run = []
            else:
                run.append(block)
        found.update(_menu(run))
    return found


def _menu(run: Sequence[Block]) -> Sequence[Block]:
    """The blocks, if most of what they say are links."""
    said = sum(len(block.said) for block in run)
    return run if sum(block.plain for block in run) * 2 <= said else ()


def _is_text(block: Block) -> bool:
    return block.plain > _SHORT or _SENTENCE.search(block.said, 0, 2 * _SHORT) is not None


def _above(blocks: Sequence[Block], cuts: Sequence[int], title: str, body: int) -> list[Block]:
    """What stands above the page's heading: names of the site, trails, menus, banners. body: where the element that
    holds the text begins."""
    count = next((index for index, block in enumerate(blocks) if block.heading), len(blocks))
    if count == len(blocks):
        return []
    found: list[Block] = []
    parts = [part for part in map(_key, _PARTS.split(title[:_SHORT])) if part]
    if blocks[count].heading == 1 and len(parts) > 1 and _names_site(blocks[count], parts[1:]):
        again = next((index for index in range(count + 1, len(blocks)) if blocks[index].heading == 1), 0)
        if again and _names_site(blocks[again], parts[:1]):
            found.append(blocks[count])
            count = again
    above = [block for block in blocks[:count] if not block.heading]
    below = sum(block.plain for block in blocks[count:])
    if sum(block.plain for block in above) * 2 > below or (below < _MUCH_BODY and count > _FEW):
        return found
    last_cut = max((start for start in cuts if start < blocks[count].start), default=-1)
    for block in above:
        if len(block.said) > _SHORT:
            break
        if (
            block.all_linked
            or (block.apart and block.start < min(last_cut, body) and not _is_text(block))
            or _names_site(block, parts)
            or _NUMBER.fullmatch(block.said)
            or not _MATTER.search(block.said)
            or _ONLY_WAYS.fullmatch(block.said)
        ):
            found.append(block)
        else:
            break
    return found


def _names_site(block: Block, parts: Sequence[str]) -> bool:
    """Whether a block says a part of the title, perhaps with a version."""
    said = _key(block.said[: _SHORT + 1])
    return len(said) <= _SHORT and any(
        said.startswith(part) and _AFTER_NAME.fullmatch(said, len(part)) for part in parts
    )


def _leads_on(block: Block) -> bool:
    """*Next: Keys, Up: The Tool*, or ways alone."""
    if block.heading or not block.links or len(block.said) > _SHORT:
        return False
    if block.ways > 1 and block.all_ways:
        return True
    if " " in block.said and _ONLY_WAYS.fullmatch(block.said):
        return True
    said = block.said.lstrip("[(<«|- ")
    return _TURN.match(said) is not None and len(_TURN.findall(said)) > 1


def _row_of_ways(blocks: Sequence[Block]) -> Iterator[Block]:
    """Ways to other pages in blocks of their own, as the cells of a row."""
    run: list[Block] = []
    for block in [*blocks, None]:
        if block is not None and block.links and block.all_ways and not block.heading:
            run.append(block)
            continue
        if 1 < len(run) <= _FEW:
            yield from run
        run = []


def _is_letters(block: Block) -> bool:
    """Whether a block has links of one letter, or of numbers, and hardly anything else."""
    words = [link for link in block.links if not (link.isdigit() or (len(link) == 1 and link.isalpha()))]
    if len(block.links) < _LETTERS:
        return bool(block.links) and not words and block.all_linked
    said = len(matter(block.said)) - len(matter("".join(block.links)))
    return len(words) <= _ENTRIES and all(len(word) <= _NUMERAL for word in words) and said <= _LONE


def _alphabet(blocks: Sequence[Block]) -> Iterator[Block]:
    """The letters that lead to the pages of an index."""
    run: list[Block] = []
    letters = 0
    for block in [*blocks, None]:
        if block is not None and _is_letters(block):
            run.append(block)
            letters += len(block.links)
            continue
        if letters >= _LETTERS:
            yield from run
        run, letters = [], 0


def _below(blocks: Sequence[Block], outer: Sequence[Cut]) -> list[Block]:
    """What stands below the text: copyright, date, maker, ways to other pages. The text of a section stays."""
    found: list[Block] = []
    for block in reversed(blocks):
        if block.heading and not _LAST_UPDATE.match(block.said):
            if found and _is_emptied(block, found[-1], outer):
                return [*found, block]
            return []  # a section of which nothing would be left
        if not block.heading and not _is_colophon(block, last=not found):
            return found
        found.append(block)
    return []


def _is_emptied(heading: Block, after: Block, outer: Sequence[Cut]) -> bool:
    """Whether a list that belonged to a heading is cut: a table of contents at the end of a page."""
    first = bisect_left(outer, heading.end, key=lambda cut: cut.start)
    return any(cut.end - cut.start >= _LIST for cut in outer[first : first + 3] if cut.start < after.start)


def _is_colophon(block: Block, last: bool) -> bool:
    said = block.said
    if not _MATTER.search(said) or (len(said) <= _SHORT and (_DATE.fullmatch(said) or _ONLY_WAYS.fullmatch(said))):
        return True
    start = said.lstrip("[(|-–— ")
    if (len(said) <= 2 * _SHORT and _RIGHTS.match(start)) or (len(said) <= _SHORT and _MAKING.match(start)):
        return True
    if not block.all_linked or len(said) > _SHORT:
        return False
    if len(block.links) > 1 and block.apart and _BARS.search(said) and all(map(_WORDS.fullmatch, block.links)):
        return True
    return block.all_ways or (last and block.apart and len(block.links) == 1 and _NAME.fullmatch(said) is not None)


def _key(text: str) -> str:
    return " ".join(text.lower().split()).strip(" -–—|·»«:/")
