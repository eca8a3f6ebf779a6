"""`millrace cost`, and `--dry-run` of ingest and sync, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from services import enter
from till import price, provider, workshop
from workshop import COLLECTION, Workshop, paragraphs

from workers.cli.main import run as command

__all__ = ["price", "provider", "workshop"]


@pytest.fixture
def environment(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line on the workshop's servers."""
    enter(workshop.settings, monkeypatch)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    assert command([*arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("environment")
def test_the_command_tells_what_was_spent_and_sets_budgets(
    workshop: Workshop, price: Callable[..., float], capsys: pytest.CaptureFixture[str]
) -> None:
    job = workshop.index({"a": paragraphs("one")}, provider="openai")
    told = said(capsys, "cost")
    assert told["spent"] == pytest.approx(price("one"))
    assert (told["texts"], told["by"], told["over_budget"]) == (1, "day", [])
    assert (told["rows"][0]["spent"], told["budgets"][0]["limit"]) == (told["spent"], None)
    assert said(capsys, "cost", "--job", str(job.job_id), "--by", "provider")["rows"][0]["provider"] == "openai"
    assert said(capsys, "cost", "--set-budget", "$2.50")["budget"]["limit"] == 2.5
    assert said(capsys, "cost", "--set-budget", "none", "--tenant", "one")["budget"]["limit"] is None
    assert said(capsys, "cost", "--set-budget", "0", "--reason", "enough")["budget"]["reason"] == "enough"
    (line,) = said(capsys, "cost")["over_budget"]
    assert "of $0.00" in line
    assert said(capsys, "cost", "--clear-budget")["budget"]["source"] == "settings"
    assert said(capsys, "cost", "--set-budget", "1", "--job", str(job.job_id))["budget"]["scope"] == "job"

    # For people too
    assert command(["cost", "--tenant", "default", "--collection", COLLECTION, "--job", str(job.job_id)]) == 0
    out = capsys.readouterr().out
    assert "spent      $0.0000" in out
    assert "of a job" not in out
    assert f"job {job.job_id}\t$1.00" in out
    assert command(["cost", "--clear-budget", "--job", str(job.job_id)]) == 0
    assert "no limit" in capsys.readouterr().out
    assert command(["job", str(job.job_id)]) == 0
    assert "cost       $0.0000" in capsys.readouterr().out


@pytest.mark.usefixtures("environment")
def test_a_dry_run_tells_and_does_nothing(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "docs"
    place.mkdir()
    (place / "a.txt").write_text("A text of a few words.")
    (place / "b.pdf").write_bytes(b"no pdf")
    told = said(capsys, "ingest", str(place), "--provider", "openai", "--collection", "new", "--dry-run")
    assert (told["dry_run"], told["exists"], told["chunks"]["new"]) == (True, False, 1)
    assert told["documents"] == {"total": 2, "new": 1, "unchanged": 0, "failed": 1, "deleted": 0, "skipped": 0}
    assert {offer["provider"] for offer in told["providers"]} == {"local", "openai", "openai_batch"}
    assert said(capsys, "sync", str(place), "--provider", "openai", "--dry-run")["documents"]["deleted"] == 0
    hurried = said(
        capsys,
        *("ingest", str(place), "--dry-run", "--provider", "auto", "--need-by", "1h", "--max-cost", "0.00000001"),
        *("--model", "text-embedding-3-large", "--dimensions", "256"),
    )
    assert hurried["model"] == {"name": "text-embedding-3-large", "provider": "openai", "dimensions": 256}
    assert hurried["auto"]["provider"] in ("openai", "openai_batch")
    assert not any(offer["within_budget"] for offer in hurried["providers"] if offer["available"])
    assert command(["ingest", str(place), "--dry-run", "--provider", "openai_batch", "--need-by", "1h"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "LATER THAN IT IS NEEDED" in line]
    assert line.startswith("openai_batch\t")
    assert workshop.value("SELECT count(*) FROM collections") == 0
    assert workshop.value("SELECT count(*) FROM jobs") == 0

    assert command(["ingest", str(place), "--provider", "openai", "--dry-run"]) == 0
    found = capsys.readouterr()
    for words in (
        "which would be made",
        "documents  2: 1 new, 0 unchanged, 1 failed",
        "to embed   1 texts",
        "openai\t$0",
    ):
        assert words in found.out
    assert "would fail" in found.out
    assert "Nothing was enqueued" in found.err
    assert said(capsys, "ingest", str(place), "--provider", "openai", "--dry-run", "--wait", status=2)
    assert said(capsys, "sync", str(place), "--dry-run", "--every", "1h", status=2)
