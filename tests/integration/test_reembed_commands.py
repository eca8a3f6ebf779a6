"""`millrace reembed` as a person types it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from command_line import eventually
from services import enter
from two_models import ManyModels, TwoModels
from workshop import COLLECTION, chunked, paragraph, paragraphs, with_work

from pipeline import Settings
from workers.cli.main import run


@pytest.fixture
def workshop(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoModels]:
    """With a command line on its servers, which knows its models."""
    made = TwoModels(with_work(chunked(settings), backoff_seconds=0.01))
    enter(made.settings, monkeypatch)
    models = [made.old, made.new]
    monkeypatch.setattr("pipeline.client.connection.Services", lambda opened: ManyModels(opened, models))
    made.index({"a": paragraphs("one", "two"), "b": paragraph("three")})
    yield made
    made.close()


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_it_is_begun_looked_at_cancelled_and_begun_again(
    workshop: TwoModels, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reembed", COLLECTION]) == 2
    assert run(["reembed", COLLECTION, "--model", "new", "--status"]) == 2
    assert "say one of --model NAME, --status, --retry and --cancel" in capsys.readouterr().err

    began = as_json(capsys, "reembed", COLLECTION, "--model", "new")
    assert (began["state"], began["chunks"]["total"], began["model"]["name"]) == ("building", 3, "new")
    assert run(["reembed", COLLECTION, "--model", "new"]) == 2
    assert "is being re-embedded with new already" in capsys.readouterr().err
    assert run(["reembed", COLLECTION, "--status"]) == 0
    assert "old (8 dimensions) -> new (12 dimensions)" in capsys.readouterr().out
    assert run(["jobs"]) == 0
    assert "reembed" in capsys.readouterr().out

    workshop.reach("built")
    assert as_json(capsys, "reembed", COLLECTION, "--cancel")["state"] == "cancelling"
    while workshop.status().ended_at is None:
        workshop.step()
    assert run(["reembed", COLLECTION, "--cancel"]) == 2
    assert "cancelled before" in capsys.readouterr().err

    # And waited for, while somebody does the work
    def work() -> None:
        eventually(lambda: workshop.status().ended_at is None)
        workshop.finish()

    worker = threading.Thread(target=work)
    worker.start()
    ended = as_json(capsys, "reembed", COLLECTION, "--model", "new", "--wait")
    worker.join()
    assert ended["switched_at"] is not None
    assert workshop.model() == "new"
    assert run(["job", ended["job_id"]]) == 0
    assert "chunks     3: 0 embedded, 3 reused" in capsys.readouterr().out, "they were embedded before it was cancelled"


def test_what_fails_is_told_and_tried_again(workshop: TwoModels, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.new.poison = "two"
    as_json(capsys, "reembed", COLLECTION, "--model", "new")
    for _ in range(4):
        workshop.step(100)
        workshop.work()

    assert run(["reembed", COLLECTION, "--status", "--wait"]) == 3
    told = capsys.readouterr().out
    assert "1 text could not be embedded" in told
    assert "a, chunk 2: " in told
    assert run(["dead"]) == 0
    assert "cannot embed two" in capsys.readouterr().out

    workshop.new.poison = None
    assert as_json(capsys, "reembed", COLLECTION, "--retry")["chunks"]["failed"] == 0
    workshop.finish()
    assert as_json(capsys, "reembed", COLLECTION, "--status")["state"] == "done"
