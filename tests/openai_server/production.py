"""Carrying out a batch: from the file of its input to the files of its results."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from openai_server import embeddings, lines
from openai_server.answers import ApiError
from openai_server.embeddings import Order
from openai_server.fates import Fate
from openai_server.faults import Drawn
from openai_server.lines import Line
from openai_server.models import Models, hash_of

REASONS = {"expired": "batch_expired", "cancelled": "batch_cancelled"}


@dataclass
class Produced:
    """output, error: where results lie, None where there are none. billed: hash, model, dimensions, tokens of each."""

    output: Path | None = None
    error: Path | None = None
    completed: int = 0
    failed: int = 0
    tokens: int = 0
    billed: list[tuple[str, str, int, int]] = field(default_factory=list)


def produce(
    source: Path, directory: Path, models: Models, fate: Fate, done: int, state: str, pool: int | None
) -> Produced:
    """done: so many lines are carried out; the rest ends with `state`. pool: see Models.embed."""
    made = Produced()
    name = secrets.token_hex(8)
    output, error = directory / f"{name}.output", directory / f"{name}.error"
    asked = list(lines.read(source))
    expired = fate.get("expired") if state == "expired" else None
    lost = round((len(asked) - done) * expired.get("lost", 0.0)) if expired else 0
    order = {line.custom_id: position for position, line in enumerate(asked)}
    with output.open("wb") as results, error.open("wb") as failures:
        for line in fate.ordered(asked):
            position = order[line.custom_id]
            if position < done:
                _carry_out(line, position, models, fate, made, results, failures, pool)
            elif position < len(asked) - lost:
                failures.write(_told(lines.unfinished(line.custom_id, REASONS[state]), fate))
                made.failed += 1
        _extra(fate, results, models, pool)
    if fate.get("torn"):
        size = output.stat().st_size
        with output.open("r+b") as file:
            file.truncate(max(0, size - 40))
    made.output, made.error = (path if path.stat().st_size else None for path in (output, error))
    for path in (output, error):
        if not path.stat().st_size:
            path.unlink()
    return made


def _carry_out(
    line: Line,
    position: int,
    models: Models,
    fate: Fate,
    made: Produced,
    results: IO[bytes],
    failures: IO[bytes],
    pool: int | None,
) -> None:
    custom_id = None if fate.hits("null_ids", line, position) else line.custom_id
    asked: Order | ApiError = fate.error(line, position) or lines.order_of(line, models)
    if isinstance(asked, ApiError):
        made.failed += 1
        text = lines.result(custom_id, asked.status, json.dumps(asked.body).encode())
        target = failures
    else:
        made.completed += 1
        made.tokens += sum(asked.tokens)
        made.billed += [
            (hash_of(text), asked.model.name, asked.dimensions, tokens)
            for text, tokens in zip(asked.texts, asked.tokens, strict=True)
        ]
        text = lines.result(custom_id, 200, _body(asked, models, fate.damages(line, position), pool))
        target = results
    if fate.hits("lost", line, position):
        return
    for _ in range(2 if fate.hits("duplicated", line, position) else 1):
        target.write(_told(text, fate))


def _body(order: Order, models: Models, damages: Drawn, pool: int | None) -> bytes:
    if pool and len(order.texts) == 1 and order.model.local is None:
        number = int(hash_of(order.texts[0])[:8], 16) % pool
        data = _pooled(number, order.model.name, order.dimensions, order.base64)
        usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (order.tokens[0], order.tokens[0])
        return b'{"object":"list","data":%s,"model":"%s","usage":%s}' % (data, order.model.name.encode(), usage)
    vectors = models.embed(order.texts, order.model, order.dimensions, pool)
    return embeddings.rendered(embeddings.answer(order, vectors, damages))


@lru_cache(maxsize=256)
def _pooled(number: int, model: str, dimensions: int, as_base64: bool) -> bytes:
    from openai_server.models import vector_of

    vector = vector_of(f"vector {number}", model, dimensions)
    item: dict[str, Any] = {"object": "embedding", "index": 0, "embedding": embeddings.written(vector, as_base64)}
    return json.dumps([item], separators=(",", ":")).encode()


def _extra(fate: Fate, results: IO[bytes], models: Models, pool: int | None) -> None:
    """Lines that nobody asked for."""
    if fault := fate.get("unknown_ids"):
        body = {"model": "text-embedding-3-small", "input": "something that nobody asked for"}
        order = embeddings.parse(body, models)
        for number in range(fault.get("count", 1)):
            results.write(_told(lines.result(f"nobody-{number}", 200, _body(order, models, Drawn([]), pool)), fate))
    if fault := fate.get("garbage_lines"):
        for _ in range(fault.get("count", 1)):
            results.write(b'{"id": "batch_req_x", "custom_id"\n')


def _told(text: bytes, fate: Fate) -> bytes:
    """With its end; U+2028 is a character like others in JSON, and no end of a line."""
    if fate.get("u2028"):
        text = text[:-1] + ',"note":"one\u2028two"}'.encode()
    return text + b"\n"
