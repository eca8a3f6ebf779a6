"""How fast storage grows, and when it is full: told from samples that jump, or not told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.monitoring.storage_report import SAMPLES, Room, with_trend
from pipeline.monitoring.trend import LEAST_DAYS, LEAST_SAMPLES, Trend, days_until_full, trend
from pipeline.sizes import as_size

MB = 1024.0 * 1024

slopes = st.floats(-1e12, 1e12)
starts = st.floats(0, 1e12)
counts = st.integers(LEAST_SAMPLES, 60)


@given(slopes, starts, counts, st.floats(LEAST_DAYS, 30))
def test_a_line_is_told_as_it_is(slope: float, start: float, count: int, days: float) -> None:
    samples = [
        (-days + place * days / (count - 1), start + slope * place * days / (count - 1)) for place in range(count)
    ]
    assume(max(day for day, _ in samples) - min(day for day, _ in samples) >= LEAST_DAYS)
    found = trend(samples)

    assert found is not None
    assert found.per_day == pytest.approx(slope, rel=1e-3, abs=1e-3 * (1 + abs(start)))
    assert found.samples == count


@given(st.floats(1, 1e9), st.lists(st.floats(0, 1e15), min_size=1, max_size=8), st.randoms())
def test_a_few_samples_that_are_far_off_do_not_matter(slope: float, wild: list[float], random: object) -> None:
    # Given a line of forty samples, of which up to eight, anywhere, are anything
    samples = [(place / 40, 1e9 + slope * place / 40) for place in range(40)]
    places = list(range(40))
    random.shuffle(places)  # type: ignore[attr-defined]
    for place, value in zip(places, wild, strict=False):
        samples[place] = (samples[place][0], value)
    found = trend(samples)

    # Then more than half of the slopes are still those of the line
    assert found is not None
    assert found.per_day == pytest.approx(slope, rel=0.05, abs=1)


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(0, 1e15)), max_size=LEAST_SAMPLES - 1))
def test_too_few_samples_tell_nothing(samples: list[tuple[float, float]]) -> None:
    assert trend(samples) is None
    assert with_trend(Room(1, 100), samples).full_in_days is None


def test_an_hour_of_ingest_is_no_trend_yet() -> None:
    assert trend([(place * LEAST_DAYS / 100, 100.0 * place) for place in range(90)]) is None


@given(starts, st.floats(1, 1e13), slopes)
def test_days_until_full_are_those_after_which_it_is_full(used: float, room: float, per_day: float) -> None:
    days = days_until_full(used, room, Trend(per_day, 20, 7.0))

    if used >= room:
        assert days == 0
    elif per_day <= 1:
        assert days is None
    else:
        assert days is not None
        assert days > 0
        assert used + days * per_day == pytest.approx(room)


def test_what_is_not_known_is_not_guessed() -> None:
    assert days_until_full(5, None, Trend(1e9, 20, 7.0)) is None
    assert days_until_full(5, 10, None) is None
    assert Room(5).to_json()["full_in_days"] is None
    assert Room(5).to_json()["growth_bytes_per_day"] is None


@given(st.floats(0, 1e11))
def test_more_growth_is_sooner_full(growth: float) -> None:
    slow, fast = (days_until_full(1e9, 1e12, Trend(2.0 + growth * factor, 20, 7.0)) for factor in (1, 3))

    assert slow is not None
    assert fast is not None
    assert fast <= slow


def test_every_sample_is_in_the_docs_and_no_other() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "storage.md").read_text("utf-8")
    named = re.findall(r"`((?:postgres|qdrant|redis)\.\w+)`", docs.partition("closed set")[2].partition("Growth is")[0])

    assert sorted(named) == sorted(SAMPLES)


def test_sizes_are_said_as_people_read_them() -> None:
    assert [as_size(value) for value in (0, 1023, 1024, 150 * MB, 1.5 * 1024 * MB, -3 * MB)] == [
        "0 B", "1023 B", "1.0 KiB", "150 MiB", "1.5 GiB", "-3.0 MiB",
    ]  # fmt: skip
