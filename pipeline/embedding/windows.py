"""Texts against the limit of a model: nothing is ever embedded truncated.

A passage over the limit is refused. A query over it is cut into windows at white space, and its vector is the mean of
theirs, each weighted by its tokens, normalised again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.document import encodable
from pipeline.embedding.base import ModelSpec, Role, checked
from pipeline.errors import InvalidRequest

# A query longer than this many windows of the model is no query; embedding it would keep a searcher waiting.
MAX_QUERY_WINDOWS = 16

# Tokens of each of these pieces of queries, what the embedder puts before them included.
Count = Callable[[Sequence[str]], list[int]]


def checked_texts(texts: Sequence[str]) -> list[str]:
    """The texts without lone surrogates. Raises InvalidRequest for an empty one, with its index."""
    for index, text in enumerate(texts):
        if not text.strip():
            raise InvalidRequest(f"text {index} is empty; there is nothing to embed in it")
    return [encodable(text) for text in texts]


def any_too_long(counts: Sequence[int], limit: int, role: Role, model: str, *, exact: bool = True) -> bool:
    """Whether a query is over the limit. Raises InvalidRequest for a passage that is, with its index and token count.

    exact: whether the counts are those of the model; else they are an upper bound, and told as such.
    """
    long = [index for index, count in enumerate(counts) if count > limit]
    if long and role == "passage":
        tokens = f"{'' if exact else 'up to '}{counts[long[0]]}"
        raise InvalidRequest(f"text {long[0]} has {tokens} tokens, {model} takes {limit}; cut it into chunks first")
    return bool(long)


@dataclass(frozen=True, slots=True)
class Windows:
    """texts: the windows of all queries, in order; owners: of each, the query that it is of; weights: its tokens."""

    texts: Sequence[str]
    owners: Sequence[int]
    weights: Sequence[int]
    queries: int

    def merged(self, vectors: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
        """The vectors of the queries, float32[queries, dim], L2-normalised, from those of the windows."""
        merged = np.zeros((self.queries, spec.dimensions), np.float32)
        np.add.at(merged, list(self.owners), vectors * np.asarray(self.weights, np.float32)[:, None])
        merged /= np.linalg.norm(merged, axis=1, keepdims=True)
        return checked(merged, self.queries, spec)

    def summed(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Of each query, what its windows had."""
        sums = [0] * self.queries
        for owner, number in zip(self.owners, tokens, strict=True):
            sums[owner] += number
        return tuple(sums)


def cut_queries(texts: Sequence[str], counts: Sequence[int], limit: int, model: str, count: Count) -> Windows:
    """The windows of these queries, of `counts` tokens. Raises InvalidRequest for one that is no query any more."""
    windows: list[str] = []
    owners: list[int] = []
    for index, (text, tokens) in enumerate(zip(texts, counts, strict=True)):
        if tokens > limit * MAX_QUERY_WINDOWS:
            raise InvalidRequest(
                f"query {index} has {tokens} tokens; {model} takes {limit}, "
                f"and up to {MAX_QUERY_WINDOWS} times that are embedded piece by piece"
            )
        pieces = _cut(text, tokens, limit, count)
        windows += pieces
        owners += [index] * len(pieces)
    return Windows(windows, owners, count(windows), len(texts))


def _cut(text: str, tokens: int, limit: int, count: Count) -> list[str]:
    """The text halved, at the white space nearest to the middle, until every piece is within the limit."""
    if tokens <= limit:
        return [text]
    middle = len(text) // 2
    before, after = text.rfind(" ", 1, middle), text.find(" ", middle, len(text) - 1)
    cut = min((at for at in (before, after) if at > 0), key=lambda at: abs(at - middle), default=middle)
    halves = [half for half in (text[:cut].strip(), text[cut:].strip()) if half]
    found = count(halves)
    return [window for half, size in zip(halves, found, strict=True) for window in _cut(half, size, limit, count)]
