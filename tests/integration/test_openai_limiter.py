"""The limiter: what many processes let through together, as one Redis says it, and each by itself without one."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest
import redis
from command_line import eventually
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from lost_time import lost_time

from pipeline.embedding.openai.limiter import FIRST_REQUESTS, FIRST_TOKENS, Limiter
from pipeline.embedding.openai.meter import MINUTE, Limits, Meter
from pipeline.errors import ProviderLimited
from pipeline.settings import OpenAISettings, RedisSettings
from workers.embedded.part import run_alone
from workers.embedded.ports import free_port
from workers.embedded.redis import EmbeddedRedis


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def limiter(url: str, clock: Clock | None = None, **openai: float) -> Limiter:
    settings = OpenAISettings.model_validate({"api_key": "sk-x", **openai})
    made = Limiter(RedisSettings.model_validate({"url": url, "timeout": 60.0}), settings, secrets.token_hex(8), clock)
    if clock is not None:
        made.standing()  # from now on it counts
    return made


def fullest(gone: Sequence[tuple[float, float]], seconds: float = MINUTE) -> float:
    """The most that went in any so many seconds. gone: (when, how much)."""
    most, first, total = 0.0, 0, 0.0
    ordered = sorted(gone)
    for moment, amount in ordered:
        total += amount
        while ordered[first][0] <= moment - seconds:
            total -= ordered[first][1]
            first += 1
        most = max(most, total)
    return most


def least(gone: Sequence[tuple[float, float]], per_second: float, lost: float) -> float:
    """What has gone at least, where somebody asked all the while but for the seconds that the machine stood still."""
    moments = [moment for moment, _ in gone]
    return per_second * max(0.0, max(moments) - min(moments) - lost)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def patience_with_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that a busy machine keeps from answering is not away."""
    monkeypatch.setattr("pipeline.embedding.openai.limiter._REDIS_SECONDS", 60.0)


@given(
    requests=st.integers(1, 2_000),
    tokens=st.integers(1_000, 3_000_000),
    reserve=st.sampled_from([0.0, 0.05, 0.5]),
    asked=st.lists(
        st.tuples(st.floats(0, 20), st.integers(1, 60_000), st.booleans(), st.integers(-500, 50)),
        min_size=1,
        max_size=25,
    ),
)
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_redis_and_a_process_by_itself_count_alike(
    redis_server: object, requests: int, tokens: int, reserve: float, asked: list[tuple[float, int, bool, int]]
) -> None:
    # Given the meter in Redis, and the one of a process, under one clock
    clock = Clock()
    url = str(getattr(redis_server, "url", ""))
    shared = limiter(url, clock, requests_per_minute=requests, tokens_per_minute=tokens, search_share=reserve)
    own = Meter(Limits(requests, tokens), reserve, clock.now)

    # Then they let the same requests through, and say the same waits
    for pause, size, query, correction in asked:
        clock.now += pause
        wait, _ = shared._take(1, size, query)
        assert wait == pytest.approx(own.take(1, size, query=query, now=clock.now), rel=1e-3, abs=2e-3)
        if not wait:
            shared.learn({}, correction)
            own.correct(correction, clock.now)
    shared.close()


def test_a_minute_of_many_threads_holds_the_limit_and_uses_it(redis_url: str) -> None:
    # Given threads that ask as fast as they can, for a while of a limit that is high
    shared = limiter(redis_url, requests_per_minute=60_000, tokens_per_minute=3_000_000)
    gone: list[tuple[float, float]] = []
    until = time.monotonic() + 1.5

    def ask(size: int) -> None:
        while time.monotonic() < until:
            granted = shared.acquire(1, size, query=False)
            assert granted.at is not None
            gone.append((granted.at, float(size)))

    threads = [threading.Thread(target=ask, args=(size,)) for size in (2_000, 6_000, 20_000, 5_000)]
    with lost_time() as lost:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    shared.close()

    # Then what went in any part of a minute is what the rate lets through in it, and one burst
    per_second, burst = 3_000_000 / 62.5, 3_000_000 / 40
    for seconds in (0.25, 0.5, 1.0):
        assert fullest(gone, seconds) <= burst + per_second * seconds
    assert sum(size for _, size in gone) >= least(gone, 0.95 * 3_000_000 / MINUTE, lost())


