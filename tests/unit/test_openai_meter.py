"""The meter: however requests come, no minute has more of them than the limit; and nearly all of it is used."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.embedding.openai.meter import HOLD_SECONDS, MINUTE, Limits, Meter


def fullest_minute(gone: Sequence[tuple[float, float]]) -> float:
    """The most that went in any 60 seconds. gone: (when, how much), in order."""
    most, first, total = 0.0, 0, 0.0
    for moment, amount in gone:
        total += amount
        while gone[first][0] <= moment - MINUTE:
            total -= gone[first][1]
            first += 1
        most = max(most, total)
    return most


ASKED = st.tuples(
    st.floats(0, 20),  # seconds after the one before
    st.one_of(st.integers(1, 400), st.integers(1, 60_000)),  # tokens
    st.booleans(),  # a query
)


@given(
    requests=st.integers(1, 5_000),
    tokens=st.integers(1_000, 5_000_000),
    reserve=st.sampled_from([0.0, 0.05, 0.5]),
    asked=st.lists(ASKED, min_size=1, max_size=80),
    patient=st.booleans(),
)
@settings(max_examples=300)
def test_no_minute_has_more_than_the_limit(
    requests: int, tokens: int, reserve: float, asked: list[tuple[float, int, bool]], patient: bool
) -> None:
    # Given a meter, and requests that come at any time, of any size up to nine tenths of the limit
    meter = Meter(Limits(requests, tokens), reserve, 0.0)
    now, gone = 0.0, []

    # When each is asked for until it goes, or once
    for pause, wanted, query in asked:
        now += pause
        size = min(wanted, int(0.9 * tokens))
        wait = meter.take(1, size, query=query, now=now)
        while wait and patient:
            now += wait
            wait = meter.take(1, size, query=query, now=now)
        if not wait:
            gone.append((now, size))

    # Then
    assert fullest_minute([(moment, 1) for moment, _ in gone]) <= requests
    assert fullest_minute([(moment, size) for moment, size in gone]) <= tokens * (1 + 1e-9)


@pytest.mark.parametrize(("requests", "tokens", "size"), [(500, 1_000_000, 20_000), (600, 100_000, 100), (60, 1e9, 1)])
def test_nearly_all_of_the_limit_is_used(requests: int, tokens: float, size: int) -> None:
    meter = Meter(Limits(requests, tokens), 0.05, 0.0)
    now, gone = 0.0, 0

    while now < 10 * MINUTE:
        wait = meter.take(1, size, query=False, now=now)
        now += wait
        gone += not wait

    assert gone >= 0.95 * 10 * min(requests, tokens / size)


def test_a_query_takes_what_is_kept_for_it_and_the_rest_takes_all_else() -> None:
    # Given a burst that the bulk has used up to the reserve
    meter = Meter(Limits(6000, 400_000), 0.1, 0.0)
    while not meter.take(1, 500, query=False, now=100.0):
        pass

    # Then a query goes at once, as often as there is room in the reserve of 1,000 tokens
    assert meter.take(1, 900, query=False, now=100.0) > 0
    assert meter.take(1, 900, query=True, now=100.0) == 0
    assert meter.take(1, 900, query=True, now=100.0) > 0


def test_a_large_request_is_not_passed_for_ever_by_small_ones() -> None:
    # Given small requests that come whenever there is room
    meter = Meter(Limits(10_000, 40_000), 0.05, 0.0)
    now, small, large = 0.0, 0, 0

    # When a text of 8,000 tokens wants to go, asking again when it was told to
    again = 0.0
    while not large and now < 120.0:
        if now >= again:
            wait = meter.take(1, 8_000, query=False, now=now)
            large += not wait
            again = now + wait
        small += not meter.take(1, 100, query=False, now=now)
        now += 0.05

    assert large == 1
    assert now < 20.0 + HOLD_SECONDS


def test_a_new_meter_has_no_burst_but_the_reserve() -> None:
    meter = Meter(Limits(6000, 400_000), 0.1, 50.0)

    assert meter.take(1, 900, query=False, now=50.0) > 0
    assert meter.take(1, 900, query=True, now=50.0) == 0


def test_a_pause_holds_for_queries_too_and_is_never_shortened() -> None:
    meter = Meter(Limits(6000, 400_000), 0.1, 0.0)
    meter.pause(30.0, now=10.0)
    meter.pause(1.0, now=11.0)

    assert meter.take(1, 1, query=True, now=12.0) == pytest.approx(28.0)
    assert meter.take(1, 1, query=True, now=40.5) == 0


def test_what_was_charged_too_much_is_given_back() -> None:
    meter = Meter(Limits(6000, 400_000), 0.0, 0.0)
    assert not meter.take(1, 10_000, query=False, now=100.0)
    assert meter.take(1, 5_000, query=False, now=100.0) > 0

    meter.correct(-7_500, now=100.0)

    assert not meter.take(1, 5_000, query=False, now=100.0)
