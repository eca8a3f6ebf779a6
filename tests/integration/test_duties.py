"""Duties on the real ledger: leases, limits that an operator sets, dry runs, and beat's understudy."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import redis
from workshop import Workshop

from pipeline import Settings
from pipeline.assembly import Services
from pipeline.duties import Bounds, troubles
from pipeline.errors import BrokerUnavailable, DutyHeld, InvalidRequest, LedgerUnavailable, UnknownDuty
from pipeline.ledger import batches, duties, services
from pipeline.ledger.duties import DutyState
from tasks import duties as running
from tasks.duties import DEFINITIONS, DUTIES, run_duty, run_now
from tasks.duty import Counts, Duty
from workers import standin
from workers.schedule import MOST_TICKS
from workers.understudy import Understudy

NAMES = sorted(duty.name for duty in DUTIES)


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(settings)
    with made.services.ledger.transaction() as connection:
        duties.register(connection, DEFINITIONS)
    yield made
    made.close()


def state(workshop: Workshop, name: str) -> DutyState:
    (found,) = [found for found in workshop.client.duties() if found.name == name]
    return found


def ticks(queues: redis.Redis) -> list[str]:
    """The tasks that wait in the control queue, the newest first; and empties it."""
    found = [json.loads(message)["headers"]["task"] for message in queues.lrange("millrace:control", 0, -1)]
    queues.delete("millrace:control")
    return found


def known(workshop: Workshop, duty: Duty) -> Duty:
    """A duty of this test, as the ledger knows those of the code."""
    with workshop.services.ledger.transaction() as connection:
        duties.register(connection, [duty.definition])
    return duty


# -- a run -----------------------------------------------------------------------------------------------------------


def test_any_fault_of_a_duty_is_told_in_its_row_and_the_lease_is_given_back(workshop: Workshop) -> None:
    def divides(opened: Services, bounds: Bounds) -> Counts:
        """Divides by nothing."""
        return {"found": bounds.rows // 0}

    duty = known(workshop, Duty("divides", 0.0, 1, divides, 5.0))
    for _ in range(3):
        assert run_duty(workshop.services, duty) == {}

    found = state(workshop, "divides")
    assert (found.failed, found.failures, found.owner) == (True, 3, None)
    assert found.result == {"error": "ZeroDivisionError: integer division or modulo by zero"}
    assert [trouble.kind for trouble in troubles([found])] == ["failing"]
    # And one run that ends well makes it well
    run_duty(workshop.services, Duty("divides", 0.0, 1, lambda *_: {}, 5.0))
    assert (state(workshop, "divides").failures, troubles([state(workshop, "divides")])) == (0, [])


def test_a_run_that_is_over_its_budget_ends_after_its_step_and_says_so(workshop: Workshop) -> None:
    steps: list[int] = []

    def endless(opened: Services, bounds: Bounds) -> Counts:
        """Goes on for ever."""
        while True:
            steps.append(bounds.rows)
            if bounds.over:
                return {"steps": len(steps)}

    duty = known(workshop, Duty("endless", 0.0, 7, endless, 60.0))
    workshop.client.change_duty("endless", budget="0.1s", limit=3)

    counts = run_duty(workshop.services, duty)

    assert counts == {"steps": len(steps), "over_budget": 1}
    assert set(steps) == {3}
    found = state(workshop, "endless")
    assert found.result == counts
    assert found.took_seconds is not None
    assert 0.09 < found.took_seconds < 60.0


def test_a_run_whose_duty_was_taken_over_ends_at_its_next_step_and_overwrites_nothing(workshop: Workshop) -> None:
    def slow(opened: Services, bounds: Bounds) -> Counts:
        """Is taken over in the middle."""
        workshop.sql("UPDATE duties SET epoch = epoch + 1, result = '{\"other\": 1}' WHERE name = 'slow'")
        workshop.sql("UPDATE duties SET lease_until = clock_timestamp() + interval '9 s' WHERE name = 'slow'")
        for _ in range(10_000_000):
            if bounds.over:
                break
        return {"went": 1}

    heartbeat = workshop.settings.work.model_copy(update={"heartbeat_seconds": 0.05})
    quick = Workshop(workshop.settings.model_copy(update={"work": heartbeat}))
    duty = known(workshop, Duty("slow", 0.0, 1, slow, 30.0))

    assert run_duty(quick.services, duty) == {}, "it raised LeaseLost, long before its budget"

    assert state(workshop, "slow").result == {"other": 1}
    quick.close()


def test_the_row_decides_how_often_a_duty_runs_and_whether(workshop: Workshop) -> None:
    duty = known(workshop, Duty("often", 3600.0, 1, lambda *_: {"ran": 1}, 5.0))
    assert run_duty(workshop.services, duty) == {"ran": 1}
    assert run_duty(workshop.services, duty) is None
    assert state(workshop, "often").due_seconds == pytest.approx(3600, abs=60)

    # Another interval counts from the last run
    assert workshop.client.change_duty("often", every="2h").due_seconds == pytest.approx(7200, abs=60)
    assert workshop.client.change_duty("often", every="1s").due_seconds <= 1.0
    workshop.sql("UPDATE duties SET due_at = due_at - interval '1 second' WHERE name = 'often'")
    assert run_duty(workshop.services, duty) == {"ran": 1}

    workshop.client.change_duty("often", enabled=False)
    workshop.sql("UPDATE duties SET due_at = clock_timestamp() WHERE name = 'often'")
    assert run_duty(workshop.services, duty) is None

    # Enabled again it is due at once, and has not been waited for meanwhile
    workshop.sql("UPDATE duties SET awaited_since = '2020-01-01', ran_at = '2020-01-01' WHERE name = 'often'")
    assert workshop.client.change_duty("often", enabled=True).waited_seconds < 60
    assert run_duty(workshop.services, duty) == {"ran": 1}


def test_what_was_set_is_kept_when_something_else_is_set_and_reset_brings_the_code_back(workshop: Workshop) -> None:
    change = workshop.client.change_duty
    change("contract", every="5m", limit=10)
    found = change("contract", budget="90s", enabled=False)
    assert (found.interval_seconds, found.limit, found.budget_seconds, found.enabled) == (300.0, 10, 90.0, False)
    assert found.changed == ("interval_seconds", "limit", "budget_seconds", "enabled")

    found = change("contract", reset=True, limit=20)
    assert (found.interval_seconds, found.limit, found.budget_seconds, found.enabled) == (60.0, 20, 20.0, True)
    assert found.changed == ("limit",)

    for given, said in (
        ({"every": "0.5s"}, "from 1 seconds to"),
        ({"budget": "1h"}, "from 0.1 seconds to 600 seconds"),
        ({"limit": 0}, "from 1 to"),
        ({}, "nothing is changed"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            change("contract", **given)
    with pytest.raises(UnknownDuty, match="there are alerts, "):
        change("contrast", enabled=True)


def test_a_duty_of_an_older_version_is_not_missed_and_keeps_what_was_set(workshop: Workshop) -> None:
    known(workshop, Duty("old", 1.0, 1, lambda *_: {}, 5.0))
    workshop.client.change_duty("old", every="2s")
    workshop.sql("UPDATE duties SET awaited_since = '2020-01-01'")

    with workshop.services.ledger.transaction() as connection:
        duties.register(connection, DEFINITIONS, retire=True)
        asked = dict(duties.ask_late(connection))

    assert [found.name for found in workshop.client.duties()] == NAMES
    assert sorted(asked) == NAMES
    known(workshop, Duty("old", 1.0, 1, lambda *_: {}, 5.0))
    assert state(workshop, "old").interval_seconds == 2.0


def test_a_duty_is_awaited_since_somebody_lives_who_could_run_it(workshop: Workshop) -> None:
    workshop.sql("UPDATE duties SET awaited_since = now() - interval '1 hour', ran_at = now() - interval '1 hour'")
    assert {trouble.kind for trouble in troubles(workshop.client.duties())} == {"overdue"}

    # A stack that was down for an hour has just been started
    workshop.sql("INSERT INTO workers (id, host, pid, queues, slots) VALUES ('w', 'h', 1, 'control,high', 1)")
    assert troubles(workshop.client.duties()) == []

    workshop.sql("UPDATE workers SET started_at = now() - interval '16 seconds'")
    assert [trouble.duty for trouble in troubles(workshop.client.duties())] == ["reconcile"]


def test_a_reconcile_that_was_made_rarer_still_takes_expired_leases_back(workshop: Workshop) -> None:
    """It counts anew after a gap in which nobody reached the ledger; its own interval is no such gap."""
    workshop.client.change_duty("reconcile", every="30s")
    run_now(workshop.services, "reconcile")
    workshop.put({"a": "about apples"})
    (batch,) = workshop.ready()
    with workshop.services.ledger.transaction() as connection:
        assert batches.claim(connection, batch.id, "worker-1@gone#dead/17", 0.0)
    ago = "clock_timestamp() - interval '29 seconds'"
    workshop.sql(f"UPDATE duties SET seen_at = {ago}, steady_since = {ago} - interval '1 hour'")
    workshop.sql(f"UPDATE batches SET lease_until = {ago} + interval '5 seconds'")

    assert run_now(workshop.services, "reconcile").counts["expired"] == 1


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_a_duty_runs_by_hand_due_or_not_and_not_beside_another_run(workshop: Workshop) -> None:
    assert run_now(workshop.services, "reconcile").error == ""
    workshop.client.change_duty("reconcile", enabled=False)
    run = run_now(workshop.services, "reconcile")
    assert run.counts["expired"] == 0
    assert state(workshop, "reconcile").result == run.counts

    with workshop.services.ledger.transaction() as connection:
        assert duties.claim(connection, "reconcile", "worker-7@host/42", 3.0, 9.0, asked=True)
    assert state(workshop, "reconcile").owner == "worker-7@host/42"
    with pytest.raises(DutyHeld, match=r"worker-7@host/42 runs the duty reconcile now \(its lease lasts"):
        run_now(workshop.services, "reconcile")
    with pytest.raises(UnknownDuty, match="there are alerts, "):
        run_now(workshop.services, "reconsider")


def test_a_run_by_hand_that_is_interrupted_gives_its_lease_back(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(opened: Services, bounds: Bounds) -> Counts:
        """Is ended by Ctrl-C."""
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "DUTIES", (Duty("contract", 60.0, 1, interrupted, 5.0),))

    with pytest.raises(KeyboardInterrupt):
        run_now(workshop.services, "contract")

    assert (state(workshop, "contract").owner, state(workshop, "contract").last_run) == (None, None)


def test_a_dry_run_needs_no_lease_and_leaves_no_trace(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def drops(opened: Services, bounds: Bounds) -> Counts:
        """Drops rows."""
        return {"dropped": 0 if bounds.dry_run else bounds.rows, "would_drop": bounds.rows}

    duty = known(workshop, Duty("drops", 600.0, 5, drops, 5.0, dry_runs=True))
    monkeypatch.setattr(running, "DUTIES", (*DUTIES, duty))
    workshop.client.change_duty("drops", limit=4)
    with workshop.services.ledger.transaction() as connection:
        duties.claim(connection, "drops", "another", 600.0, 9.0)

    run = run_now(workshop.services, "drops", dry_run=True)

    assert run.counts == {"dropped": 0, "would_drop": 4}
    assert (state(workshop, "drops").last_run, state(workshop, "drops").owner) == (None, "another")
    with pytest.raises(InvalidRequest, match=r"the duty reconcile cannot say what it would do; .*drops"):
        run_now(workshop.services, "reconcile", dry_run=True)


# -- without beat ----------------------------------------------------------------------------------------------------


def test_while_no_beat_lives_a_worker_asks_for_what_is_due_and_only_one_of_them(
    workshop: Workshop, queues: redis.Redis
) -> None:
    ledger, broker = workshop.services.ledger, workshop.services.broker
    understudies = [Understudy(ledger, broker) for _ in range(3)]

    assert understudies[0].look()
    assert [understudy.look() for understudy in understudies[1:]] == [[], []]

    asked = ticks(queues)
    assert sorted(asked) == [f"duty.{name}" for name in NAMES]
    # A few seconds later what was not taken is asked for again
    workshop.sql("UPDATE duties SET asked_at = asked_at - interval '3 seconds'")
    workshop.client.change_duty("webhooks", enabled=False)
    assert run_duty(workshop.services, next(duty for duty in DUTIES if duty.name == "contract")) is not None
    assert sorted(understudies[1].look()) == sorted({*NAMES} - {"webhooks", "contract"})


def test_while_beat_lives_a_worker_asks_only_for_what_is_due_for_long(workshop: Workshop, queues: redis.Redis) -> None:
    understudy = Understudy(workshop.services.ledger, workshop.services.broker)
    with workshop.services.ledger.transaction() as connection:
        services.report(connection, "beat", "hosta", 17, {})
    workshop.sql("UPDATE duties SET due_at = clock_timestamp() - interval '12 seconds'")

    soon = ["openai.poll", "reconcile", "reembed", "sync", "webhooks"]
    assert sorted(understudy.look()) == soon, "longer ones may still come"

    # And when beat has fallen silent, for all of them
    workshop.sql("UPDATE services SET seen_at = clock_timestamp() - interval '16 seconds'")
    assert sorted(understudy.look()) == sorted({*NAMES} - {*soon})


def test_understudies_fill_the_queue_no_further_than_beat_does(workshop: Workshop, queues: redis.Redis) -> None:
    understudy = Understudy(workshop.services.ledger, workshop.services.broker)
    for _ in range(10):
        workshop.sql("UPDATE duties SET asked_at = NULL")
        understudy.look()

    assert queues.llen("millrace:control") == MOST_TICKS
    (message,) = queues.lrange("millrace:control", 0, 0)
    assert json.loads(base64.b64decode(json.loads(message)["body"]))[0] == []
    assert json.loads(message)["headers"]["expires"] is not None


def test_a_broker_or_a_ledger_that_is_away_is_told_to_the_understudy(
    settings: Settings, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(standin.Standin, "start", lambda _: started.append("standin"))
    cut_off = _without_redis(settings)
    with pytest.raises(BrokerUnavailable):
        Understudy(cut_off.services.ledger, cut_off.services.broker).look()
    cut_off.close()
    assert started == ["standin"], "alerts were due, and no tick can say so"
    nowhere = {"url": _secret("postgresql://127.0.0.1:1/x"), "connect_timeout": 0.5}
    nobody = {"postgres": settings.postgres.model_copy(update=nowhere)}
    cut_off = Workshop(settings.model_copy(update=nobody))
    with pytest.raises(LedgerUnavailable):
        Understudy(cut_off.services.ledger, cut_off.services.broker).look()
    cut_off.close()


def test_where_redis_is_away_alerts_are_raised_all_the_same(
    settings: Settings, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off = _without_redis(settings)
    monkeypatch.setattr("pipeline.settings.load_settings", lambda: cut_off.services.settings)
    monkeypatch.setattr("pipeline.monitoring.logs.configure", lambda *_, **__: None)

    standin.main()
    standin.main()  # not due again yet

    raised = {alert.type: alert.severity for alert in cut_off.client.alerts()}
    assert raised["redis_away"] == "critical"
    assert state(workshop, "alerts").last_run is not None
    assert state(workshop, "webhooks").last_run is not None
    assert "duty_overdue" not in raised
    cut_off.close()


def _without_redis(settings: Settings) -> Workshop:
    nobody: Mapping[str, Any] = {"redis": settings.redis.model_copy(update={"url": _secret("redis://127.0.0.1:1/0")})}
    return Workshop(settings.model_copy(update=nobody))


def _secret(url: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(url)
