"""A provider that is paid, in this process: what it was asked for, what it answers, and when it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from paused_stories import seam

from pipeline import Settings
from pipeline.deals import Part
from pipeline.embedding.base import ModelSpec, Role
from pipeline.embedding.openai.spec import openai_spec
from pipeline.settings import CostSettings, OpenAISettings, Price
from pipeline.testing import ConstantEmbedder

MODEL = "text-embedding-3-small"
DIMENSIONS = 8
# What a million tokens cost, so that a test can tell the one from the other.
PRICE = Price(online=2.0, batch=1.0)


@dataclass(frozen=True)
class Answer:
    """One request's."""

    positions: Sequence[int]
    vectors: NDArray[np.float32]
    tokens: Sequence[int]
    requests: int = 1
    doubted: int = 0


class PaidEmbedder(ConstantEmbedder):
    """Bills every text that it embeds (`billed`), request by request of `texts_per_request`.

    fails: what is raised instead of the answer of a request that has a text with this word in it. A story stops before
    each request (`request`), and when it was billed and not told yet (`answer`).
    """

    def __init__(self, settings: OpenAISettings, texts_per_request: int = 2, model: ModelSpec | None = None) -> None:
        """model: instead of OpenAI's; a local one that it has, too."""
        super().__init__(DIMENSIONS)
        self._model = model or openai_spec(settings, MODEL, DIMENSIONS)
        self.texts_per_request = texts_per_request
        self.billed: Counter[str] = Counter()
        self.fails: dict[str, Exception] = {}

    @property
    def spec(self) -> ModelSpec:
        return self._model

    def be_same(self) -> None:
        """It is."""

    def buy(
        self,
        texts: Sequence[str],
        role: Role,
        on_part: Callable[[Part], None],
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        for start in range(0, len(texts), self.texts_per_request):
            part = texts[start : start + self.texts_per_request]
            seam("request")
            for word, error in self.fails.items():
                if any(word in text for text in part):
                    raise error
            self.billed.update(part)
            positions = range(start, start + len(part))
            try:
                seam("answer")
                on_part(Answer(positions, self.embed(part, role).vectors, self.count_tokens(part)))
            except Exception as error:  # whatever it was: these were asked for
                error.__dict__.setdefault("unanswered", tuple(positions))
                raise
            if on_progress is not None:
                on_progress(start + len(part))


def paying(settings: Settings, **openai: object) -> Settings:
    """Settings of somebody who has a key, and whose prices can be told apart."""
    key = OpenAISettings.model_validate({"api_key": "sk-test", "batch": "on", **openai})
    prices = dict.fromkeys((MODEL, "constant"), PRICE)
    return settings.model_copy(update={"openai": key, "cost": CostSettings(prices=prices)})
