"""Rich Text (.rtf) to Markdown: paragraphs and tables as they stand; what is not text of the page is left out."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import ExtractionFailed
from pipeline.extract.blocks import Blocks
from pipeline.extract.found import Found
from pipeline.extract.office.ooxml import split_names, split_words

_TOKEN = re.compile(
    rb"\\([a-z]{1,32})(-?[0-9]{1,10})? ?|\\'([0-9a-f]{2})|\\([^a-z])|([{}])|[\r\n]++|([^\\{}\r\n]++)",
    re.IGNORECASE | re.DOTALL,
)
_MAX_DEPTH = 1000  # groups in each other
# Destinations that are no text of the page; those after \* are left out by that mark, but for these.
_LEFT_OUT = frozenset(
    b"""fonttbl colortbl stylesheet listtable listoverridetable rsidtbl generator pict object header headerl headerr
    headerf footer footerl footerr footerf annotation atnid atnauthor atnref atndate xmlnstbl themedata datastore
    colorschememapping latentstyles fldinst bkmkstart bkmkend filetbl revtbl info listtext pntext nonshppict falt panose
    template tc xe userprops docvar""".split()
)
_SHOWN = frozenset({b"shptxt", b"shppict", b"ud", b"fldrslt", b"footnote"})
_WORDS = {
    b"par": "\n", b"sect": "\n", b"page": "\n", b"line": "\n", b"tab": "\t", b"emdash": "—", b"endash": "–",
    b"lquote": "‘", b"rquote": "’", b"ldblquote": "“", b"rdblquote": "”", b"bullet": "•", b"emspace": " ",
    b"enspace": " ", b"qmspace": " ",
}  # fmt: skip
_INFO = {
    b"title": "title", b"author": "authors", b"subject": "subject", b"keywords": "keywords", b"doccomm": "description"
}  # fmt: skip
_CHARSETS = {
    0: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 130: "johab", 134: "gbk", 136: "big5", 161: "cp1253",
    162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874",
    238: "cp1250",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _State:
    """What holds in a group. target: where its text goes ("" for the page, None for nowhere). skip: characters after
    a \\u that only old programs need."""

    target: str | None = ""
    skip: int = 1
    hidden: bool = False
    codec: str = "cp1252"
    level: int = 0
    in_table: bool = False


class _Reader:
    def __init__(self) -> None:
        self.blocks = Blocks()
        self.info: dict[str, str] = {}
        self._state = _State()
        self._stack: list[_State] = []
        self._fonts: dict[int, str] = {}
        self._font = -1
        self._default = "cp1252"
        self._pending = bytearray()  # bytes of the charset at hand
        self._skipping = 0
        self._text: list[str] = []
        self._row: list[str] = []
        self._rows: list[list[str]] = []

    def read(self, data: bytes) -> None:
        starred = False
        for token in _TOKEN.finditer(data):
            word, number, code, symbol, brace, text = token.groups()
            if text is not None:
                self._bytes(text)
            elif code is not None:
                self._bytes(bytes([int(code, 16)]))
            elif brace == b"{":
                self._flush_bytes()
                if len(self._stack) >= _MAX_DEPTH:
                    raise ValueError("its groups are nested too deep")
                self._stack.append(self._state)
            elif brace == b"}":
                self._flush_bytes()
                if self._stack:
                    self._state = self._stack.pop()
            elif symbol is not None:
                starred = self._symbol(symbol)
                continue
            elif word is not None:
                self._word(word.lower(), int(number) if number else None, starred)
                if word.lower() == b"bin" and number:
                    break  # raw bytes follow: nothing that can be read comes after them in what people write
            starred = False
        self._flush_bytes()
        self._paragraph()
        self._table()

    def _bytes(self, written: bytes) -> None:
        if self._skipping:
            taken = min(self._skipping, len(written))
            self._skipping -= taken
            written = written[taken:]
        self._pending += written

    def _flush_bytes(self) -> None:
        self._skipping = 0
        if self._pending:
            text = self._pending.decode(self._state.codec, "replace")
            self._pending.clear()
            self._put(text)

    def _put(self, text: str) -> None:
        target = self._state.target
        if target == "":
            if not self._state.hidden:
                self._text.append(text)
        elif target is not None:
            self.info[target] = self.info.get(target, "") + text

    def _symbol(self, symbol: bytes) -> bool:
        if symbol == b"*":
            return True
        if symbol in {b"\\", b"{", b"}"}:
            self._bytes(symbol)
        elif symbol in {b"~", b"_", b"\n", b"\r"}:
            self._flush_bytes()
            self._put({b"~": " ", b"_": "-"}.get(symbol, "\n"))
        return False

    def _word(self, word: bytes, number: int | None, starred: bool) -> None:
        if word == b"u" and number is not None:
            self._unicode(number)
            return
        self._flush_bytes()
        state = self._state
        if word in _INFO and state.target is not None and state.target != "":
            self._state = replace(state, target=_INFO[word])
        elif word == b"info":
            self._state = replace(state, target="?")
        elif word in _LEFT_OUT or (starred and word not in _SHOWN):
            self._state = replace(state, target=None if word != b"fonttbl" else "fonts")
        elif word in _WORDS:
            self._break(word)
        else:
            self._format(word, number)

    def _unicode(self, number: int) -> None:
        code = number % 65536
        if 0xDC00 <= code < 0xE000 and self._text and self._pending == b"":
            high = ord(self._text[-1][-1:] or " ")
            if 0xD800 <= high < 0xDC00:
                self._text[-1] = self._text[-1][:-1] + chr(0x10000 + ((high - 0xD800) << 10) + code - 0xDC00)
                self._skipping = self._state.skip
                return
        self._flush_bytes()
        self._put(chr(code))
        self._skipping = self._state.skip

    def _format(self, word: bytes, number: int | None) -> None:
        state = self._state
        if word == b"uc":
            self._state = replace(state, skip=max(0, min(number or 0, 10)))
        elif word == b"v":
            self._state = replace(state, hidden=number != 0)
        elif word == b"ansicpg":
            self._default = _codec(f"cp{number}", "cp1252")
            self._state = replace(state, codec=self._default)
        elif word == b"f" and number is not None:
            self._font = number
            self._state = replace(state, codec=self._fonts.get(number, self._default))
        elif word == b"fcharset" and number is not None and number in _CHARSETS and number > 1:
            self._fonts[self._font] = _CHARSETS[number]
        elif word in {b"pard", b"plain"}:
            fresh = replace(state, level=0, in_table=False) if word == b"pard" else replace(state, hidden=False)
            self._state = fresh
        elif word == b"outlinelevel":
            self._state = replace(state, level=min((number or 0) + 1, 6))
        elif word == b"intbl":
            self._state = replace(state, in_table=True)
        elif word in {b"cell", b"nestcell"} and state.target == "":
            self._row.append(" ".join("".join(self._text).split()))
            self._text.clear()
        elif word in {b"row", b"nestrow"} and state.target == "":
            self._rows.append(self._row)
            self._row = []

    def _break(self, word: bytes) -> None:
        if self._state.target != "" or word not in {b"par", b"sect", b"page"}:
            self._put(_WORDS[word])
        elif self._state.in_table:
            self._text.append("\n")
        else:
            self._paragraph()

    def _paragraph(self) -> None:
        text = "".join(self._text)
        self._text.clear()
        if self._row:
            self._rows.append(self._row)
            self._row = []
        if text.strip():
            self._table()
            if self._state.level:
                self.blocks.heading(self._state.level, text)
            else:
                self.blocks.paragraph(text)

    def _table(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self.blocks.table(rows)


def _codec(name: str, fallback: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        return fallback


def read_rtf(data: bytes, uri: str) -> Found:
    """The text of the pages, without heads, feet, pictures and hidden text. Raises ExtractionFailed."""
    if not data.lstrip().startswith(b"{\\rtf"):
        raise ExtractionFailed(f"{uri} is not Rich Text; open it and save it again")
    reader = _Reader()
    try:
        reader.read(data)
    except (ValueError, LookupError) as error:
        raise ExtractionFailed(f"{uri} is not Rich Text that can be read: {error}") from error
    info = {key: " ".join(text.split()).strip(";") for key, text in reader.info.items() if key not in {"?", "fonts"}}
    metadata: dict[str, Any] = {key: text for key, text in info.items() if text and key in {"subject", "description"}}
    if names := split_names(info.get("authors", "")):
        metadata["authors"] = names
    if keywords := split_words(info.get("keywords", "")):
        metadata["keywords"] = keywords
    return Found(reader.blocks.text(), info.get("title", "") or reader.blocks.heading_text, metadata)
