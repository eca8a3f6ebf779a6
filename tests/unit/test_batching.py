"""Runs of the model: alike in length, cut by padded tokens, as large as the machine does in time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.embedding.batching import START_TOKENS, AdaptiveBatch, by_length, fitting

LENGTHS = st.lists(st.integers(1, 512), max_size=200)


@given(lengths=LENGTHS)
def test_texts_are_taken_longest_first_and_each_once(lengths: list[int]) -> None:
    order = by_length(lengths)

    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[position] for position in order] == sorted(lengths, reverse=True)


@given(lengths=LENGTHS, limit=st.integers(16, 8192))
def test_every_run_is_within_the_limit_or_a_single_text(lengths: list[int], limit: int) -> None:
    left = sorted(lengths, reverse=True)
    while left:
        size = fitting(left, limit)

        assert size * left[0] <= limit or size == 1
        assert size == len(left) or (size + 1) * left[0] > limit
        left = left[size:]


def test_no_texts_make_no_run() -> None:
    assert fitting([], 512) == 0


def test_the_batch_begins_at_a_sensible_size() -> None:
    assert AdaptiveBatch(256, 4096, 0.2).tokens == START_TOKENS
    assert AdaptiveBatch(1024, 4096, 0.2).tokens == 1024
    assert AdaptiveBatch(64, 128, 0.2).tokens == 128


@pytest.mark.parametrize(("speed", "tokens"), [(4_000, 800), (100, 256), (1_000_000, 4_096)])
def test_the_batch_becomes_what_the_machine_does_in_the_target_time(speed: float, tokens: int) -> None:
    batch = AdaptiveBatch(256, 4096, 0.2)

    for _ in range(20):
        batch.measured(batch.tokens, batch.tokens / speed)

    assert batch.tokens == pytest.approx(tokens, abs=1)
    assert batch.speed == pytest.approx(speed)


def test_the_batch_follows_a_machine_that_becomes_slower() -> None:
    batch = AdaptiveBatch(256, 4096, 0.2)
    for _ in range(20):
        batch.measured(1000, 1000 / 10_000)

    for _ in range(20):
        batch.measured(1000, 1000 / 2_000)

    assert batch.tokens < 500


def test_one_slow_run_does_not_decide() -> None:
    batch = AdaptiveBatch(256, 4096, 0.2)
    for _ in range(20):
        batch.measured(1000, 0.2)

    batch.measured(1000, 20.0)

    assert batch.tokens > 0.7 * 1000


def test_tiny_runs_and_clocks_that_stand_still_tell_nothing() -> None:
    batch = AdaptiveBatch(256, 4096, 0.2)

    batch.measured(8, 1.0)
    batch.measured(512, 0.0)

    assert batch.speed is None


def test_a_maximum_under_the_minimum_counts_as_the_minimum() -> None:
    batch = AdaptiveBatch(512, 128, 0.2)
    batch.measured(512, 0.001)

    assert batch.tokens == 512


def test_several_threads_measure_into_one_batch() -> None:
    batch = AdaptiveBatch(16, 100_000, 1.0)

    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: batch.measured(1000, 0.5), range(200)):
            pass

    assert batch.speed == pytest.approx(2000)
