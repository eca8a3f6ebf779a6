"""Redis and Postgres that are slow, silent or refusing: what an application and a worker see of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis
from tcp_proxy import Proxy, proxied
from workshop import PATIENCE_SECONDS, Workshop, with_work

from pipeline import Settings
from pipeline.circuits import Circuit
from pipeline.errors import BrokerUnavailable
from tasks import base


@dataclass
class Site:
    """A workshop whose ledger and broker are reached through proxies."""

    workshop: Workshop
    ledger: Proxy
    broker: Proxy


@pytest.fixture
def site(settings: Settings) -> Iterator[Site]:
    with (
        proxied(settings.postgres.url.get_secret_value()) as (ledger, postgres_url),
        proxied(settings.redis.url.get_secret_value()) as (broker, redis_url),
    ):
        secret = type(settings.redis.url)
        changed = settings.model_copy(
            update={
                "postgres": settings.postgres.model_copy(update={"url": secret(postgres_url)}),
                "redis": settings.redis.model_copy(update={"url": secret(redis_url)}),
            }
        )
        workshop = Workshop(with_work(changed, window=8))
        yield Site(workshop, ledger, broker)
        ledger.restore()
        workshop.close()


def test_what_is_enqueued_while_redis_is_frozen_is_durable_within_seconds_and_says_so(site: Site) -> None:
    # Given an application that waits a second for Redis, and whose circuit is open until the test says so
    redis_settings = site.workshop.settings.redis.model_copy(update={"timeout": 1.0})
    hasty = Workshop(site.workshop.settings.model_copy(update={"redis": redis_settings}))
    now = time.monotonic()
    hasty.services.broker._circuit = Circuit((1.0,), lambda: now)
    hasty.put({"before": "about before"})
    site.broker.freeze()

    first = hasty.put({"a": "about a"})
    others = [hasty.put({name: f"about {name}"}) for name in "bcdef"]

    for job in (first, *others):
        assert job.waiting is not None
        assert job.waiting.reason.startswith("dispatch is delayed: Redis at redis://")
        assert "a moment ago" in job.waiting.reason, "the others do not wait for it one by one"
    assert hasty.value("SELECT count(*) FROM batches WHERE state = 'ready'") == 7
    site.broker.restore()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            now += 1
            hasty.dispatch()
            break
        except BrokerUnavailable:
            assert time.monotonic() < deadline, "it goes on"
            time.sleep(0.1)
    assert hasty.services.broker.depths()["normal"] == 7
    hasty.close()


def test_work_goes_on_while_redis_refuses(site: Site) -> None:
    site.workshop.put({"a": "about a"})
    site.broker.refuse()

    site.workshop.perform(site.workshop.ready()[0].id)
    (embed,) = site.workshop.ready("embed")
    assert site.workshop.perform(embed.id) == base.Done(1)

    with pytest.raises(BrokerUnavailable):
        site.workshop.services.broker.depths()
    site.broker.restore()


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        pytest.param("maxmemory", "1", "used memory > 'maxmemory'", id="its memory is full"),
        pytest.param("min-replicas-to-write", "1", "NOREPLICAS", id="it may not write"),
    ],
)
def test_a_redis_that_takes_nothing_is_waited_for_and_named(
    settings: Settings, redis_url: str, setting: str, value: str, words: str
) -> None:
    workshop = Workshop(with_work(settings, window=8))
    with redis.Redis.from_url(redis_url) as server:
        before = server.config_get(setting)[setting]
        server.config_set(setting, value)
        try:
            job = workshop.put({"a": "about a"})
        finally:
            server.config_set(setting, before)
    assert job.waiting is not None
    assert words in job.waiting.reason
    assert "refused" in job.waiting.reason
    assert workshop.value("SELECT count(*) FROM batches WHERE sent_at IS NOT NULL") == 0
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            assert workshop.dispatch() == 1
            break
        except BrokerUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    workshop.close()


def test_a_slow_ledger_is_waited_for(site: Site) -> None:
    site.ledger.slow(0.01)  # each way: twenty times as slow as next door

    assert site.workshop.index({"a": "about a"}).state == "succeeded"

    assert site.workshop.value("SELECT sum(attempts + losses) FROM batches") == 0


def test_connections_that_are_cut_between_two_calls_are_not_noticed(site: Site) -> None:
    site.workshop.put({"a": "about a"})
    site.ledger.cut()
    site.broker.cut()

    site.workshop.work()

    assert site.workshop.texts() == {"a": ["about a"]}
