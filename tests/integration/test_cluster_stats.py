"""The figures of all processes, summed in Redis: exact where they say so, once each, bounded, and gone without harm."""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from reporters import let_them_end
from services import RedisServer
from tcp_proxy import proxied

from pipeline.errors import BrokerUnavailable, InvalidRequest
from pipeline.monitoring import cluster
from pipeline.monitoring.cluster import ClusterStats
from pipeline.monitoring.slots import COARSE, MOST_MINUTES
from pipeline.monitoring.window import OPERATION_ERRORS, OPERATION_SECONDS
from pipeline.observe import RELATIVE_ERROR, Measured, Series, Sketch, Slow
from pipeline.settings import RedisSettings

EMBED: Series = (OPERATION_SECONDS, ("embed",))

# As seconds are: from nothing to hours, and those that lie close to one another.
SECONDS = st.one_of(st.floats(0, 1e4), st.floats(0.0001, 0.01), st.sampled_from([0.0, 1e-9, 0.25, 1.0]))


def _settings(url: str, prefix: str = "millrace:", timeout: float = 5.0) -> RedisSettings:
    return RedisSettings(url=SecretStr(url), prefix=prefix, timeout=timeout)


def _measured(*seconds: float, counts: dict[Series, float] | None = None, slow: list[Slow] | None = None) -> Measured:
    sketch = Sketch()
    for value in seconds:
        sketch.add(value)
    return Measured(counts=counts or {}, sketches={EMBED: sketch} if seconds else {}, slow=slow or [])


@pytest.fixture(autouse=True)
def nobody_else() -> None:
    """What other tests recorded in this process is not this test's."""
    let_them_end()


@pytest.fixture
def stats(redis_url: str) -> Iterator[ClusterStats]:
    opened = ClusterStats(_settings(redis_url))
    yield opened
    opened.close()


