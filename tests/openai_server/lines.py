"""The lines of a batch: what was asked for, checked as OpenAI checks it, and how results are written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai_server import embeddings
from openai_server.answers import ApiError
from openai_server.embeddings import Order
from openai_server.files import new_id
from openai_server.models import Models

MAX_LINES = 50_000
URL = "/v1/embeddings"


@dataclass(frozen=True)
class Line:
    number: int
    custom_id: str
    body: Any


class Invalid(Exception):
    """A batch that fails as a whole."""

    def __init__(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "line": line, "param": param}


@dataclass(frozen=True)
class Checked:
    lines: int
    inputs: int
    tokens: int
    model: str


def read(path: Path) -> Iterator[Line]:
    """The lines, without a check that needs more than one. Raises Invalid."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                value = json.loads(raw)
            except ValueError:
                raise Invalid("invalid_json_line", "This line is not parseable as valid JSON.", number) from None
            if not isinstance(value, dict):
                raise Invalid("invalid_json_line", "This line is not a JSON object.", number)
            for name in ("custom_id", "method", "url", "body"):
                if name not in value:
                    raise Invalid("missing_required_parameter", f"Missing required parameter: '{name}'.", number, name)
            if value["method"] != "POST":
                raise Invalid("invalid_method", "The only supported method is POST.", number, "method")
            if value["url"] != URL:
                message = f"The URL provided for this request does not match the batch endpoint {URL}."
                raise Invalid("invalid_url", message, number, "url")
            custom_id = value["custom_id"]
            if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= 512:
                raise Invalid("invalid_custom_id", "The custom_id is no string of 1 to 512 characters.", number)
            yield Line(number, custom_id, value["body"])


def check(path: Path, models: Models) -> Checked:
    """Reads the whole input. Raises Invalid where the batch fails."""
    seen: set[str] = set()
    found: set[str] = set()
    inputs = tokens = 0
    for line in read(path):
        if line.custom_id in seen:
            message = f"The custom_id for this request is a duplicate of another request: {line.custom_id}"
            raise Invalid("duplicate_custom_id", message, line.number, "custom_id")
        seen.add(line.custom_id)
        if len(seen) > MAX_LINES:
            raise Invalid("too_many_tasks", f"The batch input has more than {MAX_LINES} requests.", line.number)
        body = line.body if isinstance(line.body, dict) else {}
        name = body.get("model")
        if not isinstance(name, str):
            raise Invalid("missing_required_parameter", "Missing required parameter: 'body.model'.", line.number)
        if name not in models.known:
            message = f"The provided model '{name}' is not supported by the Batch API."
            raise Invalid("model_not_found", message, line.number, "body.model")
        found.add(name)
        if len(found) > 1:
            message = "The input file contains requests for more than one model."
            raise Invalid("mismatched_model", message, line.number, "body.model")
        given = body.get("input")
        texts = [text for text in (given if isinstance(given, list) else [given]) if isinstance(text, str)]
        inputs += max(1, len(texts))
        if inputs > MAX_LINES:
            raise Invalid("too_many_inputs", f"The batch has more than {MAX_LINES} embedding inputs.", line.number)
        tokens += sum(models.count(text, models.known[name]) for text in texts)
    if not seen:
        raise Invalid("empty_file", "The input file is empty.")
    return Checked(len(seen), inputs, tokens, found.pop())


def order_of(line: Line, models: Models) -> Order | ApiError:
    try:
        return embeddings.parse(line.body, models)
    except ApiError as error:
        return error


def written(custom_id: str | None, response: Mapping[str, Any] | None, error: Mapping[str, Any] | None) -> bytes:
    """A line of a result, without its end."""
    value = {"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": error}
    return embeddings.rendered(value)


def result(custom_id: str | None, status: int, body: bytes) -> bytes:
    """A line whose request was answered; `body` is JSON already, because a vector is written once for many lines."""
    head = {"id": new_id("batch_req_"), "custom_id": custom_id}
    return b"%s,\"response\":{\"status_code\":%d,\"request_id\":\"%s\",\"body\":%s},\"error\":null}" % (
        json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()[:-1],
        status,
        new_id("req_").encode(),
        body,
    )  # fmt: skip


def unfinished(custom_id: str, reason: str) -> bytes:
    """A line that was not carried out: `batch_expired` or `batch_cancelled`."""
    message = {
        "batch_expired": "This request could not be executed before the completion window expired.",
        "batch_cancelled": "This request was not executed because the batch was cancelled.",
    }[reason]
    return written(custom_id, None, {"code": reason, "message": message})
