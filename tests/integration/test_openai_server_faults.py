"""The stand-in for OpenAI's servers, driven by the unmodified client: answers that are late, lost, wrong or refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from command_line import eventually
from openai_requests import MODEL, connected, create, create_of, raw, results, texts, upload
from openai_server import OpenAIServer
from openai_server.webhooks import SECRET, event


@pytest.fixture(scope="module")
def connection(openai_process: OpenAIServer) -> Iterator[openai.OpenAI]:
    with connected(openai_process) as client:
        yield client


@pytest.fixture
def client(openai_server: OpenAIServer, connection: openai.OpenAI) -> openai.OpenAI:
    """Of a server that remembers nothing; opening one takes longer than most tests."""
    return connection


def embed(client: openai.OpenAI, text: str = "a text") -> Any:
    return client.embeddings.create(model=MODEL, input=text)


def test_an_upload_is_done_and_its_answer_is_lost(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("files.create", "drop")
    with pytest.raises(openai.APIConnectionError):
        upload(client, texts(1), "orphan.jsonl")
    assert [file.filename for file in client.files.list()] == ["orphan.jsonl"]


def test_a_create_is_done_and_its_answer_is_lost(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("batches.create", "drop")
    with pytest.raises(openai.APIConnectionError):
        create(client, texts(1), key="mine")
    [orphan] = client.batches.list()
    assert orphan.metadata == {"key": "mine"}


def test_a_client_that_tries_again_makes_a_batch_each_time(openai_server: OpenAIServer) -> None:
    # This is why creates are never tried again: the client does it by itself.
    openai_server.control.fault("batches.create", "drop", times=2)
    with connected(openai_server, max_retries=2) as client:
        create(client, texts(1))
        assert len(list(client.batches.list())) == 3


def test_a_create_is_refused_before_anything_is_done(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("batches.create", "refuse")
    with pytest.raises(openai.APIConnectionError):
        create(client, texts(1))
    assert list(client.batches.list()) == []


def test_a_create_arrives_late_even_over_a_restart(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("batches.create", "late", seconds=300)
    openai_server.control.fault("files.create", "late", seconds=100, skip=1)
    file = upload(client, texts(1))
    with pytest.raises(openai.APIConnectionError):
        upload(client, texts(2), "late.jsonl")
    before = openai_server.control.now()
    with pytest.raises(openai.APIConnectionError):
        create_of(client, file.id, key="late")
    after = openai_server.control.now()
    openai_server.restart()
    assert list(client.batches.list()) == []
    assert len(list(client.files.list())) == 1
    openai_server.control.advance(301)
    [late] = client.batches.list()
    assert late.metadata == {"key": "late"}
    assert before + 299 <= late.created_at <= after + 300
    assert client.batches.retrieve(late.id).status == "completed"
    assert "late.jsonl" in [file.filename for file in client.files.list()]


def test_a_late_create_fails_where_its_file_is_gone(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("batches.create", "late", seconds=300)
    file = upload(client, texts(1))
    with pytest.raises(openai.APIConnectionError):
        create_of(client, file.id)
    client.files.delete(file.id)
    openai_server.control.advance(301)
    assert openai_server.control.batches() == []


def test_a_list_lags_fails_and_shows_others_batches(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("batches.create", "lag", seconds=60)
    openai_server.control.fault("batches.create", "foreign", count=2)
    openai_server.control.fault("batches.list", "status", code=500)
    mine = create(client, texts(1))
    with pytest.raises(openai.InternalServerError):
        client.batches.list()
    listed = list(client.batches.list(limit=1))
    assert len(listed) == 4
    assert mine.id not in [batch.id for batch in listed]
    assert client.batches.retrieve(mine.id).id == mine.id
    openai_server.control.advance(61)
    assert [batch.id for batch in client.batches.list(limit=1)].index(mine.id) == 2


def test_a_file_is_not_to_be_seen_at_once(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("files.create", "invisible", seconds=30)
    file = upload(client, texts(1))
    with pytest.raises(openai.BadRequestError, match="Cannot find file"):
        create_of(client, file.id)
    openai_server.control.advance(31)
    create_of(client, file.id)


def test_a_content_fails_and_then_comes(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    file = upload(client, texts(2))
    for code in (404, 500):
        openai_server.control.fault("files.content", "status", code=code)
        with pytest.raises(openai.APIStatusError) as failed:
            raw(client, file.id)
        assert failed.value.status_code == code
    assert len(results(client, file.id)) == 2


def test_a_truncated_content_looks_like_a_whole_one(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    file = upload(client, texts(10))
    openai_server.control.fault("files.content", "truncated", share=0.5)
    assert 0 < len(raw(client, file.id)) < file.bytes
    for kind in ("cut", "reset"):
        openai_server.control.fault("files.content", kind)
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            raw(client, file.id)
    assert len(raw(client, file.id)) == file.bytes


@pytest.mark.parametrize("kind", ["drop", "reset", "cut", "error_in_200", "garbage"])
def test_an_answer_that_is_lost_was_paid_for(openai_server: OpenAIServer, client: openai.OpenAI, kind: str) -> None:
    openai_server.control.fault("embeddings", kind)
    with pytest.raises((openai.OpenAIError, ValueError, AttributeError)):
        assert embed(client).data[0].embedding
    assert openai_server.control.billed("a text") == 1
    embed(client)
    assert openai_server.control.billed("a text") == 2


def test_an_answer_that_was_refused_was_not_paid_for(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    for kind, given, error in (
        ("status", {"code": 500}, openai.InternalServerError),
        ("status", {"code": 409}, openai.ConflictError),
        ("refuse", {}, openai.APIConnectionError),
        ("rate_limit", {}, openai.RateLimitError),
        ("quota", {}, openai.RateLimitError),
    ):
        openai_server.control.fault("embeddings", kind, **given)
        with pytest.raises(error):
            embed(client)
    assert openai_server.control.billing() == []


@pytest.mark.parametrize("how", ["ms", "seconds", "date", None])
def test_a_rate_limit_says_when_to_come_back_in_each_way(
    openai_server: OpenAIServer, client: openai.OpenAI, how: str | None
) -> None:
    openai_server.control.fault("embeddings", "rate_limit", how=how, retry_after=20)
    with pytest.raises(openai.RateLimitError) as refused:
        embed(client)
    headers = refused.value.response.headers
    assert headers.get("retry-after-ms") == ("20000" if how == "ms" else None)
    if how == "date":
        assert parsedate_to_datetime(headers["retry-after"]).timestamp() == pytest.approx(time.time() + 20, abs=15)
    else:
        assert headers.get("retry-after") == ("20" if how == "seconds" else None)


def test_an_answer_comes_long_after_it_is_done(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("batches.create", "linger", seconds=30)
    file = upload(client, texts(1))
    with pytest.raises(openai.APITimeoutError):
        create_of(client.with_options(timeout=1.5), file.id)
    eventually(lambda: len(list(client.batches.list())) == 1)


def test_a_content_is_sent_from_where_it_is_asked_for(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    file = upload(client, texts(3))
    whole = raw(client, file.id)

    def rest(start: int) -> tuple[int, bytes]:
        headers = {"Range": f"bytes={start}-"}
        with client.files.with_streaming_response.content(file.id, extra_headers=headers) as answer:
            return answer.status_code, answer.read()

    assert rest(100) == (206, whole[100:])
    with pytest.raises(openai.APIStatusError) as refused:
        rest(len(whole))
    assert refused.value.status_code == 416
    openai_server.control.set(ranges=False)
    assert rest(100) == (200, whole)


def test_a_webhook_is_signed_as_the_client_checks_it(client: openai.OpenAI) -> None:
    headers, body = event("batch_1")
    told = client.webhooks.unwrap(body, headers, secret=SECRET)
    assert told.type == "batch.completed"
    assert told.data.id == "batch_1"
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace(b"batch_1", b"batch_2"), headers, secret=SECRET)


def test_batches_are_limited_within_an_hour(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.set(creates_per_hour=1)
    create(client, texts(1))
    with pytest.raises(openai.RateLimitError, match="per hour"):
        create(client, texts(1))
    openai_server.control.advance(3601)
    create(client, texts(1))


def test_a_key_is_revoked_in_the_middle(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    batch = create(client, texts(1))
    openai_server.control.set_key(openai_server.key, "revoked")
    with pytest.raises(openai.AuthenticationError):
        client.batches.retrieve(batch.id)


def test_an_answer_is_slow_and_the_client_gives_up(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.set(latency=0.05)
    started = time.monotonic()
    embed(client)
    assert time.monotonic() - started >= 0.05
    openai_server.control.fault("embeddings", "slow", seconds=3.5)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).embeddings.create(model=MODEL, input="given up")
    eventually(lambda: openai_server.control.billed("given up"))  # it is done, and paid for, all the same


def test_what_is_still_on_its_way_is_forgotten_too(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("embeddings", "slow", seconds=0.3)
    with suppress(openai.APITimeoutError):  # where this process stood still meanwhile, it is done
        client.with_options(timeout=0.1).embeddings.create(model=MODEL, input="of an earlier test")
    openai_server.control.reset()
    time.sleep(0.4)  # it would have been done by now
    assert openai_server.control.billing() == []
    assert openai_server.control.requests() == []


def test_faults_hit_so_often_after_so_many_by_chance_and_where_they_match(
    openai_server: OpenAIServer, client: openai.OpenAI
) -> None:
    def fails(text: str = "a text") -> bool:
        try:
            embed(client, text)
        except openai.InternalServerError:
            return True
        return False

    control = openai_server.control
    control.fault("embeddings", "status", times=2, skip=1)
    assert [fails() for _ in range(4)] == [False, True, True, False]
    control.fault("embeddings", "status", times=None, match="poison")
    assert [fails(text) for text in ("good", "poison", "good", "poison")] == [False, True, False, True]
    control.clear_faults()
    fault = control.fault("embeddings", "status", times=None, probability=0.5, seed=3)
    first = [fails() for _ in range(12)]
    assert 0 < control.fired(fault) == sum(first) < 12
    control.clear_faults()
    control.fault("embeddings", "status", times=None, probability=0.5, seed=3)
    assert [fails() for _ in range(12)] == first


@pytest.mark.parametrize("kind", ["wrong_index", "wrong_dimension", "wrong_count", "nan", "zero", "null", "no_usage"])
def test_an_answer_is_wrong(openai_server: OpenAIServer, client: openai.OpenAI, kind: str) -> None:
    openai_server.control.fault("embeddings", kind)
    answer = client.embeddings.with_raw_response.create(model=MODEL, input=["a", "b"], encoding_format="float")
    body = answer.http_response.json()
    data = body["data"]
    found = {
        "wrong_index": data[-1]["index"] != len(data) - 1,
        "wrong_dimension": [len(item["embedding"] or "") for item in data] == [1535, 1535],
        "wrong_count": len(data) == 1,
        "nan": data[0]["embedding"] is not None and bool(np.isnan(data[0]["embedding"]).all()),
        "zero": data[0]["embedding"] is not None and not any(data[0]["embedding"]),
        "null": data[0]["embedding"] is None,
        "no_usage": "usage" not in body,
    }
    assert [name for name, wrong in found.items() if wrong] == [kind]
