"""Whoever waits for a job that is paused is told why nothing happens; where a budget has paused it, nobody waits."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paid_embedder import DIMENSIONS, MODEL, PaidEmbedder, paying
from services import enter
from workshop import COLLECTION, Workshop, chunked, paragraphs

from pipeline import AsyncClient, Settings
from pipeline.assembly import Services
from pipeline.duties import Bounds
from pipeline.errors import BudgetExhausted, InvalidRequest, WaitTimeout
from pipeline.reembedding import advance
from pipeline.status import JobStatus
from workers.cli.main import run

OVER_BUDGET = 4
PATIENCE_SECONDS = 60.0


@pytest.fixture
def workshop(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    """With a command line on its servers, which knows its provider."""
    paid = chunked(paying(settings))
    provider = PaidEmbedder(paid.openai)
    made = Workshop(paid, paid=provider)
    enter(paid, monkeypatch)

    def services(_: Settings) -> Services:
        return Services(paid, embedder=made.embedder, paid_embedder=provider)

    monkeypatch.setattr("pipeline.client.connection.Services", services)
    yield made
    made.close()


def over_budget(workshop: Workshop) -> JobStatus:
    """A job that a budget has paused."""
    job = workshop.index({"a": paragraphs("one", "two")}, provider="openai", max_cost=1e-9)
    assert job.state == "paused"
    return job


@contextmanager
def at_work(workshop: Workshop) -> Iterator[None]:
    """A worker beside the test."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            workshop.work()
            time.sleep(0.02)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join(PATIENCE_SECONDS)


# -- a budget ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ingest", "sync"])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_job_that_runs_over_its_budget_while_it_is_waited_for_ends_the_waiting(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, more: tuple[str, ...]
) -> None:
    (tmp_path / "a.txt").write_text("words that cost something")

    # When it is asked for with less than it costs
    with at_work(workshop):
        asked = [command, str(tmp_path), "--wait", "--provider", "openai", "--max-cost", "0.000000001", *more]
        assert run(asked) == OVER_BUDGET
    said = capsys.readouterr()

    # Then stderr says what was to be spent, the limit and how to go on, and the job is there, as it is
    (job,) = workshop.client.jobs()
    (line,) = [line for line in said.err.splitlines() if line.startswith("job ")]
    assert line.startswith(f"job {job.job_id} is not waited for any longer: it is paused: over budget: ")
    for words in ("$0.00 spent, of $0.0000000010", f"`millrace cost --set-budget USD --job {job.job_id}`", "resume"):
        assert words in line
    if more:
        told = json.loads(said.out)
        assert (told["job_id"], told["state"], told["waiting"]["state"]) == (str(job.job_id), "paused", "paused")
    else:
        assert "state      paused" in said.out

    # And it goes on when it may, and is waited for again
    workshop.client.set_budget(1.0, job_id=job.job_id)
    workshop.client.resume(job.job_id)
    with at_work(workshop):
        assert run(["wait", str(job.job_id)]) == 0


