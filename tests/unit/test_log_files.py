"""`millrace logs` on real files: merged by time, filtered, followed over a rotation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from workers.cli.main import run
from workers.embedded.logfiles import LogFile
from workers.embedded.part import rotate


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The logs of a home on which nothing runs."""
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def line(second: float, event: str, *, level: str = "info", process: str = "general1", **fields: Any) -> str:
    when = (datetime(2026, 1, 31, 9, 30, tzinfo=UTC) + timedelta(seconds=second)).isoformat(timespec="milliseconds")
    told = {"time": when, "level": level, "logger": "millrace.task", "event": event, "process": process, "pid": 1}
    return json.dumps(told | fields) + "\n"


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> list[str]:
    assert run(["logs", *arguments]) == status
    printed = capsys.readouterr()
    return (printed.err if status else printed.out).splitlines()


def events(printed: list[str]) -> list[str]:
    return [json.loads(text).get("event") or json.loads(text)["line"] for text in printed]


def test_lines_of_all_parts_are_merged_by_time(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (logs / "general1.log.1").write_text(line(1, "first"))
    (logs / "general1.log").write_text(line(3, "third") + "a traceback\n  of it\n" + line(6, "sixth"))
    (logs / "express.log").write_text(line(2, "second", process="express") + line(5, "fifth", process="express"))
    (logs / "postgres.log").write_text("2026-01-31 09:30:04.000 UTC [7] LOG:  fourth\n")

    assert events(shown(capsys, "--json")) == [
        "first", "second", "third", "a traceback", "  of it",
        "2026-01-31 09:30:04.000 UTC [7] LOG:  fourth", "fifth", "sixth",
    ]  # fmt: skip
    told = shown(capsys)
    assert [text.partition(" | ")[0] for text in told[:2]] == ["general1", "express"]
    assert told[0].endswith("info     task: first")
    assert told[3] == "general1 | a traceback"
    assert [text[-5:] for text in shown(capsys, "general1", "--lines", "2")] == ["of it", "sixth"]


def test_lines_are_found_by_what_they_are_about(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (logs / "general1.log").write_text(
        line(1, "prepared", job_id="j1", batch_id="7", correlation_id="c1")
        + "a line of somebody else about j1\n"
        + line(2, "embedded", job_id="j2", jobs=["j2", "j1"], batch_id="8", batches=["8", "9"], correlation_id="c2")
        + line(3, "other", job_id="j3", level="error", note="j1")
    )

    assert events(shown(capsys, "--job", "j1", "--json")) == ["prepared", "embedded"]
    assert events(shown(capsys, "--batch", "9", "--json")) == ["embedded"]
    assert events(shown(capsys, "--correlation", "c1", "--json")) == ["prepared"]
    assert events(shown(capsys, "--job", "j1", "--batch", "9", "--json")) == ["embedded"]
    assert events(shown(capsys, "--level", "warning", "--json")) == ["other"]
    assert events(shown(capsys, "--since", "2026-01-31T09:30:02+00:00", "--json")) == ["embedded", "other"]
    assert events(shown(capsys, "--since", "1h", "--json")) == []


def test_an_exception_follows_its_line(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (logs / "general1.log").write_text(line(1, "it failed", level="error", exception="Traceback\nRuntimeError: x"))

    assert shown(capsys, "general1")[1:] == ["Traceback", "RuntimeError: x"]


def test_where_there_are_no_logs_it_is_said(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there are no logs in" in shown(capsys, status=1)[0]
    (logs / "beat.log").write_text("")
    assert "'nothing' has no log; there are beat" in shown(capsys, "nothing", status=2)[-1]
    assert "'yesterday' is no time" in shown(capsys, "--since", "yesterday", status=2)[-1]


def test_a_log_is_followed_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "general1.log"
    path.write_text(line(1, "before"))
    file = LogFile(path)
    assert [found.text for found in file.lines()] == [line(1, "before").rstrip()]

    # When lines come, one of them in two parts, the log is rotated, and more lines come
    with path.open("a") as log:
        log.write(line(2, "just before the rotation") + line(3, "cut in two")[:20])
    assert [found.fields["event"] for found in file.new() if found.fields] == ["just before the rotation"]
    with path.open("a") as log:
        log.write(line(3, "cut in two")[20:] + line(4, "unread"))
    rotate(path, limit=10)
    path.write_text(line(5, "after"))

    # Then none is lost, and none is told twice
    assert [found.fields["event"] for found in file.new() if found.fields] == ["cut in two", "unread", "after"]
    assert list(file.new()) == []
    path.unlink()
    assert list(file.new()) == []


def test_the_command_follows_what_is_written_and_parts_that_begin(logs: Path) -> None:
    (logs / "general1.log").write_text(line(1, "old"))
    following = subprocess.Popen(
        [sys.executable, "-m", "workers.cli.main", "logs", "--follow", "--lines", "1", "--json"],
        env={**os.environ, "MILLRACE_HOME": str(logs.parent), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with following:
        assert following.stdout is not None
        try:
            assert json.loads(following.stdout.readline())["event"] == "old"
            (logs / "general2.log").write_text(line(2, "new", process="general2"))
            assert json.loads(following.stdout.readline())["event"] == "new"
            following.send_signal(signal.SIGINT)
            assert following.wait(60) == 0
        finally:
            following.kill()


def test_a_large_log_is_searched_quickly(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = "".join(line(number, "embedded", job_id=f"j{number}", seconds=0.1) for number in range(50_000))
    (logs / "general1.log").write_text(many)
    started = time.process_time()

    assert events(shown(capsys, "--job", "j49999", "--json")) == ["embedded"]
    assert time.process_time() - started < 10
