"""Vectors bought online, of the stand-in server: what becomes of all that goes wrong."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import eventually
from openai_buying import Bought, Buyer, buy, refused, texts, times_billed
from openai_server import OpenAIServer

from pipeline.embedding.openai.purchase import Part
from pipeline.errors import (
    EmbeddingFailed,
    InvalidRequest,
    InvalidVectors,
    KeyRejected,
    LeaseLost,
    MillraceError,
    ModelUnavailable,
    ProviderUnavailable,
    QuotaExhausted,
)

# -- what stops everything -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "kind"), [("revoked", KeyRejected), ("forbidden", KeyRejected), ("exhausted", QuotaExhausted)]
)
def test_a_key_that_may_not_buy_stops_it_at_once_and_is_never_shown(
    openai_server: OpenAIServer,
    buyer: Buyer,
    caplog: pytest.LogCaptureFixture,
    state: str,
    kind: type[MillraceError],
) -> None:
    # Given an account that is well, and then is not
    caplog.set_level(logging.DEBUG)
    embedder = buyer(request_inputs=5)
    before = buy(embedder, texts(20, "wheels"))
    openai_server.control.set_key(openai_server.key, state)
    asked = len(openai_server.control.requests("embeddings"))

    # When more is bought
    error, bought = refused(embedder, texts(100), kind)

    # Then nobody insists
    assert len(before.positions) == 20
    assert bought.parts == []
    assert len(openai_server.control.requests("embeddings")) - asked <= 10
    assert openai_server.key not in str(error) + repr(error) + caplog.text
    assert getattr(error, "unanswered", None) == ()


def test_a_wrong_key_is_named_by_its_setting(openai_server: OpenAIServer, buyer: Buyer) -> None:
    error, _ = refused(buyer(api_key="sk-wrong-1234567890"), texts(1), KeyRejected)

    assert "MILLRACE_OPENAI__API_KEY" in str(error)
    assert "1234567890" not in str(error)


def test_an_unknown_model_is_named(openai_server: OpenAIServer, buyer: Buyer) -> None:
    error, _ = refused(buyer("text-embedding-9", 64), texts(1), ModelUnavailable)

    assert "text-embedding-9" in str(error)


def test_a_size_that_a_server_refuses_is_no_fault_of_the_texts(openai_server: OpenAIServer, buyer: Buyer) -> None:
    openai_server.control.set(resizing=False)

    error, _ = refused(buyer(dimensions=256), texts(64), InvalidRequest)

    assert "dimensions" in str(error)
    assert len(openai_server.control.requests("embeddings")) <= 12


# -- what is tried again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "doubted"),
    [
        ("status", {"code": 500}, 0),
        ("status", {"code": 503}, 0),
        ("status", {"code": 504}, 1),
        ("drop", {}, 1),
        ("reset", {}, 1),
        ("cut", {}, 1),
        ("error_in_200", {}, 1),
        ("garbage", {}, 1),
        ("wrong_index", {}, 1),
        ("wrong_count", {}, 1),
        ("wrong_dimension", {}, 1),
        ("nan", {}, 1),
        ("zero", {}, 1),
        ("null", {}, 1),
    ],
)
def test_what_goes_wrong_once_is_asked_again_and_what_may_be_paid_twice_is_told(
    openai_server: OpenAIServer, buyer: Buyer, kind: str, given: dict[str, Any], doubted: int
) -> None:
    # Given a server that fails once
    embedder = buyer(request_inputs=5)
    buy(embedder, texts(1, "wheels"))
    fault = openai_server.control.fault("embeddings", kind, **given)
    wanted = texts(20)

    # When texts are bought
    bought = buy(embedder, wanted)

    # Then all came, each vector is that of its text, and the bill is what the parts say
    assert openai_server.control.fired(fault) == 1
    assert bought.positions == list(range(20))
    assert bought.are(wanted)
    paid = {position: 1 + part.doubted for part in bought.parts for position in part.positions}
    assert {part.doubted for part in bought.parts} == {0, doubted}
    assert all(openai_server.control.billed(wanted[position]) <= most for position, most in paid.items())


def test_what_arrived_is_handed_over_before_anything_is_asked_again(openai_server: OpenAIServer, buyer: Buyer) -> None:
    # Given two requests under way, of which one fails
    embedder = buyer(request_inputs=5)
    buy(embedder, texts(40, "wheels"))
    openai_server.control.set(latency=0.1)
    openai_server.control.fault("embeddings", "status", code=500)
    seen: list[int] = []

    embedder.buy(texts(10), "passage", lambda part: seen.append(len(openai_server.control.requests("embeddings"))))

    # Then the one that came was handed over when only those two had been asked
    asked = len(openai_server.control.requests("embeddings"))
    assert seen[0] <= asked - 1


def test_a_server_that_is_killed_and_comes_back_is_waited_for(openai_server: OpenAIServer, buyer: Buyer) -> None:
    # Given texts being bought
    openai_server.control.set(latency=0.05)
    embedder = buyer(request_inputs=5, patience_seconds=120)
    wanted = texts(100)
    bought, ended = Bought(), threading.Event()

    def carry_out() -> None:
        embedder.buy(wanted, "passage", bought.take, bought.told.append)
        ended.set()

    thread = threading.Thread(target=carry_out)
    thread.start()
    eventually(lambda: len(bought.parts) >= 3)

    # When the server is killed, and started again
    openai_server.kill()
    openai_server.restart()
    thread.join(120)

    # Then all came, and what may be paid for twice is told
    assert ended.is_set()
    assert bought.positions == list(range(100))
    for part in bought.parts:
        assert all(openai_server.control.billed(wanted[position]) <= 1 + part.doubted for position in part.positions)


def test_when_patience_is_over_the_work_is_given_back_and_who_waits_heard_of_it_meanwhile(
    openai_server: OpenAIServer, buyer: Buyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a clock that goes on whenever who waits hears of it
    openai_server.control.fault("embeddings", "status", code=503, times=None)
    now, told = time.monotonic(), list[int]()
    monkeypatch.setattr("pipeline.embedding.openai.purchase.time", SimpleNamespace(monotonic=lambda: now))
    embedder = buyer(patience_seconds=30)

    def hear(done: int) -> None:
        nonlocal now
        now += 10
        told.append(done)

    with pytest.raises(ProviderUnavailable, match="503"):
        embedder.buy(texts(30), "passage", lambda part: None, hear)

    assert len(told) >= 3


def test_texts_that_were_sent_and_not_answered_are_named(openai_server: OpenAIServer, buyer: Buyer) -> None:
    # Given a server that takes everything and answers nothing
    embedder = buyer(request_inputs=5, in_flight=1, patience_seconds=0.0)
    buy(embedder, texts(1, "wheels"))
    openai_server.control.fault("embeddings", "drop", times=None)

    wanted = texts(20)

    error, _ = refused(embedder, wanted, ProviderUnavailable)

    assert getattr(error, "unanswered", None) == (0, 1, 2, 3, 4)
    assert times_billed(openai_server, wanted[:5]) == {1}
    assert times_billed(openai_server, wanted[5:]) == {0}


KINDS = ("status", "drop", "cut", "error_in_200", "garbage", "wrong_index", "wrong_count", "nan", "null", "rate_limit")


def test_whatever_goes_wrong_by_chance_every_text_comes_and_nothing_wrong_does(
    openai_server: OpenAIServer, buyer: Buyer
) -> None:
    # Given a server of which every answer may be any kind of wrong
    for seed, kind in enumerate(KINDS):
        given: dict[str, Any] = {"retry_after": 0.05} if kind == "rate_limit" else {}
        openai_server.control.fault("embeddings", kind, times=6, probability=0.05, seed=seed, **given)
    embedder = buyer(request_inputs=5, patience_seconds=120)
    wanted = texts(150)
    may_be_paid: Counter[int] = Counter()
    came: set[int] = set()

    # When texts are bought, and those once more that met wrong answers again and again
    for _ in range(5):
        left = [position for position in range(150) if position not in came]
        bought, lost = Bought(), list[int]()
        try:
            embedder.buy([wanted[position] for position in left], "passage", bought.take)
        except InvalidVectors as error:
            lost = [left[place] for place in getattr(error, "unanswered", ())]
        assert bought.are([wanted[position] for position in left])
        for part in bought.parts:
            may_be_paid.update({left[place]: 1 + part.doubted for place in part.positions})
        may_be_paid.update(dict.fromkeys(lost, 5))
        assert came.isdisjoint(left[place] for place in bought.positions)
        came.update(left[place] for place in bought.positions)

    # Then all of them came, and nothing was paid for that is not accounted for
    assert openai_server.control.fired() > 5
    assert came == set(range(150))
    assert all(openai_server.control.billed(wanted[position]) <= most for position, most in may_be_paid.items())


# -- texts that cannot be embedded -----------------------------------------------------------------------------------


def test_one_bad_text_fails_alone_and_the_others_come(openai_server: OpenAIServer, buyer: Buyer) -> None:
    # Given a server that refuses one text, and does not say which
    wanted = texts(60)
    wanted[37] = "a text of poison"
    openai_server.control.fault(
        "embeddings", "status", code=400, message="Bad input", times=None, match="a text of poison"
    )
    embedder = buyer()

    error, bought = refused(embedder, wanted, InvalidRequest)

    assert "text 37 could not be embedded" in str(error)
    assert "Bad input" in str(error)
    assert bought.positions == [place for place in range(60) if place != 37]
    assert times_billed(openai_server, [text for text in wanted if "poison" not in text]) == {1}
    assert getattr(error, "unanswered", None) == ()
    assert list(getattr(error, "given_up", ())) == [37]


def test_a_text_that_the_server_crashes_on_fails_alone_too(openai_server: OpenAIServer, buyer: Buyer) -> None:
    wanted = texts(12)
    wanted[5] = "a text of poison"
    embedder = buyer()
    buy(embedder, texts(1, "wheels"))
    openai_server.control.fault("embeddings", "status", code=500, times=None, match="a text of poison")

    error, bought = refused(embedder, wanted, EmbeddingFailed)

    assert "text 5 could not be embedded" in str(error)
    assert bought.positions == [place for place in range(12) if place != 5]


def test_a_text_that_never_gets_a_vector_fails_alone_and_nothing_wrong_is_handed_over(
    openai_server: OpenAIServer, buyer: Buyer
) -> None:
    wanted = ["a text of poison", *texts(9)]
    openai_server.control.fault("embeddings", "nan", times=None, match="a text of poison")

    error, bought = refused(buyer(), wanted, InvalidVectors)

    assert "text 0 could not be embedded" in str(error)
    assert "NaN" in str(error)
    assert bought.positions == list(range(1, 10))
    assert bought.are(wanted)


def test_a_server_that_always_answers_with_a_wrong_size_is_not_believed(
    openai_server: OpenAIServer, buyer: Buyer
) -> None:
    openai_server.control.fault("embeddings", "wrong_dimension", times=None)

    error, bought = refused(buyer(), texts(40), InvalidVectors)

    assert "1535 numbers" in str(error)
    assert bought.parts == []
    assert len(openai_server.control.requests("embeddings")) < 40


@contextmanager
def nothing_asked(server: OpenAIServer) -> Iterator[None]:
    yield
    assert server.control.requests("embeddings") == []


def test_empty_and_too_long_texts_are_refused_before_anything_is_asked(
    openai_server: OpenAIServer, buyer: Buyer
) -> None:
    embedder = buyer()
    with nothing_asked(openai_server):
        error, _ = refused(embedder, ["good", " \n"], InvalidRequest)
        assert "text 1 is empty" in str(error)
        error, _ = refused(embedder, ["good", " ".join(["word"] * 8192)], InvalidRequest)
        assert "text 1 has 8192 tokens" in str(error)
        buy(embedder, [])


# -- who asks, ends it -----------------------------------------------------------------------------------------------


def test_who_loses_the_lease_gets_what_was_under_way_and_nothing_more(
    openai_server: OpenAIServer, buyer: Buyer
) -> None:
    # Given requests under way
    openai_server.control.set(latency=0.3)
    embedder = buyer(request_inputs=5, in_flight=2)
    buy(embedder, texts(30, "wheels"))
    asked = len(openai_server.control.requests("embeddings"))
    bought = Bought()

    def lost(done: int) -> None:
        if done:
            raise LeaseLost

    # When the one who asked has lost its claim
    with pytest.raises(LeaseLost):
        embedder.buy(texts(100), "passage", bought.take, lost)

    # Then what is paid for is handed over, and nothing more is asked
    found = openai_server.control.requests("embeddings")[asked:]
    assert len(found) <= 4
    assert sum(request.inputs for request in found) == len(bought.positions)


def test_what_cannot_be_stored_ends_it(openai_server: OpenAIServer, buyer: Buyer) -> None:
    embedder = buyer(request_inputs=5)

    def fail(part: Part) -> None:
        raise KeyError("no room")

    with pytest.raises(KeyError) as raised:
        embedder.buy(texts(50), "passage", fail)

    found = openai_server.control.requests("embeddings")
    assert len(found) <= 3
    assert len(raised.value.__dict__["unanswered"]) == sum(request.inputs for request in found)
