"""How the command line tells what went wrong: exit status, stderr, and one JSON object."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pipeline import broker
from pipeline.errors import LedgerUnavailable, UnknownJob
from workers import programs
from workers.cli import main
from workers.cli.output import print_table, waiting


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "home"))


def _fail(monkeypatch: pytest.MonkeyPatch, error: BaseException | int) -> None:
    """Makes `millrace status` raise, or end with a status."""

    def raise_it(as_json: bool) -> None:
        if isinstance(error, int):
            click.get_current_context().exit(error)
        else:
            raise error

    monkeypatch.setattr(main.millrace.commands["status"], "callback", raise_it)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UnknownJob("there is no job 7"), 2, "there is no job 7"),
        (LedgerUnavailable(), 1, "Postgres does not answer. Check MILLRACE_POSTGRES__URL"),
        (click.ClickException("no"), 1, "no"),
        (click.UsageError("not so"), 2, "not so"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("x"), 1, "a fault in Millrace: ZeroDivisionError('x'). The lines above say where"),
    ],
)
def test_an_error_is_told_on_stderr_and_as_one_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    _fail(monkeypatch, error)

    assert main.run(["status", "--json"]) == status

    output = capsys.readouterr()
    told = json.loads(output.out)
    kind = "Interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
    assert told["error"].startswith(message)
    assert (told["type"], told["exit_code"]) == (kind, status)
    assert output.err.endswith(f"error: {told['error']}\n")


@pytest.mark.parametrize("status", [0, 3])
def test_a_command_chooses_its_exit_status(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    _fail(monkeypatch, status)

    assert main.run(["status"]) == status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["up", "--workers", "99"], "99 is not in the range 0<=x<=64"),
        (["worker", "--express", "--queues", "low"], "--express and --queues exclude each other"),
        (["worker", "--queues", "low,lower"], "no queue lower; there are control, high, low, normal"),
        (["flower"], "MILLRACE_FLOWER__AUTH is not set"),
        (["migrate"], "MILLRACE_POSTGRES__URL is not set, and no stack runs"),
    ],
)
def test_wrong_use_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main.run(arguments) == 2

    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


def test_help_is_there_at_once() -> None:
    before = os.times()
    done = subprocess.run([sys.executable, "-m", "workers.cli.main"], capture_output=True, text=True, check=True)
    after = os.times()

    # Half a second where nothing else runs; what makes it slow are imports of seconds.
    computed = after.children_user + after.children_system - before.children_user - before.children_system
    assert computed < 5
    commands = re.findall(r"^  (\w+) ", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert {"up", "down", "status", "env", "logs", "migrate", "worker", "beat", "flower"} <= set(commands)
    loaded = "import sys, workers.cli.main; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert not [
        slow for slow in ("celery", "pydantic", "sqlalchemy", "qdrant_client", "numpy") if f"'{slow}'" in modules
    ]


def test_a_table_in_a_pipe_is_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "value"), [("a\tb", None), ("[red]c", 1)])

    assert capsys.readouterr().out == "a b\t\n[red]c\t1\n"


def test_progress_goes_to_stderr_or_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("starting") as tell:
        tell("half")
    with waiting("silent", quiet=True) as tell:
        tell("nothing")

    assert capsys.readouterr() == ("", "starting\nhalf\n")


def test_the_queues_of_the_command_line_are_those_of_the_broker() -> None:
    assert (broker.CONTROL_QUEUE, *broker.WORK_QUEUES) == programs.GENERAL_QUEUES
    assert programs.EXPRESS_QUEUES == (broker.CONTROL_QUEUE, "high")


def test_a_part_is_told_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.settings import load_settings

    monkeypatch.chdir(tmp_path)
    (tmp_path / "millrace.toml").write_text('[embedding]\npath = "model"\n')
    monkeypatch.setenv("MILLRACE_HOME", "home")
    monkeypatch.setenv(programs.STACK_VARIABLE, "another stack")

    environment = programs.program_environment(load_settings())

    assert environment["MILLRACE_HOME"] == str(tmp_path / "home")
    assert environment["MILLRACE_CONFIG"] == str(tmp_path / "millrace.toml")
    assert environment["MILLRACE_EMBEDDING__PATH"] == str(tmp_path / "model")
    assert programs.STACK_VARIABLE not in environment
    assert os.environ[programs.STACK_VARIABLE] == "another stack"