def test_what_is_over_its_budget_already_is_not_waited_for(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    job = over_budget(workshop)

    for more in ((), ("--timeout", "60"), ("--json",)):
        assert run(["wait", str(job.job_id), *more]) == OVER_BUDGET
        assert "not waited for any longer: it is paused: over budget" in capsys.readouterr().err
    assert run(["job", str(job.job_id)]) == 0, "it was not to be done by now"


def test_a_client_that_waits_is_told_of_a_budget_by_an_error(workshop: Workshop) -> None:
    job = over_budget(workshop)
    seen: list[JobStatus] = []

    for timeout in (None, 60.0):
        with pytest.raises(BudgetExhausted, match=f"job {job.job_id} is paused: over budget: .*resume {job.job_id}"):
            workshop.client.wait(job.job_id, timeout, seen.append)

    assert [(status.over_budget, status.paused) for status in seen] == [(True, True)] * 2
    assert workshop.client.job(job.job_id).state == "paused"


def test_an_asynchronous_client_too(workshop: Workshop) -> None:
    job = over_budget(workshop)

    async def wait() -> None:
        async with AsyncClient(services=workshop.services) as client:
            await client.wait(job.job_id)

    with pytest.raises(BudgetExhausted, match="over budget"):
        asyncio.run(wait())


def test_retried_letters_that_are_over_their_budget_are_not_waited_for(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a document that failed for good, and a tenant that has nothing left
    failing = workshop.services._given_paid
    assert isinstance(failing, PaidEmbedder)
    failing.fails["one"] = RuntimeError("broken")
    failed = workshop.index({"a": paragraphs("one")}, provider="openai")
    assert failed.state == "failed"
    failing.fails.clear()
    workshop.client.set_budget(0.0)

    with at_work(workshop):
        assert run(["retry", "--all", "--wait", "--json"]) == OVER_BUDGET

    said = capsys.readouterr()
    assert json.loads(said.out)["jobs"][0]["state"] == "paused"
    assert "not waited for any longer: it is paused: over budget" in said.err


def test_a_re_embedding_that_is_over_its_budget_is_not_waited_for(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given one that is not to cost anything
    workshop.index({"a": paragraphs("one", "two")})
    workshop.client.reembed(COLLECTION, MODEL, provider="openai", dimensions=DIMENSIONS, max_cost=0.0)
    advance(workshop.services, Bounds(100, 5.0), moment_seconds=0.0)
    workshop.work()

    for more in ((), ("--json",)):
        assert run(["reembed", COLLECTION, "--status", "--wait", *more]) == OVER_BUDGET
        assert "is not waited for any longer: it is paused: over budget" in capsys.readouterr().err


# -- a person ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_what_somebody_has_paused_is_waited_for_and_said_so_at_once(
    workshop: Workshop, capfd: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    # Given a job that is paused with its collection, and somebody who waits for it
    job = workshop.put({"a": paragraphs("one")})
    workshop.client.pause(collection=COLLECTION, reason="lunch")
    ended: list[int] = []
    waiting = threading.Thread(target=lambda: ended.append(run(["wait", str(job.job_id), *more])))
    waiting.start()

    # Then the reason is told, with what lets it go on, and once
    told, deadline = "", time.monotonic() + PATIENCE_SECONDS
    while "lunch" not in told:
        assert time.monotonic() < deadline, told
        time.sleep(0.02)
        told += capfd.readouterr().err
    assert f"collection {COLLECTION} is paused: lunch; `millrace resume` lets it go on" in told

    # When it is resumed, then it is done
    workshop.client.resume(collection=COLLECTION)
    workshop.work()
    waiting.join(PATIENCE_SECONDS)
    assert ended == [0]
    assert "lunch" not in capfd.readouterr().err


def test_who_cannot_enqueue_the_rest_of_a_paused_job_is_told_of_the_pause_too(settings: Settings) -> None:
    # Given a backlog that takes one group of documents, and a job that is paused as soon as it has some
    ingest = settings.ingest.model_copy(update={"max_staged_bytes": 1000, "group_bytes": 1000})
    workshop = Workshop(settings.model_copy(update={"ingest": ingest}))
    told: list[str] = []

    def on_staged(status: JobStatus) -> None:
        if not status.paused:
            workshop.client.pause(status.job_id, reason="lunch")
        elif status.waiting is not None and "staged" in status.waiting.reason:
            told.append(status.waiting.reason)
            workshop.client.cancel(status.job_id)

    # When the rest does not fit, then both are said, since the one is for ever where nobody ends the other
    with pytest.raises(InvalidRequest, match="cancelled"):
        workshop.put({f"{number}": "words " * 100 for number in range(20)}, on_staged=on_staged)
    assert told[0].startswith("paused: lunch; ")
    workshop.close()


def test_a_client_that_waits_logs_the_pause_and_a_timeout_names_it(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    job = workshop.put({"a": paragraphs("one")})
    workshop.client.pause(job.job_id, reason="lunch")

    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(WaitTimeout, match=r"is paused after 1 seconds \(paused: lunch\); `millrace resume`"),
    ):
        workshop.client.wait(job.job_id, 1.0)

    told = [message for message in caplog.messages if "is waited for" in message]  # a busy machine tells of slow steps
    assert told == [f"job {job.job_id} is waited for, and does not go on: paused: lunch"]
