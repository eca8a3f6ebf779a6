"""What a remote batch asks the server for: kept with its row, so that its file is the same after settings changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.spec import NATIVE_DIMENSIONS, PROVIDER, normalised_url, served_name
from pipeline.openai_batch.rendering import Encoding, encoding_for
from pipeline.settings import OpenAISettings

_ORDER = "order"


@dataclass(frozen=True, slots=True)
class Order:
    """endpoint: who is asked. model: its name there. dimensions: None: the model's own. prefix: of every text."""

    endpoint: str
    model: str
    dimensions: int | None
    encoding: Encoding
    prefix: str = ""

    @classmethod
    def of(cls, spec: ModelSpec, openai: OpenAISettings) -> Order:
        """Raises ModelUnavailable where the server does not have the model."""
        model = served_name(spec, openai)
        # Told only where it is not what the model has by itself: some servers refuse to be told even that.
        own = spec.provider != PROVIDER or NATIVE_DIMENSIONS.get(model) == spec.dimensions
        dimensions = None if own else spec.dimensions
        endpoint = normalised_url(openai.base_url)
        return cls(endpoint, model, dimensions, encoding_for(openai.base_url), spec.prefix("passage"))

    def stored(self, spec: ModelSpec) -> dict[str, Any]:
        """As `remote_batches.spec` has it: the model, and what is asked for."""
        return {**spec.to_json(), _ORDER: asdict(self)}


def read(stored: Mapping[str, Any]) -> tuple[ModelSpec, Order]:
    """What `Order.stored` wrote."""
    spec = ModelSpec.from_json({name: value for name, value in stored.items() if name != _ORDER})
    return spec, Order(**stored[_ORDER])
