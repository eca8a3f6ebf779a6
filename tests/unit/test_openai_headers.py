"""What servers say about their limits, in all the ways that they say it."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from pipeline.embedding.openai.headers import LONGEST_PAUSE_SECONDS, Rates, parse_duration, read_rates, retry_after


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("1.5s", 1.5),
        ("1h0m0s", 3600.0),
        ("1d2h", 93_600.0),
        ("1m30.5s", 90.5),
        (" 8.64S ", 8.64),
        ("20", 20.0),
        ("0s", 0.0),
    ],
)
def test_durations_are_read(written: str, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", [None, "", "soon", "6m and 0s", "-3s", "s", "nan", "inf", "-1"])
def test_what_is_no_duration_is_none(written: str | None) -> None:
    assert parse_duration(written) is None


def test_limits_and_what_is_left_of_them_are_read() -> None:
    headers = {
        "X-RateLimit-Limit-Requests": "500",
        "x-ratelimit-limit-tokens": "1000000",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-remaining-tokens": "999000",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-reset-tokens": "6m0s",
    }

    assert read_rates(headers) == Rates(500, 1_000_000, 499, 999_000, 0.12, 360.0)


def test_limits_that_make_no_sense_are_not_there() -> None:
    rates = read_rates({"x-ratelimit-limit-requests": "0", "x-ratelimit-limit-tokens": "many"})

    assert not rates
    assert rates.requests is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"Retry-After": "9"}, 9.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "later"}, None),
        ({"retry-after": "999999999"}, LONGEST_PAUSE_SECONDS),
        ({"retry-after": "Sat, 21 Nov 2026 10:00:30 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, 30.0),
        ({"retry-after": "Sat, 21 Nov 2026 09:00:00 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, 0.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m1s"}, 61.0),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "1m1s"}, None),
        ({}, None),
    ],
)
def test_when_to_ask_again(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_date_is_told_by_our_clock_where_the_server_does_not_tell_its_own() -> None:
    found = retry_after({"retry-after": formatdate(time.time() + 300, usegmt=True)})

    assert found == pytest.approx(300, abs=60)
