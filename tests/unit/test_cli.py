"""The document commands: what they understand, what they refuse, and how a job is told."""

from __future__ import annotations

import io
import json
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from rich.console import Console

from pipeline.audit import AuditReport
from pipeline.client import DEFAULT_COLLECTION
from pipeline.ledger.diagnosis import Waiting
from pipeline.ledger.jobs import PRIORITIES
from pipeline.lifecycle import JOB
from pipeline.search import Result, SearchResult
from pipeline.sources import file_uri
from pipeline.status import JobStatus
from workers.cli import audit, documents, jobs, main, options, outcome, progress, search
from workers.cli.options import as_filters, as_metadata

DOCUMENT_COMMANDS = (
    "ingest", "sync", "schedules", "delete", "documents", "search", "embed", "jobs", "job", "wait", "cancel",
    "collections", "audit", "rebuild",
)  # fmt: skip


def status(**changes: Any) -> JobStatus:
    """A running job of 4 documents, half done, with some changes."""
    running = JobStatus(
        job_id=uuid.UUID(int=7),
        kind="ingest",
        collection="notes",
        tenant="default",
        priority="normal",
        state="running",
        stage="embedding",
        documents={"total": 4, "indexed": 1, "unchanged": 1, "deleted": 0, "failed": 0},
        chunks={"total": 1200, "embedded": 600, "reused": 0, "indexed": 600},
        errors=(),
        waiting=None,
        seconds=20.0,
        created_at="2025-11-21T10:00:00+00:00",
        expected_chunks=1200,
        rate=30.4,
        eta_seconds=19.7,
    )
    return replace(running, **changes)