@given(processes=st.lists(st.lists(st.lists(SECONDS, max_size=30), max_size=3), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_percentiles_of_several_processes_are_within_two_percent_of_the_exact_ones(
    redis_server: RedisServer, processes: list[list[list[float]]]
) -> None:
    # Given processes, each with reports of the seconds that its operations took
    own = _settings(redis_server.url, f"test-{secrets.token_hex(6)}:")
    everything = [seconds for reports in processes for report in reports for seconds in report]

    # When all have reported
    for reports in processes:
        process = ClusterStats(own)
        for report in reports:
            process.add(_measured(*report))
        process.close()
    reader = ClusterStats(own)
    found = reader.read(5).operations
    reader.close()

    # Then what is read of all together is what numpy says of all values in one list
    if not everything:
        assert found == {}
        return
    embed = found["embed"]
    assert (embed.count, embed.min, embed.max) == (len(everything), min(everything), max(everything))
    assert embed.mean == pytest.approx(math.fsum(everything) / len(everything))
    for q, told in ((0.5, embed.p50), (0.9, embed.p90), (0.95, embed.p95), (0.99, embed.p99)):
        exact = float(np.quantile(everything, q, method="inverted_cdf"))
        assert told == pytest.approx(exact, rel=RELATIVE_ERROR * (1 + 1e-9), abs=1e-9)


def test_two_processes_are_one_sum(stats: ClusterStats, redis_url: str) -> None:
    # Given another process
    other = ClusterStats(_settings(redis_url))

    # When both report runs and errors, one of them twice
    stats.add(_measured(0.1, 0.2, counts={(OPERATION_ERRORS, ("embed", "EmbeddingFailed")): 1}))
    stats.add(_measured(0.3, counts={("embed_tokens", ()): 100}))
    other.add(_measured(0.4, counts={(OPERATION_ERRORS, ("embed", "other")): 1, ("embed_tokens", ()): 11}))
    other.close()

    # Then the window has their sum
    window = stats.read(1)
    embed = window.operations["embed"]
    assert (embed.count, embed.min, embed.max) == (4, 0.1, 0.4)
    assert embed.mean == pytest.approx(0.25)
    assert (embed.errors, embed.error_rate) == (2, 0.5)
    assert embed.errors_by_class == {"EmbeddingFailed": 1, "other": 1}
    assert window.counts["embed_tokens", ()] == 111
    assert len(window.processes) == 2
    assert 0 < window.seconds < 125


def test_many_threads_and_connections_lose_nothing(redis_url: str) -> None:
    opened = [ClusterStats(_settings(redis_url)) for _ in range(4)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: opened[number % 4].add(_measured(1.0, 2.0)), range(80)))
    assert opened[0].read(5).operations["embed"].count == 160
    for each in opened:
        each.close()


def test_a_flush_of_redis_loses_old_figures_and_nothing_else(stats: ClusterStats, redis_server: RedisServer) -> None:
    # Given figures in Redis
    stats.add(_measured(0.1, 0.2, 0.3))

    # When Redis is emptied, its scripts too
    redis_server.flush()
    with redis.Redis.from_url(redis_server.url) as client:
        client.script_flush()

    # Then there are none, and the next ones come in
    assert stats.read(5).operations == {}
    stats.add(_measured(0.4))
    assert stats.read(5).operations["embed"].count == 1


def test_what_is_added_while_redis_is_away_comes_in_when_it_is_back(redis_url: str) -> None:
    with proxied(redis_url) as (proxy, url):
        # Given a process whose Redis is away
        stats = ClusterStats(_settings(url))
        stats.add(_measured(0.1))
        proxy.refuse()

        # When it goes on reporting
        for _ in range(5):
            with pytest.raises(BrokerUnavailable, match="did not answer"):
                stats.add(_measured(0.2))
        with pytest.raises(BrokerUnavailable, match="did not answer"):
            stats.read(5)
        assert 0 < stats.waiting <= 2  # the one that was tried, and one for all that came after it

        # Then everything is there once Redis is
        proxy.restore()
        stats.add(Measured())
        assert stats.waiting == 0
        assert stats.read(5).operations["embed"].count == 6
        stats.close()


def test_a_report_whose_answer_was_lost_is_counted_once(redis_url: str) -> None:
    with proxied(redis_url) as (proxy, url):
        # Given a report that Redis takes, and whose answer does not come
        stats = ClusterStats(_settings(url, timeout=1.0))
        stats.add(_measured(0.1))
        proxy.slow(1.3)
        with pytest.raises(BrokerUnavailable):
            stats.add(_measured(0.2))
        assert stats.waiting == 1

        # When it is sent again
        proxy.restore()
        stats.add(_measured(0.3))

        # Then it is counted once
        assert stats.read(5).operations["embed"].count == 3
        stats.close()


def test_figures_that_waited_go_to_the_minute_they_are_of(stats: ClusterStats) -> None:
    # Given what was measured ten minutes ago, and could not be reported
    stats._owe(_measured(7.0))
    stats._reports[-1].began -= 600

    # When it is reported with what is new
    stats.add(_measured(1.0))

    # Then each is in its own time
    assert stats.read(5).operations["embed"].max == 1.0
    assert stats.read(15).operations["embed"].count == 2


def test_a_reset_begins_anew_for_everybody(stats: ClusterStats, redis_url: str) -> None:
    # Given figures and slow operations of two processes
    other = ClusterStats(_settings(redis_url))
    other.add(_measured(5.0, slow=[Slow("embed", 5.0, time.time(), None, {})]))
    stats.add(_measured(1.0))

    # When one of them is asked to begin anew
    stats.reset()

    # Then nothing is left, and both count from there
    window = stats.read(MOST_MINUTES)
    assert (window.operations, window.counts, window.processes, stats.slowest()) == ({}, {}, (), [])
    assert window.seconds < 60
    other.add(_measured(2.0))
    stats.add(_measured(3.0))
    assert stats.read(60).operations["embed"].max == 3.0
    assert stats.read(60).operations["embed"].count == 2
    other.close()


def test_what_waited_for_redis_over_a_reset_stays_out(stats: ClusterStats) -> None:
    stats._owe(_measured(7.0))
    stats._reports[-1].began -= 300
    stats.reset()
    stats.add(_measured(1.0))
    assert stats.read(60).operations["embed"].count == 1


def test_long_windows_are_read_in_longer_slots(stats: ClusterStats) -> None:
    stats.add(_measured(0.5))
    for minutes in (0.1, 1, 60, 61, MOST_MINUTES):
        window = stats.read(minutes)
        assert window.operations["embed"].count == 1
        length = 60 if minutes <= 60 else 600
        assert minutes * 60 <= window.seconds < minutes * 60 + length
    for minutes in (0, -1, MOST_MINUTES + 1, math.nan):
        with pytest.raises(InvalidRequest, match="kept for 24 h"):
            stats.read(minutes)


def test_everything_in_redis_has_an_end_and_is_bounded(
    redis_url: str, stats: ClusterStats, queues: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given room for few series
    monkeypatch.setattr(cluster, "MOST_COUNTS", 3)
    monkeypatch.setattr(cluster, "MOST_SKETCHES", 2)

    # When more come, twice, and values of every size
    for _ in range(2):
        measured = _measured(*(10.0**power for power in range(-12, 300, 3)), 0.0)
        for number in range(5):
            measured.counts["label", (str(number),)] = 1
            measured.sketches["label", (str(number),)] = Sketch(1, 1.0, 1.0, 1.0, {0: 1})
        stats.add(measured)

    # Then those that were there first go on, and every key ends
    window = stats.read(5)
    assert {series: window.counts[series] for series in window.counts} == {("label", (str(n),)): 2 for n in range(3)}
    assert sorted(window.sketches) == [("label", ("0",)), EMBED]
    assert window.operations["embed"].count == 210
    assert max(window.sketches[EMBED].buckets) == cluster._GREATEST
    keys = list(queues.scan_iter(match="*stats:*"))
    assert keys
    assert all(0 < queues.ttl(key) <= COARSE.kept + 2 * COARSE.slot for key in keys)


def test_series_that_were_there_first_take_no_room_from_others(
    stats: ClusterStats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "MOST_COUNTS", 4)
    first: dict[Series, float] = {("label", (name,)): 1 for name in "abc"}
    stats.add(_measured(counts=dict(first)))
    stats.add(_measured(counts={**first, ("label", ("d",)): 1, ("label", ("e",)): 1}))
    assert stats.read(5).counts == {("label", (name,)): 2 if name < "d" else 1 for name in "abcd"}


def test_one_connection_serves_all_calls(redis_url: str) -> None:
    with proxied(redis_url) as (proxy, url):
        stats = ClusterStats(_settings(url))
        for _ in range(6):
            stats.add(_measured(1.0))
            stats.read(5)
        assert proxy.connections == 1
        stats.close()


def test_numbers_that_cannot_be_added_up_are_left_out(stats: ClusterStats) -> None:
    stats.add(_measured(1.0, counts={("bad", ()): math.inf, ("good", ()): 0.1}))
    stats.add(_measured(counts={("good", ()): 1e-7}))
    assert stats.read(5).counts == {("good", ()): pytest.approx(0.1000001, rel=1e-12)}


def test_a_forked_process_counts_for_itself(stats: ClusterStats) -> None:
    # Given a process that has reported
    stats.add(_measured(1.0))

    # When a child of it reports, and ends
    child = os.fork()
    if child == 0:
        try:
            stats.add(_measured(2.0))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    stats.add(_measured(3.0))

    # Then there are two
    window = stats.read(5)
    assert window.operations["embed"].count == 3
    assert len(window.processes) == 2


def test_the_slowest_of_the_last_slow_operations_are_listed(stats: ClusterStats, queues: redis.Redis) -> None:
    # Given more slow operations than are remembered
    at = time.time()
    for number in range(0, 120, 10):
        runs = [
            Slow("embed", 1.0 + (n * 7) % 120, at, "EmbeddingFailed", {"job_id": str(n)})
            for n in range(number, number + 10)
        ]
        stats.add(_measured(slow=runs))

    # Then the last hundred are there, the slowest first
    found = stats.slowest(1000)
    assert len(found) == 100
    assert [run.seconds for run in found] == sorted((run.seconds for run in found), reverse=True)
    assert {int(run.context["job_id"]) for run in found} == set(range(20, 120))
    assert (found[0].operation, found[0].error, found[0].host) == ("embed", "EmbeddingFailed", os.uname().nodename)
    assert found[0].at.timestamp() == pytest.approx(at)
    json.dumps([run.to_json() for run in stats.slowest(2)])


def test_without_an_address_it_says_so() -> None:
    stats = ClusterStats(RedisSettings())
    with pytest.raises(BrokerUnavailable, match="millrace up"):
        stats.read(5)
    with pytest.raises(BrokerUnavailable, match="MILLRACE_REDIS__URL"):
        stats.add(_measured(1.0))
    assert stats.waiting == 1
    stats.close()
