"""reStructuredText to Markdown: what a reader of the built page sees, without building it.

Nothing is included from elsewhere, whatever a document asks for; docutils would.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipeline.extract.blocks import Blocks, hang
from pipeline.extract.found import Found
from pipeline.extract.rst.directives import Directive, write_directive
from pipeline.extract.rst.inline import ANONYMOUS, shown
from pipeline.extract.rst.tables import grid, is_rule, simple, simple_end

_LINE = re.compile(r"([!-/:-@[-`{-~])\1*$")  # of one sign, under or over a title
_MIN_LINE = 4  # signs; a shorter one must be as long as its title
_BULLET = re.compile(r"([-*+•‣⁃])(\s+|$)")
_NUMBER = re.compile(r"(\(?(?:[0-9]{1,9}|[A-Za-z]|[ivxlcdm]{1,9}|[IVXLCDM]{1,9}|#)[.)])(\s+|$)")
_FIELD = re.compile(r":([^:\s`](?:[^:\\\n]|\\.|:(?![\s`]|$)){0,100}):(?:\s+|$)")
_OPTION = re.compile(
    r"(?:-\w|--\w[\w-]*|/\w)(?:[ =]<?[\w.:-]+>?)?(?:, (?:-\w|--\w[\w-]*)(?:[ =]<?[\w.:-]+>?)?)*(?=  |\s*$)"
)
_DIRECTIVE = re.compile(r"\.\. ?(?:\|([^|]+)\| )?([A-Za-z][\w.+:-]*?) ?::(?:\s+|$)")
_NOTE = re.compile(r"\.\. \[([^\]]+)\](?:\s+|$)")
_NAME = re.compile(r"^[ \t]*\.\. _(?!_)(`[^`]+`|(?:[^:\\\n]|\\.){1,200}):", re.MULTILINE)
_NAMELESS = re.compile(r"^[ \t]*(?:__ |\.\. __:)", re.MULTILINE)
_TITLE = re.compile(r"^(\S[^\n]{0,80})\n([=\-~^\"'+*#`.:_])\2{2,}[ \t]*$", re.MULTILINE)
_SUBSTITUTION = re.compile(r"^\.\. \|([^|\n]+)\| replace::[ \t]*(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
_MAX_DEPTH = 50  # lists, quotes and directives in each other
_DOCINFO = {"author": "authors", "authors": "authors", "date": "created", "language": "language"}
_ISO = re.compile(r"\d{4}-\d\d-\d\d$")


class Reader:
    """Reads blocks, one after the other, those in each other again."""

    def __init__(self, text: str) -> None:
        self._levels: list[tuple[str, bool]] = []
        self._depth = 0
        names = [
            *_NAME.findall(text),
            *(title for title, _ in _TITLE.findall(text)),
            *([ANONYMOUS] if _NAMELESS.search(text) else []),
        ]
        self._targets = frozenset(" ".join(name.strip("`").replace("\\", "").lower().split()) for name in names)
        self._substitutions: dict[str, str] = {}
        for name, value in _SUBSTITUTION.findall(text):
            self._substitutions[name.lower()] = shown(" ".join(value.split()), {}, self._targets)
        self.metadata: dict[str, Any] = {}
        self.title = ""

    def inline(self, text: str) -> str:
        return shown(text, self._substitutions, self._targets)

    def nested(self, lines: Sequence[str]) -> str:
        """The Markdown of blocks in a block; as they stand where they are nested too deep."""
        if self._depth >= _MAX_DEPTH:
            return "\n".join(lines)
        self._depth += 1
        blocks = Blocks()
        self.read(lines, blocks)
        self._depth -= 1
        return blocks.text()

    def read(self, lines: Sequence[str], blocks: Blocks) -> None:
        at = 0
        while at < len(lines):
            if not lines[at].strip():
                at += 1
            else:
                at = self._block(lines, at, blocks)

    def _block(self, lines: Sequence[str], at: int, blocks: Blocks) -> int:
        """Writes the block that begins here; the index of the line after it."""
        line = lines[at]
        if line[0] in " \t":
            inner, end = indented(lines, at)
            blocks.markdown("\n".join(f"> {part}".rstrip() for part in self.nested(inner).split("\n")))
            return end
        for read in (self._section, self._table, self._explicit, self._listed, self._special):
            if end := read(lines, at, blocks):
                return end
        return self._paragraph(lines, at, blocks)

    def _section(self, lines: Sequence[str], at: int, blocks: Blocks) -> int:
        line, below, third = (*lines[at : at + 3], "", "")[:3]
        if _LINE.match(line.rstrip()) and below.strip() and third.rstrip() == line.rstrip() and len(line.rstrip()) > 2:
            title, key, end = below.strip(), (line[0], True), at + 3
        elif _LINE.match(below.rstrip()) and _is_under(line.rstrip(), below.rstrip()):
            title, key, end = line.strip(), (below[0], False), at + 2
        elif _LINE.match(line.rstrip()) and len(line.rstrip()) >= _MIN_LINE and not below.strip():
            return at + 1  # a line between two parts
        else:
            return 0
        if key not in self._levels:
            self._levels.append(key)
        text = self.inline(title)
        self.title = self.title or text
        blocks.heading(self._levels.index(key) + 1, text)
        return end

    def _table(self, lines: Sequence[str], at: int, blocks: Blocks) -> int:
        line = lines[at]
        rows: list[list[str]] = []
        end = at
        if line.startswith(("+-", "+=")):
            while end < len(lines) and lines[end].startswith(("+", "|")):
                end += 1
            rows = grid([each.rstrip() for each in lines[at:end]])
        elif is_rule(line) and " " in line.strip():
            end = simple_end(lines, at)
            rows = simple(lines[at:end]) if end > at else []
        blocks.table([[self.inline(cell) for cell in row] for row in rows])
        return end if end > at else 0

    def _explicit(self, lines: Sequence[str], at: int, blocks: Blocks) -> int:
        line = lines[at]
        if line.startswith("__ "):
            return at + 1
        if not (line.startswith(".. ") or line.rstrip() == ".."):
            return 0
        body, end = indented(lines, at + 1)
        if match := _NOTE.match(line):
            blocks.markdown(f"[{match[1]}] {self.nested([line[match.end() :], *body])}")
        elif (match := _DIRECTIVE.match(line)) and not match[1]:
            write_directive(Directive(match[2].lower(), line[match.end() :].strip(), body), self, blocks)
        return end

    def _listed(self, lines: Sequence[str], at: int, blocks: Blocks) -> int:
        line = lines[at]
        match = _BULLET.match(line)
        marker = "-"
        if match is None:
            match = _NUMBER.match(line)
            if match is None or not _goes_on(lines, at):
                return 0
            marker = match[1].strip("(")
            marker = "1." if marker[:-1] == "#" else marker
        first = line[match.end() :]
        inner, end = indented(lines, at + 1)
        text = self.nested([first, *inner]) if first or inner else ""
        if text:
            blocks.listed(hang(f"{marker} ", text))
        return end

    def _special(self, lines: Sequence[str], at: int, blocks: Blocks) -> int:
        line = lines[at]
        end = at
        if line.startswith(">>> "):
            while end < len(lines) and lines[end].strip():
                end += 1
            blocks.code("\n".join(lines[at:end]), "python")
        elif line.startswith("| ") or line.rstrip() == "|":
            while end < len(lines) and (lines[end].startswith(("| ", "  ")) or lines[end].rstrip() == "|"):
                end += 1
            blocks.paragraph("\n".join(self.inline(each.removeprefix("|").strip()) for each in lines[at:end]))
        elif match := _FIELD.match(line):
            body, end = indented(lines, at + 1)
            self._field(match[1], [line[match.end() :], *body], blocks)
        elif match := _OPTION.match(line):
            body, end = indented(lines, at + 1)
            blocks.listed(hang("- ", f"`{match[0]}`: {self.nested([line[match.end() :].strip(), *body])}"))
        return end if end > at else 0

    def _field(self, name: str, body: list[str], blocks: Blocks) -> None:
        text = self.nested(body)
        key = _DOCINFO.get(name.lower())
        if key and not self._depth and text:
            value = " ".join(text.split())
            if key == "authors":
                self.metadata.setdefault(key, []).extend(
                    part for each in text.split("\n") if (part := each.strip("- ;"))
                )
            elif key != "created" or _ISO.match(value):
                self.metadata[key] = value
        if text and name.lower() not in {"orphan", "nosearch", "tocdepth", "nocomments"}:
            blocks.listed(hang("- ", f"{self.inline(name)}: {text}"))

    def _paragraph(self, lines: Sequence[str], at: int, blocks: Blocks) -> int:
        end = at + 1
        if end < len(lines) and lines[end][:1] in {" ", "\t"} and lines[end].strip() and not _is_literal(lines[at]):
            body, end = indented(lines, end)  # a term and its definition
            blocks.paragraph(self.inline(lines[at].strip()))
            blocks.markdown(self.nested(body))
            return end
        while end < len(lines) and lines[end].strip() and not _is_literal(lines[end - 1]):
            end += 1
        text = "\n".join(line.strip() for line in lines[at:end])
        if not text.endswith("::"):
            blocks.paragraph(self.inline(text))
            return end
        text = text[:-2].rstrip() + (":" if text[:-2] and not text[:-2].endswith((" ", "\n")) else "")
        blocks.paragraph(self.inline(text))
        body, after = indented(lines, end)
        if body:
            blocks.code("\n".join(body))
        return after if body else end


def _is_literal(line: str) -> bool:
    return line.rstrip().endswith("::")


def _is_under(title: str, line: str) -> bool:
    return (
        bool(title) and title[0] not in " \t" and not _LINE.match(title) and (len(line) >= min(len(title), _MIN_LINE))
    )


def _goes_on(lines: Sequence[str], at: int) -> bool:
    """Whether a line that begins like a numbered item is one: "A. Name" in a paragraph is not."""
    below = lines[at + 1] if at + 1 < len(lines) else ""
    return not below.strip() or below[0] in " \t" or _NUMBER.match(below) is not None


def indented(lines: Sequence[str], at: int) -> tuple[list[str], int]:
    """The indented lines from here on, without what all are indented by, and the index after them."""
    end = at
    while end < len(lines) and (not lines[end].strip() or lines[end][0] in " \t"):
        end += 1
    while end > at and not lines[end - 1].strip():
        end -= 1
    block = [line.expandtabs(8) for line in lines[at:end]]
    margin = min((len(line) - len(line.lstrip()) for line in block if line.strip()), default=0)
    return [line[margin:] for line in block], end


def read_rst(text: str) -> Found:
    """text: clean, with newlines as the only ends of lines."""
    reader = Reader(text)
    blocks = Blocks()
    reader.read(text.split("\n"), blocks)
    return Found(blocks.text(), reader.title, reader.metadata)
