"""The lines of a remote batch's output and error files: each is a vector, or an outcome with a name.

Nothing that is wrong in any way becomes a vector. What a line says about money is told besides: a line may have cost
something and hold no vector that can be used.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.embedding.base import ModelSpec, checked
from pipeline.errors import InvalidVectors
from pipeline.openai_batch.answers import whole_number, words_of

Outcome = Literal[
    "embedded",  # the vector is there
    "blank",  # an empty line
    "torn",  # the end of the file, cut off in the middle of a line
    "garbled",  # no JSON object, or one that is no line of a batch
    "unnamed",  # no custom_id, or one that is none of our keys
    "unknown",  # a key that is not of this batch
    "duplicate",  # a key that has its vector already
    "expired",  # not begun within the promised window
    "cancelled",  # not begun before the cancellation
    "limited",  # 429: there was no room for it, or no money
    "denied",  # 401, 403: the key was withdrawn, or may not do this
    "failed",  # 0, 408, 409, 5xx: the server failed on it
    "refused",  # 400 and its like: the text itself will never do
    "unreadable",  # 200, with a body that is no embedding
    "wrong_count",  # 200, with more or fewer than the one vector
    "wrong_index",
    "wrong_dimensions",
    "not_finite",  # NaN or infinity
    "zeros",  # a vector without a direction
    "missing",  # in none of the files: what is left when all of them are read
]

# Of these the server says that it did what was asked for: they count as completed, and are billed.
ANSWERED: frozenset[Outcome] = frozenset(
    {"embedded", "unreadable", "wrong_count", "wrong_index", "wrong_dimensions", "not_finite", "zeros"}
)

# A line of the most dimensions there are (65,536) as decimal numbers is 1.6 MB.
LONGEST_LINE = 8 << 20

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_SHORTEST = 1e-12  # of a vector that has a direction in float32
_LONGEST = 1e18  # its square, and so its length, is still a float32
_FAILING = frozenset({0, 408, 409, 425})


@dataclass(frozen=True, slots=True)
class Line:
    """What a line says.

    key: of the embedding, 32 bytes; None where the line does not name one of ours. vector: float32[dim],
    L2-normalised; None unless the outcome is "embedded". tokens: billed for it; None where it was answered and does
    not say how many. message: what was wrong, in a few words; empty where nothing was. model: what the server calls
    what made the vector, whatever it says.
    """

    outcome: Outcome
    key: bytes | None = None
    vector: NDArray[np.float32] | None = None
    tokens: int | None = 0
    message: str = ""
    model: object = None


class Splitter:
    r"""Cuts what arrives, in pieces of any size, into lines, at "\n" and nothing else.

    offset: bytes of the file up to the end of the last whole line: where to go on after a crash. Lines over
    LONGEST_LINE are not kept: they come out as one letter, which is no JSON.
    """

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self._rest = bytearray()
        self._dropped = 0

    def feed(self, data: bytes) -> list[bytes]:
        r"""The lines that are whole now, without their "\n". `offset` is behind all of them."""
        *whole, rest = data.split(b"\n")
        lines = []
        for part in whole:
            self._keep(part)
            self.offset += len(self._rest) + self._dropped + 1
            lines.append(b"?" if self._dropped else bytes(self._rest))
            self._rest.clear()
            self._dropped = 0
        self._keep(rest)
        return lines

    def _keep(self, part: bytes) -> None:
        if self._dropped or len(self._rest) + len(part) > LONGEST_LINE:
            self._dropped += len(self._rest) + len(part)
            self._rest.clear()
        else:
            self._rest += part

    def end(self) -> bytes:
        r"""What follows the last "\n": nothing, a whole line, or a torn one: `parse_line(last=True)` tells."""
        return b"?" if self._dropped else bytes(self._rest)


def parse_line(raw: bytes, spec: ModelSpec, *, last: bool = False) -> Line:
    r"""What one line says; raises nothing. last: there was no "\n" behind it, so it may be torn."""
    if not raw.strip():
        return Line("blank")
    try:
        line = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Line("torn" if last else "garbled", message=words_of(f"no JSON: {error}"))
    if not isinstance(line, dict):
        return Line("garbled", message="no JSON object")
    custom_id = line.get("custom_id")
    key = bytes.fromhex(custom_id) if isinstance(custom_id, str) and _HEX.match(custom_id) else None
    found = _read(line, spec)
    if key is None:
        return replace(
            found, outcome="unnamed", vector=None, message=words_of(f"custom_id {custom_id!r} is none of ours")
        )
    return replace(found, key=key)


def _read(line: Mapping[str, Any], spec: ModelSpec) -> Line:
    response, error = line.get("response"), line.get("error")
    if not isinstance(response, Mapping):
        return _unanswered(error)
    status, body = response.get("status_code"), response.get("body")
    if not isinstance(status, int) or isinstance(status, bool):
        return Line("garbled", message=words_of(f"status_code {status!r}"))
    if status != 200:
        return _rejected(status, body, error)
    tokens = _tokens(body)
    try:
        vector = _vector(body, spec)
        name = body.get("model") if isinstance(body, Mapping) else None
        return Line("embedded", vector=vector, tokens=tokens, model=name)
    except _Wrong as wrong:
        return Line(wrong.outcome, tokens=tokens, message=words_of(str(wrong)))


def _unanswered(error: object) -> Line:
    """A line without a response: it was never begun, or the server lost it."""
    if not isinstance(error, Mapping):
        return Line("garbled", message="neither a response nor an error")
    code, message = error.get("code"), words_of(error.get("message") or error.get("code"))
    if code == "batch_expired":
        return Line("expired", message=message)
    if code == "batch_cancelled":
        return Line("cancelled", message=message)
    return Line("failed", message=message)


def _rejected(status: int, body: object, error: object) -> Line:
    told = body.get("error") if isinstance(body, Mapping) else None
    told = told if isinstance(told, Mapping) else error if isinstance(error, Mapping) else {}
    message = words_of(f"status {status}: {told.get('message') or told.get('code') or 'no reason given'}")
    if status == 429:
        return Line("limited", message=message)
    if status in {401, 403}:
        return Line("denied", message=message)
    # A 2xx or 3xx that is no 200 is nothing that the protocol has; it may be another the next time.
    if status in _FAILING or status < 400 or status >= 500:
        return Line("failed", message=message)
    return Line("refused", message=message)


def _tokens(body: object) -> int | None:
    usage = body.get("usage") if isinstance(body, Mapping) else None
    if not isinstance(usage, Mapping):
        return None
    total = whole_number(usage.get("total_tokens"))
    return whole_number(usage.get("prompt_tokens")) if total is None else total


class _Wrong(Exception):
    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


def _vector(body: object, spec: ModelSpec) -> NDArray[np.float32]:
    data = body.get("data") if isinstance(body, Mapping) else None
    if not isinstance(data, list):
        raise _Wrong("unreadable", "status 200, and no list of embeddings")
    if len(data) != 1:
        raise _Wrong("wrong_count", f"{len(data)} vectors for one text")
    entry = data[0]
    if not isinstance(entry, Mapping):
        raise _Wrong("unreadable", "an embedding that is no object")
    index = entry.get("index")
    if isinstance(index, bool) or index != 0:
        raise _Wrong("wrong_index", f"index {index!r} of one text")
    values = _numbers(entry.get("embedding"))
    if values.shape != (spec.dimensions,):
        raise _Wrong("wrong_dimensions", f"{values.size} dimensions, not {spec.dimensions}")
    if not np.isfinite(values).all():
        raise _Wrong("not_finite", "NaN or infinity")
    length = float(np.linalg.norm(values.astype(np.float64)))
    if length < _SHORTEST:
        raise _Wrong("zeros", "a vector of zeros")
    if length > _LONGEST:
        raise _Wrong("not_finite", f"a vector of length {length:.3g}")
    try:
        vectors = checked(values[np.newaxis], 1, spec)
    except InvalidVectors as error:
        raise _Wrong("unreadable", str(error)) from None
    return np.ascontiguousarray(vectors[0])


def _numbers(embedding: object) -> NDArray[np.float32]:
    """float32, of whatever length: from base64 of little-endian float32, or from a list of numbers."""
    if isinstance(embedding, str):
        try:
            raw = base64.b64decode(embedding, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _Wrong("unreadable", f"no base64: {error}") from None
        if len(raw) % 4:
            raise _Wrong("wrong_dimensions", f"{len(raw)} bytes are no float32 numbers")
        return np.frombuffer(raw, dtype="<f4").astype(np.float32)
    # numpy would read "0.1", true and null as numbers, too.
    if not isinstance(embedding, list) or not set(map(type, embedding)) <= {float, int}:
        raise _Wrong("unreadable", "an embedding that is no list of numbers")
    try:
        with np.errstate(over="ignore"):
            return np.array(embedding, dtype=np.float64).astype(np.float32)
    except OverflowError:
        raise _Wrong("not_finite", "a number that no float32 holds") from None


def placed(line: Line, *, wanted: bool, stored: bool) -> Line:
    """The line as it is in its batch. wanted: its text waits for it in this batch; stored: it has its vector already.

    A vector for what has one is a "duplicate" (what it says of tokens stays: of another batch, it was paid for
    besides), an error for what has one says nothing any more; what was never in the batch is "unknown".
    """
    if line.key is None or wanted:
        return line
    return replace(line, outcome="duplicate" if stored else "unknown", vector=None)
