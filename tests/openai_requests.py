"""What tests ask of OpenAI's servers, by the unmodified client."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import openai
from openai.types import Batch, FileObject
from openai_server import OpenAIServer

MODEL = "text-embedding-3-small"


@contextmanager
def connected(server: OpenAIServer, key: str | None = None, **options: Any) -> Iterator[openai.OpenAI]:
    """The client, which asks once and not again."""
    given = {"max_retries": 0, "timeout": 30.0, **options}
    with openai.OpenAI(base_url=server.url, api_key=key or server.key, **given) as client:
        yield client


def line(custom_id: str, text: Any, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": MODEL, "input": text, **body},
    }


def upload(client: openai.OpenAI, lines: Sequence[Any], name: str = "in.jsonl") -> FileObject:
    content = "".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in lines)
    return client.files.create(file=(name, content.encode()), purpose="batch")


def create(client: openai.OpenAI, lines: Sequence[Any], **metadata: str) -> Batch:
    return create_of(client, upload(client, lines).id, **metadata)


def create_of(client: openai.OpenAI, file_id: str, **metadata: str) -> Batch:
    return client.batches.create(
        input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h", metadata=metadata
    )


def ended(server: OpenAIServer, client: openai.OpenAI, lines: Sequence[Any]) -> Batch:
    """A batch that has come to its end."""
    batch = create(client, lines)
    server.control.finish(batch.id)
    return client.batches.retrieve(batch.id)


def texts(count: int) -> list[dict[str, Any]]:
    """Lines `key-0`, `key-1`, ... with `text 0`, `text 1`, ..."""
    return [line(f"key-{number}", f"text {number}") for number in range(count)]


def raw(client: openai.OpenAI, file_id: str | None) -> bytes:
    """A file as it comes; of no file: nothing."""
    if not file_id:
        return b""
    target = io.BytesIO()
    with client.files.with_streaming_response.content(file_id) as response:
        for piece in response.iter_bytes():
            target.write(piece)
    return target.getvalue()


def results(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(row) for row in raw(client, file_id).split(b"\n") if row]


def ids(client: openai.OpenAI, file_id: str | None) -> list[str | None]:
    return [result["custom_id"] for result in results(client, file_id)]