def _ask_together(
    url: str, scope: str, number: int, start: Barrier, served: Sequence[Event], told: Queue[list[tuple[float, float]]]
) -> None:
    """Asks for two seconds from when all do, and until each has had a part."""
    settings = OpenAISettings.model_validate({"requests_per_minute": 6_000, "tokens_per_minute": 1_200_000})
    own = Limiter(RedisSettings.model_validate({"url": url, "timeout": 60.0}), settings, scope)
    gone: list[tuple[float, float]] = []
    start.wait(60)
    until = time.monotonic() + 2.0
    while time.monotonic() < until or not all(each.is_set() for each in served):
        granted = own.acquire(1, 5_000, query=False)
        gone.append((granted.at or 0.0, 5_000.0))
        served[number].set()
    own.close()
    told.put(gone)


def test_processes_together_stay_within_the_limit_and_use_it(redis_url: str) -> None:
    # Given four processes that ask as fast as they can
    context = multiprocessing.get_context("fork")
    told: Queue[list[tuple[float, float]]] = context.Queue()
    start, served = context.Barrier(4), [context.Event() for _ in range(4)]
    given = (redis_url, secrets.token_hex(8))
    processes = [context.Process(target=_ask_together, args=(*given, n, start, served, told)) for n in range(4)]
    with lost_time() as lost:
        for process in processes:
            process.start()

        # When they are done
        each = [told.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()

    # Then all of them had a part, and together they had what the limit lets through
    gone = [item for found in each for item in found]
    per_second, burst = 1_200_000 / 62.5, 1_200_000 / 40
    for seconds in (0.5, 1.0):
        assert fullest(gone, seconds) <= burst + per_second * seconds
    assert sum(size for _, size in gone) >= least(gone, 0.95 * 1_200_000 / MINUTE, lost())
    assert all(each)


def test_a_query_passes_what_waits(redis_url: str, clock: Clock) -> None:
    # Given a burst that the bulk has used
    shared = limiter(redis_url, clock, requests_per_minute=6_000, tokens_per_minute=400_000, search_share=0.1)
    clock.now += 60
    while not shared._take(1, 500, False)[0]:
        pass

    # Then there is room for a query, and for the bulk there is none
    shared.acquire(1, 900, query=True)
    with pytest.raises(ProviderLimited):
        shared.acquire(1, 900, query=False, deadline=time.monotonic())
    shared.close()


def test_the_limits_of_the_headers_are_learned_by_all(redis_url: str) -> None:
    # Given two processes' limiters, without limits in the settings
    one, other = limiter(redis_url), limiter(redis_url)
    other._key = one._key
    assert (one.limits.requests, one.limits.tokens) == (FIRST_REQUESTS, FIRST_TOKENS)

    # When an answer says what they are
    one.learn({"x-ratelimit-limit-requests": "3000", "x-ratelimit-limit-tokens": "5000000"})

    # Then both go by them
    other.acquire(1, 10, query=True)
    assert one.limits == other.limits == Limits(3_000, 5_000_000)
    assert other.request_tokens == int(125_000 * 0.95)
    one.close()
    other.close()


def test_a_limit_that_is_set_is_never_raised_by_a_server(redis_url: str) -> None:
    shared = limiter(redis_url, tokens_per_minute=100_000)

    shared.learn({"x-ratelimit-limit-requests": "3000", "x-ratelimit-limit-tokens": "5000000"})
    assert shared.limits == Limits(3_000, 100_000)

    shared.learn({"x-ratelimit-limit-tokens": "50000"})
    assert shared.limits == Limits(3_000, 50_000)
    shared.close()


def test_what_others_use_of_the_account_is_not_used_again(redis_url: str, clock: Clock) -> None:
    # Given a server of which somebody else has used nearly everything
    shared = limiter(redis_url, clock, requests_per_minute=6_000, tokens_per_minute=1_000_000)
    clock.now += 60

    shared.learn({"x-ratelimit-remaining-tokens": "100"})

    # Then no more than that is asked for, until some time has passed
    assert shared._take(1, 5_000, False)[0] > 0
    clock.now += 5
    assert not shared._take(1, 5_000, False)[0]
    shared.close()


def test_a_pause_is_everybodys(redis_url: str) -> None:
    one, other = limiter(redis_url), limiter(redis_url)
    other._key = one._key

    # Given a pause that nobody waits for the end of
    one.pause(600)
    with pytest.raises(ProviderLimited) as told:
        other.acquire(1, 1, query=True, deadline=time.monotonic() + 0.1)
    assert told.value.seconds == pytest.approx(600, abs=60)
    assert 0 < other.standing().paused <= 600
    one.close()
    other.close()

    # And a short one: then it is waited for
    one, other = limiter(redis_url), limiter(redis_url)
    other._key = one._key
    began = time.monotonic()
    one.pause(0.4)
    other.acquire(1, 1, query=True)
    assert time.monotonic() - began > 0.35
    one.close()
    other.close()


def test_who_waits_can_be_called_off(redis_url: str) -> None:
    shared = limiter(redis_url)
    shared.pause(600)
    stop, ended = threading.Event(), threading.Event()

    def wait() -> None:
        with pytest.raises(ProviderLimited):
            shared.acquire(1, 1, query=False, stop=stop)
        ended.set()

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)

    assert ended.is_set()
    shared.close()


