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
