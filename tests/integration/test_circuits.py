"""Qdrant is away: nobody computes for it, nothing is blamed, one batch tries, and all go on at once."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from command_line import eventually
from tcp_proxy import Proxy, proxied
from workshop import PATIENCE_SECONDS, Workshop, with_work

from pipeline import Settings
from pipeline.circuits import Circuit
from pipeline.duties import Bounds
from pipeline.embedding.base import Embedded
from pipeline.errors import VectorsUnavailable
from pipeline.ledger import circuits
from pipeline.vectors.qdrant import QdrantStore
from tasks import base
from tasks.duties import DUTIES
from tasks.maintenance import reconcile

(CONTRACT,) = [duty for duty in DUTIES if duty.name == "contract"]
WINDOW = 8


@dataclass
class Site:
    """A workshop whose index is reached through a proxy."""

    workshop: Workshop
    network: Proxy
    queues: redis.Redis

    def sent(self) -> list[int]:
        """The ids of the batches in the queue, of which it is emptied: a worker has taken the messages."""
        raw = self.queues.lrange("millrace:normal", 0, -1)
        self.queues.delete("millrace:normal")
        return sorted(json.loads(b64decode(json.loads(message)["body"]))[0][0] for message in raw)

    def open_circuit(self) -> circuits.Open | None:
        with self.workshop.services.ledger.transaction() as connection:
            return circuits.find(connection, circuits.VECTORS)

    def come_due(self) -> None:
        """The rest of the circuit is over."""
        self.workshop.sql("UPDATE circuits SET retry_at = clock_timestamp()")
        self.workshop.sql("UPDATE batches SET next_attempt_at = clock_timestamp() WHERE state = 'ready'")

    def stay_open(self) -> None:
        """The rest of the circuit is not over before the test says so, however slow it is."""
        self.workshop.sql("UPDATE circuits SET retry_at = clock_timestamp() + interval '1 hour'")

    def try_again(self) -> int:
        """A batch tries when the rest is over, and another one, until one arrives. Returns its id.

        gRPC connects again when it likes, and the worker has a circuit of its own.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.come_due()
            self.workshop.dispatch()
            (probe,) = self.sent()
            if self.workshop.perform(probe) == base.Done(1):
                return probe
            assert time.monotonic() < deadline, self.open_circuit()

    def answers_again(self) -> None:
        """The network is as it was, and gRPC has noticed it."""
        self.network.restore()
        eventually(self.workshop.services.vectors.alive)

    def blamed(self) -> int:
        return int(self.workshop.value("SELECT coalesce(sum(attempts + losses), 0) FROM batches"))


@pytest.fixture
def site(settings: Settings, redis_url: str) -> Iterator[Site]:
    with proxied(settings.qdrant.url.get_secret_value()) as (network, url):
        ingest = settings.ingest.model_copy(update={"prepare_documents": 1, "embed_chunks": 1})
        qdrant = settings.qdrant.model_copy(update={"url": type(settings.qdrant.url)(url)})
        made = with_work(settings.model_copy(update={"ingest": ingest, "qdrant": qdrant}), window=WINDOW)
        workshop = Workshop(made)
        with redis.Redis.from_url(redis_url) as queues:
            yield Site(workshop, network, queues)
        workshop.close()


def _embed_batches(site: Site, *names: str) -> list[int]:
    """Ready embed batches, one a document, of which no message is on its way."""
    site.workshop.put({name: f"about {name}" for name in names})
    site.workshop.prepare()
    site.sent()
    site.workshop.sql("UPDATE batches SET sent_at = NULL")
    return [batch.id for batch in site.workshop.ready("embed")]


def test_while_qdrant_is_away_nothing_is_embedded_for_it_and_one_batch_tries(site: Site) -> None:
    # Given six batches, and an index that went away
    first, second, *_ = _embed_batches(site, *"abcdef")
    site.network.refuse()

    # When a worker meets that
    assert isinstance(site.workshop.perform(first, alone=True), base.Waiting)
    site.stay_open()

    # Then no other embeds, and no message is sent, but for work that needs no index
    assert isinstance(site.workshop.perform(second), base.Skipped)
    assert len(site.workshop.embedded()) == 1
    site.workshop.put({"g": "about g"})
    (prepare,) = [batch.id for batch in site.workshop.ready("prepare")]
    assert site.sent() == [prepare]
    assert site.workshop.perform(prepare) == base.Done(1)
    assert site.sent() == []

    # And when the rest is over, one batch goes to try it, and nobody else
    site.come_due()
    assert [site.workshop.dispatch() for _ in range(3)] == [1, 0, 0]
    (probe,) = site.sent()
    assert isinstance(site.workshop.perform(probe), base.Waiting)
    found = site.open_circuit()
    assert found is not None
    assert found.failures == 2, "and the next one goes later"

    # And when it is back, the one that tries opens the way for all
    site.network.restore()
    site.try_again()
    assert site.open_circuit() is None
    assert len(site.sent()) == 6
    site.workshop.work()
    assert len(site.workshop.texts()) == 7
    assert len(site.workshop.embedded()) == 7, "each text once"
    assert site.blamed() == 0


