"""The stand-in for OpenAI's servers, driven by the unmodified client: embeddings, files, keys, limits, restarts."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai_requests import MODEL, connected, create, create_of, raw, results, texts, upload
from openai_server import OpenAIServer, running
from openai_server.models import tokens_of, vector_of

from pipeline.embedding.local import LocalEmbedder
from pipeline.settings import EmbeddingSettings


@pytest.fixture(scope="module")
def connection(openai_process: OpenAIServer) -> Iterator[openai.OpenAI]:
    with connected(openai_process) as client:
        yield client


@pytest.fixture
def client(openai_server: OpenAIServer, connection: openai.OpenAI) -> openai.OpenAI:
    """Of a server that remembers nothing; opening one takes longer than most tests."""
    return connection


def floats(vector: list[float]) -> NDArray[np.float32]:
    return np.array(vector, np.float32)


def test_a_text_has_one_vector_of_length_one_in_numbers_and_in_base64(client: openai.OpenAI) -> None:
    # When a text is embedded as the client does by itself, and in numbers
    packed = client.embeddings.create(model=MODEL, input=["a heron by the river", "another"])
    numbers = client.embeddings.create(model=MODEL, input="a heron by the river", encoding_format="float")

    # Then both are the vector that the test can compute too
    expected = vector_of("a heron by the river")
    assert [item.index for item in packed.data] == [0, 1]
    assert np.array_equal(floats(packed.data[0].embedding), expected)
    assert np.array_equal(floats(numbers.data[0].embedding), expected)
    assert len(expected) == 1536
    assert np.linalg.norm(expected) == pytest.approx(1, abs=1e-6)
    assert numbers.usage.prompt_tokens == numbers.usage.total_tokens == tokens_of("a heron by the river")


def test_base64_is_the_little_endian_bytes_of_the_numbers(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input="a text", encoding_format="base64")
    data = answer.data[0].embedding
    assert isinstance(data, str)
    assert np.array_equal(np.frombuffer(base64.b64decode(data), "<f4"), vector_of("a text"))


def test_fewer_dimensions_are_the_first_ones_brought_back_to_length_one(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input="a text of words", dimensions=256)
    whole = vector_of("a text of words").astype(np.float64)[:256]
    assert np.allclose(answer.data[0].embedding, whole / np.linalg.norm(whole), atol=1e-6)


def test_texts_that_share_words_are_near_each_other() -> None:
    asked = vector_of("river heron")
    near, far = vector_of("the heron stands in the river"), vector_of("quarterly results of the bank")
    assert asked @ near > 0.4
    assert abs(asked @ far) < 0.1


def test_tokens_are_taken_as_the_text_they_stand_for(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=[[15339, 1917], [15339]])  # "hello world", "hello"
    assert np.array_equal(floats(answer.data[0].embedding), vector_of("hello world"))
    assert openai_server.control.billed("hello") == 1


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        ({"input": ""}, 400, "empty string"),
        ({"input": ["a", ""]}, 400, "empty string"),
        ({"input": []}, 400, "input"),
        ({"input": ["a"] * 2049}, 400, "maximum length 2048"),
        ({"input": ["fine", "word " * 8200]}, 400, "maximum context length is 8192 tokens"),
        ({"input": ["word " * 8000] * 38}, 400, "max 300000 tokens per request"),
        ({"input": "a", "model": "text-embedding-4"}, 404, "does not exist"),
        ({"input": "a", "dimensions": 1537}, 400, "less than or equal to 1536"),
        ({"input": "a", "dimensions": 0}, 400, "less than the minimum"),
        ({"input": "a", "dimensions": 8, "model": "text-embedding-ada-002"}, 400, "does not support specifying"),
    ],
)
def test_what_openai_refuses_is_refused_and_not_billed(
    openai_server: OpenAIServer, client: openai.OpenAI, given: dict[str, Any], status: int, says: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=says) as refused:
        client.embeddings.create(**{"model": MODEL, **given})
    assert refused.value.status_code == status
    assert refused.value.type
    assert openai_server.control.billing() == []


def test_the_longest_text_and_the_most_texts_are_taken(client: openai.OpenAI) -> None:
    assert tokens_of("word " * 8191 + "w") == 8192
    assert client.embeddings.create(model=MODEL, input="word " * 8191 + "w").usage.total_tokens == 8192
    assert len(client.embeddings.create(model=MODEL, input=["a"] * 2048, dimensions=4).data) == 2048


def test_each_text_is_billed_each_time_it_is_embedded(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    client.embeddings.create(model=MODEL, input=["one", "two words", "one"])
    client.embeddings.create(model=MODEL, input="one", dimensions=8)

    billed = [(entry.dimensions, entry.times, entry.tokens) for entry in openai_server.control.billing()]
    assert billed == [(1536, 2, 2), (1536, 1, 2), (8, 1, 1)]
    assert openai_server.control.billed("one") == 3
    assert openai_server.control.billed("two words") == 1
    assert openai_server.control.billed("three") == 0


def test_a_served_local_model_gives_what_the_local_one_gives(
    openai_server: OpenAIServer, client: openai.OpenAI, openai_process: OpenAIServer
) -> None:
    said = ["The heron waits.", "A bank publishes its results."]
    local = LocalEmbedder(EmbeddingSettings(), openai_process.directory.parent / "models").embed(said).vectors
    answer = client.embeddings.create(model="minilm", input=said, encoding_format="float")
    assert np.allclose([item.embedding for item in answer.data], local, atol=1e-6)


def test_limits_are_told_and_what_is_over_them_is_refused_with_the_wait(
    openai_server: OpenAIServer, client: openai.OpenAI
) -> None:
    # Given 24 requests and 6,000 tokens a minute, of which five seconds' worth may come at once
    openai_server.control.set(rpm=24, tpm=6000, burst_seconds=5.0)

    # When that is used up; who asks slowly has to ask more often
    first = client.embeddings.with_raw_response.create(model=MODEL, input="one")
    client.embeddings.create(model=MODEL, input="two")

    def ask_on() -> None:
        for _ in range(10):
            client.embeddings.create(model=MODEL, input="three")

    with pytest.raises(openai.RateLimitError) as refused:
        ask_on()

    # Then it was told before, and the refusal says when there is more
    assert first.headers["x-ratelimit-limit-requests"] == "24"
    assert first.headers["x-ratelimit-limit-tokens"] == "6000"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"] == "2.5s"
    wait = int(refused.value.response.headers["retry-after-ms"])
    assert 0 < wait <= 2500
    assert refused.value.code == "rate_limit_exceeded"
    time.sleep(wait / 1000)
    client.embeddings.create(model=MODEL, input="three")
    assert openai_server.control.busiest(0.4)[0] <= 3


def test_what_was_asked_is_written_down_without_the_key(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    client.embeddings.create(model=MODEL, input=["hello world", "hello"])
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-that-is-not-there")

    [embedded, looked] = openai_server.control.requests()
    assert (embedded.operation, embedded.inputs, embedded.tokens, embedded.model) == ("embeddings", 2, 3, MODEL)
    assert (looked.operation, looked.path, looked.status) == ("files.get", "/v1/files/file-that-is-not-there", 404)
    assert embedded.at == pytest.approx(time.time(), abs=60)
    assert len(embedded.fingerprint) == 16
    assert embedded.fingerprint not in openai_server.key


def test_keys_are_refused_by_what_is_wrong_with_them(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    control = openai_server.control
    with connected(openai_server, "sk-of-nobody-at-all") as stranger, pytest.raises(openai.AuthenticationError) as told:
        stranger.embeddings.create(model=MODEL, input="a")
    assert told.value.code == "invalid_api_key"
    assert "sk-of-nobody-at-all" not in str(told.value)
    for state, error in (
        ("revoked", openai.AuthenticationError),
        ("forbidden", openai.PermissionDeniedError),
        ("exhausted", openai.RateLimitError),
    ):
        control.set_key(openai_server.key, state)
        with pytest.raises(error) as refused:
            client.embeddings.create(model=MODEL, input="a")
        assert refused.value.code == ("insufficient_quota" if state == "exhausted" else refused.value.code)
    control.set_key(openai_server.key, "valid")
    client.embeddings.create(model=MODEL, input="a")


def test_files_are_kept_listed_and_deleted(client: openai.OpenAI) -> None:
    # Given three files, one with bytes that are like the form's own
    content = b'--boundary\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nx\r\n\r\n\xff\x00'
    kept = client.files.create(file=("odd.jsonl", content), purpose="batch")
    others = [upload(client, texts(1), f"{name}.jsonl") for name in "ab"]

    # Then each is there as it was sent, the newest first
    assert raw(client, kept.id) == content
    assert (kept.bytes, kept.filename, kept.purpose) == (len(content), "odd.jsonl", "batch")
    assert [file.id for file in client.files.list()] == [others[1].id, others[0].id, kept.id]
    assert [file.id for file in client.files.list(limit=1)] == [others[1].id, others[0].id, kept.id]
    assert client.files.retrieve(kept.id).filename == "odd.jsonl"

    # And a deleted one is gone
    assert client.files.delete(kept.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(kept.id)
    with pytest.raises(openai.NotFoundError):
        client.files.delete(kept.id)


def test_files_of_a_batch_are_json_lines_and_are_gone_when_they_said(
    openai_server: OpenAIServer, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError, match="jsonl"):
        client.files.create(file=("in.txt", b"{}"), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="expires_after"):
        client.files.create(
            file=("in.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 60}
        )
    file = client.files.create(
        file=("in.jsonl", b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    openai_server.control.advance(3599)
    client.files.retrieve(file.id)
    openai_server.control.advance(2)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_accounts_do_not_see_each_others_files_and_batches(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.add_key("sk-of-another", "org-another")
    mine = create(client, texts(1))
    with connected(openai_server, "sk-of-another") as other:
        assert list(other.files.list()) == []
        assert list(other.batches.list()) == []
        with pytest.raises(openai.NotFoundError):
            other.batches.retrieve(mine.id)
        with pytest.raises(openai.BadRequestError, match="Cannot find file"):
            create_of(other, mine.input_file_id)


def test_a_server_that_is_only_like_openai(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.set(headers=False, base64=False, resizing=False, batches=False)
    answer = client.embeddings.with_raw_response.create(model=MODEL, input="a")
    assert not [name for name in answer.headers if name.startswith("x-")]
    assert isinstance(answer.http_response.json()["data"][0]["embedding"], list)
    with pytest.raises(openai.BadRequestError, match="matryoshka"):
        client.embeddings.create(model=MODEL, input="a", dimensions=8)
    with pytest.raises(openai.NotFoundError):
        client.batches.list()


def test_a_killed_server_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    with running(tmp_path / "openai") as server, connected(server) as client:
        # Given files, batches, bills, a revoked key, a moved clock and a fault that has hit once of twice
        done = create(client, texts(3), key="one")
        assert client.batches.retrieve(done.id).status == "completed"
        server.control.timing(in_progress=None)
        waiting = create(client, texts(2), key="two")
        client.embeddings.create(model=MODEL, input="paid")
        server.control.advance(1000)
        server.control.add_key("sk-of-another", state="revoked")
        server.control.fault("embeddings", "status", times=2, code=503)
        with pytest.raises(openai.InternalServerError):
            client.embeddings.create(model=MODEL, input="a")

        # When it is killed, and started again
        url = server.url
        server.kill()
        with pytest.raises(openai.APIConnectionError):
            client.batches.retrieve(done.id)
        server.restart()

        # Then everything is as it was
        assert server.url == url
        assert client.batches.retrieve(done.id).status == "completed"
        assert len(results(client, client.batches.retrieve(done.id).output_file_id)) == 3
        assert client.batches.retrieve(waiting.id).status == "in_progress"
        assert server.control.now() == pytest.approx(time.time() + 1000, abs=60)
        assert [server.control.billed(text) for text in ("paid", "text 0", "text 2")] == [1, 1, 1]
        with connected(server, "sk-of-another") as other, pytest.raises(openai.AuthenticationError):
            other.files.list()
        with pytest.raises(openai.InternalServerError):
            client.embeddings.create(model=MODEL, input="a")
        client.embeddings.create(model=MODEL, input="a")

        # And the batch goes on from where it was
        server.control.finish(waiting.id)
        assert client.batches.retrieve(waiting.id).status == "completed"
        assert server.control.billed("text 0") == 2


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    with running(tmp_path / "openai") as server:
        assert server.process.stdin is not None
        server.process.stdin.close()
        assert server.process.wait(30) == 0
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(server.address)
