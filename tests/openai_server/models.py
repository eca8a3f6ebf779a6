"""The models served: OpenAI's with vectors computed from the words of a text, and local ones under any name."""

from __future__ import annotations

import hashlib
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.embedding.base import Embedder

POSITIONS = 32  # of a word's numbers in a vector
NOISE = 0.02  # so that texts of the same words are not the same vector

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """resizable: whether `dimensions` may be asked for. local: the name of the local model whose vectors it gives."""

    name: str
    dimensions: int
    resizable: bool
    max_tokens: int = 8192
    local: str | None = None


OPENAI = {
    model.name: model
    for model in (
        Model("text-embedding-3-small", 1536, True),
        Model("text-embedding-3-large", 3072, True),
        Model("text-embedding-ada-002", 1536, False),
    )
}


def vector_of(text: str, model: str = "text-embedding-3-small", dimensions: int | None = None) -> Vectors:
    """The vector of a text: the same one for ever, of length 1; texts that share words are near each other."""
    full = OPENAI[model].dimensions
    vector = _features(text, model, full)
    if dimensions is not None and dimensions != full:
        vector = vector[:dimensions] / np.linalg.norm(vector[:dimensions])
    return vector.astype(np.float32)


@lru_cache(maxsize=4096)
def _features(text: str, model: str, dimensions: int) -> NDArray[np.float64]:
    digest = hashlib.sha256(f"{model}\0{text}".encode("utf-8", "surrogatepass")).digest()
    vector = np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal(dimensions) * NOISE
    words = re.findall(r"\w+", text.lower())
    if words:
        features = [_word(word, model, dimensions) for word in words]
        positions = np.concatenate([found[0] for found in features])
        signs = np.concatenate([found[1] for found in features])
        vector += np.bincount(positions, signs, dimensions) / len(words) ** 0.5
    return np.asarray(vector / np.linalg.norm(vector), np.float64)


@lru_cache(maxsize=50_000)
def _word(word: str, model: str, dimensions: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    data = hashlib.shake_128(f"{model}\0{word}".encode("utf-8", "surrogatepass")).digest(POSITIONS * 4)
    numbers = np.frombuffer(data, "<u4").astype(np.int64)
    return (numbers >> 1) % dimensions, np.where(numbers & 1, 1.0, -1.0)


@cache
def _encoding() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how it opens its own files
        return import_module("bpe_openai").get_encoding("cl100k_base")


def tokens_of(text: str) -> int:
    return len(_encoding().encode_ordinary(text))


def text_of(tokens: Sequence[int]) -> str:
    return str(_encoding().decode(list(tokens)))


class Models:
    """served: names beyond OpenAI's -> the local model that each one is; `constant` is the tests' ConstantEmbedder."""

    def __init__(self, served: Mapping[str, str], cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        self._lock = threading.Lock()
        self._embedders: dict[str, Embedder] = {}
        self.known = dict(OPENAI)
        for name, local in served.items():
            spec = self._embedder(local).spec
            self.known[name] = Model(name, spec.dimensions, False, spec.max_tokens, local)

    def count(self, text: str, model: Model) -> int:
        return tokens_of(text) if model.local is None else self._embedder(model.local).count_tokens([text])[0]

    def embed(self, texts: Sequence[str], model: Model, dimensions: int, pool: int | None = None) -> Vectors:
        """float32[n, dimensions]. pool: that many vectors for all texts, where many are wanted fast."""
        if model.local is not None:
            with self._lock:
                return self._embedder(model.local).embed(texts).vectors
        if pool:
            texts = [f"vector {int(hash_of(text)[:8], 16) % pool}" for text in texts]
        return np.array([vector_of(text, model.name, dimensions) for text in texts], np.float32)

    def _embedder(self, local: str) -> Embedder:
        if local not in self._embedders:
            self._embedders[local] = _local(local, self.cache_dir)
        return self._embedders[local]


def hash_of(text: str) -> str:
    """sha256 of a text, in hex: what it is billed under."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _local(name: str, cache_dir: Path) -> Embedder:
    if name == "constant":
        from pipeline.testing import ConstantEmbedder

        return ConstantEmbedder()
    from pipeline.embedding.local import LocalEmbedder
    from pipeline.settings import EmbeddingSettings

    return LocalEmbedder(EmbeddingSettings(model=name), cache_dir)
