"""What goes into a request, what each text of it has cost, and how the pace follows the server."""

from __future__ import annotations

from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.embedding.openai.requests import Pace, fitting, share_out


@given(
    counts=st.lists(st.integers(1, 8191), max_size=300),
    inputs=st.integers(1, 2048),
    tokens=st.integers(1, 300_000),
)
def test_every_text_goes_once_in_order_and_no_request_is_over_the_limits(
    counts: list[int], inputs: int, tokens: int
) -> None:
    rest, requests = counts, list[list[int]]()
    while rest:
        size = fitting(rest, inputs, tokens)
        assert size >= 1
        requests.append(rest[:size])
        rest = rest[size:]

    assert [count for request in requests for count in request] == counts
    for request, following in zip_longest(requests, requests[1:], fillvalue=list[int]()):
        assert len(request) <= inputs
        assert sum(request) <= tokens or len(request) == 1
        # and none is smaller than it must be
        assert not following or len(request) == inputs or sum(request) + following[0] > tokens


def test_no_texts_fill_no_request() -> None:
    assert fitting([], 10, 10) == 0


@given(usage=st.integers(0, 10_000_000), counts=st.lists(st.integers(0, 8191), min_size=1, max_size=100))
def test_what_a_request_cost_is_shared_out_to_the_last_token(usage: int, counts: list[int]) -> None:
    shares = share_out(usage, counts)

    assert sum(shares) == usage
    assert all(share >= 0 for share in shares)
    total = sum(counts)
    if total:
        assert all(abs(share - usage * n / total) <= 1 for share, n in zip(shares, counts, strict=True))


def test_what_was_counted_right_is_what_each_text_cost() -> None:
    assert share_out(60, [10, 20, 30]) == [10, 20, 30]


def pace(in_flight: int = 10, tokens: int = 300_000) -> Pace:
    return Pace(in_flight, 2048, tokens, target_seconds=1.0)


def after(made: Pace, latency: float, per_token: float, answers: int) -> Pace:
    """The pace after full requests to a server that takes so long for a request, and for each token."""
    for _ in range(answers):
        tokens = made.tokens
        made.answered(tokens, latency + per_token * tokens)
    return made


def test_requests_grow_until_they_take_as_long_as_they_should() -> None:
    # A server of 20,000 tokens a second a request: requests of about 18,000 tokens take a second.
    made = after(pace(), 0.1, 1 / 20_000, 60)

    assert 14_000 <= made.tokens <= 22_000
    assert made.in_flight == 10


def test_a_quick_server_gets_requests_as_large_as_may_be() -> None:
    made = after(pace(), 0.05, 1e-7, 60)

    assert made.tokens == 300_000
    assert made.in_flight == 10


def test_small_requests_say_nothing_of_large_ones() -> None:
    made = pace()
    before = made.tokens

    for _ in range(20):
        made.answered(50, 0.02)

    assert made.tokens == before


def test_a_slow_server_gets_small_requests_and_few_of_them_at_once_where_they_queue() -> None:
    # Given a server that computes one request after the other: the more under way, the longer each takes
    made = pace()
    for _ in range(200):
        made.answered(made.tokens, made.in_flight * (0.8 + made.tokens / 2_000))

    assert made.tokens <= 1_000
    assert made.in_flight <= 3


def test_a_server_far_away_gets_large_requests_all_the_same() -> None:
    # The way there and back takes longer than a request should.
    made = after(pace(), 1.3, 1 / 20_000, 100)

    assert 15_000 <= made.tokens <= 25_000
    assert made.in_flight == 10


def test_a_server_that_is_slow_however_few_ask_is_asked_by_as_many_as_may_be() -> None:
    made = pace()
    for _ in range(200):
        made.answered(made.tokens, 3.0)

    assert made.in_flight == 10


def test_failures_halve_what_is_under_way_and_answers_bring_it_back() -> None:
    made = after(pace(), 0.1, 1 / 20_000, 60)
    made.failed()
    assert made.in_flight == 5
    for _ in range(10):
        made.failed()
    assert made.in_flight == 1

    after(made, 0.1, 1 / 20_000, 100)
    assert made.in_flight == 10


def test_there_is_never_more_than_the_settings_say() -> None:
    made = after(Pace(3, 100, 5_000, target_seconds=1.0), 0.01, 0.0, 50)

    assert (made.in_flight, made.inputs, made.tokens) == (3, 100, 5_000)


@pytest.mark.parametrize(
    ("requests", "tokens", "burst", "expected"),
    [
        (500, 1_000_000, 75_000, 8_192),  # as measured
        (500, 1_000_000, 24_000, 8_000),  # a third of what goes at once
        (100, 1_000_000, 25_000, 10_000),  # fewer, and the limit of requests would be reached before that of tokens
        (10, 40_000, 1_000, 1_000),  # what goes at once
    ],
)
def test_requests_are_of_a_size_that_uses_both_limits(requests: int, tokens: int, burst: int, expected: int) -> None:
    assert pace().tokens_under(requests, tokens, burst) == expected


def test_a_server_that_takes_fewer_texts_gets_no_more_than_those() -> None:
    made = pace()

    made.too_many(32, 9_000)

    assert made.inputs == 32
    assert after(made, 0.01, 0.0, 50).tokens == 9_000
