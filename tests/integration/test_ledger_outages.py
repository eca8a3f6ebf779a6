"""Postgres goes away in the middle of work, and comes back: the work goes on, and nobody is blamed for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from command_line import eventually
from tcp_proxy import Proxy, proxied
from workshop import PATIENCE_SECONDS, Workshop, with_work

from pipeline import Settings
from pipeline.circuits import Circuit
from pipeline.duties import Bounds
from pipeline.errors import LedgerFull, LedgerUnavailable
from pipeline.ledger import batches, fleet, schedules
from pipeline.ledger.batches import Claim
from tasks import base
from tasks.maintenance import reconcile

WORKER = "general@here#1"
OTHER = "express@here#2"
LEASE_SECONDS = 2.0


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(with_work(settings, lease_seconds=9.0))
    yield made
    made.close()


def _embed_batch(workshop: Workshop, *names: str) -> int:
    workshop.put({name: f"about {name}" for name in names})
    workshop.prepare()
    return workshop.ready("embed")[-1].id


def _report(workshop: Workshop, *workers: str) -> None:
    with workshop.services.ledger.transaction() as connection:
        for worker in workers:
            fleet.report(connection, worker, "here", 1, "high,normal,low", 2)


def _age(workshop: Workshop, seconds: float) -> None:
    """An outage of the ledger: time passes, and nobody can write anything."""
    shift = f"interval '{seconds} seconds'"
    workshop.sql(f"UPDATE workers SET seen_at = seen_at - {shift}, started_at = started_at - {shift}")
    workshop.sql(f"UPDATE duties SET seen_at = seen_at - {shift} WHERE name = 'reconcile'")
    workshop.sql(f"UPDATE batches SET lease_until = lease_until - {shift} WHERE state = 'running'")
    workshop.sql(f"UPDATE schedules SET lease_until = lease_until - {shift} WHERE owner IS NOT NULL")


def _seen_working(workshop: Workshop, *workers: str) -> Claim:
    """A batch that the first of the workers holds; all of them and reconcile have been at work for an hour."""
    batch = _embed_batch(workshop, "one")
    _report(workshop, *workers)
    workshop.sql("UPDATE workers SET started_at = started_at - interval '1 hour'")
    workshop.sql("INSERT INTO duties (name, seen_at) VALUES ('reconcile', clock_timestamp())")
    return workshop.claim(batch, f"{workers[0]}/7")


def _row(workshop: Workshop, claim: Claim) -> dict[str, Any]:
    (row,) = workshop.sql("SELECT state, attempts, losses, alone, error FROM batches WHERE id = %(id)s", id=claim.id)
    return row


def _expired(workshop: Workshop) -> int:
    return reconcile(workshop.services, Bounds(100, 20.0))["expired"]


def test_after_an_outage_a_worker_that_lives_keeps_its_claim(workshop: Workshop) -> None:
    # Given a claim that ran out during a minute in which nobody reached the ledger
    claim = _seen_working(workshop, WORKER, OTHER)
    _age(workshop, 60)

    # When reconcile is the first to be back, and again when the workers have said that they live
    assert _expired(workshop) == 0
    _report(workshop, WORKER, OTHER)
    assert _expired(workshop) == 0

    # Then the heartbeat finds the claim as it was
    with workshop.services.ledger.transaction() as connection:
        assert batches.heartbeat(connection, [claim], 9.0) == {claim.id}
    assert _row(workshop, claim)["state"] == "running"
    assert (_row(workshop, claim)["attempts"], _row(workshop, claim)["losses"]) == (0, 0)


def test_a_claim_that_ran_out_in_an_outage_and_is_not_taken_up_again_is_blamed_on_nobody(workshop: Workshop) -> None:
    """Its child was killed, or gave up: that takes longer than any outage that is only waited for."""
    claim = _seen_working(workshop, WORKER)
    _age(workshop, 600)
    assert _expired(workshop) == 0
    _report(workshop, WORKER)
    # a whole lease later
    workshop.sql("UPDATE duties SET steady_since = steady_since - interval '10 seconds'")
    workshop.sql("UPDATE workers SET steady_since = steady_since - interval '10 seconds'")

    assert _expired(workshop) == 1

    assert _row(workshop, claim) == {
        "state": "ready", "attempts": 0, "losses": 0, "alone": False,
        "error": "the ledger was away when its lease ran out",
    }  # fmt: skip


def test_a_worker_that_died_in_an_outage_is_a_loss_a_lease_after_it(workshop: Workshop) -> None:
    claim = _seen_working(workshop, WORKER, OTHER)
    _age(workshop, 60)
    assert _expired(workshop) == 0
    _report(workshop, OTHER)
    workshop.sql("UPDATE duties SET steady_since = steady_since - interval '10 seconds'")
    workshop.sql("UPDATE workers SET steady_since = steady_since - interval '10 seconds'")

    assert _expired(workshop) == 1

    assert (_row(workshop, claim)["attempts"], _row(workshop, claim)["losses"]) == (0, 1)


def test_a_child_that_dies_after_an_outage_is_blamed_as_ever(workshop: Workshop) -> None:
    claim = _seen_working(workshop, WORKER)
    _age(workshop, 60)
    _expired(workshop)
    _report(workshop, WORKER)
    with workshop.services.ledger.transaction() as connection:
        batches.heartbeat(connection, [claim], 9.0)
    workshop.sql("UPDATE duties SET steady_since = steady_since - interval '1 hour'")
    workshop.sql("UPDATE workers SET steady_since = steady_since - interval '1 hour'")
    workshop.sql("UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms' WHERE state = 'running'")

    assert _expired(workshop) == 1

    assert (_row(workshop, claim)["attempts"], _row(workshop, claim)["losses"]) == (1, 0)


def test_one_worker_that_is_cut_off_alone_is_lost_at_once(workshop: Workshop) -> None:
    claim = _seen_working(workshop, WORKER, OTHER)
    workshop.sql(f"UPDATE workers SET seen_at = seen_at - interval '12 seconds' WHERE id = '{WORKER}'")
    workshop.sql("UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms' WHERE state = 'running'")

    assert _expired(workshop) == 1

    assert _row(workshop, claim)["losses"] == 1


def test_where_only_reconcile_paused_the_others_are_believed(workshop: Workshop) -> None:
    """Its own worker was killed and started again: that must not keep the work of others waiting."""
    claim = _seen_working(workshop, WORKER, OTHER)
    workshop.sql("UPDATE duties SET seen_at = seen_at - interval '30 seconds'")
    workshop.sql("UPDATE batches SET lease_until = clock_timestamp() - interval '1 ms' WHERE state = 'running'")

    assert _expired(workshop) == 1
    assert _row(workshop, claim)["attempts"] == 1


def test_the_runs_of_schedules_get_a_whole_lease_too(workshop: Workshop) -> None:
    _seen_working(workshop, WORKER)
    workshop.sql(
        """INSERT INTO schedules (collection, tenant, source, options, every_seconds, owner, epoch, lease_until)
           VALUES ('notes', 'default', '/nowhere', '{}', 60, 'x/1', 1, clock_timestamp())"""
    )
    _age(workshop, 60)

    with workshop.services.ledger.transaction() as connection:
        assert schedules.expire(connection, 100, 9.0) == 0


@dataclass
class Site:
    """A workshop whose ledger is reached through a proxy, and one that always reaches it."""

    workshop: Workshop
    onlooker: Workshop
    network: Proxy


@pytest.fixture
def site(settings: Settings) -> Iterator[Site]:
    with proxied(settings.postgres.url.get_secret_value()) as (network, url):
        postgres = settings.postgres.model_copy(
            update={"url": type(settings.postgres.url)(url), "connect_timeout": 3.0, "timeout": 1.0}
        )
        work = {"lease_seconds": LEASE_SECONDS, "heartbeat_seconds": 0.5}
        workshop = Workshop(with_work(settings.model_copy(update={"postgres": postgres}), **work))
        onlooker = Workshop(with_work(settings, **work))
        yield Site(workshop, onlooker, network)
        network.restore()
        workshop.close()
        onlooker.close()


def _fail_after_upsert(site: Site, monkeypatch: pytest.MonkeyPatch, how: str) -> threading.Thread:
    """The ledger goes away between the upsert and what says that it is done, until the lease is over and the work is
    to be handed back. Returns the thread that brings it back, which is not started for a second upsert."""
    upsert, hand_back = site.workshop.services.vectors.upsert, base.hand_back
    handing_back = threading.Event()

    def come_back() -> None:
        try:
            assert handing_back.wait(PATIENCE_SECONDS)
            eventually(lambda: site.onlooker.value("SELECT bool_and(lease_until < clock_timestamp()) FROM batches"))
        finally:
            site.network.restore()

    coming_back = threading.Thread(target=come_back)

    def then_away(*given: Any) -> None:
        upsert(*given)
        if coming_back.ident is None:
            getattr(site.network, how)()
            coming_back.start()

    def then_back(*given: Any) -> None:
        handing_back.set()
        hand_back(*given)

    monkeypatch.setattr(site.workshop.services.vectors, "upsert", then_away)
    monkeypatch.setattr(base, "hand_back", then_back)
    return coming_back


@pytest.mark.parametrize("how", ["refuse", "freeze"])
def test_work_whose_ledger_is_away_for_longer_than_its_lease_goes_on_unblamed(
    site: Site, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("pipeline.ledger.engine._ANSWER_SECONDS", 0.5)
    batch = _embed_batch(site.workshop, "one")
    coming_back = _fail_after_upsert(site, monkeypatch, how)

    outcome = site.workshop.perform(batch)
    coming_back.join()

    # A frozen ledger may have got the last word before it froze, and has it done when it goes on.
    assert isinstance(outcome, base.Waiting)
    site.workshop.work()
    assert site.onlooker.texts() == {"one": ["about one"]}
    assert site.workshop.embedded() == ["about one"], "what was computed is not computed again"
    assert site.onlooker.value("SELECT sum(attempts + losses) FROM batches") == 0


def test_a_frozen_ledger_ends_every_wait_and_is_refused_at_once_after_that(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a ledger that goes silent, and a circuit whose rest is over when the test says so
    monkeypatch.setattr("pipeline.ledger.engine._ANSWER_SECONDS", 0.5)
    assert site.workshop.value("SELECT 1") == 1
    now = time.monotonic()
    site.workshop.services.ledger._circuit = Circuit((0.25,), lambda: now)
    site.network.freeze()

    with pytest.raises(LedgerUnavailable, match=r"does not answer: no answer in 1\.5 seconds"):
        site.workshop.value("SELECT 2")
    frozen = time.monotonic()
    for _ in range(20):
        with pytest.raises(LedgerUnavailable, match="did not answer a moment ago"):
            site.workshop.value("SELECT 3")
    assert time.monotonic() - frozen < 10 * 1.5, "nobody waits again"

    now += 1
    site.network.restore()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            assert site.workshop.value("SELECT 4") == 4
            break
        except LedgerUnavailable:
            assert time.monotonic() < deadline
            now += 1
            time.sleep(0.1)


def test_threads_that_wait_for_a_connection_in_use_are_told_so_and_the_ledger_is_not_taken_for_away(
    site: Site,
) -> None:
    # Given one connection, one who has it, another who is to have it next, and a third behind him
    narrow = site.onlooker.settings.postgres.model_copy(update={"pool_size": 1, "connect_timeout": 4.0})
    workshop = Workshop(site.onlooker.settings.model_copy(update={"postgres": narrow}))
    ledger = workshop.services.ledger
    begun, first, last = (threading.Event() for _ in range(3))

    def hold(until: threading.Event) -> None:
        with ledger.transaction():
            begun.set()
            assert until.wait(PATIENCE_SECONDS)

    def waiting() -> int:
        return ledger._open().get_stats().get("requests_waiting", 0)

    with ThreadPoolExecutor(3) as threads:
        try:
            holding = threads.submit(hold, first)
            assert begun.wait(PATIENCE_SECONDS)
            next_one = threads.submit(hold, last)
            eventually(lambda: waiting() == 1)
            behind = threads.submit(workshop.value, "SELECT 1")
            eventually(lambda: waiting() == 2)

            # When the first one ends, and the second goes on for longer than the third waits
            first.set()
            holding.result(PATIENCE_SECONDS)

            # Then that one is told so, and nobody takes the ledger for away
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                behind.result(PATIENCE_SECONDS)
            assert ledger._circuit.failures == 0
        finally:
            first.set()
            last.set()
        next_one.result(PATIENCE_SECONDS)
    workshop.close()


def test_too_many_connections_are_waited_for_and_named(settings: Settings, workshop: Workshop) -> None:
    workshop.sql("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 0")
    url = settings.postgres.url.get_secret_value()
    host = url.rpartition("@")[2]
    postgres = settings.postgres.model_copy(
        update={"url": type(settings.postgres.url)(f"postgresql://few:few@{host}"), "connect_timeout": 3.0}
    )
    few = Workshop(settings.model_copy(update={"postgres": postgres}))
    try:
        with pytest.raises(LedgerUnavailable, match='too many connections for role "few"'):
            few.value("SELECT 1")
        workshop.sql("ALTER ROLE few CONNECTION LIMIT 5")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                assert few.value("SELECT 1") == 1
                break
            except LedgerUnavailable:
                assert time.monotonic() < deadline
    finally:
        few.close()
        workshop.sql("DROP ROLE few")


FULL = """
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'could not extend file "base/5/16384": No space left on device'
    USING ERRCODE = 'disk_full', HINT = 'Check free disk space.';
