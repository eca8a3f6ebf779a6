"""Log lines: one a record whatever is in it, with what is bound, without secrets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import observe
from pipeline.monitoring import lines as log_lines
from pipeline.monitoring import logs
from pipeline.settings import load_settings
from workers.cli.options import with_log_format
from workers.embedded.home import Home, Identity
from workers.embedded.stack import Stack


@pytest.fixture
def log(tmp_path: Path) -> Iterator[logging.Logger]:
    """A logger of ours that writes to `tmp_path / "log"`, and to nobody else."""
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    handler = logs.Lines(descriptor, owned=True)
    handler.setFormatter(logs.formatter("general1"))
    made = logging.Logger("millrace.test")  # known to nobody, pytest among them
    made.addHandler(handler)
    yield made
    handler.close()


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "log").read_bytes().split(b"\n")[:-1]]


def test_a_line_says_when_who_what_and_about_which_work(log: logging.Logger, tmp_path: Path) -> None:
    with observe.bound(job_id="j", correlation_id="c"), observe.bound(batch_id=7, batches="7 8"):
        log.info("embedded %d chunks", 3, extra={"seconds": 0.5})

    (line,) = lines(tmp_path)
    assert list(line)[:7] == list(log_lines.FIRST)
    assert (line["level"], line["logger"], line["event"]) == ("info", "millrace.test", "embedded 3 chunks")
    assert (line["process"], line["pid"], line["seconds"]) == ("general1", os.getpid(), 0.5)
    assert (line["job_id"], line["correlation_id"], line["batch_id"], line["batches"]) == ("j", "c", "7", ["7", "8"])
    assert set(line) == {*log_lines.FIRST, "job_id", "correlation_id", "batch_id", "batches", "seconds"}
    assert line["time"].endswith("Z")
    assert len(line["time"]) == len("2026-01-31T09:30:00.000Z")


def test_an_exception_is_a_field_of_its_line(log: logging.Logger, tmp_path: Path) -> None:
    try:
        raise RuntimeError("redis://:hunter2@there is away")
    except RuntimeError:
        log.exception("it failed")

    (line,) = lines(tmp_path)
    assert line["event"] == "it failed"
    assert "RuntimeError: redis://:***@there is away" in line["exception"]
    assert "Traceback" in line["exception"]


class _Broken:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def test_a_record_that_cannot_be_rendered_is_a_line_all_the_same(log: logging.Logger, tmp_path: Path) -> None:
    log.info("%d is no number", "x")
    log.info("said by %s", _Broken())
    log.info("with a field", extra={"field": _Broken()})
    log.info("a surrogate \ud800 and\nlines", extra={"numbers": {1, 2}, "nan": float("nan")})

    found = lines(tmp_path)
    assert [line["event"] for line in found[:3]] == ["%d is no number", "said by %s", "with a field"]
    assert [line["unrenderable"] for line in found[:3]] == ["TypeError", "RuntimeError", "RuntimeError"]
    assert (found[3]["event"], found[3]["nan"]) == ("a surrogate \ud800 and\nlines", "nan")


def test_a_log_that_cannot_be_written_stops_nobody(log: logging.Logger) -> None:
    (handler,) = log.handlers
    handler.close()
    log.info("nobody hears it")


@given(st.text(), st.dictionaries(st.text(min_size=1), st.one_of(st.text(), st.floats(), st.binary(), st.none())))
def test_any_record_is_one_line_of_json(event: str, extra: dict[str, Any]) -> None:
    record = logging.LogRecord("any", logging.INFO, "file", 1, event, (), None)
    record.__dict__.update({key: value for key, value in extra.items() if key not in record.__dict__})
    text = logs.formatter("any").format(record)

    assert "\n" not in text
    told = json.loads(text.encode("utf-8", "backslashreplace"))
    assert told["event"] or not event


def test_extra_fields_do_not_take_the_place_of_what_every_line_says(log: logging.Logger, tmp_path: Path) -> None:
    log.info("mine", extra={"pid": 1, "event": "theirs", "host": "elsewhere"})

    (line,) = lines(tmp_path)
    assert (line["event"], line["pid"], line["pid_"], line["host_"]) == ("mine", os.getpid(), 1, "elsewhere")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://me:pa/s@w0rd@host:5432/db is away", "postgresql://me:***@host:5432/db is away"),
        ("redis://:hunter2@localhost:6379/0", "redis://:***@localhost:6379/0"),
        ("MILLRACE_QDRANT__API_KEY=abc123 is set", "MILLRACE_QDRANT__API_KEY=*** is set"),
        ("https://host/x?token=abc&n=1", "https://host/x?token=***&n=1"),
        ("{'password': 'abc', 'n': 1}", "{'password': '***', 'n': 1}"),
        ("Authorization: Bearer abcdefghij.klm", "Authorization: Bearer ***"),
        ("the key sk-abcdefghijklmnop0123 was refused", "the key *** was refused"),
        ("signed with whsec_MTIzNDU2Nzg5MDEyMzQ1Njc4", "signed with ***"),
        ("384 tokens: 12 in 3 batches", "384 tokens: 12 in 3 batches"),
        ("file:///docs/a.md, https://example.org:8443/a@b", "file:///docs/a.md, https://example.org:8443/a@b"),
    ],
)
def test_secrets_are_masked_in_words(text: str, masked: str) -> None:
    assert logs.mask(text) == masked
    assert logs.mask(masked) == masked


def test_secrets_are_masked_in_fields(log: logging.Logger, tmp_path: Path) -> None:
    log.info("x", extra={"api_key": "a", "settings": {"redis": {"password": "b", "url": "redis://:c@d"}}, "tokens": 5})

    (line,) = lines(tmp_path)
    assert line["api_key"] == "***"
    assert line["settings"] == {"redis": {"password": "***", "url": "redis://:***@d"}}
    assert line["tokens"] == 5


def test_what_a_line_may_be_about_is_in_the_docs() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "logs.md").read_text("utf-8")

    assert [key for key in (*log_lines.FIRST, *observe.CONTEXT_KEYS) if f"`{key}`" not in docs] == []


def test_text_is_for_people() -> None:
    fields = {"time": "2026-01-31T09:30:00.000Z", "level": "warning", "logger": "millrace.task", "event": "it waits"}
    text = log_lines.for_people({**fields, "process": "general1", "pid": 7, "job_id": "j", "reason": "it is late"})

    assert text == '2026-01-31T09:30:00.000Z general1[7] warning  task: it waits  job_id=j reason="it is late"'
    assert log_lines.for_people({**fields, "exception": "Traceback\n  here"}).splitlines()[1:] == [
        "Traceback",
        "  here",
    ]


def test_what_is_bound_is_handed_on_to_a_thread_with_a_copy_of_the_context(log: logging.Logger, tmp_path: Path) -> None:
    with observe.bound(job_id="j"):
        handed_on = observe.context()
    thread = threading.Thread(target=lambda: _log_within(log, dict(handed_on)))
    thread.start()
    thread.join()

    assert lines(tmp_path)[0]["job_id"] == "j"


def _log_within(log: logging.Logger, ids: dict[str, str]) -> None:
    with observe.bound(**ids):
        log.info("from elsewhere")


_PROGRAM = """
import logging, os, sys, warnings
from pipeline import observe
from pipeline.monitoring import lines as log_lines
from pipeline.monitoring import logs