def test_a_message_that_comes_while_the_circuit_is_open_is_not_lost(site: Site) -> None:
    first, second = _embed_batches(site, "a", "b")
    site.network.refuse()
    site.workshop.perform(first, alone=True)
    site.stay_open()
    site.workshop.sql("UPDATE batches SET sent_at = clock_timestamp() WHERE id = %(id)s", id=second)

    assert isinstance(site.workshop.perform(second), base.Skipped)

    assert site.workshop.value("SELECT sent_at FROM batches WHERE id = %(id)s", id=second) is None
    site.workshop.sql("UPDATE circuits SET opened_at = NULL")
    site.workshop.dispatch()
    assert second in site.sent(), "at once, not after a minute"


def test_of_many_workers_that_dispatch_at_once_one_sends_the_probe(site: Site) -> None:
    first, *_ = _embed_batches(site, *"abcd")
    site.network.refuse()
    site.workshop.perform(first, alone=True)
    site.come_due()
    others = [Workshop(site.workshop.settings) for _ in range(4)]

    threads = [threading.Thread(target=other.dispatch) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)

    assert len(site.sent()) == 1
    for other in others:
        other.close()


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param("UPDATE batches SET sent_at = NULL", id="its message, and reconcile has seen it"),
        pytest.param(
            "UPDATE batches SET state = 'cancelled', ended_at = now() WHERE id IN (SELECT probe_batch FROM circuits)",
            id="it was cancelled",
        ),
        pytest.param("UPDATE circuits SET retry_at = clock_timestamp()", id="without a trace, and its time is over"),
    ],
)
def test_a_probe_that_is_lost_is_followed_by_another(site: Site, lost: str) -> None:
    first, *_ = _embed_batches(site, *"abc")
    site.network.refuse()
    site.workshop.perform(first, alone=True)
    site.come_due()
    assert site.workshop.dispatch() == 1
    assert site.workshop.dispatch() == 0

    site.workshop.sql(lost)

    assert site.workshop.dispatch() == 1


def test_a_probe_whose_worker_died_is_tried_again_when_its_lease_is_over(site: Site) -> None:
    first, *_ = _embed_batches(site, *"abc")
    site.network.refuse()
    site.workshop.perform(first, alone=True)
    site.come_due()
    site.workshop.dispatch()
    (probe,) = site.sent()
    site.workshop.claim(probe)
    site.workshop.sql("UPDATE batches SET lease_until = clock_timestamp() WHERE id = %(id)s", id=probe)

    assert reconcile(site.workshop.services, Bounds(100, 20.0))["expired"] == 1

    site.answers_again()
    assert site.workshop.value("SELECT retry_at > clock_timestamp() FROM circuits WHERE dependency = 'qdrant'")
    site.workshop.sql("UPDATE circuits SET retry_at = clock_timestamp()")
    assert site.workshop.dispatch() == 1


def test_reconcile_asks_qdrant_itself_and_while_it_is_away_no_batch_tries(site: Site) -> None:
    first, *_ = _embed_batches(site, *"abc")
    site.network.refuse()
    site.workshop.perform(first, alone=True)
    site.come_due()

    reconcile(site.workshop.services, Bounds(100, 20.0))
    assert site.sent() == [], "it is known to be away"
    site.answers_again()
    reconcile(site.workshop.services, Bounds(100, 20.0))
    site.come_due()
    reconcile(site.workshop.services, Bounds(100, 20.0))

    assert len(site.sent()) == 1


def test_where_no_batch_waits_the_answer_alone_closes_the_circuit(site: Site) -> None:
    with site.workshop.services.ledger.transaction() as connection:
        circuits.trip(connection, circuits.VECTORS, "Qdrant is away")
    assert CONTRACT.run(site.workshop.services, Bounds(10, 20.0)) == {"points": 0, "waiting": 1}
    assert site.workshop.client.status()["health"]["issues"][0]["message"] == "Qdrant is away"

    reconcile(site.workshop.services, Bounds(100, 20.0))

    assert site.open_circuit() is None
    assert CONTRACT.run(site.workshop.services, Bounds(10, 20.0)) == {"points": 0}


