"""Duties: when one is overdue or failing, what may be set, and that the docs name all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.duties import Bounds, check_change, failing, is_overdue, to_json, troubles
from pipeline.errors import InvalidRequest
from pipeline.ledger.duties import DutyState
from pipeline.ledger.engine import Ledger
from pipeline.settings import WorkSettings
from tasks.duties import DUTIES
from workers.cli import main
from workers.cli.duties import result_words
from workers.schedule import MOST_TICKS, beat_schedule, expiry

ROOT = Path(__file__).parents[2]


def state(name: str = "forget", **changes: Any) -> DutyState:
    """A duty of every ten minutes that has just run."""
    values: dict[str, Any] = {
        "name": name,
        "what": "Drops things.",
        "interval_seconds": 600.0,
        "limit": 500,
        "budget_seconds": 10.0,
        "dry_runs": False,
        "enabled": True,
        "changed": (),
        "last_run": None,
        "ran_seconds_ago": 5.0,
        "took_seconds": 0.1,
        "result": {"dropped": 1},
        "failed": False,
        "failures": 0,
        "due_seconds": 595.0,
        "waited_seconds": 5.0,
        "owner": None,
    }
    return DutyState(**{**values, **changes})


@pytest.mark.parametrize(
    ("name", "interval", "waited", "late"),
    [
        ("forget", 600.0, 1_799.0, False),
        ("forget", 600.0, 1_801.0, True),
        ("sync", 5.0, 29.0, False),  # three intervals are too little to be sure
        ("sync", 5.0, 31.0, True),
        ("reconcile", 3.0, 14.0, False),
        ("reconcile", 3.0, 16.0, True),
        ("reconcile", 20.0, 59.0, False),  # an operator has made it rarer
        ("reconcile", 20.0, 61.0, True),
    ],
)
def test_a_duty_is_overdue_after_three_intervals_and_reconcile_sooner_than_others(
    name: str, interval: float, waited: float, late: bool
) -> None:
    waiting = state(name, interval_seconds=interval, waited_seconds=waited)

    assert is_overdue(waiting) is late


def test_a_disabled_duty_is_neither_overdue_nor_failing_but_reconcile_disabled_is_trouble() -> None:
    off: dict[str, Any] = {"enabled": False, "waited_seconds": 9e9, "failures": 9}

    assert troubles([state("forget", **off)]) == []
    (trouble,) = troubles([state("reconcile", **off)])
    assert (trouble.duty, trouble.kind) == ("reconcile", "disabled")
    assert "millrace duties set reconcile --enable" in trouble.message


def test_a_duty_fails_when_it_failed_three_times_in_a_row() -> None:
    twice, thrice = state(failures=2), state(failures=3, failed=True, result={"error": "Qdrant is away\nand more"})

    assert failing([twice, thrice]) == [thrice]
    (trouble,) = troubles([twice, thrice])
    assert trouble.message == "the duty forget failed 3 times in a row: Qdrant is away"
    assert to_json(thrice)["troubles"] == [trouble.message]


def test_an_overdue_duty_says_since_when_and_what_to_do() -> None:
    (trouble,) = troubles([state("sync", interval_seconds=5.0, waited_seconds=47.2)])

    assert trouble.kind == "overdue"
    assert trouble.message == (
        "the duty sync has not ended a run for 47 s (every 5 s), nobody runs it; are beat and a worker running? "
        "`millrace duties run sync` runs it here"
    )


def test_a_run_is_over_when_its_time_is_up_or_its_process_wants_to_end() -> None:
    ends = [False]

    assert not Bounds(1, 60.0).over
    assert Bounds(1, 0.0).over
    bounds = Bounds(1, 60.0, interrupted=lambda: ends[0])
    assert not bounds.over
    ends[0] = True
    assert bounds.over
    assert not bounds.out_of_time


@pytest.mark.parametrize(
    ("name", "interval", "limit", "said"),
    [
        ("reconcile", 61.0, None, "at least every 60 seconds, not every 61"),
        ("forget", None, 0, "from 1 to 100,000, not 0"),
        ("forget", None, 100_001, "from 1 to 100,000, not 100,001"),
    ],
)
def test_a_duty_cannot_be_set_to_what_it_could_not_work_with(
    name: str, interval: float | None, limit: int | None, said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        check_change(name, interval, limit)


def test_a_result_is_told_in_words() -> None:
    assert result_words({"expired": 1_200, "sent": 0, "lost_messages": 2}) == "expired 1,200, lost messages 2"
    assert result_words({"expired": 0}) == "nothing to do"
    assert result_words({"points": 5, "over_budget": 1}) == "points 5; its time was up"
    assert result_words({"error": "Qdrant is away"}) == "failed: Qdrant is away"


def test_every_duty_has_a_name_of_its_own_says_what_it_does_and_ends_before_it_is_taken_for_stuck() -> None:
    assert len({duty.name for duty in DUTIES}) == len(DUTIES)
    for duty in DUTIES:
        assert duty.what.endswith("."), duty.name
        assert 0 < duty.budget_seconds <= min(WorkSettings().stall_seconds / 2, 20 * duty.interval_seconds), duty.name
        assert duty.interval_seconds >= 1, duty.name
        check_change(duty.name, duty.interval_seconds, duty.limit)


def test_beat_has_an_entry_of_each_duty_whose_ticks_end_with_their_interval() -> None:
    schedule = beat_schedule()

    assert {name.removeprefix("duty.") for name in schedule} == {duty.name for duty in DUTIES}
    assert schedule["duty.reconcile"]["options"] == {"queue": "control", "expires": 3.0}
    assert expiry(0.5) == 2.0
    assert len(schedule) * 4 == MOST_TICKS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["duties", "stop"], "'stop' is not one of 'run', 'set'"),
        (["duties", "run"], "say which duty to run"),
        (["duties", "set", "forget"], "say what to set"),
        (["duties", "--dry-run"], "--dry-run is for `millrace duties run NAME`"),
        (["duties", "--every", "5m"], "--every is for `millrace duties set NAME`"),
        (["duties", "run", "forget", "--disable"], "--enable is for `millrace duties set NAME`"),
        (["duties", "run", "cleaning"], "no duty 'cleaning'; there are "),
        (["duties", "set", "cleaning", "--reset"], "no duty 'cleaning'; there are "),
        (["duties", "run", "reconcile", "--dry-run"], "the duty reconcile cannot say what it would do"),
    ],
)
def test_what_is_not_understood_is_told_in_words(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))

    def asked(_: Ledger) -> None:
        raise AssertionError("something was asked for over the network")

    monkeypatch.setattr(Ledger, "transaction", asked)

    assert main.run(arguments) == 2

    assert said in capsys.readouterr().err


def test_the_table_of_duties_in_the_docs_is_that_of_the_code() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "duties.py", "--check"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
