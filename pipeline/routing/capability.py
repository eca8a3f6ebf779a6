"""Who can embed for a collection at all, as the settings know it."""

from __future__ import annotations

from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai import spec as specs
from pipeline.errors import CollectionMismatch, InvalidRequest, ModelUnavailable
from pipeline.settings import OpenAISettings


def has_batch_api(openai: OpenAISettings) -> bool:
    """As the settings say; by themselves they know that OpenAI's own server has it, and expect it of no other."""
    return specs.is_openai(openai) if openai.batch == "auto" else openai.batch == "on"


def may_ask(openai: OpenAISettings) -> bool:
    """Whether there is a key, or a server of one's own that may need none."""
    return bool(openai.api_key.get_secret_value()) or not specs.is_openai(openai)


def served_name(spec: ModelSpec, openai: OpenAISettings) -> str | None:
    """What the server of section openai calls the model of the collection; None: it has it not."""
    return specs.served_name(spec, openai) if specs.is_served(spec, openai) else None


def check(provider: str, spec: ModelSpec, openai: OpenAISettings) -> None:
    """Whether `provider` (one that was asked for by name) can embed for a collection of this model.

    Raises InvalidRequest, naming what is in the way and the remedy; CollectionMismatch where the model is that of
    another endpoint.
    """
    if provider == "local" and spec.provider == specs.PROVIDER:
        raise InvalidRequest(
            f"{spec.name} is a model of OpenAI's: provider local cannot embed with it; use openai, openai_batch or auto"
        )
    if provider in ("openai", "openai_batch") or spec.provider == specs.PROVIDER:
        try:
            specs.served_name(spec, openai)
        except ModelUnavailable as error:
            if spec.provider == specs.PROVIDER:
                raise CollectionMismatch(f"{error}; use that endpoint, or another collection") from None
            raise InvalidRequest(f"provider {provider} cannot embed for this collection: {error}") from None
    if provider == "openai_batch" and not has_batch_api(openai):
        raise InvalidRequest(
            f"the server {specs.normalised_url(openai.base_url)} has no Batch API, as far as MILLRACE_OPENAI__BATCH="
            f"{openai.batch} says: provider openai_batch cannot be used. Use openai or auto, or set it to on where the "
            "server has one"
        )
