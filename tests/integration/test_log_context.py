"""What log lines are about: from the application's call to the last upsert, over threads, by one correlation id."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services import enter
from workshop import PoisonedEmbedder, Workshop, chunked

from pipeline import Document, Settings, observe
from pipeline.errors import InvalidRequest
from pipeline.monitoring import logs
from pipeline.monitoring.lines import matches
from pipeline.observe import recorder
from pipeline.vectors.qdrant import QdrantStore
from tasks import sync
from workers.cli.main import run


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(chunked(settings))
    yield made
    made.close()


class Log:
    """The lines that are written while it is open, by whatever thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handler = logs.Lines(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), owned=True)
        self._handler.setFormatter(logs.formatter("test"))
        self._ours = logging.getLogger("millrace")
        self._level = self._ours.level
        self._slow_seconds = recorder.slow_seconds

    def open(self) -> None:
        self._ours.addHandler(self._handler)
        self._ours.setLevel(logging.DEBUG)
        recorder.slow_seconds = 0.0  # a busy machine's slow operations are told of in lines of their own

    def close(self) -> None:
        self._ours.removeHandler(self._handler)
        self._ours.setLevel(self._level)
        recorder.slow_seconds = self._slow_seconds
        self._handler.close()

    def lines(self, **wanted: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self._path.read_text().splitlines()]
        return [line for line in found if matches(line, wanted)]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "lines")
    made.open()
    yield made
    made.close()


def test_every_line_of_a_job_can_be_found_from_the_call_to_the_last_upsert(workshop: Workshop, log: Log) -> None:
    job = workshop.index({"notes/1": "One.", "notes/2": "Two."}, correlation_id="request-7")
    workshop.index({"notes/3": "Three."})

    assert job.correlation_id == "request-7"
    assert job.to_json()["correlation_id"] == "request-7"
    by_job, by_request = log.lines(job_id=str(job.job_id)), log.lines(correlation_id="request-7")
    assert [line["event"] for line in by_job] == [
        "ingest: 2 documents enqueued", "prepared 2 documents", "embedded and upserted 2 chunks",
    ]  # fmt: skip
    assert by_request == by_job
    assert {(line["collection"], line["tenant"]) for line in by_job} == {("notes", "default")}
    enqueued, prepared, embedded = by_job
    assert "batch_id" not in enqueued
    assert prepared["batch_id"] != embedded["batch_id"]
    assert embedded["size"] == 2
    assert 0 <= embedded["seconds"] < 60
    assert log.lines(batch_id=embedded["batch_id"]) == [embedded]


def test_lines_about_work_that_was_taken_together_name_all_of_it(workshop: Workshop, log: Log) -> None:
    first, second = (workshop.put({f"notes/{name}": name}, correlation_id=name) for name in ("one", "two"))
    workshop.prepare()
    ready = workshop.ready("embed")
    workshop.perform(ready[0].id)

    (line,) = [line for line in log.lines() if line.get("kind") == "embed"]
    assert line["batches"] == [str(batch.id) for batch in ready]
    assert sorted(line["jobs"]) == sorted([str(first.job_id), str(second.job_id)])
    assert line["correlation_ids"] == ["one", "two"]
    for job in (first, second):
        assert line in log.lines(job_id=str(job.job_id))
        assert line in log.lines(correlation_id=job.correlation_id or "")
    assert line in log.lines(batch_id=str(ready[1].id))


def test_a_thread_that_upserts_logs_about_the_same_work(
    workshop: Workshop, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsert = QdrantStore._upsert_bulk

    def told(store: QdrantStore, name: str, points: Any) -> None:
        observe.logger("elsewhere").info("in a thread of the upsert")
        upsert(store, name, points)

    monkeypatch.setattr(QdrantStore, "_upsert_bulk", told)
    job = workshop.index({"notes/1": "One."}, correlation_id="c")

    (line,) = [line for line in log.lines() if line["logger"] == "millrace.elsewhere"]
    assert (line["job_id"], line["correlation_id"]) == (str(job.job_id), "c")


def test_work_that_fails_says_whose_it_was(workshop: Workshop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    job = workshop.put({"notes/1": "One."}, correlation_id="c")
    monkeypatch.setattr(workshop.embedder, "embed", lambda *_: 1 / 0)
    workshop.prepare()
    workshop.perform(workshop.ready("embed")[0].id)

    (line,) = [line for line in log.lines(correlation_id="c") if line["level"] == "error"]
    assert line["job_id"] == str(job.job_id)
    assert "ZeroDivisionError" in line["exception"]


def test_what_is_bound_in_the_application_is_the_default(workshop: Workshop) -> None:
    with observe.bound(correlation_id="bound"):
        bound = workshop.put({"notes/1": "One."})
        given = workshop.put({"notes/2": "Two."}, correlation_id="given")
        deleted = workshop.client.delete(["notes/9"], collection="notes")
    unbound = workshop.put({"notes/3": "Three."})

    assert [job.correlation_id for job in (bound, given, deleted, unbound)] == ["bound", "given", "bound", None]


def test_a_request_again_under_its_key_keeps_the_first_correlation_id(workshop: Workshop) -> None:
    first = workshop.put({"notes/1": "One."}, idempotency_key="k", correlation_id="first")
    again = workshop.put({"notes/1": "One."}, idempotency_key="k", correlation_id="second")

    assert again.job_id == first.job_id
    assert again.correlation_id == "first"


@pytest.mark.parametrize("wrong", ["", "two words", "line\nfeed", "x" * 201, "nul\0"])
def test_a_correlation_id_that_no_log_line_can_carry_is_refused(workshop: Workshop, wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="correlation id"):
        workshop.put([Document("notes/1", "One.")], correlation_id=wrong)
    assert workshop.value("SELECT count(*) FROM jobs") == 0


def test_runs_of_a_schedule_carry_its(workshop: Workshop, log: Log, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("Alpha.")
    made = workshop.client.schedule(source, every="1h", collection="notes", correlation_id="nightly")
    sync.perform(workshop.services, made.id)
    workshop.work()

    (job,) = workshop.client.jobs()
    assert job.correlation_id == "nightly"
    lines = log.lines(correlation_id="nightly")
    assert lines[0]["event"] == "sync: 1 documents enqueued"
    assert (lines[0]["schedule_id"], lines[0]["job_id"]) == (str(made.id), str(job.job_id))
    assert lines[-1]["event"] == "embedded and upserted 1 chunks"


def test_a_retry_has_one_of_its_own(settings: Settings) -> None:
    work = settings.work.model_copy(update={"max_attempts": 1})
    shop = Workshop(chunked(settings).model_copy(update={"work": work}), PoisonedEmbedder("arsenic"))
    try:
        failed = shop.index({"notes/1": "Some arsenic."}, correlation_id="first")
        (again,) = shop.client.retry(job=failed.job_id, correlation_id="again").jobs
    finally:
        shop.close()

    assert (failed.correlation_id, again.correlation_id) == ("first", "again")


def test_the_command_line_gives_it_and_shows_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    enter(settings, monkeypatch)
    (tmp_path / "a.txt").write_text("Alpha.")

    assert run(["ingest", str(tmp_path / "a.txt"), "--correlation-id", "typed", "--json"]) == 0
    job = json.loads(capsys.readouterr().out)
    assert job["correlation_id"] == "typed"
    assert run(["job", job["job_id"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["correlation_id"] == "typed"
