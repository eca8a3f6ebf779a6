"""Bytes to text: which encoding, and what may be in a text that goes to Postgres and to a model."""

from __future__ import annotations

import codecs
import re
from itertools import accumulate, pairwise

from pipeline import media

# Codecs of Python's that are no character sets, or that run other than by a table; a header must not choose them.
_NO_CHARSETS = frozenset(
    {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf_7", "mbcs", "oem"}
)
# What the web calls Latin-1 and ASCII is read as Windows-1252 by every browser; likewise the others.
_SUPERSETS = {
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
}

_NEWLINES = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Control characters (NUL first of all, which Postgres refuses), soft hyphens, byte order marks, halves of surrogate
# pairs and noncharacters.
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\ufeff\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_BLANK_START = re.compile(r"\A(?:[^\S\n]*+\n)+")
_SAMPLE = 8192


def decode(data: bytes, charset: str | None = None) -> str:
    """The text of the bytes, never failing; the same for the same bytes.

    Tried in this order: a byte order mark, the declared charset where it fits (Latin-1 after UTF-8), UTF-8, UTF-16
    without a mark (told by its NULs), Windows-1252, Latin-1. A text of the declared charset, or of UTF-8, with less
    than one bad byte in a hundred stays what it is, the bad ones as U+FFFD.
    """
    for mark, encoding in media.BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    declared = _codec(charset)
    # Latin-1 is declared out of habit; bytes that make sense as UTF-8 are UTF-8.
    first, second = ("utf-8", declared) if declared == "cp1252" else (declared, "utf-8")
    for candidate in (first, second, _utf16(data)):
        if candidate is not None:
            try:
                return data.decode(candidate)
            except UnicodeDecodeError:
                continue
    if declared not in {None, "cp1252", "utf-8"}:
        text = data.decode(str(declared), "replace")
        if text.count("\ufffd") * 100 <= len(text):
            return text
    lenient = data.decode("utf-8", "replace")
    high = sum(byte >= 0x80 for byte in data[:_SAMPLE])
    if lenient.count("\ufffd") * 100 <= len(lenient) and lenient[:_SAMPLE].count("\ufffd") * 4 <= high:
        return lenient
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _codec(charset: str | None) -> str | None:
    if charset is None:
        return None
    try:
        found = codecs.lookup(charset)
    except (LookupError, ValueError):
        return None
    if not getattr(found, "_is_text_encoding", True) or found.name.replace("-", "_") in _NO_CHARSETS:
        return None
    return _SUPERSETS.get(found.name, found.name)


def _utf16(data: bytes) -> str | None:
    """UTF-16 without a mark has a NUL in nearly every other byte of Latin text, on one side only."""
    head = data[:_SAMPLE]
    pairs = len(head) // 2
    if pairs < 2:
        return None
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if odd >= 0.4 * pairs and even <= 0.05 * pairs:
        return "utf-16-le"
    if even >= 0.4 * pairs and odd <= 0.05 * pairs:
        return "utf-16-be"
    return None


def clean(text: str) -> str:
    """The text with one kind of newline and no characters that mean nothing in a text; without blank lines around."""
    return _BLANK_START.sub("", _UNWANTED.sub("", _NEWLINES.sub("\n", text))).rstrip()


def clean_pages(text: str, pages: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """The clean text, and where the pages begin in it; `pages` are offsets in `text`, ascending."""
    cleaned = clean(text)
    if not pages:
        return cleaned, ()
    bounds = [0, *pages]
    lengths = [len(_UNWANTED.sub("", _NEWLINES.sub("\n", text[a:b]))) for a, b in pairwise(bounds)]
    whole = _UNWANTED.sub("", _NEWLINES.sub("\n", text))
    lead = len(whole) - len(_BLANK_START.sub("", whole))
    return cleaned, tuple(min(max(offset - lead, 0), len(cleaned)) for offset in accumulate(lengths))