def test_a_batch_in_flight_that_arrives_all_the_same_closes_the_circuit(site: Site) -> None:
    first, second = _embed_batches(site, "a", "b")
    upsert = site.workshop.services.vectors.upsert

    def meanwhile(*given: object) -> None:
        with site.workshop.services.ledger.transaction() as connection:
            circuits.trip(connection, circuits.VECTORS, "another worker met it away")
        upsert(*given)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site.workshop.services.vectors, "upsert", meanwhile)
        assert site.workshop.perform(first, alone=True) == base.Done(1)

    assert site.open_circuit() is None
    assert site.sent() == [second]


def test_a_frozen_qdrant_costs_one_timeout_and_then_nothing(site: Site) -> None:
    first, second = _embed_batches(site, "a", "b")
    assert site.workshop.perform(first, alone=True) == base.Done(1)
    # Given one who waits two seconds for an answer, and whose circuit is open until the test says so
    now = time.monotonic()
    settings = site.workshop.settings.qdrant.model_copy(update={"timeout": 2.0})
    vectors = QdrantStore(settings)
    vectors._connection._circuit = Circuit((0.5,), lambda: now)
    site.network.freeze()

    started = time.monotonic()
    with pytest.raises(VectorsUnavailable, match="DEADLINE_EXCEEDED"):
        vectors.count("anything")
    once = time.monotonic()
    for _ in range(20):
        with pytest.raises(VectorsUnavailable, match="did not answer a moment ago"):
            vectors.count("anything")
    refused = time.monotonic()
    assert once - started > 1.5
    assert refused - once < 10 * 2.0, "nobody waits again"
    vectors.close()

    site.network.restore()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while isinstance(site.workshop.perform(second), base.Waiting):
        assert time.monotonic() < deadline
        site.workshop.sql("UPDATE circuits SET opened_at = NULL")
        site.workshop.sql("UPDATE batches SET next_attempt_at = NULL")
    assert len(site.workshop.texts()) == 2
    assert site.blamed() == 0


def test_a_slow_qdrant_is_waited_for(site: Site) -> None:
    site.network.slow(0.15)  # each way

    assert site.workshop.index({"a": "about a", "b": "about b"}).state == "succeeded"

    assert site.open_circuit() is None
    assert site.blamed() == 0


def test_a_batch_that_was_handed_back_into_a_paused_job_keeps_nobody_waiting(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two jobs, the first of which is paused while its batch meets Qdrant away: handed back, it is not held
    (first,) = _embed_batches(site, "a")
    _, second = _embed_batches(site, "b")
    embed = site.workshop.embedder.embed

    def meanwhile(*given: Any) -> Embedded:
        site.workshop.client.pause(site.workshop.value("SELECT job_id FROM batches WHERE id = %(id)s", id=first))
        return embed(*given)

    site.network.refuse()
    with monkeypatch.context() as patch:
        patch.setattr(site.workshop.embedder, "embed", meanwhile)
        assert isinstance(site.workshop.perform(first, alone=True), base.Waiting)
    assert not site.workshop.value("SELECT held FROM batches WHERE id = %(id)s", id=first)

    # When Qdrant is back
    site.network.restore()

    # Then it is the other job's batch that tries, and opens the way
    assert site.try_again() == second
    assert site.open_circuit() is None


def test_a_probe_that_nobody_takes_does_not_keep_the_circuit_open(site: Site) -> None:
    # Given a probe in a queue that nobody consumes
    first, *_ = _embed_batches(site, *"abc")
    site.network.refuse()
    site.workshop.perform(first, alone=True)
    site.answers_again()
    site.come_due()
    assert site.workshop.dispatch() == 1
    reconcile(site.workshop.services, Bounds(100, 20.0))
    assert site.open_circuit() is not None, "it may come yet"

    # When that has been so for a while
    site.workshop.sql("UPDATE batches SET sent_at = sent_at - interval '16 seconds' WHERE sent_at IS NOT NULL")
    reconcile(site.workshop.services, Bounds(100, 20.0))

    # Then Qdrant's answer is enough, and what is in other queues goes on
    assert site.open_circuit() is None
    assert len(site.sent()) == 3
