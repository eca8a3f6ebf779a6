"""Packing: no batch is over a limit, none is smaller than it must be, and nobody waits for nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.ledger.remote import Load
from pipeline.ledger.remote_items import Pool
from pipeline.openai_batch.packing import LINE_BYTES, Room, fill, ripe, room
from pipeline.openai_batch.rendering import Size, render_line
from pipeline.settings import OpenAIBatchSettings

SETTINGS = OpenAIBatchSettings(enqueued_tokens=100_000)
NOTHING = Load(batches=0, tokens=0, begun=0, refusals=(), refused_seconds=None)

sizes = st.lists(st.builds(Size, st.just(1), st.integers(1, 400), st.integers(1, 60)), max_size=60)
rooms = st.builds(
    Room,
    st.builds(Size, st.integers(1, 20), st.integers(1, 3000), st.integers(1, 500)),
    st.integers(0, 500),
    st.integers(0, 3),
    st.booleans(),
)


def pool(inputs: int = 1, tokens: int = 10, size: int = 100, age: float = 0.0, need_by: float | None = None) -> Pool:
    return Pool(b"spec", inputs, tokens, size, age, need_by)


@given(sizes, rooms)
def test_a_batch_is_as_large_as_the_limits_allow_and_no_larger(wanted: list[Size], now: Room) -> None:
    chosen = fill(wanted, now)

    held = sum(wanted[:chosen], Size())
    if chosen == 1 and now.alone:
        return  # one that is over a limit by itself goes alone
    assert held.within(now.next)
    if chosen < len(wanted) and not (now.alone and chosen == 0):
        assert not (held + wanted[chosen]).within(now.next)


@given(sizes, rooms)
def test_whatever_is_wanted_is_packed_in_the_end(wanted: list[Size], now: Room) -> None:
    now = Room(now.limit, now.limit.tokens, 1, alone=True)
    batches = 0
    while wanted:
        chosen = fill(wanted, now)
        assert chosen > 0
        wanted = wanted[chosen:]
        batches += 1
    assert batches <= 60


def test_what_is_full_goes_at_once_and_the_rest_lingers() -> None:
    now = room(NOTHING, SETTINGS)
    assert now is not None
    assert not ripe(pool(age=119.0), now, SETTINGS)
    assert ripe(pool(age=120.0), now, SETTINGS)
    assert ripe(pool(inputs=50_000), now, SETTINGS)
    assert ripe(pool(tokens=100_000), now, SETTINGS)
    assert ripe(pool(inputs=40_000, size=200_000_000 - 40_000 * LINE_BYTES), now, SETTINGS)


def test_what_is_needed_soon_does_not_linger() -> None:
    now = room(NOTHING, SETTINGS)
    assert now is not None
    assert ripe(pool(need_by=20 * 3600.0), now, SETTINGS)
    assert not ripe(pool(need_by=72 * 3600.0), now, SETTINGS)


def test_what_is_left_of_the_tokens_is_used_for_all_that_waits_or_for_enough_to_be_worth_a_batch() -> None:
    def left(tokens: int) -> Room:
        made = room(Load(1, 100_000 - tokens, 1, (), None), SETTINGS)
        assert made is not None
        return made

    assert ripe(pool(tokens=5_000, age=200.0), left(5_000), SETTINGS)
    assert not ripe(pool(tokens=50_000, age=200.0), left(5_000), SETTINGS)
    assert ripe(pool(tokens=50_000, age=200.0), left(10_000), SETTINGS)
    assert not ripe(pool(tokens=50_000, age=200.0), left(0), SETTINGS)


def test_no_more_is_begun_in_an_hour_than_may_be() -> None:
    now = room(Load(0, 0, SETTINGS.creates_per_hour, (), None), SETTINGS)
    assert now is not None
    assert not ripe(pool(inputs=50_000, age=1e6), now, SETTINGS)


def test_after_a_refusal_for_its_tokens_the_next_batch_comes_later_and_is_smaller() -> None:
    def after(times: int, seconds: float, words: str = "token_limit_exceeded: too many") -> Room | None:
        return room(Load(0, 0, 0, [words] * times, seconds), SETTINGS)

    assert after(1, 299.0) is None
    assert after(2, 599.0) is None
    assert after(20, 3599.0) is None
    assert [made.limit.tokens for times in (1, 2, 20) if (made := after(times, 3600.0))] == [50_000, 25_000, 1]
    named = after(1, 300.0, "token_limit_exceeded: Limit: 30,000 enqueued tokens. Try again.")
    assert named is not None
    assert named.limit.tokens == 30_000


@given(st.text(min_size=1, max_size=300))
def test_a_line_takes_no_more_than_was_reckoned_but_for_characters_that_are_escaped(text: str) -> None:
    written = len(render_line(bytes(32), text, "text-embedding-3-large", 3072, "base64"))

    escaped = sum(6 for letter in text if ord(letter) < 32 or letter in '"\\\x7f\x85\u2028\u2029')
    assert written <= len(text.encode()) + LINE_BYTES + escaped
