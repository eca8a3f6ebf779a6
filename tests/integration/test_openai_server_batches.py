"""The stand-in for OpenAI's servers, driven by the unmodified client: batches, and what can become of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai_requests import (
    MODEL,
    connected,
    create,
    create_of,
    ended,
    ids,
    line,
    raw,
    results,
    texts,
    upload,
)
from openai_server import OpenAIServer
from openai_server.models import tokens_of, vector_of

DAY = 86_400


@pytest.fixture(scope="module")
def connection(openai_process: OpenAIServer) -> Iterator[openai.OpenAI]:
    with connected(openai_process) as client:
        yield client


@pytest.fixture
def client(openai_server: OpenAIServer, connection: openai.OpenAI) -> openai.OpenAI:
    """Of a server that remembers nothing; opening one takes longer than most tests."""
    return connection


def test_a_batch_goes_through_its_states_and_answers_every_line(
    openai_server: OpenAIServer, client: openai.OpenAI
) -> None:
    # Given a server whose batches move when they are told to
    openai_server.control.timing(validating=None, in_progress=None, finalizing=None)
    asked = [line("one", "a text"), line("two", ["first", "second"], dimensions=8, encoding_format="base64")]
    batch = create(client, asked, key="mine")
    assert (batch.status, batch.metadata) == ("validating", {"key": "mine"})

    # When it is moved
    seen = []
    for _ in range(3):
        openai_server.control.step(batch.id)
        seen.append(client.batches.retrieve(batch.id).status)

    # Then each line has its answer, and each text its bill
    assert seen == ["in_progress", "finalizing", "completed"]
    batch = client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert batch.usage is not None
    assert (batch.request_counts.completed, batch.request_counts.failed, batch.request_counts.total) == (2, 0, 2)
    assert batch.usage.total_tokens == tokens_of("a text") + tokens_of("first") + tokens_of("second")
    assert (batch.error_file_id, batch.model, batch.endpoint) == (None, MODEL, "/v1/embeddings")
    first, second = results(client, batch.output_file_id)
    assert first["custom_id"] == "one"
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    vector = np.array(first["response"]["body"]["data"][0]["embedding"], np.float32)
    assert np.array_equal(vector, vector_of("a text"))
    assert [item["index"] for item in second["response"]["body"]["data"]] == [0, 1]
    assert [(bill.times, bill.by_batch) for bill in openai_server.control.billing()] == [(1, 1)] * 3


def test_batches_move_by_the_servers_clock(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    # Given batches that take a hundred minutes
    openai_server.control.timing(validating=600, in_progress=4800, finalizing=600)
    batch = create(client, texts(10))

    # Then the clock says where it is, and what is done of it
    for seconds, status, done in ((500, "validating", 0), (200, "in_progress", 0), (2300, "in_progress", 5)):
        openai_server.control.advance(seconds)
        now = client.batches.retrieve(batch.id)
        assert now.request_counts is not None
        assert (now.status, now.request_counts.completed) == (status, done)
    openai_server.control.advance(DAY)
    now = client.batches.retrieve(batch.id)
    assert now.status == "completed"
    assert now.completed_at == pytest.approx(batch.created_at + 6000, abs=2)


def test_a_batch_that_takes_longer_than_a_day_expires_with_what_it_has(
    openai_server: OpenAIServer, client: openai.OpenAI
) -> None:
    openai_server.control.timing(in_progress=2 * DAY)
    batch = create(client, texts(10))
    openai_server.control.advance(DAY + 1)

    expired = client.batches.retrieve(batch.id)
    assert expired.status == "expired"
    assert expired.expired_at == expired.expires_at == batch.created_at + DAY
    done, undone = ids(client, expired.output_file_id), results(client, expired.error_file_id)
    assert done == [f"key-{number}" for number in range(5)]
    assert [row["custom_id"] for row in undone] == [f"key-{number}" for number in range(5, 10)]
    assert {row["error"]["code"] for row in undone} == {"batch_expired"}
    assert len(openai_server.control.billing()) == 5


def test_a_cancelled_batch_keeps_and_bills_what_was_done(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.timing(in_progress=None, cancelling=60)
    batch = create(client, texts(4))
    assert client.batches.retrieve(batch.id).status == "in_progress"
    openai_server.control.change(batch.id, done=0.5)

    assert client.batches.cancel(batch.id).status == "cancelling"
    assert client.batches.retrieve(batch.id).status == "cancelling"
    assert openai_server.control.billing() == []
    openai_server.control.advance(61)

    ended = client.batches.retrieve(batch.id)
    assert ended.status == "cancelled"
    assert ids(client, ended.output_file_id) == ["key-0", "key-1"]
    assert {row["error"]["code"] for row in results(client, ended.error_file_id)} == {"batch_cancelled"}
    assert len(openai_server.control.billing()) == 2
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_batches_are_listed_by_pages_newest_first(client: openai.OpenAI) -> None:
    file = upload(client, texts(1))
    made = [create_of(client, file.id, number=str(number)) for number in range(5)]
    page = client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == [made[4].id, made[3].id]
    assert page.has_more
    assert [batch.id for batch in client.batches.list(limit=2)] == [batch.id for batch in reversed(made)]
    assert [batch.id for batch in client.batches.list(after=made[1].id)] == [made[0].id]
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.batches.list(limit=101)


@pytest.mark.parametrize(
    ("asked", "code", "number"),
    [
        ([], "empty_file", None),
        ([line("a", "x"), line("a", "y")], "duplicate_custom_id", 2),
        ([line("a", "x"), line("b", "y", model="text-embedding-3-large")], "mismatched_model", 2),
        ([line("a", "x", model="text-embedding-4")], "model_not_found", 1),
        ([line("a", "x"), "{"], "invalid_json_line", 2),
        ([{**line("a", "x"), "url": "/v1/chat/completions"}], "invalid_url", 1),
        ([{**line("a", "x"), "method": "GET"}], "invalid_method", 1),
        ([{"custom_id": "a"}], "missing_required_parameter", 1),
        ([line(f"a{number}", ["x"] * 2000) for number in range(26)], "too_many_inputs", 26),
    ],
)
def test_a_batch_that_is_not_valid_fails_with_the_line(
    openai_server: OpenAIServer, client: openai.OpenAI, asked: list[Any], code: str, number: int | None
) -> None:
    failed = ended(openai_server, client, asked)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert failed.errors.data is not None
    [error] = failed.errors.data
    assert (error.code, error.line) == (code, number)
    assert failed.output_file_id is None
    assert openai_server.control.billing() == []


def test_what_cannot_be_a_batch_is_refused_at_once(client: openai.OpenAI) -> None:
    file = upload(client, texts(1))
    for given, says in (
        ({"input_file_id": "file-of-nobody"}, "Cannot find file"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"endpoint": "/v1/chat/completions"}, "/v1/embeddings"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"key": "x" * 513}}, "metadata"),
    ):
        whole: dict[str, Any] = {
            "input_file_id": file.id,
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
            **given,
        }
        with pytest.raises(openai.BadRequestError, match=says):
            client.batches.create(**whole)
    assert list(client.batches.list()) == []


def test_enqueued_tokens_over_the_limit_fail_a_batch_later(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.set(enqueued_tokens=50)
    openai_server.control.timing(in_progress=None)
    first, second = create(client, texts(10)), create(client, texts(10))
    assert [client.batches.retrieve(batch.id).status for batch in (first, second)] == ["in_progress", "failed"]
    errors = client.batches.retrieve(second.id).errors
    assert errors is not None
    assert errors.data is not None
    assert errors.data[0].code == "token_limit_exceeded"

    # When the first is done, there is room
    openai_server.control.finish(first.id)
    assert client.batches.retrieve(create(client, texts(10)).id).status == "in_progress"


def test_an_input_that_is_too_long_fails_its_line_only(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    done = ended(openai_server, client, [line("good", "x"), line("long", "word " * 9000), line("none", "")])
    assert done.status == "completed"
    assert ids(client, done.output_file_id) == ["good"]
    failed = results(client, done.error_file_id)
    assert [row["custom_id"] for row in failed] == ["long", "none"]
    assert {row["response"]["status_code"] for row in failed} == {400}
    assert len(openai_server.control.billing()) == 1


def test_a_batch_whose_file_is_deleted_fails_its_check_and_goes_on_after_it(
    openai_server: OpenAIServer, client: openai.OpenAI
) -> None:
    openai_server.control.timing(validating=None, in_progress=None)
    early, late = create(client, texts(1)), create(client, texts(2))
    openai_server.control.step(late.id)
    for batch in (early, late):
        client.files.delete(batch.input_file_id)
    openai_server.control.finish()
    assert [client.batches.retrieve(batch.id).status for batch in (early, late)] == ["failed", "completed"]
    assert len(openai_server.control.billing()) == 2


def test_a_result_is_there_for_as_long_as_was_asked(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    batch = client.batches.create(
        input_file_id=upload(client, texts(1)).id,
        endpoint="/v1/embeddings",
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    output = client.batches.retrieve(batch.id).output_file_id
    assert results(client, output)
    openai_server.control.advance(7201)
    with pytest.raises(openai.NotFoundError):
        raw(client, output)


def test_a_large_batch_is_worked_on_while_others_are_answered(
    openai_server: OpenAIServer, client: openai.OpenAI
) -> None:
    openai_server.control.set(pool=4)
    batch = create(client, [line(f"key-{number}", "a text " * 200) for number in range(2000)])
    assert client.batches.retrieve(batch.id).status in {"validating", "in_progress", "finalizing", "completed"}
    openai_server.control.ask("settle")
    done = client.batches.retrieve(batch.id)
    assert done.status == "completed"
    assert raw(client, done.output_file_id).count(b"\n") == 2000
    [bill] = openai_server.control.billing()
    assert bill.times == 2000


# -- what else can become of a batch


def test_a_batch_expires_with_lines_in_neither_file(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("batch", "expired", done=0.2, lost=0.5)
    expired = ended(openai_server, client, texts(10))
    assert expired.status == "expired"
    assert len(ids(client, expired.output_file_id)) == 2
    assert len(ids(client, expired.error_file_id)) == 4


@pytest.mark.parametrize("done", [0.0, 1.0])
def test_a_batch_expires_with_nothing_or_with_all_done(
    openai_server: OpenAIServer, client: openai.OpenAI, done: float
) -> None:
    openai_server.control.fault("batch", "expired", done=done)
    expired = ended(openai_server, client, texts(3))
    assert (expired.status, len(ids(client, expired.output_file_id))) == ("expired", 3 * done)
    assert (expired.output_file_id is None, expired.error_file_id is None) == (not done, bool(done))


def test_lines_fail_as_they_are_told(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    for number, status in enumerate((429, 500, 400, 0)):
        openai_server.control.fault("batch", "line_error", status=status, match=f"text {number}")
    done = ended(openai_server, client, texts(6))
    assert ids(client, done.output_file_id) == ["key-4", "key-5"]
    failed = results(client, done.error_file_id)
    assert [row["response"]["status_code"] for row in failed] == [429, 500, 400, 0]
    assert len(openai_server.control.billing()) == 2


def test_all_lines_fail_and_there_is_only_an_error_file(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("batch", "only_errors", status=500)
    openai_server.control.fault("batch", "empty_ids")
    done = ended(openai_server, client, texts(3))
    assert (done.status, done.output_file_id) == ("completed", "")
    assert len(ids(client, done.error_file_id)) == 3


@pytest.mark.parametrize("state", ["validating", "in_progress", "finalizing", "cancelling"])
def test_a_batch_is_stuck(openai_server: OpenAIServer, client: openai.OpenAI, state: str) -> None:
    openai_server.control.fault("batch", "stuck", state=state)
    batch = create(client, texts(1))
    if state == "cancelling":
        openai_server.control.timing(in_progress=None)
        client.batches.cancel(batch.id)
    for _ in range(2):
        openai_server.control.advance(2 * DAY)
        assert client.batches.retrieve(batch.id).status == state


def test_a_batch_says_something_unknown_and_is_gone_later(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("batch", "status", name="reviewing")
    openai_server.control.fault("batch", "gone", seconds=60)
    openai_server.control.timing(in_progress=None)
    batch = create(client, texts(1))
    assert client.batches.retrieve(batch.id).status == "reviewing"  # type: ignore[comparison-overlap]
    openai_server.control.advance(61)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve(batch.id)
    assert list(client.batches.list()) == []


@pytest.mark.parametrize(("kind", "code"), [("token_limit", "token_limit_exceeded"), ("invalid", "invalid_json_line")])
def test_a_batch_fails_though_nothing_is_wrong(
    openai_server: OpenAIServer, client: openai.OpenAI, kind: str, code: str
) -> None:
    openai_server.control.fault("batch", kind)
    failed = ended(openai_server, client, texts(1))
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert (failed.status, failed.errors.data[0].code) == ("failed", code)


def test_lines_are_shuffled_doubled_unknown_nameless_and_lost(
    openai_server: OpenAIServer, client: openai.OpenAI
) -> None:
    for kind, given in (
        ("shuffled", {"seed": 7}),
        ("duplicated", {"match": "text 1"}),
        ("null_ids", {"match": "text 2"}),
        ("lost", {"match": "text 3"}),
        ("unknown_ids", {"count": 2}),
        ("u2028", {}),
    ):
        openai_server.control.fault("batch", kind, **given)
    done = ended(openai_server, client, texts(6))
    found = ids(client, done.output_file_id)
    expected = ["key-0", "key-1", "key-1", "key-4", "key-5", "nobody-0", "nobody-1"]
    assert sorted(name for name in found if name) == expected
    assert found.count(None) == 1
    assert found[:-2] != sorted(name or "" for name in found[:-2])
    assert raw(client, done.output_file_id).count("\u2028".encode()) == len(found)
    assert len(openai_server.control.billing()) == 6


def test_the_last_line_is_torn_and_another_is_no_json(openai_server: OpenAIServer, client: openai.OpenAI) -> None:
    openai_server.control.fault("batch", "torn")
    openai_server.control.fault("batch", "garbage_lines")
    whole = raw(client, ended(openai_server, client, texts(2)).output_file_id)
    assert not whole.endswith(b"\n")
    openai_server.control.fault("batch", "garbage_lines")
    assert b'"custom_id"\n' in raw(client, ended(openai_server, client, texts(2)).output_file_id)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("wrong_index", lambda data: data[0]["index"] != 0),
        ("wrong_dimension", lambda data: len(data[0]["embedding"]) == 1535),
        ("wrong_count", lambda data: data == []),
        ("nan", lambda data: bool(np.isnan(data[0]["embedding"]).all())),
        ("zero", lambda data: not np.any(data[0]["embedding"])),
        ("null", lambda data: data[0]["embedding"] is None),
    ],
)
def test_vectors_of_lines_are_wrong(openai_server: OpenAIServer, client: openai.OpenAI, kind: str, wrong: Any) -> None:
    openai_server.control.fault("batch", kind, every=2)
    done = ended(openai_server, client, texts(4))
    data = [row["response"]["body"]["data"] for row in results(client, done.output_file_id)]
    assert [wrong(item) for item in data] == [True, False, True, False]
