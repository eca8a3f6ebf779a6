"""POST /v1/embeddings: what may be asked, what it costs, and what the answer looks like."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from openai_server.answers import ApiError
from openai_server.faults import Drawn
from openai_server.models import Model, Models, Vectors, hash_of, text_of
from openai_server.store import Store

MAX_INPUTS = 2048
MAX_REQUEST_TOKENS = 300_000


@dataclass(frozen=True)
class Order:
    """What is asked for; tokens: of each text."""

    model: Model
    texts: Sequence[str]
    tokens: Sequence[int]
    dimensions: int
    base64: bool
    resized: bool


def parse(body: Any, models: Models) -> Order:
    """Raises ApiError for whatever OpenAI refuses."""
    if not isinstance(body, dict):
        raise ApiError(400, "We could not parse the JSON body of your request.")
    model = _model(body, models)
    given = body.get("input")
    texts = _texts(given)
    if not texts or any(not text for text in texts):
        raise ApiError(400, "'$.input' is invalid. Please check the API reference: input cannot be an empty string.",
                       param="input")  # fmt: skip
    if len(texts) > MAX_INPUTS:
        raise ApiError(400, f"Invalid 'input': array too long. Expected an array with maximum length {MAX_INPUTS}, "
                       f"but got an array with length {len(texts)} instead.", code="array_above_max_length",
                       param="input")  # fmt: skip
    tokens = [models.count(text, model) for text in texts]
    for index, count in enumerate(tokens):
        if count > model.max_tokens:
            where = f"input[{index}]" if isinstance(given, list) else "input"
            raise ApiError(400, f"Invalid '{where}': maximum context length is {model.max_tokens} tokens, however you "
                           f"requested {count} tokens.", param="input", code="context_length_exceeded")  # fmt: skip
    if sum(tokens) > MAX_REQUEST_TOKENS:
        raise ApiError(400, f"Requested {sum(tokens)} tokens, max {MAX_REQUEST_TOKENS} tokens per request",
                       type="max_tokens_per_request", code="max_tokens_per_request")  # fmt: skip
    encoding = body.get("encoding_format", "float")
    if encoding not in {"float", "base64"}:
        raise ApiError(400, f"'{encoding}' is not one of ['float', 'base64'] - 'encoding_format'")
    dimensions = _dimensions(body.get("dimensions"), model)
    return Order(model, texts, tokens, dimensions, encoding == "base64", "dimensions" in body)


def in_numbers(order: Order) -> Order:
    """The same order, answered with numbers whatever was asked for."""
    return replace(order, base64=False)


def _model(body: dict[str, Any], models: Models) -> Model:
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise ApiError(400, "you must provide a model parameter")
    if name not in models.known:
        raise ApiError(404, f"The model `{name}` does not exist or you do not have access to it.",
                       code="model_not_found")  # fmt: skip
    return models.known[name]


def _texts(given: Any) -> list[str]:
    """A text, texts, the tokens of a text, or the tokens of texts."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return list(given)
    if isinstance(given, list) and all(isinstance(item, int) for item in given):
        return [text_of(given)]
    if isinstance(given, list) and all(isinstance(item, list) for item in given):
        return [text_of(item) for item in given]
    raise ApiError(400, "'$.input' is invalid. Please check the API reference: "
                   "https://platform.openai.com/docs/api-reference.", param="input")  # fmt: skip


def _dimensions(wanted: Any, model: Model) -> int:
    if wanted is None:
        return model.dimensions
    if not model.resizable:
        raise ApiError(400, "This model does not support specifying dimensions.", param="dimensions")
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise ApiError(400, f"{wanted!r} is less than the minimum of 1 - 'dimensions'", param="dimensions")
    if wanted > model.dimensions:
        raise ApiError(400, f"Invalid value for 'dimensions' = {wanted}. Must be less than or equal to "
                       f"{model.dimensions}.", param="dimensions")  # fmt: skip
    return wanted


def answer(order: Order, vectors: Vectors, drawn: Drawn) -> dict[str, Any]:
    """The body of the answer, with the faults that hit it."""
    found = list(vectors)
    if "wrong_dimension" in drawn:
        found = [vector[:-1] for vector in found]
    if "wrong_count" in drawn:
        found = found[:-1]
    if "nan" in drawn:
        found[0] = np.full_like(found[0], np.nan)
    if "zero" in drawn:
        found[0] = np.zeros_like(found[0])
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": written(vector, order.base64)}
        for index, vector in enumerate(found)
    ]
    if "wrong_index" in drawn:
        data[-1]["index"] = len(order.texts) if len(data) == 1 else 0
    if "null" in drawn:
        data[0]["embedding"] = None
    renamed = drawn.get("renamed")
    name = order.model.name if renamed is None else renamed.get("name")
    body: dict[str, Any] = {"object": "list", "data": data, "model": name}
    if "no_usage" not in drawn:
        body["usage"] = {"prompt_tokens": sum(order.tokens), "total_tokens": sum(order.tokens)}
    return body


def written(vector: Vectors, as_base64: bool) -> str | list[float]:
    if as_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    # Nine digits are enough to be read as the very same float32.
    return [float(f"{number:.9g}") for number in vector.tolist()]


def rendered(body: dict[str, Any]) -> bytes:
    """NaN is written as Python's JSON writes it, and reads it."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def bill(store: Store, order: Order, batch: str | None, at: float) -> None:
    """One row for each text: it was embedded, and is paid for."""
    with store.transaction() as database:
        database.executemany(
            "INSERT INTO billed (hash, model, dimensions, tokens, batch, at) VALUES (?, ?, ?, ?, ?, ?)",
            [
                (hash_of(text), order.model.name, order.dimensions, tokens, batch, at)
                for text, tokens in zip(order.texts, order.tokens, strict=True)
            ],
        )
