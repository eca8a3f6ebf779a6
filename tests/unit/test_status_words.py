"""`millrace status` as people and pipes see it, where Redis is away."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from workers.cli import stack

FOUND: dict[str, Any] = {
    "processes": {"workers": [], "postgres": None},
    "health": {"score": 60, "issues": [], "unknown": ["duty_overdue", "error_rate"]},
    "alerts": {"critical": 1},
    "queues": {"high": {"messages": None, "ready_batches": 1234, "oldest_seconds": 130.2}},
    "workers": [
        {
            "id": "general1@here#1",
            "queues": ["control", "high"],
            "processes": [{"slot": -1, "rss": 100 * 2**20}, {"slot": 0, "rss": 300 * 2**20}],
        },
        {"id": "general2@here#2", "queues": ["low"], "processes": None},
    ],
    "jobs": {"queued": 1},
    "openai": None,
    "paused": [],
    "unfinished": {"total": 0, "jobs": []},
}


def test_people_see_units_and_every_worker_with_its_queues(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    stack._print_status(FOUND)
    lines = [line.split() for line in re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()]

    assert ["high", "?", "1,234", "2", "min"] in lines
    assert ["general1@here#1", "control,", "high", "1", "400", "MB,", "the", "largest", "300", "MB"] in lines
    assert ["general2@here#2", "low", "0"] in lines
    assert not [line for line in lines if line[:1] == ["part"]], "nothing here is of an embedded stack"


def test_a_pipe_gets_plain_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    stack._print_status(FOUND)
    assert "high\t\t1234\t130.2" in capsys.readouterr().out.splitlines()


def test_who_embeds_for_money_is_told_of_where_somebody_uses_it(capsys: pytest.CaptureFixture[str]) -> None:
    stack._print_status(FOUND)
    assert "openai" not in capsys.readouterr().out

    openai: dict[str, Any] = {
        "state": "well",
        "error": None,
        "until": None,
        "batches": {},
        "inputs": 0,
        "oldest_seconds": None,
    }
    stack._print_status({**FOUND, "openai": {**openai, "unpacked": 0}})
    assert "openai: well" in capsys.readouterr().out.splitlines()

    busy = {**openai, "state": "rate-limited", "error": "429", "until": "2026-11-22T10:00:05.123+00:00"}
    on_order = {"batches": {"in_progress": 2, "validating": 1}, "inputs": 120_000, "oldest_seconds": 7200.0}
    stack._print_status({**FOUND, "openai": {**busy, **on_order, "unpacked": 300}})
    assert (
        "openai: rate-limited, until 10:00:05 UTC (429); Batch API: 2 in_progress, 1 validating, 120,000 texts, "
        "the oldest 2 h 0 min old; 300 texts wait to be packed"
    ) in capsys.readouterr().out.splitlines()


def test_of_a_provider_whose_rest_is_over_no_time_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    on_order: dict[str, Any] = {"batches": {}, "inputs": 0, "oldest_seconds": None, "unpacked": 0}
    rested = {**on_order, "state": "key rejected", "error": "OpenAI rejects the key", "until": None}

    stack._print_status({**FOUND, "openai": rested})

    assert (
        "openai: key rejected, to be tried again now (OpenAI rejects the key)" in capsys.readouterr().out.splitlines()
    )