@pytest.fixture
def command(module_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line on a ledger with nothing in it."""
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MILLRACE_POSTGRES__URL", module_postgres_url)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", DOCUMENT_COMMANDS)
def test_every_command_has_help_and_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0

    said = capsys.readouterr().out
    assert said.startswith(f"Usage: millrace {name} ")
    assert "--json" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ingest"], "Missing argument 'PATH...'"),
        (["ingest", "-"], "`-` needs --uri NAME"),
        (["ingest", "-", "more.md", "--uri", "x"], "goes with no other path"),
        (["ingest", "more.md", "--uri", "x"], "--uri names the document that `-` reads"),
        (["ingest", "x", "--metadata", "lang"], "'lang' is not KEY=VALUE"),
        (["ingest", "x", "--metadata", "a=1", "--metadata", "a=2"], "'a' is given twice"),
        (["ingest", "x", "--priority", "urgent"], "'urgent' is not one of 'high', 'normal', 'low'"),
        (["ingest", "missing.md"], "missing.md does not exist"),
        (["ingest", "ftp://host/x"], "ftp:// is not a source"),
        (["sync", "missing"], "missing does not exist"),
        (["sync", "missing", "--every", "1h"], "missing does not exist"),
        (["sync", ".", "--every", "1h", "--wait"], "--wait is for a single sync"),
        (["sync", ".", "--every", "soon"], "'soon' is not an interval"),
        (["ingest", ".", "--need-by", "yesterday"], "or a time such as 2026-12-24T18:00"),
        (["schedules", "pause"], "say which schedule to pause"),
        (["schedules", "remove", "7"], "there is no schedule 7"),
        (["schedules", "stop", "7"], "'stop' is not one of"),
        (["sync"], "Missing argument 'SOURCE'"),
        (["delete"], "say which documents: URI..., or --filter KEY=VALUE"),
        (["delete", "--filter", "=x"], "'=x' is not KEY=VALUE"),
        (["delete", "x", "--collection", "nowhere"], "there is no collection 'nowhere'"),
        (["documents", "--collection", "nowhere"], "there is no collection 'nowhere'"),
        (["search", "x", "--collection", "nowhere"], "there is no collection 'nowhere'"),
        (["search", "x", "--limit", "0"], "0 is not in the range x>=1"),
        (["search"], "Missing argument 'QUERY...'"),
        (["collections", "nowhere"], "there is no collection 'nowhere'"),
        (["audit", "--collection", "nowhere"], "there is no collection 'nowhere'"),
        (["job", "nonsense"], "'nonsense' is not the id of a job"),
        (["wait", str(uuid.UUID(int=1))], f"there is no job {uuid.UUID(int=1)}"),
        (["cancel", str(uuid.UUID(int=1))], f"there is no job {uuid.UUID(int=1)}"),
        (["jobs", "--state", "lost"], "'lost' is not one of"),
    ],
)
@pytest.mark.usefixtures("command")
def test_wrong_use_ends_with_2_and_names_what_was_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == 2

    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


@pytest.mark.usefixtures("command")
def test_json_is_one_object_on_stdout_when_it_goes_wrong_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["search", "x", "--collection", "nowhere", "--json"]) == 2

    told = json.loads(capsys.readouterr().out)
    assert (told["type"], told["exit_code"]) == ("UnknownCollection", 2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["jobs"], {"jobs": []}),
        (["jobs", "--state", "failed", "--limit", "3"], {"jobs": []}),
        (["collections"], {"collections": []}),
        (["schedules"], {"schedules": []}),
    ],
)
@pytest.mark.usefixtures("command")
def test_a_list_of_nothing_is_an_empty_list(
    arguments: list[str], expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected

    assert main.run(arguments) == 0
    assert capsys.readouterr() == ("", "")


def test_without_a_stack_a_command_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MILLRACE_POSTGRES__URL", raising=False)

    assert main.run(["wait", str(uuid.UUID(int=1))]) == 1

    assert "Start one with `millrace up`" in capsys.readouterr().err


def test_the_command_line_has_the_words_of_the_domain() -> None:
    assert tuple(JOB) == jobs.STATES
    priority = next(one for one in documents.ingest.params if one.name == "priority")
    collection = next(one for one in documents.ingest.params if one.name == "collection")
    assert isinstance(priority.type, click.Choice)
    assert tuple(priority.type.choices) == PRIORITIES
    assert collection.default == DEFAULT_COLLECTION
    assert (outcome.FAILED, outcome.PARTIAL, outcome.INTERRUPTED) == (main.FAILED, main.PARTIAL, main.INTERRUPTED)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("en", "en"), ("12", 12), ("-1.5", -1.5), ("true", True), ("null", None), ('"12"', "12"), ("", ""),
        ("[1]", "[1]"), ('{"a": 1}', '{"a": 1}'), ("007", "007"), ("NaN", "NaN"), ("-Infinity", "-Infinity"),
        ("a=b", "a=b"),
    ],
)  # fmt: skip
def test_a_metadata_value_is_a_json_scalar_or_text(text: str, value: object) -> None:
    pair = options.PAIR.convert(f"key={text}", None, None)
    assert as_metadata([pair]) == {"key": value}


def test_a_filter_given_twice_matches_either_value() -> None:
    assert as_filters([("lang", "en"), ("pages", "3"), ("lang", "de")]) == {"lang": ["en", "de"], "pages": "3"}


def test_a_path_is_taken_for_what_it_was_ingested_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    here = file_uri(tmp_path)
    assert documents._place("a b.md") == f"{here}/a b.md"
    assert documents._place("~/a.md") == f"{here}/a.md"
    assert documents._place("HTTPS://Example.org#top") == "https://example.org/"
    assert documents._place("https://u:p@example.org") == "https://u:p@example.org"
    assert documents._place("python:language/with") == f"{here}/python:language/with"
    assert documents._place("db://table/1") == "db://table/1"


def test_a_prefix_is_a_path_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "a.md").touch()
    assert documents._prefix("docs") == documents._prefix("docs/") == f"{file_uri(tmp_path)}/docs/"
    assert documents._prefix("a.md") == f"{file_uri(tmp_path)}/a.md"
    assert documents._prefix("python:lang") == "python:lang"
    assert documents._prefix("") == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.04 s"), (2.44, "2.4 s"), (24.2, "24 s"), (100, "2 min"), (7500, "2 h 5 min")]
)
def test_a_duration_is_said_as_people_say_it(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "600/1,200 chunks, 30/s, 20 s left"),
        ({"stage": "preparing", "expected_chunks": 2400, "eta_seconds": 59}, "600/~2,400 chunks, 30/s, 59 s left"),
        ({"stage": "staging", "rate": None, "eta_seconds": None}, "4 documents read"),
        ({"expected_chunks": 0, "chunks": {"indexed": 0}, "rate": None, "eta_seconds": None}, "4 documents"),
        ({"kind": "delete", "rate": None, "eta_seconds": None}, "2/4 documents"),
    ],
)
def test_figures_count_what_the_stage_works_on(changes: dict[str, Any], words: str) -> None:
    assert progress.figures(status(**changes)) == words


def test_in_a_pipe_progress_is_a_line_when_something_changed_every_two_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a clock that is told what time it is
    clock = [0.0]
    monkeypatch.setattr("workers.cli.progress.time", SimpleNamespace(monotonic=lambda: clock[0]))
    written = io.StringIO()
    with progress.job_progress(Console(file=written, width=40)) as show:
        # When statuses come faster than lines may
        for seconds, indexed in ((0.0, 600), (1.9, 700), (2.1, 700), (4.2, 700), (6.5, 800)):
            clock[0] = seconds
            show(status(chunks={"indexed": indexed}, eta_seconds=None))
        clock[0] = 9.0
        show(status(rate=None, eta_seconds=None, waiting=Waiting("queued")))
        clock[0] = 12.0
        show(status(rate=None, eta_seconds=None, waiting=Waiting("no worker")))
        clock[0] = 15.0
        show(status(state="succeeded"))

    # Then there is a line for each change that could be told
    assert written.getvalue().splitlines() == [
        "embedding: 600/1,200 chunks, 30/s",
        "embedding: 700/1,200 chunks, 30/s",
        "embedding: 800/1,200 chunks, 30/s",
        "embedding: 600/1,200 chunks",
        "embedding: 600/1,200 chunks; waiting: no worker",
    ]


def test_in_a_terminal_progress_is_a_bar_that_says_why_it_stands_still() -> None:
    written = io.StringIO()
    with progress.job_progress(Console(file=written, force_terminal=True, width=100)) as show:
        show(status(waiting=Waiting("no live worker consumes the queue normal")))
    shown = written.getvalue()
    assert "embedding" in shown
    assert "600/1,200 chunks, 30/s, 20 s left" in shown
    assert "waiting: no live worker consumes the queue normal" in shown


@pytest.mark.parametrize(
    ("state", "expected"),
    [("queued", 0), ("running", 0), ("succeeded", 0), ("partial", 3), ("failed", 1), ("cancelled", 1)],
)
def test_the_exit_status_says_how_the_job_ended(state: Any, expected: int) -> None:
    assert outcome.exit_status(status(state=state)) == expected


def test_a_job_is_told_with_its_first_errors_and_how_many_more(capsys: pytest.CaptureFixture[str]) -> None:
    errors = [{"uri": f"file:///{number}.pdf", "error": "is broken"} for number in range(100)]
    counts = {"total": 200, "indexed": 50, "failed": 150, "skipped": 12}
    outcome.print_job(status(state="partial", stage="done", documents=counts, errors=errors, error="cut off"))

    said = capsys.readouterr().out.splitlines()
    assert said[1:6] == [
        "state      partial after 20 s",
        "documents  200: 50 indexed, 150 failed",
        "left out   12 files of formats that Millrace does not know, or links to others",
        "chunks     1,200: 600 embedded, 0 reused",
        "error      cut off",
    ]
    assert said[6] == "failed     file:///0.pdf: is broken"
    assert said[16] == f"           and 140 more; `millrace job {uuid.UUID(int=7)} --json` lists up to 100"
    assert len(said) == 17


def test_what_was_not_there_to_delete_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome.documents_of(status(kind="delete")) == "4: 1 indexed, 1 not there"


def test_a_result_is_wrapped_to_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    result = Result("1", 0.5, "water runs through the mill race " * 5, "file:///a.md", "The mill", {})
    search._print_result(1, result, "mill")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == " 1 0.500 The mill  file:///a.md"
    assert all(line.startswith("         ") and len(line) <= 50 for line in said[1:])
    assert len(said) > 3


def test_what_was_degraded_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    found = SearchResult("q", "notes", 3, (), degraded=("unverified", "novel"), timings_ms={"embed": 12.4})
    search._print_how(found, 0.0204)
    assert capsys.readouterr().err.splitlines() == [
        "0 results from notes in 20 ms (embed 12)",
        "degraded: Postgres does not answer: these results are the index's own, and may be a little early or late",
        "degraded: novel",
    ]


def test_an_audit_says_what_a_fault_means_and_lists_it_where_that_is_wanted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = AuditReport("notes", expected=3, present=2, missing=1, arriving=4, listed={"missing": ["id-of-a-point"]})
    audit._print_report(report, True)
    assert capsys.readouterr().out.splitlines() == [
        "notes: not clean, 2 of 3 expected points are there",
        "  1 missing: chunks that a search should find are not in the index",
        "    id-of-a-point",
        "  4 arriving and 0 leaving, as they should",
        "  `millrace audit --repair` mends the index",
    ]
