"""HTML as a stream of tokens: what a browser's tokenizer would see, in one pass whose time grows with the length.

The standard library's parser takes time quadratic in some broken inputs, and a compiled one loses text that is nested
deep; here no text outside of tags, comments and scripts is ever lost.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple


class Text(NamedTuple):
    text: str


class Start(NamedTuple):
    name: str
    attributes: str  # as written; `attributes()` reads them

    def read(self) -> dict[str, str]:
        return attributes(self.attributes)


class End(NamedTuple):
    name: str


Token = Text | Start | End

# Possessive throughout: each character is looked at once, whatever the input.
_TAG = re.compile(
    r"""<(/?)([a-zA-Z][^\s/>]*+)((?>(?:[^>"'=]++|=\s*+(?:"[^"]*+"|'[^']*+')|=|["'])*))>""",
)
_ATTRIBUTE = re.compile(r"""([^\s"'>/=]++)(?:\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>]++)))?""")
_ASCII_LETTER = re.compile(r"</?[a-zA-Z]")
# Longer numeric references stand for no character, and Python refuses to read very long numbers.
_LONG_REFERENCE = re.compile(r"&#(?:0*+[0-9]{8,}|[xX]0*+[0-9a-fA-F]{7,});?")

# Elements whose content is no markup. True: it is text that a reader sees.
_RAW = {"script": False, "style": False, "xmp": True, "iframe": False, "noembed": False, "noframes": False}
_RAW |= {"textarea": True, "title": True}
_RAW_END = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in _RAW}


def unescape(text: str) -> str:
    """The text with its character references resolved."""
    return html.unescape(_LONG_REFERENCE.sub("\ufffd", text)) if "&" in text else text


def attributes(written: str) -> dict[str, str]:
    """The attributes of a tag by lower-case name; the first of two with one name counts."""
    found: dict[str, str] = {}
    for match in _ATTRIBUTE.finditer(written):
        name, *values = match.groups()
        value = next((value for value in values if value is not None), "")
        found.setdefault(name.lower(), unescape(value))
    return found


def tokens(source: str) -> Iterator[Token]:
    """The tokens of an HTML text; names in lower case, character references resolved."""
    position = 0
    while True:
        less = source.find("<", position)
        if less < 0:
            less = len(source)
        if less > position:
            yield Text(unescape(source[position:less]))
        if less == len(source):
            return
        if _ASCII_LETTER.match(source, less):
            tag = _TAG.match(source, less)
            if tag is None:  # no end of a tag in the whole rest
                yield Text(unescape(source[less:]))
                return
            position = tag.end()
            name = tag[2].lower()
            if tag[1]:
                yield End(name)
                continue
            yield Start(name, tag[3])
            if name in _RAW:
                end = _RAW_END[name].search(source, position)
                stop = end.start() if end else len(source)
                if _RAW[name] and stop > position:
                    yield Text(
                        unescape(source[position:stop]) if name in {"title", "textarea"} else source[position:stop]
                    )
                position = stop
                if end is None:
                    yield End(name)
        else:
            text, position = _declaration(source, less)
            if text:
                yield Text(text)


def _declaration(source: str, less: int) -> tuple[str, int]:
    """What a `<` that opens no tag means: (text, where to go on)."""
    if source.startswith("<!--", less):
        if source.startswith((">", "->"), less + 4):
            return "", source.index(">", less) + 1
        end = source.find("-->", less + 4)
        return "", len(source) if end < 0 else end + 3
    if source.startswith("<![CDATA[", less):
        end = source.find("]]>", less)
        return (source[less + 9 :], len(source)) if end < 0 else (source[less + 9 : end], end + 3)
    if source.startswith(("<!", "<?", "</"), less):
        end = source.find(">", less)
        return "", len(source) if end < 0 else end + 1
    return "<", less + 1