logs.configure(sys.argv[1], format=sys.argv[2], level=sys.argv[3])
observe.logger("task").debug("ours, in detail")
observe.logger("task").info("ours")
logging.getLogger("kombu.connection").error("theirs", extra={"data": {"id": 1}})
logging.getLogger("celery.app.trace").info("Task %(name)s succeeded", {"name": "x"})
logging.getLogger("celery.worker.job").error("failed", extra={"data": {"id": "t", "name": "embed.batch", "args": [1]}})
warnings.warn("old", stacklevel=1)
if os.fork() == 0:
    observe.logger("child").info("in the child")
    os._exit(0)
os.wait()
print([name for name in ("rich", "celery", "pydantic") if name in sys.modules])
"""


def _run(*arguments: str) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stderr.splitlines(), done.stdout.strip()


def test_a_process_is_configured_once_for_every_logger_and_its_children() -> None:
    written, loaded = _run("general1", "json", "info")
    found = [json.loads(line) for line in written]

    assert [line["event"].split("\n")[0] for line in found[:3]] == ["ours", "theirs", "failed"]
    assert [line["logger"] for line in found] == [
        "millrace.task", "kombu.connection", "celery.worker.job", "py.warnings", "millrace.child",
    ]  # fmt: skip
    assert {line["process"] for line in found} == {"general1"}
    assert (found[2]["task"], found[2]["task_id"]) == ("embed.batch", "t")
    assert "data" not in found[2]
    assert found[-1]["pid"] != found[0]["pid"]
    assert loaded == "[]", "logging costs no process an import that is not needed"


def test_the_level_is_one_for_all() -> None:
    assert [json.loads(line)["event"] for line in _run("a", "json", "error")[0]] == ["theirs", "failed"]
    everything = [json.loads(line)["event"] for line in _run("a", "json", "debug")[0]]
    assert "ours, in detail" in everything
    assert "Task x succeeded" in everything


def test_text_lines_are_written_as_text() -> None:
    written, _ = _run("general1", "text", "info")

    assert " info     task: ours" in written[0]
    assert "general1[" in written[0]


def test_what_is_typed_is_handed_to_the_parts(tmp_path: Path) -> None:
    settings = with_log_format(load_settings(home=tmp_path, logs={"level": "warning"}), "text")
    home = Home.at(tmp_path / "home")
    home.create()
    identity = Identity.of(home)
    identity.choose_ports(home)
    stack = Stack(home, identity, settings, 1, 1)

    for part in ("general1", "express", "beat", "flower"):
        environment = stack.parts()[part].env
        assert (environment["MILLRACE_LOGS__FORMAT"], environment["MILLRACE_LOGS__LEVEL"]) == ("text", "warning")
    assert stack.parts()["qdrant"].argv[-4:] == ("--log-format", "text", "--log-level", "warning")


def test_warnings_of_python_are_still_errors_here() -> None:
    with pytest.raises(UserWarning, match="old"):
        warnings.warn("old", stacklevel=1)
