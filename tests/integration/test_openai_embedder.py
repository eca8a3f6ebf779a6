"""Vectors bought online, of the stand-in server: what comes, what it costs, within which limits."""

from __future__ import annotations

import time

import numpy as np
import pytest
from lost_time import lost_time
from openai_buying import Buyer, buy, refused, texts, times_billed
from openai_server import OpenAIServer
from turned_embedder import TurnedEmbedder

from pipeline.embedding.base import Embedder
from pipeline.embedding.openai.embedder import OpenAIEmbedder
from pipeline.embedding.openai.manners import Manner
from pipeline.errors import (
    ModelUnavailable,
    ProviderLimited,
)
from pipeline.settings import OpenAISettings, RedisSettings
from pipeline.testing import ConstantEmbedder

# -- what is well ----------------------------------------------------------------------------------------------------


def test_each_text_is_bought_once_and_every_token_is_accounted_for(openai_server: OpenAIServer, buyer: Buyer) -> None:
    wanted = texts(300)

    bought = buy(buyer(request_inputs=40), wanted)

    assert bought.positions == list(range(300))
    assert bought.are(wanted)
    billing = openai_server.control.billing()
    assert {entry.times for entry in billing} == {1}
    assert len(billing) == 300
    assert bought.tokens == sum(entry.tokens for entry in billing)
    assert sum(part.requests for part in bought.parts) == len(openai_server.control.requests("embeddings"))
    assert all(len(part.positions) <= 40 for part in bought.parts)
    assert bought.told[-1] == 300


def test_several_requests_are_under_way_at_once_and_never_more_than_may_be(
    openai_server: OpenAIServer, buyer: Buyer
) -> None:
    openai_server.control.set(latency=0.5)
    embedder = buyer(request_inputs=10, in_flight=4)

    buy(embedder, texts(120))

    found = openai_server.control.requests("embeddings")
    under_way = [sum(other.at <= request.at < other.at + other.seconds for other in found) for request in found]
    assert 3 <= max(under_way) <= 4
    assert embedder.tokens_per_second


@pytest.mark.parametrize("base64", [True, False])
@pytest.mark.parametrize("resizing", [True, False])
def test_the_first_answer_tells_how_a_server_wants_to_be_asked(
    openai_server: OpenAIServer, buyer: Buyer, base64: bool, resizing: bool
) -> None:
    # Given a server that may not do base64, and may refuse to be told dimensions
    openai_server.control.set(base64=base64, resizing=resizing)
    wanted = texts(50)

    # When a model of it is used for the first time
    embedder = buyer(dimensions=256) if resizing else buyer()
    bought = buy(embedder, wanted)

    # Then nothing was paid for to find out
    assert embedder._server.manners.found == Manner(base64, 256 if resizing else None)
    assert bought.positions == list(range(50))
    assert bought.are(wanted, 256 if resizing else 1536)
    assert times_billed(openai_server, wanted) == {1}


def test_dimensions_that_are_a_models_own_are_not_said_to_a_server_that_refuses_them(
    openai_server: OpenAIServer, buyer: Buyer
) -> None:
    # `constant` takes no `dimensions`; that its own are 8 is all that is known of it
    embedder = buyer("constant", 8, request_inputs=4)
    wanted = texts(12)

    bought = buy(embedder, wanted)

    assert embedder._server.manners.found is not None
    assert embedder._server.manners.found.dimensions is None
    assert len(bought.positions) == 12
    assert times_billed(openai_server, wanted) == {1}


def test_a_server_without_usage_or_rate_headers_will_do(openai_server: OpenAIServer, buyer: Buyer) -> None:
    openai_server.control.set(headers=False)
    openai_server.control.fault("embeddings", "no_usage", times=None)
    embedder = buyer()
    wanted = texts(5)

    assert buy(embedder, wanted).tokens == sum(embedder.count_tokens(wanted))


# -- limits ----------------------------------------------------------------------------------------------------------


def test_what_the_server_says_of_its_limits_is_learned(openai_server: OpenAIServer, buyer: Buyer) -> None:
    openai_server.control.set(rpm=3_000, tpm=2_000_000)
    embedder = buyer(requests_per_minute=None, tokens_per_minute=None)

    buy(embedder, texts(3))

    assert (embedder.limiter.limits.requests, embedder.limiter.limits.tokens) == (3_000, 2_000_000)


