"""The file that a remote batch is made of: one text a line, the same bytes every time it is rendered.

Whoever renders it again after a crash must come to the same file: the lines are in the order of their keys, and nothing
but the text and what is asked of the model is in a line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pipeline.errors import InvalidRequest

Encoding = Literal["float", "base64"]

ENDPOINT: Literal["/v1/embeddings"] = "/v1/embeddings"
WINDOW: Literal["24h"] = "24h"  # there is no other

# Of a batch's metadata. The account may have batches of others, with metadata of their own: ours has names of its own.
_KEY, _ATTEMPT, _SHA256 = "millrace_key", "millrace_attempt", "millrace_sha256"

# What some readers take for the end of a line, though JSON does not.
_LINE_ENDS = re.compile("[\x7f\x85\u2028\u2029\ud800-\udfff]")


def encoding_for(base_url: str) -> Encoding:
    """base64 from OpenAI, float from every other server.

    A vector of 1,536 dimensions is 8 KB in base64 and 20-33 KB as decimal numbers: a full batch is 0.4 GB instead of
    1-1.6 GB to fetch. It is exact, and its length tells whether it is whole. Other servers ignore or refuse it often
    enough to ask them for what all of them have. Answers are read in either form, whatever was asked for.
    """
    return "base64" if urlsplit(base_url).hostname == "api.openai.com" else "float"


def render_line(key: bytes, text: str, model: str, dimensions: int | None, encoding: Encoding) -> bytes:
    r"""One line, "\n" included. key: of the embedding, 32 bytes; its custom_id is the key in hexadecimal.

    dimensions: as configured; None: the model's own, and the server is not told a number (some refuse to be).
    Raises InvalidRequest for an empty text.
    """
    if not text:
        raise InvalidRequest(f"the text of embedding {key.hex()} is empty; no server embeds it")
    body: dict[str, object] = {"model": model, "input": text, "encoding_format": encoding}
    if dimensions is not None:
        body["dimensions"] = dimensions
    line = {"custom_id": key.hex(), "method": "POST", "url": ENDPOINT, "body": body}
    # Two or three bytes a letter of other scripts, not six: the file's limit is reached by fewer texts otherwise.
    written = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    return _LINE_ENDS.sub(_escaped, written).encode("utf-8") + b"\n"


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def file_name(key: str, attempt: int) -> str:
    """Of the input at the server: an upload whose answer was lost is found by it."""
    return f"{key}-{attempt}.jsonl"


def is_file_of(key: str, name: str) -> bool:
    """Whether a file at the server is an input of this batch, of whichever attempt."""
    attempt = name.removeprefix(f"{key}-").removesuffix(".jsonl")
    return attempt.isascii() and attempt.isdigit() and name == f"{key}-{attempt}.jsonl"


def metadata_of(key: str, attempt: int, sha256: bytes | None) -> dict[str, str]:
    """What a batch is created with, and found by."""
    return {_KEY: key, _ATTEMPT: str(attempt), _SHA256: (sha256 or b"").hex()}


def key_of(metadata: object) -> str | None:
    """Our key of a batch by its metadata; None where it is none of ours."""
    found = metadata.get(_KEY) if isinstance(metadata, Mapping) else None
    return found if isinstance(found, str) else None


class Written:
    """What was rendered so far: lines, bytes, and their sha256."""

    def __init__(self) -> None:
        self.lines = 0
        self.bytes = 0
        self._digest = hashlib.sha256()

    def add(self, line: bytes) -> bytes:
        """Takes in a line, and returns it."""
        self.lines += 1
        self.bytes += len(line)
        self._digest.update(line)
        return line

    @property
    def sha256(self) -> bytes:
        return self._digest.digest()


@dataclass(frozen=True, slots=True)
class Size:
    """Of a text's line, or of a batch: inputs, bytes, tokens."""

    inputs: int = 0
    bytes: int = 0
    tokens: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.inputs + other.inputs, self.bytes + other.bytes, self.tokens + other.tokens)

    def within(self, limit: Size) -> bool:
        """Whether it is over none of the limits."""
        return self.inputs <= limit.inputs and self.bytes <= limit.bytes and self.tokens <= limit.tokens


def fitting(sizes: Iterable[Size], limit: Size) -> tuple[int, Size]:
    """How many of the leading texts share a batch, and its size. One that is over the limit alone fits nowhere: 0."""
    count, total = 0, Size()
    for size in sizes:
        if not (total + size).within(limit):
            break
        count, total = count + 1, total + size
    return count, total
