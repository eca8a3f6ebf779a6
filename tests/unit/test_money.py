"""Prices and amounts: how they are read, told and refused."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import Client
from pipeline.assembly import Services
from pipeline.errors import InvalidRequest, UnknownJob
from pipeline.ledger import spending
from pipeline.ledger.budgets import Budget, dollars
from pipeline.ledger.usage import Usage, parse_month
from pipeline.settings import CostSettings, load_settings
from pipeline.status import JobCost, JobStatus
from workers.cli.main import run as command
from workers.cli.outcome import cost_of

MODEL = "text-embedding-3-small"


@pytest.mark.parametrize(
    ("amount", "told"),
    [
        (0.0, "$0.00"),
        (12.345, "$12.35"),
        (1234567.0, "$1,234,567.00"),
        (0.5, "$0.50"),
        (0.0123, "$0.012"),
        (0.00042, "$0.00042"),
        (2e-8, "$0.000000020"),
        (-0.25, "$-0.25"),
    ],
)
def test_an_amount_is_told_with_two_digits_that_say_something(amount: float, told: str) -> None:
    assert dollars(amount) == told


@given(st.floats(1e-12, 1e9))
def test_no_amount_is_told_as_nothing(amount: float) -> None:
    assert float(dollars(amount)[1:].replace(",", "")) == pytest.approx(amount, rel=0.06)


def test_what_is_embedded_here_costs_nothing_and_the_batch_api_half() -> None:
    settings = CostSettings()

    assert spending.cost_of(settings, MODEL, "local", 1_000_000) == 0.0
    assert spending.cost_of(settings, MODEL, "openai", 1_000_000) == 0.02
    assert spending.cost_of(settings, MODEL, "openai_batch", 1_000_000) == 0.01
    assert spending.cost_of(settings, "a model of somebody's own", "openai", 1_000_000) == 0.0


def test_a_price_of_the_settings_stands_beside_the_known_ones() -> None:
    settings = CostSettings.model_validate({"prices": {"mine": {"online": 3.0}, MODEL: {"online": 5.0, "batch": 1.0}}})

    # Where nothing is said of the Batch API it is not taken for free
    assert (spending.price(settings, "mine").online, spending.price(settings, "mine").batch) == (3.0, 3.0)
    assert spending.price(settings, MODEL).online == 5.0
    assert spending.price(settings, "text-embedding-3-large").online == 0.13


@pytest.mark.parametrize(
    "wrong",
    [
        {"prices": {MODEL: {"online": -1.0}}},
        {"prices": {MODEL: {"online": float("inf")}}},
        {"prices": {MODEL: {"offline": 1.0}}},
        {"month_usd": -1.0},
        {"month_usd": float("nan")},
    ],
)
def test_prices_and_budgets_of_the_settings_are_amounts(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CostSettings.model_validate(wrong)


def test_a_month_is_a_month() -> None:
    assert parse_month("2026-11").isoformat() == "2026-11-01"
    for wrong in ("2026-13", "2026", "now", "2026-11-01", ""):
        with pytest.raises(InvalidRequest, match="like 2026-11"):
            parse_month(wrong)


def test_a_budget_leaves_what_is_neither_spent_nor_doubtful_nor_reserved() -> None:
    budget = Budget("tenant", "one", 10.0, 4.0, 1.0, 2.0, "operator", month=parse_month("2026-11"))

    assert budget.left == 3.0
    assert budget.has_room(3.0)
    assert not budget.has_room(3.001)
    assert str(budget) == (
        "tenant one's budget of November 2026: $4.00 spent, $1.00 doubtful, $2.00 reserved, of $10.00"
    )
    assert replace(budget, limit=None).left == math.inf
    assert replace(budget, spent=7.0).exhausted
    assert replace(budget, spent=9.0).left == 0.0


def test_sums_of_prices_fill_a_budget_to_the_last_cent() -> None:
    tenth = Budget("month", "", 1.0, sum([0.1] * 9), 0.0, 0.0, "settings", month=parse_month("2026-11"))

    assert tenth.has_room(0.1)
    assert replace(tenth, spent=sum([0.1] * 10)).exhausted


@pytest.mark.parametrize(
    ("cost", "usage", "told"),
    [
        (JobCost(), Usage(), ""),
        (JobCost(0.5, max=2.0), Usage(texts=1), "$0.50 of at most $2.00"),
        (JobCost(0.5, 0.25, 0.125, math.inf), Usage(), "$0.50, $0.25 reserved, $0.12 may have been spent besides"),
        (JobCost(), Usage(cached_texts=1, cached_cost=0.5), "$0.00; saved $0.50 by the cache"),
        (
            JobCost(1.0),
            Usage(cached_texts=1, cached_cost=0.5, batch_saved=1.0),
            "$1.00; saved $0.50 by the cache and $1.00 by the Batch API",
        ),
    ],
)
def test_what_a_job_costs_is_told_in_a_line(cost: JobCost, usage: Usage, told: str) -> None:
    status = JobStatus(
        *(uuid.UUID(int=1), "ingest", "notes", "default", "normal", "running", "embedding", {}, {}, (), None, 1.0, ""),
        cost=cost,
        usage=usage,
    )

    assert cost_of(status).startswith(told)
    assert bool(cost_of(status)) == bool(told)
    json.dumps(status.to_json(), allow_nan=False)


# -- bad input, of which nobody need be asked -------------------------------------------------------------------------


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server is there."""
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "home"))


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--set-budget", "much"),
        ("--set-budget", "-1"),
        ("--set-budget", "nan"),
        ("--set-budget", "1", "--clear-budget"),
        ("--set-budget", "1", "--month", "2026-11"),
        ("--set-budget", "1", "--tenant", "one", "--job", "00000000-0000-0000-0000-000000000002"),
        ("--reason", "none"),
        ("--month", "November"),
        ("--by", "colour"),
    ],
)
def test_wrong_use_of_the_command_is_told(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert command(["cost", *arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


@pytest.mark.usefixtures("nobody")
def test_wrong_requests_are_refused() -> None:
    with Client(services=Services(load_settings())) as client:
        for usd in (-1.0, math.nan):
            with pytest.raises(InvalidRequest, match="an amount of US dollars"):
                client.set_budget(usd)
        with pytest.raises(InvalidRequest, match="not both"):
            client.set_budget(1.0, job_id=uuid.uuid4(), tenant="one")
        with pytest.raises(InvalidRequest, match="none of day, month"):
            client.cost(by="colour")  # type: ignore[arg-type]
        with pytest.raises((InvalidRequest, UnknownJob)):
            client.cost(job_id="x")