END $$"""


def messages(workshop: Workshop) -> list[str]:
    return [issue["message"] for issue in workshop.client.status()["health"]["issues"]]


def _fill(workshop: Workshop, table: str) -> None:
    workshop.sql(FULL)
    workshop.sql(f"CREATE TRIGGER full_disk BEFORE INSERT ON {table} EXECUTE FUNCTION no_room()")


def _make_room(workshop: Workshop, table: str) -> None:
    workshop.sql(f"DROP TRIGGER full_disk ON {table}")


def test_a_full_disk_is_waited_for_unblamed_and_shown_while_it_lasts(workshop: Workshop) -> None:
    batch = _embed_batch(workshop, "one")
    _fill(workshop, "embeddings")

    outcome = workshop.perform(batch)

    assert isinstance(outcome, base.Waiting)
    assert "has no room on its disk: could not extend file" in outcome.reason
    (issue,) = [text for text in messages(workshop) if "no room" in text]
    assert "Work waits, and goes on by itself when there is room." in issue
    _make_room(workshop, "embeddings")
    workshop.work()
    assert workshop.texts() == {"one": ["about one"]}
    assert workshop.value("SELECT sum(attempts + losses) FROM batches") == 0
    workshop.sql("UPDATE circuits SET retry_at = clock_timestamp() - interval '1 ms'")
    reconcile(workshop.services, Bounds(100, 20.0))
    assert not [text for text in messages(workshop) if "no room" in text]


def test_who_enqueues_on_a_full_disk_is_told_so(workshop: Workshop) -> None:
    _fill(workshop, "staged")

    with pytest.raises(LedgerFull, match="no room on its disk"):
        workshop.put({"a": "about a"})

    assert [text for text in messages(workshop) if "no room" in text]
    _make_room(workshop, "staged")
    assert workshop.index({"a": "about a"}).state == "succeeded"