def test_a_server_that_holds_its_limits_strictly_never_has_to_say_so(openai_server: OpenAIServer, buyer: Buyer) -> None:
    # Given a server that lets through three seconds' worth at once, and not more
    openai_server.control.set(rpm=6_000, tpm=300_000, burst_seconds=3.0)
    embedder = buyer(requests_per_minute=None, tokens_per_minute=None)
    embedder.embed(["what the limits are"], "query")
    wanted = [text + " and grind" * 60 for text in texts(100)]
    tokens = sum(embedder.count_tokens(wanted))

    # When more is bought than that
    with lost_time() as lost:
        began = time.monotonic()
        buy(embedder, wanted)
        seconds = time.monotonic() - began

    # Then it was never asked for too much, and nearly all of the limit was used
    assert {request.status for request in openai_server.control.requests("embeddings")} == {200}
    assert (tokens - 7_500) / 5_000 <= seconds <= tokens / 5_000 / 0.9 + 2.0 + lost()


@pytest.mark.parametrize("how", ["ms", "seconds", "date"])
def test_a_server_that_asks_to_wait_is_left_alone_for_so_long(
    openai_server: OpenAIServer, buyer: Buyer, how: str
) -> None:
    # Given a server that refuses once, and asks to wait (dates know whole seconds only)
    embedder = buyer(request_inputs=5, in_flight=1)
    buy(embedder, texts(1, "wheels"))
    seconds = 2.0 if how == "date" else 0.5
    openai_server.control.fault("embeddings", "rate_limit", retry_after=seconds, how=how)
    wanted = texts(40)

    bought = buy(embedder, wanted)

    found = openai_server.control.requests("embeddings")
    (limited,) = [request for request in found if request.status == 429]
    least = seconds - 1.0 if how == "date" else seconds
    assert all(request.at >= limited.at + least - 0.05 for request in found if request.seq > limited.seq)
    assert bought.positions == list(range(40))
    assert times_billed(openai_server, wanted) == {1}


def test_who_would_wait_longer_than_there_is_patience_for_gives_back_at_once(
    openai_server: OpenAIServer, buyer: Buyer
) -> None:
    openai_server.control.fault("embeddings", "rate_limit", retry_after=300, how="seconds", times=None)
    embedder = buyer(patience_seconds=120.0)

    began = time.monotonic()
    error, _ = refused(embedder, texts(3), ProviderLimited)

    assert time.monotonic() - began < 60.0
    assert isinstance(error, ProviderLimited)
    assert error.seconds == pytest.approx(300, abs=30)
    assert len(openai_server.control.requests("embeddings")) == 1


# -- a model that is here and there ----------------------------------------------------------------------------------


def served_both_ways(server: OpenAIServer, redis_url: str, local: Embedder, name: str) -> OpenAIEmbedder:
    settings = OpenAISettings.model_validate(
        {"api_key": server.key, "base_url": server.url, "same_as": {name: local.spec.name}}
    )
    return OpenAIEmbedder(settings, RedisSettings.model_validate({"url": redis_url}), local.spec, local=lambda: local)


def test_the_very_model_that_is_here_is_bought_there(openai_server: OpenAIServer, redis_url: str) -> None:
    local = ConstantEmbedder()
    embedder = served_both_ways(openai_server, redis_url, local, "constant")
    wanted = texts(5)

    there = embedder.embed(wanted)

    assert embedder.spec == local.spec
    np.testing.assert_allclose(there.vectors, local.embed(wanted).vectors, atol=1e-4)
    assert embedder.count_tokens(wanted) == local.count_tokens(wanted)
    embedder.close()


def test_a_model_that_is_not_the_one_it_is_said_to_be_is_refused_before_a_text_is_bought(
    openai_server: OpenAIServer, redis_url: str
) -> None:
    embedder = served_both_ways(openai_server, redis_url, TurnedEmbedder(), "constant")

    error, bought = refused(embedder, texts(3), ModelUnavailable)

    assert "MILLRACE_OPENAI__SAME_AS" in str(error)
    assert bought.parts == []
    assert times_billed(openai_server, texts(3)) == {0}
    embedder.close()


def test_a_local_model_that_the_server_is_not_said_to_have_is_not_bought(
    openai_server: OpenAIServer, redis_url: str
) -> None:
    settings = OpenAISettings.model_validate({"api_key": openai_server.key, "base_url": openai_server.url})

    with pytest.raises(ModelUnavailable, match="SAME_AS"):
        OpenAIEmbedder(settings, RedisSettings(), ConstantEmbedder().spec, local=ConstantEmbedder)
