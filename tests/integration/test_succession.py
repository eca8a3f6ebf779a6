"""A worker that died is succeeded by one of the same name: what it held is taken back at once, and it is a loss."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil
import pytest
from workshop import Workshop

from pipeline import Settings
from pipeline.duties import Bounds
from pipeline.errors import Unavailable
from pipeline.ledger import fleet
from tasks.maintenance import reconcile

DEAD, HEIR = "general@here#1", "general@here#2"
NO_PID = 2**22 + 1  # above what Linux gives to processes


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(settings)
    yield made
    made.close()


def held(workshop: Workshop, pid: int) -> int:
    """A batch that the worker DEAD, of that pid, holds with a fresh lease."""
    workshop.put({"a": "about a"})
    workshop.prepare()
    (batch,) = workshop.ready("embed")
    with workshop.services.ledger.transaction() as connection:
        fleet.report(connection, DEAD, "here", pid, "high,normal,low", 2)
    workshop.claim(batch.id, f"{DEAD}/{NO_PID}")
    return batch.id


def succeed(workshop: Workshop, host: str = "here") -> list[str]:
    with workshop.services.ledger.transaction() as connection:
        dead = fleet.succeed(connection, HEIR, host, psutil.pid_exists)
        fleet.report(connection, HEIR, host, os.getpid(), "high,normal,low", 2)
    return dead


def state(workshop: Workshop, batch_id: int) -> tuple[str, int, int]:
    (row,) = workshop.sql("SELECT state, attempts, losses FROM batches WHERE id = %(id)s", id=batch_id)
    return row["state"], row["attempts"], row["losses"]


def test_what_a_dead_worker_held_is_taken_back_when_its_successor_starts(workshop: Workshop) -> None:
    batch_id = held(workshop, NO_PID)
    reconcile(workshop.services, Bounds(100, 20.0))
    assert state(workshop, batch_id) == ("running", 0, 0), "its lease is good"

    assert succeed(workshop) == [DEAD]
    reconcile(workshop.services, Bounds(100, 20.0))

    assert state(workshop, batch_id) == ("ready", 0, 1), "a lost worker, and no fault of the work"
    workshop.work()
    assert workshop.texts() == {"a": ["about a"]}


def test_that_reconcile_was_away_too_delays_nothing(workshop: Workshop) -> None:
    # Given everything killed at once: after the gap nobody is sure that the ledger was not away
    batch_id = held(workshop, NO_PID)
    workshop.sql("INSERT INTO duties (name, seen_at) VALUES ('reconcile', now() - interval '1 minute')")

    succeed(workshop)
    reconcile(workshop.services, Bounds(100, 20.0))

    assert state(workshop, batch_id) == ("ready", 0, 1)


@pytest.mark.parametrize(("pid", "host"), [(os.getpid(), "here"), (NO_PID, "elsewhere")], ids=["alive", "elsewhere"])
def test_a_worker_that_lives_or_is_on_another_host_keeps_what_it_has(workshop: Workshop, pid: int, host: str) -> None:
    batch_id = held(workshop, pid)

    assert succeed(workshop, host) == []
    reconcile(workshop.services, Bounds(100, 20.0))

    assert state(workshop, batch_id) == ("running", 0, 0)


def test_one_step_of_reconcile_that_fails_does_not_keep_the_others_from_their_work(workshop: Workshop) -> None:
    # Given a job whose silent enqueuer cannot be told, and a batch whose worker died
    batch_id = held(workshop, NO_PID)
    workshop.sql(
        """CREATE FUNCTION fail() RETURNS trigger AS $$
             BEGIN RAISE EXCEPTION 'too slow' USING ERRCODE = 'query_canceled'; END $$ LANGUAGE plpgsql"""
    )
    workshop.sql("UPDATE jobs SET sealed_at = NULL, seen_at = now() - interval '1 hour'")
    workshop.sql("CREATE TRIGGER unsealed BEFORE UPDATE OF sealed_at ON jobs FOR EACH ROW EXECUTE FUNCTION fail()")
    succeed(workshop)

    with pytest.raises(Unavailable, match="too slow"):
        reconcile(workshop.services, Bounds(100, 20.0))

    assert state(workshop, batch_id) == ("ready", 0, 1)
    assert workshop.value("SELECT sent_at IS NOT NULL FROM batches WHERE id = %(id)s", id=batch_id)
