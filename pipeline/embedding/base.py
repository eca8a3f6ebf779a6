"""What every embedding provider is to the rest of Millrace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.document import canonical, digest
from pipeline.errors import InvalidRequest, InvalidVectors

Role = Literal["query", "passage"]

# float32 rounding moves the length of a normalised vector by about 1e-7; what is further off was never normalised.
UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that decides which vector a text gets; frozen, and cheap to have: no model is loaded for it.

    max_tokens: of one text, the model's special tokens included.
    precision: "float32", "int8", or "native" (whatever the files hold).
    revision: sha256 of the weights where they are here, else the name of the published files.
    query_prefix, passage_prefix: put before the text by the embedder, never by its caller.
    asymmetric: the model itself treats queries and passages differently, even with equal prefixes.
    """

    name: str
    provider: str
    dimensions: int
    max_tokens: int
    pooling: str
    normalize: bool
    precision: str
    revision: str
    query_prefix: str = ""
    passage_prefix: str = ""
    asymmetric: bool = False

    def prefix(self, role: Role) -> str:
        """What the embedder puts before a text of this role."""
        return self.query_prefix if role == "query" else self.passage_prefix

    def fingerprint(self, role: Role) -> bytes:
        """sha256 of the canonical JSON of the spec and the role: 32 bytes, the first half of an embedding's address.

        Both roles share a fingerprint where the model makes no difference between them, so one text is embedded once.
        """
        return _fingerprint(self, role)

    def to_json(self) -> dict[str, Any]:
        """The spec as a JSON object, as it is stored with a collection."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelSpec:
        """The spec that `to_json` wrote; raises InvalidRequest where this version does not know a part of it."""
        unknown = sorted(set(value) - {field.name for field in fields(cls)})
        if unknown:
            raise InvalidRequest(
                f"the model spec of {value.get('name', 'the collection')} holds {', '.join(unknown)}, "
                "which this version of Millrace does not know; use the version that wrote it, or a newer one"
            )
        try:
            return cls(**value)
        except TypeError as error:
            raise InvalidRequest(f"the model spec {dict(value)} is incomplete: {error}") from None


@lru_cache(maxsize=64)
def _fingerprint(spec: ModelSpec, role: Role) -> bytes:
    described = spec.to_json()
    prefixes = {"query": described.pop("query_prefix"), "passage": described.pop("passage_prefix")}
    one_way = prefixes["query"] == prefixes["passage"] and not spec.asymmetric
    return digest(canonical({**described, "role": "any" if one_way else role, "prefix": prefixes[role]}))


@dataclass(frozen=True, slots=True)
class ModelRun:
    """One run of the model: texts in it, its tokens (padding included), seconds it took."""

    texts: int
    padded_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Embedded:
    """vectors: float32[n, dim], L2-normalised, in the order of the texts. runs: what the model did for them.

    tokens: of each text, as billed; empty where nothing is.
    """

    vectors: NDArray[np.float32]
    runs: tuple[ModelRun, ...]
    tokens: tuple[int, ...] = ()


class Embedder(Protocol):
    """Turns texts into vectors; every implementation passes tests/contract/test_embedder.py."""

    @property
    def spec(self) -> ModelSpec:
        """The model; reading it loads nothing."""
        ...

    @property
    def tokens_per_second(self) -> float | None:
        """Padded tokens per second, as measured in this process; None before the first runs."""
        ...

    def embed(
        self, texts: Sequence[str], role: Role = "passage", on_progress: Callable[[int], None] | None = None
    ) -> Embedded:
        """The vectors of the texts.

        on_progress is told, after every model run, how many texts of this call are done.
        Raises InvalidRequest for an empty text or a passage longer than the model's limit (nothing is ever embedded
        truncated), ModelUnavailable where the model cannot be loaded, InvalidVectors where it returned nonsense.
        """
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a passage: never truncated, special tokens and the passage prefix included."""
        ...


def checked(vectors: NDArray[Any], texts: int, spec: ModelSpec) -> NDArray[np.float32]:
    """The vectors as float32[texts, dim], L2-normalised.

    Raises InvalidVectors for another shape, NaN, infinity, or a vector of zeros.
    """
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    if array.shape != (texts, spec.dimensions):
        raise InvalidVectors(
            f"{spec.name} returned an array of shape {array.shape} for {texts} texts of {spec.dimensions} dimensions"
        )
    if not np.isfinite(array).all():
        wrong = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InvalidVectors(f"{spec.name} returned NaN or infinity for text {wrong} of the run")
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    if texts and float(lengths.min()) == 0.0:
        raise InvalidVectors(f"{spec.name} returned a vector of zeros for text {int(lengths.argmin())} of the run")
    if texts and float(np.abs(lengths - 1.0).max()) > UNIT_TOLERANCE:
        array = array / lengths
    return array
