"""`millrace duties`, on the real ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from services import enter
from workshop import Workshop

from pipeline import Settings
from pipeline.ledger import duties, services
from pipeline.ledger.duties import DutyState
from tasks.duties import DEFINITIONS, DUTIES, run_duty
from workers.cli import main

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


@pytest.fixture
def line(settings: Settings, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line on the ledger of the workshop."""
    enter(settings, monkeypatch)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> tuple[str, str]:
    assert main.run(["duties", *arguments]) == status
    return capsys.readouterr()


@pytest.mark.usefixtures("line")
def test_the_command_lists_duties_with_their_last_run_and_what_is_wrong(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    run_duty(workshop.services, next(duty for duty in DUTIES if duty.name == "contract"))
    error = '{"error": "no"}'
    workshop.sql(f"UPDATE duties SET failures = 4, failed = true, result = '{error}' WHERE name = 'contract'")
    workshop.sql("UPDATE duties SET awaited_since = now() - interval '20 seconds' WHERE name = 'reconcile'")
    workshop.client.change_duty("webhooks", every="2m", enabled=False)
    with workshop.services.ledger.transaction() as connection:
        services.report(connection, "beat", "hosta", 17, {"rss": 80 * 2**20})
        duties.claim(connection, "sync", "worker-1@hosta/5", 5.0, 9.0)

    out, err = said(capsys)

    rows = {row[0]: row[1:] for row in (line.split("\t") for line in out.splitlines()) if len(row) > 1}
    assert sorted(rows) == NAMES
    assert rows["contract"][0] == "1m"
    assert " ago, took " in rows["contract"][1]
    assert rows["contract"][3:] == ["failed: no", "failed 4 times"]
    assert rows["webhooks"] == ["2m*", "never", "", "", "disabled"]
    assert rows["reconcile"] == ["3s", "never", "now", "", "overdue"]
    assert rows["sync"][4] == "running: worker-1@hosta/5"
    assert "beat       hosta 17, since " in out
    assert "80 MB" in out
    assert "the duty reconcile has not ended a run for 2" in err
    assert "the duty contract failed 4 times in a row: no" in err

    told = json.loads(said(capsys, "--json")[0])
    by_name = {duty["name"]: duty for duty in told["duties"]}
    assert by_name["reconcile"]["overdue"] is True
    assert by_name["webhooks"]["enabled"] is False
    assert by_name["webhooks"]["every_seconds"] == 120.0
    assert by_name["webhooks"]["next_in_seconds"] is None
    assert by_name["sync"]["running"] == "worker-1@hosta/5"
    assert [(beat["host"], beat["pid"], beat["alive"]) for beat in told["beats"]] == [("hosta", 17, True)]


@pytest.mark.usefixtures("line")
def test_the_command_runs_and_sets_a_duty(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "run", "reconcile")
    assert out.startswith("result     nothing to do\ntook       0.")
    told = json.loads(said(capsys, "run", "gc.interpreter", "--dry-run", "--json")[0])
    assert (told["duty"], told["dry_run"], told["error"]) == ("gc.interpreter", True, None)
    assert state(workshop, "gc.interpreter").last_run is None

    out, _ = said(capsys, "set", "contract", "--every", "30m", "--budget", "30s")
    assert out.splitlines() == [
        "duty       contract",
        "every      30m",
        "limit      500 rows (as the code has it)",
        "budget     30s",
        "state      enabled",
    ]
    told = json.loads(said(capsys, "set", "contract", "--disable", "--json")[0])
    assert (told["every_seconds"], told["enabled"]) == (1800.0, False)
    assert "every      1m (as the code has it)" in said(capsys, "set", "contract", "--reset")[0]

    with workshop.services.ledger.transaction() as connection:
        duties.claim(connection, "contract", "worker-1@hosta/5", 5.0, 9.0, asked=True)
    assert "worker-1@hosta/5 runs the duty contract now" in said(capsys, "run", "contract", status=1)[1]