def test_a_meter_that_was_forgotten_begins_without_a_burst(redis_url: str, clock: Clock) -> None:
    # Given a meter that has used its burst
    shared = limiter(redis_url, clock, requests_per_minute=6_000, tokens_per_minute=400_000)
    clock.now += 60
    assert not shared._take(1, 9_000, False)[0]

    # When Redis is flushed
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()

    # Then it has no second one
    assert shared._take(1, 9_000, False)[0] > 1.0
    shared.close()


@pytest.fixture
def own_redis(tmp_path: Path) -> EmbeddedRedis:
    return EmbeddedRedis(tmp_path / "redis", free_port(), secrets.token_urlsafe(16), durable=False)


def test_while_redis_is_away_each_process_has_its_share_and_returns_by_itself(
    own_redis: EmbeddedRedis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a limiter whose Redis is killed
    log = tmp_path / "redis.log"
    with run_alone(own_redis.part(), log) as running:
        shared = limiter(own_redis.url, requests_per_minute=60_000, tokens_per_minute=6_000_000, local_share=0.1)
        assert shared.acquire(1, 1_000, query=False).at is not None
        os.kill(running.pid, signal.SIGKILL)
        eventually(lambda: running.poll() is not None)

    # When it goes on asking
    gone: list[tuple[float, float]] = []
    until = time.monotonic() + 1.5
    with lost_time() as lost:
        while time.monotonic() < until:
            assert shared.acquire(1, 1_000, query=False).at is None
            gone.append((time.monotonic(), 1_000.0))

    # Then it has a tenth of the limit, and a tenth of the burst
    per_second, burst = 600_000 / 62.5, 600_000 / 40
    assert fullest(gone, 1.0) <= burst + per_second
    assert sum(size for _, size in gone) >= least(gone, 0.8 * per_second, lost())
    assert not shared.standing().shared
    assert "goes by 0.1 of the limits by itself" in caplog.text
    assert own_redis.password not in caplog.text

    # And when Redis is back, the limit is shared again
    with run_alone(own_redis.part(), log):
        eventually(lambda: shared.acquire(1, 1, query=True).at is not None)
        assert shared.standing().shared
        shared.close()


def test_a_limiter_without_any_redis_has_its_share() -> None:
    alone = limiter("")

    assert alone.acquire(1, 100, query=True).at is None
    alone.learn({"x-ratelimit-limit-tokens": "2000"})
    assert alone.limits.tokens == 2_000
    alone.close()
