"""Directives of reStructuredText (`.. name:: argument`), docutils' own and Sphinx's: which of them a reader sees."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pipeline.extract.blocks import Blocks

_OPTION = re.compile(r":([\w-]+):(?:\s+(.*)|$)")
_MIN_ALT_WORDS = 4  # a description of a picture; shorter ones are labels


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CODE = _words(
    "code code-block sourcecode highlight-block parsed-literal literal prompt console ipython doctest testcode"
)
_LITERAL = _words("math productionlist graphviz digraph graph mermaid uml plantuml testoutput")
_ADMONITIONS = _words("attention caution danger error hint important note tip warning seealso todo")
_VERSIONS = {
    "versionadded": "Added in version",
    "versionchanged": "Changed in version",
    "deprecated": "Deprecated since version",
    "versionremoved": "Removed in version",
    "deprecated-removed": "Deprecated since version",
}
_LEFT_OUT = _words(
    """toctree contents sectnum index include literalinclude raw highlight currentmodule module py:module
    py:currentmodule meta tabularcolumns testsetup testcleanup default-role role title header footer
    target-notes autosummary bibliography default-domain c:namespace cpp:namespace sectionauthor codeauthor
    moduleauthor automodule autoclass autofunction automethod autoattribute autodata autoexception image-map
    unicode date plot"""
)
_PICTURES = _words("image figure")
_TRANSPARENT = _words(
    """class rst-class container compound only ifconfig tabs tab-set grid cssclass hlist glossary epigraph highlights
    pull-quote line-block dropdown details"""
)


class Directive(NamedTuple):
    """body: the lines below, options among them, without their indentation."""

    name: str
    argument: str
    body: Sequence[str]


class Nested(Protocol):
    """What reads the text in a directive."""

    def nested(self, lines: Sequence[str]) -> str: ...

    def inline(self, text: str) -> str: ...


def write_directive(directive: Directive, reader: Nested, blocks: Blocks) -> None:
    """Writes what a reader of the built page would see of it."""
    name = directive.name
    argument, options, body = _parts(directive)
    if name in _LEFT_OUT or name.startswith("auto"):
        return
    if name in _CODE:
        text = "\n".join(body)
        text = reader.inline(text) if name == "parsed-literal" else text
        blocks.code(text, argument.split("\n")[0] if name in {"code", "code-block", "sourcecode"} else "")
    elif name in _LITERAL:
        blocks.code("\n".join([*argument.split("\n"), *body]).strip("\n"))
    elif name in _VERSIONS:
        version, _, text = argument.partition(" ")
        begin = f"{_VERSIONS[name]} {version}"
        inner = reader.nested([text, *body])
        blocks.markdown(f"{begin}: {inner}" if inner else f"{begin}.")
    elif name in _ADMONITIONS:
        label = "See also" if name == "seealso" else name.capitalize()
        blocks.markdown(f"{label}: {reader.nested([*argument.split(chr(10)), *body])}")
    elif name in _PICTURES:
        if len(options.get("alt", "").split()) >= _MIN_ALT_WORDS:
            blocks.paragraph(reader.inline(options["alt"]))
        blocks.markdown(reader.nested(body))
    elif name == "list-table":
        blocks.paragraph(reader.inline(argument))
        blocks.table(_list_table(body, reader))
    elif name == "csv-table":
        blocks.paragraph(reader.inline(argument))
        head = [options["header"]] if options.get("header") else []
        rows = csv.reader([*head, *body], skipinitialspace=True, strict=False)
        try:
            blocks.table([[reader.inline(cell) for cell in row] for row in rows])
        except csv.Error:
            blocks.code("\n".join(body))
    else:
        _write_other(name, argument, body, reader, blocks)


def _write_other(name: str, argument: str, body: Sequence[str], reader: Nested, blocks: Blocks) -> None:
    """Those that show their argument: titles of boxes as text, signatures of functions as code."""
    if argument and name not in _TRANSPARENT:
        if name in {"admonition", "topic", "sidebar", "rubric", "table", "centered", "tab", "tab-item", "card"}:
            blocks.paragraph(reader.inline(argument))
        else:
            for signature in argument.split("\n"):
                blocks.paragraph(f"`{signature}`" if "`" not in signature else signature)
    blocks.markdown(reader.nested(body))


def _parts(directive: Directive) -> tuple[str, dict[str, str], list[str]]:
    """The argument (of several lines for several signatures), the options, and the body."""
    lines = list(directive.body)
    argument = [directive.argument] if directive.argument else []
    options: dict[str, str] = {}
    at = 0
    # Lines right below go on with the argument, up to the first option or blank line.
    if argument:
        while at < len(lines) and lines[at].strip() and not _OPTION.match(lines[at]):
            argument.append(lines[at].strip())
            at += 1
    key = ""
    start = at
    while at < len(lines) and lines[at].strip():
        if match := _OPTION.match(lines[at]):
            key = match[1].lower()
            options[key] = match[2] or ""
        elif key and lines[at][0] in " \t":
            options[key] = f"{options[key]} {lines[at].strip()}"
        else:
            break
        at += 1
    if at < len(lines) and lines[at].strip() and not argument:
        at = start if not options else at
    return "\n".join(argument), options, lines[at:]


def _list_table(lines: Sequence[str], reader: Nested) -> list[list[str]]:
    """Rows of cells from a list of lists (`* - cell`)."""
    rows: list[list[list[str]]] = []
    for line in lines:
        stripped = line.lstrip()
        if line.startswith("* "):
            rows.append([])
            stripped = line[2:].lstrip()
        if not rows:
            continue
        if stripped.startswith("- ") or stripped == "-":
            rows[-1].append([stripped[1:].strip()])
        elif rows[-1]:
            rows[-1][-1].append(stripped)
    return [[" ".join(reader.nested(cell).split()) for cell in row] for row in rows]
