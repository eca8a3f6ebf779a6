"""What an answer to a request for embeddings holds, looked through before a number of it is believed."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.embedding.base import UNIT_TOLERANCE
from pipeline.errors import InvalidVectors

# A vector read in the wrong way (numbers of another size, bytes the other way round) is never of length 1 by chance.
_LIKE_ONE = 0.02


@dataclass(frozen=True, slots=True)
class Answer:
    """vectors: float32[n, dim], L2-normalised, in the order of the texts; rows of `bad` are nothing.

    bad: texts whose vector is none (position -> why). tokens: as the server counted them, None where it does not say.
    as_base64: whether that is how they came. model: what the server calls what made them, whatever it says.
    """

    vectors: NDArray[np.float32]
    tokens: int | None
    as_base64: bool
    bad: Mapping[int, str] = field(default_factory=dict)
    model: object = None


class ErrorBody(Exception):
    """The answer says 200, and is an error."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__("an error with status 200")
        self.error = error


def read(body: bytes, texts: int, dimensions: int, name: str, *, doubt_base64: bool = False) -> Answer:
    """The answer to a request for `texts` texts. name: of the model, for messages.

    doubt_base64: believe base64 only where every vector has length 1.
    Raises ErrorBody; ValueError for what is no answer at all; InvalidVectors for a wrong number, order or size.
    """
    content = json.loads(body)
    if not isinstance(content, dict):
        raise ValueError(f"a JSON {type(content).__name__}")
    if isinstance(content.get("error"), dict | str):
        error = content["error"]
        raise ErrorBody(error if isinstance(error, dict) else {"message": error})
    data = content.get("data")
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise ValueError("no list of embeddings in it")
    if len(data) != texts:
        raise InvalidVectors(f"{name} returned {len(data)} vectors for {texts} texts")
    found = _in_order(data, name)
    as_base64 = any(isinstance(item, str) for item in found)
    vectors, bad = _rows(found, dimensions, name)
    _normalise(vectors, bad, doubtful=as_base64 and doubt_base64, name=name)
    return Answer(vectors, _tokens(content.get("usage")), as_base64, bad, content.get("model"))


def _in_order(data: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """By their index; in the order that they came in, where none has one."""
    indexes = [item.get("index") for item in data]
    if all(index is None for index in indexes):
        return [item.get("embedding") for item in data]
    if sorted(index if isinstance(index, int) else -1 for index in indexes) != list(range(len(data))):
        raise InvalidVectors(f"{name} returned vectors whose indexes are not those of the {len(data)} texts")
    placed: list[Any] = [None] * len(data)
    for index, item in zip(indexes, data, strict=True):
        placed[int(index or 0)] = item.get("embedding")
    return placed


def _rows(found: Sequence[Any], dimensions: int, name: str) -> tuple[NDArray[np.float32], dict[int, str]]:
    vectors = np.zeros((len(found), dimensions), np.float32)
    bad: dict[int, str] = {}
    for row, item in enumerate(found):
        if item is None:
            bad[row] = "no vector"
            continue
        try:
            numbers = np.frombuffer(base64.b64decode(item, validate=True), "<f4") if isinstance(item, str) else item
            with np.errstate(over="ignore"):  # infinity is told below
                vector = np.asarray(numbers, np.float32)
        except (binascii.Error, ValueError, TypeError):
            raise InvalidVectors(f"{name} returned something for text {row} that is no vector") from None
        if vector.shape != (dimensions,):
            raise InvalidVectors(
                f"{name} returned {vector.size} numbers for text {row}; a vector of it has {dimensions} dimensions"
            )
        vectors[row] = vector
    return vectors, bad


def _normalise(vectors: NDArray[np.float32], bad: dict[int, str], *, doubtful: bool, name: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
        bad[int(row)] = "NaN or infinity"
    for row in np.flatnonzero(lengths == 0.0):
        bad.setdefault(int(row), "a vector of zeros")
    good = np.array([row not in bad for row in range(len(vectors))], bool)
    if doubtful and np.abs(lengths[good] - 1.0).max(initial=0.0) > _LIKE_ONE:
        raise InvalidVectors(f"{name} returned base64 that is not of float32 numbers")
    off = good & (np.abs(lengths - 1.0) > UNIT_TOLERANCE)
    vectors[off] /= lengths[off, None].astype(np.float32)


def _tokens(usage: Any) -> int | None:
    if not isinstance(usage, dict):
        return None
    for name in ("prompt_tokens", "total_tokens"):
        count = usage.get(name)
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            return count
    return None
