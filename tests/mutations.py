"""Documents damaged in the ways that files get damaged, and in the ways that people damage them on purpose."""

from __future__ import annotations

import io
import random
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence

# Numbers that lengths, counts and offsets are compared with, and what means something in one format or another.
NUMBERS = [
    *b"0 -1 1 127 255 65535 65536 2147483647 2147483648 4294967295 18446744073709551616 1e308 -0.0 NaN".split(),
    b"9" * 400,
]
_SIGNS = (
    b"< > </ <!-- <![CDATA[ ]]> <? & &#0; &#xD800; &#x110000; &#99999999999; &amp \" ' ``` [ ]( | { } (((( << .. :: "
    b"\\ \\u0 \\bin9 =?utf-8?b? stream endstream endobj <!DOCTYPE"
)
WORDS = [
    *_SIGNS.split(),
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\r", b"\x85", b"\t"),
    *(b"\xe2\x80\xae", b"\xf0\x9f\x91\xa8\xe2\x80\x8d", b"---\n", b"=\n", b"====\n", b".. code::\n"),
    *(b"#" * 7, b"> " * 60, b"- " * 60, b"<div>" * 60, b"<table><tr><td>" * 30, b'<!DOCTYPE a [<!ENTITY b "c">]>'),
]


def mutated(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """The document, damaged in one to eight places; inside of its parts where it is made of parts."""
    inside = _INSIDE.get(data[:4])
    if inside is not None and chance.random() < 0.85:
        return inside(data, others, chance)
    return _damaged(data, others, chance)


def _damaged(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        data = chance.choice(_DAMAGES)(data, others, chance)
    return data


def _place(data: bytes, chance: random.Random, longest: int = 200) -> tuple[int, int]:
    start = chance.randrange(len(data) + 1)
    return start, min(len(data), start + chance.randrange(longest))


def _flip(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(chance.choice((1, 4, 64)) if found else 0):
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def _cut_off(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    return data[: _place(data, chance)[0]]


def _left_out(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    start, end = _place(data, chance)
    return data[:start] + data[end:]


def _repeated(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    start, end = _place(data, chance)
    return data[:start] + data[start:end] * chance.choice((2, 3, 50, 400)) + data[end:]


def _word(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    start, end = _place(data, chance, 8)
    return data[:start] + chance.choice(WORDS) + data[end if chance.random() < 0.5 else start :]


def _number(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    numbers = list(re.finditer(rb"\d+", data))
    if not numbers:
        return data
    found = chance.choice(numbers)
    return data[: found.start()] + chance.choice(NUMBERS) + data[found.end() :]


def _junk(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    start, end = _place(data, chance)
    return data[:start] + chance.randbytes(end - start) + data[end:]


def _spliced(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    other = chance.choice(others)
    start, end = _place(other, chance, 2000)
    at = _place(data, chance)[0]
    return data[:at] + other[start:end] + data[at:]


def _swapped(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Two tags, or two lines where there are no tags, change places."""
    parts = re.split(rb"(?<=>)" if data.count(b">") > 5 else rb"(?<=\n)", data)
    one, two = chance.randrange(len(parts)), chance.randrange(len(parts))
    parts[one], parts[two] = parts[two], parts[one]
    return b"".join(parts)


_DAMAGES: tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...] = (
    _flip, _cut_off, _left_out, _repeated, _word, _word, _number, _junk, _spliced, _swapped,
)  # fmt: skip


def _in_a_zip(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """One file of the archive is damaged (most often), missing, or in the place of another."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = [(name, archive.read(name)) for name in archive.namelist()]
    index = chance.randrange(len(files))
    name, content = files[index]
    how = chance.random()
    if how < 0.9:
        files[index] = (name, _damaged(content, [content for _, content in files], chance))
    elif how < 0.95:
        del files[index]
    else:
        files[index] = (chance.choice(files)[0], content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in dict(files).items():
            stored = name == "mimetype"  # by which some formats are known
            archive.writestr(name, content, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


_STREAM = re.compile(rb"stream\r?\n(.*?)\r?\nendstream", re.DOTALL)


def _in_a_pdf(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """The words and numbers outside of streams, or what a stream holds, are damaged; offsets are left wrong."""
    streams = list(_STREAM.finditer(data))
    if not streams or chance.random() < 0.5:
        return _damaged(data, others, chance)
    found = chance.choice(streams)
    content = found[1]
    try:
        plain = zlib.decompress(content)
    except zlib.error:
        changed = _damaged(content, others, chance)
    else:
        changed = zlib.compress(_damaged(plain, others, chance))
    return data[: found.start(1)] + changed + data[found.end(1) :]


_INSIDE = {b"PK\x03\x04": _in_a_zip, b"%PDF": _in_a_pdf}
