"""What a name looks like in a uri."""

from __future__ import annotations

import os

MAX_URI_BYTES = 2048  # the unique index of uris holds no more in one entry

# What would not survive in a uri: control characters, what means something there, and bytes that are no UTF-8.
_CONTROLS = frozenset(map(chr, [*range(0x20), 0x7F, *range(0x80, 0xA0)])) | frozenset("%\u2028\u2029")


def escaped(text: str, meaning: str) -> str:
    """The text, readable, with only what a uri cannot hold percent-encoded: control characters, `%`, the bytes of
    a name that is no UTF-8 (surrogate escapes), and the characters of `meaning`."""
    if text.isascii() and text.isprintable() and "%" not in text and not any(char in text for char in meaning):
        return text
    return "".join(
        "".join(f"%{byte:02X}" for byte in _bytes(char))
        if char in _CONTROLS or char in meaning or "\ud800" <= char <= "\udfff"
        else char
        for char in text
    )


def _bytes(char: str) -> bytes:
    try:
        return os.fsencode(char)
    except UnicodeEncodeError:  # half of a surrogate pair that stands for no byte
        return char.encode("utf-8", "surrogatepass")


def fitting(uri: str) -> str:
    """The uri, cut where it is longer than the ledger can hold: for telling what was rejected."""
    data = uri.encode("utf-8", "surrogatepass")
    return uri if len(data) <= MAX_URI_BYTES else data[: MAX_URI_BYTES - 3].decode("utf-8", "ignore") + "..."
