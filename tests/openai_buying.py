"""Buying vectors of the stand-in server: an embedder of it, and what it hands over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from openai_server import OpenAIServer
from openai_server.models import vector_of

from pipeline.embedding.openai.embedder import OpenAIEmbedder
from pipeline.embedding.openai.purchase import Part
from pipeline.embedding.openai.spec import openai_spec
from pipeline.errors import MillraceError
from pipeline.settings import OpenAISettings, RedisSettings

Buyer = Callable[..., OpenAIEmbedder]

MODEL = "text-embedding-3-small"


def texts(number: int, about: str = "mills") -> list[str]:
    return [f"text {place} of {number} about {about} and what they grind" for place in range(number)]


@pytest.fixture
def buyer(openai_server: OpenAIServer, redis_url: str) -> Iterator[Buyer]:
    """Embedders of the server, by the settings that differ from a quick test's."""
    opened: list[OpenAIEmbedder] = []

    def make(model: str = MODEL, dimensions: int | None = None, **more: Any) -> OpenAIEmbedder:
        given = {
            "api_key": openai_server.key,
            "base_url": openai_server.url,
            "patience_seconds": 60.0,
            "requests_per_minute": 60_000,
            "tokens_per_minute": 60_000_000,
            **more,
        }
        settings = OpenAISettings.model_validate(given)
        spec = openai_spec(settings, model, dimensions)
        opened.append(OpenAIEmbedder(settings, RedisSettings.model_validate({"url": redis_url}), spec))
        return opened[-1]

    yield make
    for embedder in opened:
        embedder.close()


class Bought:
    """What was handed over."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.told: list[int] = []

    def take(self, part: Part) -> None:
        self.parts.append(part)

    @property
    def positions(self) -> list[int]:
        return sorted(position for part in self.parts for position in part.positions)

    @property
    def tokens(self) -> int:
        return sum(sum(part.tokens) for part in self.parts)

    def are(self, wanted: Sequence[str], dimensions: int = 1536) -> bool:
        """Whether each vector is that of its text."""
        return all(
            np.allclose(vector, vector_of(wanted[position], MODEL, dimensions), atol=1e-6)
            for part in self.parts
            for position, vector in zip(part.positions, part.vectors, strict=True)
        )


def buy(embedder: OpenAIEmbedder, wanted: Sequence[str]) -> Bought:
    bought = Bought()
    embedder.buy(wanted, "passage", bought.take, bought.told.append)
    return bought


def refused(embedder: OpenAIEmbedder, wanted: Sequence[str], kind: type[MillraceError]) -> tuple[MillraceError, Bought]:
    bought = Bought()
    with pytest.raises(kind) as raised:
        embedder.buy(wanted, "passage", bought.take, bought.told.append)
    assert type(raised.value) is kind
    return raised.value, bought


def times_billed(server: OpenAIServer, wanted: Sequence[str]) -> set[int]:
    return {server.control.billed(text) for text in wanted}
